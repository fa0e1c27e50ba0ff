"""What is audited: a preset, a checkpoint, a run, shards, a derived folder or a foreign model. Parts are read when a
rule asks for them.

A subject has up to four parts, and a rule's SCOPE says which it needs: `preset`, a configuration; `model`, a network
that can be built or loaded; `checkpoint`, a file of weights; `data`, features. A one-step generator's network is a
`generator` instead, and its configuration a `plan`: steps, rates and averages, which every family has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.data_view import DataView, open_derived, open_shards
from dittool.audit.specimens.foreign.factory import load_attribute, load_factory
from dittool.audit.specimens.foreign.model import ForeignModel
from dittool.audit.specimens.generator import GeneratorProbe, probe_of
from dittool.audit.specimens.ours import ModelProbe
from dittool.ckpt.files import list_checkpoints, newest_checkpoint
from dittool.config.load import load_config
from dittool.config.presets import preset_names
from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, UsageError
from dittool.models.dit import DiT

PRESET, CHECKPOINT, RUN, SHARDS, DERIVED, FOREIGN = "preset", "checkpoint", "run", "shards", "derived", "foreign model"


@dataclass(frozen=True)
class Subject:
    """One target of the audit."""

    target: str
    kind: str  # one of the six above
    config: Config | None = None  # the preset's, the run's, or the one that the checkpoint remembers
    checkpoint: CheckpointView | None = None
    data: DataView | None = None
    expected: Config | None = None  # of --preset: what the target should fit
    foreign: ForeignModel | None = None  # somebody else's, behind the factory that the target names

    @property
    def parts(self) -> set[str]:
        """Which scopes of rules apply."""
        if self.is_one_step:
            network = {"generator", "plan"} if self.config.model.arch == "drift" else {"plan"}
            return network | ({"checkpoint"} if self.checkpoint is not None else set())
        present = {
            "preset": self.config,
            "model": self.foreign or self.config,
            "checkpoint": self.checkpoint,
            "data": self.data,
        }
        return {name for name, part in present.items() if part is not None}

    @property
    def is_one_step(self) -> bool:
        """Whether it is of the second family of models."""
        return self.config is not None and self.config.model.arch != "dit"

    def fits(self, scopes: Iterable[str]) -> bool:
        """Whether a rule of these scopes can judge it. One that knows the first family's networks alone cannot
        judge a generator's weights.
        """
        of_the_other_family = self.is_one_step and "model" in scopes and "generator" not in scopes
        return not self.parts.isdisjoint(scopes) and not of_the_other_family

    @property
    def without_configuration(self) -> bool:
        """Whether it is a checkpoint that does not say what network it holds."""
        return self.checkpoint is not None and self.config is None

    @cached_property
    def probe(self) -> ModelProbe | GeneratorProbe:
        """The configuration's network, to be tried out. Only for subjects with the part `model`."""
        if self.config is None:
            raise ValueError(f"{self.target} has no configuration to build a network from")
        return probe_of(self.config, self.checkpoint.dims(self.config) if self.checkpoint else None)

    def trained_model(self) -> DiT | None:
        """The network with the checkpoint's weights, the averaged ones where there are any; None when they do not
        fit its configuration.
        """
        model = self.probe.at_real_size()
        weights, wanted = self.checkpoint.weights(), model.state_dict()
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in wanted.items()
        }:
            return None
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        return model.eval()


def open_subject(
    target: str, preset: str | None = None, kwargs: str | None = None, example: str | None = None, talk: Talk = SILENT
) -> Subject:
    """The subject that a target's text names.

    Args:
        preset: of --preset, what a checkpoint or data should fit.
        kwargs: of --kwargs, a JSON object, the keyword arguments of a model factory.
        example: of --example, `file.py:function` that makes the inputs of the factory's model.

    Raises `UsageError` for a target of no known kind, `BadDataError` and `UnsafeFileError` for a file that is refused.
    """
    if _names_a_factory(target):
        function = None if example is None else load_attribute(example)
        return Subject(target, FOREIGN, foreign=ForeignModel(load_factory(target, kwargs), function))
    if kwargs is not None or example is not None:
        raise UsageError(
            f"{target}: --kwargs and --example belong to a model factory",
            "name it as file.py:Name or package.module:Name",
        )
    expected = None if preset is None else load_config(preset)
    path = Path(target)
    if path.is_dir():
        return _open_folder(path, expected, talk)
    if path.suffix in (".pt", ".safetensors"):
        return _open_checkpoint(path, expected)
    if path.suffix == ".toml" or target in preset_names() or not path.exists():
        return _open_preset(target, expected)
    raise UsageError(f"{target}: not a checkpoint, which ends in .pt or .safetensors", _KINDS)


_KINDS = (
    "audit a preset's name, a .toml, a .pt, a .safetensors, a run's folder, a shards or a derived folder, or a model as"
    " file.py:Name"
)


def _names_a_factory(target: str) -> bool:
    """`file.py:Name` or `package.module:Name`."""
    module, colon, name = target.rpartition(":")
    return (
        bool(colon)
        and name.isidentifier()
        and (module.endswith(".py") or all(part.isidentifier() for part in module.split(".")))
    )


def _open_preset(target: str, expected: Config | None) -> Subject:
    if "/" in target and not target.endswith(".toml"):
        raise UsageError(f"{target}: no such file or folder", _KINDS)
    if expected is not None:
        raise UsageError(
            f"{target}: --preset says what a checkpoint or data should fit, and this is itself a preset",
            "leave --preset out",
        )
    return Subject(target, PRESET, config=load_config(target))


def _open_checkpoint(path: Path, expected: Config | None) -> Subject:
    view = CheckpointView(path)
    view.require_safe()
    return Subject(str(path), CHECKPOINT, view.config, view, expected=expected)


def _open_folder(path: Path, expected: Config | None, talk: Talk) -> Subject:
    if (path / "records.jsonl").is_file():
        return Subject(str(path), DERIVED, data=open_derived(path), expected=expected)
    if (path / "resolved.toml").is_file() or (path / "checkpoints").is_dir() or list_checkpoints(path):
        return _open_run(path, expected, talk)
    if (path / "index.json").is_file() or any(path.glob("**/*.tar")):
        return Subject(str(path), SHARDS, data=open_shards(path), expected=expected)
    seen = "resolved.toml, index.json, records.jsonl, *.tar"
    raise BadDataError(f"{path}: neither a run, nor shards, nor a derived folder: it holds none of {seen}", _KINDS)


def _open_run(path: Path, expected: Config | None, talk: Talk) -> Subject:
    """A run is its newest valid checkpoint; before the first one it is its configuration."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    resolved = path / "resolved.toml"
    written = load_config(str(resolved)) if resolved.is_file() else None
    if not list_checkpoints(folder):
        if written is None:
            raise BadDataError(
                f"{path}: a run without a checkpoint and without resolved.toml",
                "train first with: dit train --preset P",
            )
        return Subject(str(path), RUN, written, expected=expected)
    view = CheckpointView(newest_checkpoint(folder, talk).path, resolved=written)
    view.require_safe()
    return Subject(str(path), RUN, view.config or written, view, expected=expected)
