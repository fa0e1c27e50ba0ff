"""A checkpoint as the audit sees it: checked before anything in it is loaded, its tensors mapped from the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dittool.audit.specimens.known_layouts import Layout, find_layout
from dittool.audit.specimens.layouts import describe
from dittool.ckpt.opened import Opened, open_checkpoint
from dittool.ckpt.parts import Part
from dittool.ckpt.weights import choose_part, weights_of
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict
from dittool.config.schema import Config
from dittool.errors import BadDataError, UsageError
from dittool.objective.schedule import in_optimizer_order

Moments = Mapping[str, Mapping[str, Tensor]]  # what the optimizer keeps of each parameter
ADAMW, MUON = frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset({"momentum"})


def gradient_mean(moments: Mapping[str, Tensor]) -> Tensor:
    """The running mean of a parameter's gradients, which both keep."""
    return moments["momentum"] if "momentum" in moments else moments["exp_avg"]


@dataclass(frozen=True)
class CheckpointView:
    """One checkpoint: a file, an index of several, or a folder."""

    path: Path
    resolved: AnyConfig | None = None  # what the run's folder says that it trains, where the file stands in one

    @cached_property
    def opened(self) -> Opened:
        """What was checked. Raises `UnsafeFileError` or `BadDataError` for what this program does not load."""
        return open_checkpoint(self.path)

    @property
    def weights_only_file(self) -> bool:
        return self.opened.weights_only

    @cached_property
    def content(self) -> dict[str, Any]:
        """The file's dict; of a `.safetensors` file, or of several files, its tensors."""
        entries = dict(self.opened.entries)
        return self.opened.load(entries) if entries else {"content": self.opened.load(self.opened.content)}

    @cached_property
    def part(self) -> Part | None:
        """Which part of the file its weights are; None when it has none."""
        try:
            return choose_part(self.opened.content, self.path)
        except BadDataError:
            return None

    @property
    def ours(self) -> bool:
        """Whether `dit train` wrote it, with its training state."""
        return "format_version" in self.opened.entries

    @cached_property
    def _remembered(self) -> tuple[AnyConfig | None, str]:
        """The configuration that the file holds, or why that cannot be used; neither when it holds none."""
        try:
            if self.weights_only_file:
                tree = json.loads(self.opened.metadata.get("config", "null"))
            else:
                tree = self.content.get("config") if self.ours else None
            return config_from_dict(tree, str(self.path)) if isinstance(tree, dict) else None, ""
        except UsageError as error:
            return None, error.message
        except (ValueError, RecursionError):
            return None, ""  # somebody else's metadata

    @property
    def config(self) -> AnyConfig | None:
        """What the checkpoint remembers of its configuration; None when that is nothing, or nothing valid (see
        `config_problem`).
        """
        return self._remembered[0]

    @property
    def config_problem(self) -> str:
        """Why the remembered configuration cannot be used, "" when it can or when there is none."""
        return self._remembered[1]

    @cached_property
    def layout(self) -> Layout | None:
        """Which published family's names the weights have; None for our own and for unknown ones."""
        try:
            return None if self.ours or self.config is not None else find_layout(self.weights())
        except BadDataError:
            return None  # no weights under any usual key

    @property
    def structure(self) -> str:
        """What the shapes of its weights tell of the network."""
        return describe(self.weights())

    @property
    def step(self) -> int:
        """Updates made. Only for our own checkpoints."""
        return self.content["step"]

    @property
    def data(self) -> dict[str, Any]:
        """What it remembers of its data; empty when nothing."""
        found = self.content.get("data") if self.ours else None
        return found if isinstance(found, dict) else {}

    def dims(self, config: Config) -> dict[str, int] | None:
        """Feature widths that the model was built with, remembered or read off the weights; None when they are of
        another kind of network.
        """
        if dims := self.data.get("dims"):
            return dims
        weights = self.weights()
        text, image, patch = (
            weights.get(name) for name in ("conditioning.null_text", "conditioning.null_dino", "patch_embedding.weight")
        )
        if text is None or image is None or patch is None:
            return None
        return {"text": len(text), "image": len(image), "latent_channels": patch.shape[1] // config.model.patch_size**2}

    def weights(self, key: str | None = None) -> Mapping[str, Tensor]:
        """The tensors under "ema" or "model"; by default those that sampling takes."""
        if key is not None:
            return self.content[key]
        return self._taken

    @cached_property
    def _taken(self) -> Mapping[str, Tensor]:
        return weights_of(self.opened)

    def moments(self) -> Moments | None:
        """What the optimizer keeps of each parameter by name, `ADAMW` or `MUON`; None when there is none, or it does
        not fit the parameters.

        AdamW counts parameters through its groups, the decayed ones first; Muon names them (`train/optim.py`).
        """
        weights, optimizer = self.content["model"], self.content.get("optimizer", {})
        of_muon = optimizer.get("muon", {}).get("momentum", {})
        dimensions = {name: weight.dim() for name, weight in weights.items()}
        order = in_optimizer_order(dimensions, "muon" if of_muon else "adamw")
        state = optimizer.get("state", {})
        if sorted(state) != list(range(len(order))):
            return None
        named = {name: state[index] for index, name in enumerate(order)}
        named |= {name: {"momentum": momentum} for name, momentum in of_muon.items()}
        fit = named.keys() == weights.keys() and all(
            part.shape == weights[name].shape
            for name, parts in named.items()
            for key, part in parts.items()
            if key != "step"
        )
        return named if fit else None
