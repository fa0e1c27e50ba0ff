"""Networks of our configurations as specimens: what their parts are is known, and small inputs of any grid are made.

Where a rule judges the architecture, the network is built with random weights; a very large one is built narrower and
shallower, with the same blocks, and `note` says so. Feature widths are the data's where they are known. Of a checkpoint
the weights are loaded where a question is about them.

B batch · C latent channels · L text tokens · N patches · h w grid in tokens
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.changes import changes
from dittool.audit.specimens.gates import wake
from dittool.audit.specimens.our_keys import key_effects
from dittool.audit.specimens.positions import OnGrids
from dittool.audit.specimens.specimen import (
    Gates,
    Grid,
    Guidance,
    Liveness,
    NotAnswered,
    Options,
    Positions,
    Precision,
    Scope,
    relative_change,
)
from dittool.audit.specimens.trial import (
    LARGEST_BUILT,
    CheckpointingSwitch,
    Network,
    Trial,
    kind_of_number,
)
from dittool.audit.specimens.watching import Inputs, answer
from dittool.config.architectures import AnyConfig
from dittool.config.schema import Config, SampleSettings
from dittool.models.alignment import drawing_weights, is_training_only
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions, Kept
from dittool.models.dit import DiT, patchify
from dittool.objective import flow
from dittool.sampling.latents import sample_latents

# for a preset without data; the rules' answers do not depend on them
USUAL_DIMS = {"text": 64, "image": 64, "latent_channels": 16}
TWIN_DEPTH, TWIN_HEADS = 2, 2
_NARROW = 16  # width of a network of any depth
_TEXT_TOKENS = 6
GRID: Grid = (2, 3)  # not square, so that a transposition shows
_GRIDS: tuple[Grid, ...] = ((3, 3), (2, 4), (4, 2), (1, 6))  # at which it must run
_MEASURED: tuple[Grid, ...] = ((3, 2), (4, 9))  # beside `GRID`
_BATCH = 4  # in which every dropout mode stands


Configured = TypeVar("Configured", bound=AnyConfig)


class OurNetwork(Trial[Network], Generic[Network, Configured]):
    """The network of a configuration, always with the same weights; a very large one as a twin."""

    def __init__(self, config: Configured, view: CheckpointView | None = None) -> None:
        self.config = config
        self.view = view  # whose weights it has

    @abstractmethod
    def _built(self, config: Configured) -> Network:
        """The network of a configuration."""

    def _smaller(self) -> dict[str, int]:
        """Keys of `[model]` that make a twin, all of whose parts are as wide as they are in the network."""
        return {}

    def _unanswered(self) -> str:
        return f"a network of the kind {self.config.model.arch}: the question is not of its family"

    @cached_property
    def _meta(self) -> Network:
        with torch.device("meta"):
            return self._built(self.config)

    def at_real_size(self) -> tuple[Network, Anatomy]:
        """On the meta device: names and shapes, no memory."""
        return self._meta, _anatomy(self.config)

    @cached_property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._meta.parameters())

    @property
    def note(self) -> str:
        if self.parameters <= LARGEST_BUILT:
            return ""
        depth, width = self._tried.model.depth, self._tried.model.width
        return f" (tried on a twin of depth {depth}, width {width}; the real one has {self.parameters:,} parameters)"

    @cached_property
    def _tried(self) -> Configured:
        return self.config if self.parameters <= LARGEST_BUILT else with_model(self.config, self._smaller())

    def fresh(self, seed: int = 0, **changes: object) -> Network:
        """`changes` are keys of `[model]`."""
        return self._seeded(with_model(self._tried, changes), seed)

    def _seeded(self, config: Configured, seed: int = 0) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._built(config).eval()

    @cached_property
    def anatomy(self) -> Anatomy:
        return _anatomy(self._tried)

    def gates(self) -> Gates:
        if self.view is not None:
            raise NotAnswered("training has opened the gates of a checkpoint; audit its preset instead")
        return replace(super().gates(), where=f"each of {len(self.blocks)} blocks")

    def _checkpointing_switch(self) -> CheckpointingSwitch[Network]:
        set_to = getattr(self.config.model, "gradient_checkpointing", False)
        says = set_to if isinstance(set_to, str) else "on" if set_to else "off"
        return CheckpointingSwitch(
            "", lambda wanted: self.awake(gradient_checkpointing=wanted), f"; the preset says {says}"
        )

    def precision(self) -> Precision:
        planned, model = self.config.train.precision, self.awake()
        done = self.training_pass(model, bf16=planned == "bf16")
        return Precision(
            planned,
            Counter(kind_of_number(parameter.dtype) for parameter in model.parameters()),
            Counter(kind_of_number(gradient.dtype) for gradient in done.gradients.values()),
            done.linear,
            int((~torch.isfinite(done.answer)).sum()),
            done.answer.numel(),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self._meta.state_dict())

    def trained(self) -> Network | None:
        """The network with the checkpoint's weights, the averaged ones where there are any; None when they do not fit
        its configuration, or when it is a preset's.
        """
        if self.view is None:
            return None
        weights = drawing_weights(self.view.weights())
        if _shapes(weights) != _shapes(self._meta.state_dict()):
            return None
        with torch.device("meta"):
            model = self._built(self.config)
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        return model.eval()

    def _live_network(self) -> tuple[Network, str]:
        """What conditions are tried on, and with which weights, in words."""
        if self.view is None:
            return self.shared_awake, f"with open gates{self.note}"
        model = self.trained()
        if model is None:
            raise NotAnswered("the weights do not fit the configuration (see K3)")
        return model.requires_grad_(True), "with the checkpoint's weights"


def _anatomy(config: AnyConfig) -> Anatomy:
    """Of both families' transformers: a list `blocks`, each with a `modulation` of its own or what adds to a shared
    one.
    """
    blocks = tuple(f"blocks.{index}" for index in range(config.model.depth))
    modulation: dict[str, tuple[str, ...]] = {block: (f"{block}.modulation",) for block in blocks}
    shared = getattr(config.model, "shared_modulation", False)
    return Anatomy(blocks, modulation, modulation, ("modulation",) if shared else ())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def with_model(config: Configured, changes: Mapping[str, object]) -> Configured:
    """The configuration with other keys of `[model]`, which are not validated."""
    return cast(Configured, config.model_copy(update={"model": config.model.model_copy(update=dict(changes))}))


class FlowNetwork(OurNetwork[DiT, Config]):
    """The rectified flow's transformer."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"model", "preset"})

    def __init__(self, config: Config, view: CheckpointView | None = None, dims: dict[str, int] | None = None) -> None:
        super().__init__(config, view)
        self._dims = dims

    @cached_property
    def dims(self) -> dict[str, int]:
        """Feature widths: `text`, `image` and `latent_channels`."""
        return self._dims or (self.view.dims(self.config) if self.view is not None else None) or USUAL_DIMS

    def _built(self, config: Config, to_train: bool = False) -> DiT:
        dims = self.dims
        return build_model(config, dims["text"], dims["image"], dims["latent_channels"], to_train)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what a checkpoint holds, the parts that only training needs among them."""
        with torch.device("meta"):
            return _shapes(self._built(self.config, to_train=True).state_dict())

    def no_longer_trained(self, step: int) -> frozenset[str]:
        until = self.config.repa.until
        is_over = until is not None and step > until * self.config.train.steps
        return frozenset(name for name in self.shapes() if is_over and is_training_only(name))

    def to_train(self, config: Config) -> DiT:
        """The network that a configuration trains on the same features: narrow, at its depth, with open gates."""
        narrow = with_model(config, {"width": _NARROW, "heads": TWIN_HEADS, "gradient_checkpointing": False})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self._built(narrow, to_train=True).train()
        wake(model, 0)
        return model

    def _smaller(self) -> dict[str, int]:
        model = self.config.model
        heads = min(TWIN_HEADS, model.heads)
        return {"depth": min(TWIN_DEPTH, model.depth), "heads": heads, "width": model.width // model.heads * heads}

    @cached_property
    def one_block(self) -> DiT:
        """The network at its real width with a single block and open gates: small enough whatever the depth."""
        model = self._seeded(with_model(self.config, {"depth": 1}))
        wake(model, 0)
        return model

    def with_config(self, config: Config) -> FlowNetwork:
        """Another configuration's network on the same features; itself when it is the same network."""
        return self if config.model == self.config.model else FlowNetwork(config, dims=self.dims)

    def flow(self) -> Config:
        return self.config

    def features(self) -> Config:
        return self.config

    def inputs(self, seed: int = 0, grid: Grid = GRID, batch: int = 2) -> Inputs:
        """Random latents, timesteps and conditions; the captions of a batch have different lengths."""
        generator = torch.Generator().manual_seed(seed)
        (rows, columns), p = grid, self.config.model.patch_size
        normal = partial(torch.randn, generator=generator)
        lengths = torch.tensor([_TEXT_TOKENS - i % 3 for i in range(batch)])
        mask = torch.arange(_TEXT_TOKENS)[None] < lengths[:, None]  # (B, L)
        text = normal((batch, _TEXT_TOKENS, self.dims["text"])) * mask[..., None]
        patches = normal((batch, rows * columns, self.dims["image"])) if self.config.model.patches else None
        conditions = Conditions(text, mask, normal((batch, self.dims["image"])), patches, grid)
        z = normal((batch, self.dims["latent_channels"], rows * p, columns * p))
        return {"z": z, "t": torch.rand(batch, generator=generator) * 0.8 + 0.1, "conditions": conditions}

    def _training_inputs(self, seed: int) -> Inputs:
        kept = flow.kept_conditions(torch.arange(_BATCH) % len(flow.MODES))
        return {**self.inputs(seed, batch=_BATCH), "kept": kept}

    def positions(self) -> Positions:
        p = self.config.model.patch_size
        grids = OnGrids(
            self.shared_awake,
            self.anatomy,
            "z",
            p,
            at_grid=self._without_added_patches,
            blank=lambda inputs, _tokens: {**inputs, "z": torch.zeros_like(inputs["z"])},
        )
        ran, problems = grids.grids_that_run(_GRIDS)
        found = Positions(ran=ran, problems=problems)
        if problems:
            return found
        measured = [
            grids.measured(GRID, other_weights=lambda: self.awake(seed=1)),
            *(grids.measured(grid, None) for grid in _MEASURED),
        ]
        if self.config.model.positions == "rope":
            turning = replace(grids, model=_RotaryAlone.of(self.shared_awake))
            measured += [turning.measured(grid, None) for grid in (GRID, *_MEASURED)]
        return replace(found, grids=measured, reference=self._reference_positions(grids))

    def _without_added_patches(self, grid: Grid) -> Inputs:
        """One sample whose patches, where they are added to its tokens, are equal."""
        inputs = self.inputs(grid=grid, batch=1)
        conditions: Conditions = inputs["conditions"]
        if conditions.patches is None or self.config.model.patch_fusion == "attended":
            return inputs
        equal = replace(conditions, patches=torch.zeros_like(conditions.patches))
        return {**inputs, "conditions": equal}

    @torch.no_grad()
    def _reference_positions(self, grids: OnGrids) -> float | None:
        """How far the positions of a reference's patches are from those of the tokens at the same places."""
        model = self.config.model
        if not (model.patches and model.patch_positions and model.patch_fusion == "attended"):
            return None
        inputs, tokens = grids.at_grid(GRID), grids.token_differences(GRID)  # (N, D)
        context = self.shared_awake.context(inputs["conditions"].map(torch.zeros_like), None, 1, GRID)
        patches = context.tokens[0, -len(tokens) :]  # they come last
        return float((patches - patches[0] - tokens).abs().max())

    def options(self) -> Options:
        return Options("keys", key_effects(self.config, self))

    def liveness(self) -> Liveness:
        model, weights = self._live_network()
        if not model.output.weight.any():
            raise NotAnswered("the output layer is still zero: nothing can show before the first update")
        inputs = self.inputs(batch=_BATCH)
        everything = torch.ones(_BATCH, dtype=torch.bool)
        hidden, dropped = _hidden_texts(inputs["conditions"])
        leaks = changes(model, {**inputs, "kept": Kept(everything, everything)}, hidden)
        leaks |= changes(model, {**inputs, "kept": Kept(~everything, everything)}, dropped)
        with torch.no_grad():  # before training: a question of the code, not of the weights
            embedding = self.fresh().timestep(torch.linspace(0, 1, 101))
        return Liveness(
            changes(model, inputs, _exchanged(inputs)),
            self.dead_parameters(model),
            weights,
            leaks,
            "no length leaks",
            turns={1.0: relative_change(embedding[:-20], embedding[20:])},
            unit_time=True,
        )

    @torch.no_grad()
    def branch(self, text: bool, reference: bool) -> Tensor:
        inputs = self.inputs()
        batch = len(inputs["z"])
        kept = Kept(torch.full((batch,), text), torch.full((batch,), reference))
        return answer(self.shared_awake, {**inputs, "t": torch.ones(batch), "kept": kept})

    @torch.no_grad()
    def guided(self, kind: Guidance, text: float, reference: float) -> Tensor:
        """One Euler step from 1 to 0 is z − v."""
        inputs = self.inputs()
        settings = SampleSettings(solver="euler", steps=1, cfg_text=text, cfg_dino=reference, guidance=kind, shift=1.0)
        return inputs["z"] - sample_latents(self.shared_awake, inputs["conditions"], inputs["z"], settings)


class _RotaryAlone(DiT):
    """A network without the positions that are added to its tokens, so that what attention knows of places shows."""

    @classmethod
    def of(cls, model: DiT) -> _RotaryAlone:
        """With this network's weights."""
        same = cls(model.config)
        same.load_state_dict(model.state_dict())
        return same.eval()

    def tokens(self, z: Tensor) -> Tensor:
        return self.patch_embedding(patchify(z, self.config.patch_size))


def _exchanged(inputs: Inputs) -> dict[str, Inputs]:
    """For each condition, what differs when each sample has another's."""
    conditions: Conditions = inputs["conditions"]
    text, cls, patches = conditions.text, conditions.cls, conditions.patches
    others: dict[str, Inputs] = {}
    if text is not None:
        others["text"] = {"conditions": replace(conditions, text=-text)}
    if cls is not None:
        others["CLS"] = {"conditions": replace(conditions, cls=cls.roll(1, 0))}
    if patches is not None:
        others["patches"] = {"conditions": replace(conditions, patches=patches.roll(1, 0))}
    return {**others, "t": {"t": 1 - inputs["t"]}}


def _hidden_texts(conditions: Conditions) -> tuple[dict[str, Inputs], dict[str, Inputs]]:
    """What differs and must not show: where the text is kept, and where it is dropped."""
    text, mask = conditions.text, conditions.text_mask
    if text is None or mask is None:
        return {}, {}
    padding = replace(conditions, text=torch.where(mask[..., None], text, 1.0))
    shorter = replace(conditions, text_mask=mask & (torch.arange(mask.shape[1]) < 2))
    return {"text under the mask": {"conditions": padding}}, {
        "length of a dropped text": {"conditions": shorter},
        "content of a dropped text": {"conditions": replace(conditions, text=-text)},
    }
