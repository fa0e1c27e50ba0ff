"""What can be configured: one section, one class. Every key acts on something; unknown keys are errors.

Values are checked here one by one and, where one depends on another, section by section. Reading files,
overrides and the wording of errors is `load.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dittool.config.features import Data, Encoders
from dittool.config.judging import Validate
from dittool.config.learning import Repa, Tread
from dittool.config.values import (
    Counted,
    Positive,
    PositiveFloat,
    Section,
    Share,
    Shift,
    Whole,
    require,
    whole_number,
)

# Pairs of keys of which exactly one is given: a derived preset or an override that gives the one takes the other away.
EXCLUSIVE: dict[tuple[str, ...], str] = {
    ("data", "area"): "buckets",
    ("data", "buckets"): "area",
    ("train", "batch_size"): "tokens_per_batch",
    ("train", "tokens_per_batch"): "batch_size",
}


class Model(Section):
    """The transformer. Widths of the text and image features come from the data's identity card, not from here."""

    arch: Literal["dit"] = "dit"
    depth: Positive
    width: Positive  # divisible by heads and, for the sin-cos positions, by 4
    heads: Positive
    patch_size: Positive = 2  # latent cells along one side of a token
    mlp: Literal["gelu", "swiglu"] = "gelu"  # swiglu: a gate beside each hidden value, with as many parameters
    mlp_ratio: PositiveFloat = 4.0  # hidden width of gelu over the model's
    norm: Literal["layer", "rms"] = "layer"  # of tokens, in front of each branch
    qk_norm: bool = False  # RMS-norm of queries and keys
    # sin-cos added to the latent's tokens; rope: queries and keys of self-attention are turned as well
    positions: Literal["sincos", "rope"] = "sincos"
    shared_modulation: bool = False  # one projection for all blocks and an offset for each, instead of one each
    patches: bool = True  # the model reads the reference's patch tokens
    # they join the cross-attention context, or each is added to the latent's token at its place
    patch_fusion: Literal["attended", "added"] = "attended"
    patch_positions: bool = True  # sin-cos positions added to attended patches
    context_norm: bool = False  # RMS-norm of caption, CLS and patches behind their projections
    context_balance: bool = False  # the three weigh the same in attention at step 0, however many tokens they are
    # first weights of the timestep's MLP: of deviation 0.02, or as large as all others, near the CLS part of c
    time_init: Literal["small", "xavier"] = "small"
    # recompute each block in backward; "selective": all of it but attention
    gradient_checkpointing: bool | Literal["selective"] = False

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        head = self.width // self.heads
        require(
            (self.width % self.heads == 0, f"width {self.width} is not divisible by heads {self.heads}"),
            (self.width % 4 == 0, f"width {self.width} is not divisible by 4, which the 2-D sin-cos positions need"),
            (
                self.positions == "sincos" or head % 4 == 0,
                f'a head of {head} channels is not divisible by 4, which positions = "rope" needs',
            ),
            (
                self.patches or self.patch_positions,
                "patch_positions = false has no effect when patches = false; remove it",
            ),
            (
                self.patches or self.patch_fusion == "attended",
                'patch_fusion = "added" has no effect when patches = false; write patch_fusion = "attended"',
            ),
            (
                self.patch_fusion == "attended" or self.patch_positions,
                'patch_positions = false has no effect when patch_fusion = "added"; remove it',
            ),
        )
        return self


class Flow(Section):
    timestep_sampling: Literal["logit_normal", "uniform", "mode", "cosmap"] = "logit_normal"
    # t' = shift·t / (1 + (shift − 1)·t): above 1 spends more steps near noise; per-bucket: by the latent's cells
    shift: Shift = 1.0


class Dropout(Section):
    """Shares of training samples by which conditions they KEEP."""

    none: Share
    text_only: Share
    reference_only: Share
    both: Share

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of `objective.flow.MODES`."""
        return self.none, self.text_only, self.reference_only, self.both

    @model_validator(mode="after")
    def _sums_to_one(self) -> Dropout:
        total = sum(self.shares)
        require((abs(total - 1) <= 1e-6, f"the four shares sum to {total:g}, not 1"))
        return self


# of the run in docs/results.md; nothing else was tried
MUON_DEFAULTS = {"muon_lr": 0.02, "muon_momentum": 0.95, "muon_weight_decay": 0.003}


class Train(Section):
    """A step is one optimizer update, everywhere."""

    steps: Positive
    batch_size: Positive | None = None  # samples in one micro-batch, over all processes together …
    # … or its latent tokens at most: each bucket then has a batch size of its own
    tokens_per_batch: Positive | None = None
    # with tokens_per_batch: batch sizes are multiples of it (default 1); of the number of processes
    batch_multiple: Positive | None = None
    accumulate: Positive = 1  # micro-batches in one step
    lr: PositiveFloat = 3e-4  # peak
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    lr_halved: bool = False  # lr was halved by --init already, which does so once
    warmup_steps: Counted = 0
    # of the rate behind the warm-up: half a cosine, no change, or no change until a cooldown to min_lr
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    cooldown_steps: Positive | None = None  # of wsd, the last steps; a fifth of all by default
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of the blocks' matrices, AdamW of the rest
    muon_lr: PositiveFloat | None = None  # peak rate of these matrices, on the schedule of lr
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    muon_weight_decay: Annotated[float, Field(ge=0)] | None = None
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    clip: PositiveFloat = 1.0  # largest norm of the whole gradient
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 master weights
    # torch.compile of the blocks: slower first steps, faster others; "gpu": where there is one
    compile: bool | Literal["gpu"] = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: whole copies in each process, or a part in each (FSDP2)
    # so many updates whose loss or gradient is not finite are left out; the next one ends the run
    skip_nonfinite: Counted = 0
    seed: Counted = 0
    # another number draws other first weights; order of data, noise, timesteps and dropout stay those of seed
    init_draw: Counted = 0
    workers: Counted = 0  # processes that read batches; 0 reads in the training process
    log_every: Positive = 10
    eval_every: Counted = 0  # steps between evaluation losses on the hold-out; 0: none
    sample_every: Counted = 0  # steps between pictures drawn on the way; 0: none
    # what gets log and pictures too, NAME or NAME:PROJECT: tensorboard, wandb, mlflow, or a plugin's
    trackers: list[Annotated[str, Field(min_length=1)]] = Field(default=["tensorboard"])
    wandb: Annotated[str, Field(min_length=1)] | None = None  # a project: the same as "wandb:PROJECT" in trackers

    @model_validator(mode="before")
    @classmethod
    def _cooldown(cls, values: object) -> object:
        """wsd without a length of its cooldown has a fifth of the steps."""
        if not isinstance(values, dict) or values.get("schedule") != "wsd" or values.get("cooldown_steps") is not None:
            return values
        steps = whole_number(values.get("steps"))
        return values | {"cooldown_steps": max(steps // 5, 1)} if isinstance(steps, int) else values

    @model_validator(mode="before")
    @classmethod
    def _muon_defaults(cls, values: object) -> object:
        """Its keys have values only where it acts."""
        if not isinstance(values, dict) or values.get("optimizer") != "muon":
            return values
        return values | {key: value for key, value in MUON_DEFAULTS.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _schedule(self) -> Train:
        without_effect = [key for key in MUON_DEFAULTS if self.optimizer == "adamw" and getattr(self, key) is not None]
        require(
            (not without_effect, f'{", ".join(without_effect)} has no effect without optimizer = "muon"'),
            (
                self.warmup_steps < self.steps,
                f"warmup_steps {self.warmup_steps} must be below steps {self.steps}, or the learning rate only rises",
            ),
            (
                self.schedule == "wsd" or self.cooldown_steps is None,
                'cooldown_steps has no effect without schedule = "wsd"',
            ),
            (
                self.warmup_steps + (self.cooldown_steps or 0) <= self.steps,
                f"warmup_steps {self.warmup_steps} and cooldown_steps {self.cooldown_steps} are more than steps"
                f" {self.steps}",
            ),
            (self.min_lr <= self.lr, f"min_lr {self.min_lr:g} is above lr {self.lr:g}"),
            (
                (self.batch_size is None) != (self.tokens_per_batch is None),
                "exactly one of batch_size and tokens_per_batch must be given",
            ),
            (
                self.batch_multiple is None or self.tokens_per_batch is not None,
                "batch_multiple has no effect without tokens_per_batch",
            ),
        )
        return self


class Ema(Section):
    target: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: Literal["power", "linear"] = "power"  # power: (1+n)/(10+n); linear: 0 to target over warmup_steps
    warmup_steps: Positive | None = None
    # relative widths of further averages in each checkpoint, from which one of any length is made afterwards
    averages: list[Annotated[float, Field(gt=0, le=0.25)]] = Field(default=[])

    @model_validator(mode="after")
    def _warmup(self) -> Ema:
        require(
            (len(set(self.averages)) == len(self.averages), "a width stands in averages twice"),
            (self.warmup != "linear" or self.warmup_steps is not None, 'warmup = "linear" needs warmup_steps'),
            (
                self.warmup != "power" or self.warmup_steps is None,
                'warmup_steps has no effect with warmup = "power"; remove it or set warmup = "linear"',
            ),
        )
        return self


class Checkpoint(Section):
    every: Positive = 1000  # steps
    background: bool | Literal["gpu"] = "gpu"  # written beside the steps, from a copy; "gpu": where there is one
    keep: Annotated[Whole, Field(ge=2)] = 3  # the newest so many stay
    keep_every: Counted = 0  # and every so many steps one for good; 0: none


DEFAULT_STRENGTH = 0.6  # how much of an image to begin with (`dit sample --init`) is drawn anew


class Sample(Section):
    """How images are drawn: docs/sampling.md. The options of `dit sample` show these descriptions."""

    solver: Annotated[
        Literal["euler", "heun", "ab2"], Field(description="heun evaluates twice a step, the others once.")
    ] = "euler"
    steps: Annotated[Positive, Field(description="Steps of the solver.")] = 50
    cfg_text: Annotated[float, Field(ge=0, description="Guidance scale of the prompt.")] = 3.0
    cfg_dino: Annotated[float, Field(ge=0, description="Guidance scale of the reference.")] = 2.0
    guidance: Annotated[
        Literal["additive", "nested", "joint"], Field(description="How the two scales combine: docs/sampling.md.")
    ] = "additive"
    guidance_interval: Annotated[
        list[Share],
        BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value),  # of callers from Python
    ] = Field(
        default=[0.0, 1.0],
        min_length=2,
        max_length=2,
        description="Times t with guidance; 1 is noise, 0 the image.",
    )
    guidance_parallel: Annotated[Share, Field(description="Share of guidance along the image that stays; APG: 0.")] = (
        1.0
    )
    guidance_norm: Annotated[PositiveFloat | None, Field(description="Largest move of a latent by it, rms.")] = None
    guidance_momentum: Annotated[
        float, Field(gt=-1, lt=1, description="Of the guidance before, so much is added; APG has -0.5.")
    ] = 0.0
    cfg_weak: Annotated[float, Field(ge=1, description="Guidance scale away from --weak or --weak-routed.")] = 2.0
    weak_routed: Annotated[
        float, Field(ge=0, lt=1, description="The model itself as the weak one, with so many tokens routed.")
    ] = 0.0

    @model_validator(mode="after")
    def _interval(self) -> Sample:
        low, high = self.guidance_interval
        require(
            (
                low <= high,
                (
                    f"guidance_interval [{low:g}, {high:g}] ends before it begins; t runs from 0, the image, to 1, the"
                    " noise"
                ),
            )
        )
        return self


class Config(Section):
    description: str
    model: Model
    encoders: Encoders
    data: Data
    flow: Flow = Flow()
    dropout: Dropout
    train: Train
    repa: Repa = Repa()
    tread: Tread = Tread()
    ema: Ema = Ema()
    checkpoint: Checkpoint = Checkpoint()
    sample: Sample = Sample()
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()

    @property
    def reads_patches(self) -> bool:
        """Whether training reads the reference's patches: the model does, or the alignment with them."""
        return self.model.patches or self.repa.weight > 0

    @property
    def aligned_block(self) -> int | None:
        """Counted from 1; None without an alignment."""
        return self.repa.block or max(round(self.model.depth * 2 / 7), 1) if self.repa.weight > 0 else None

    @model_validator(mode="after")
    def _fits_depth(self) -> Config:
        depth, dropped = self.model.depth, self.dropout.none + self.dropout.text_only
        first, last = self.tread.first or 1, self.tread.blocks(depth)[1]
        require(
            ((self.repa.block or 1) <= depth, f"repa.block {self.repa.block} is none of the model's {depth}"),
            (
                self.repa.weight == 0 or dropped > 0,
                "repa.weight has no effect when every sample keeps its reference: give dropout.none or"
                " dropout.text_only a share",
            ),
            (first <= (self.tread.last or depth), f"tread.first {first} is behind tread.last {self.tread.last}"),
            (
                self.tread.share == 0 or max(first, self.tread.last or last) < depth,
                f"tread: the last block that tokens skip must be one before the model's last, {depth}",
            ),
        )
        return self


# younger than the first pictures
LATER_SETTINGS = ("guidance_parallel", "guidance_norm", "guidance_momentum", "weak_routed")


class SampleSettings(Sample):
    """How to sample: `[sample]` and the shift of `[flow]` as one value, which the options of `dit sample`, the keywords
    of `Pipeline` and the settings inside a picture follow. Raises pydantic's ValidationError for an impossible value.
    """

    shift: Shift  # of the time grid: `flow.shift`

    @classmethod
    def of(cls, config: Config) -> SampleSettings:
        """A run's own."""
        return cls(**config.sample.model_dump(), shift=config.flow.shift)

    def changed(self, changes: Mapping[str, object]) -> SampleSettings:
        """These with other values for some fields."""
        return SampleSettings.model_validate({**self.model_dump(), **changes})

    def to_json(self) -> dict[str, object]:
        """In the order of the first pictures; what came later is last, where it acts, `cfg_weak` beside its model."""
        later = {name: getattr(self, name) for name in LATER_SETTINGS}
        plain = {name: value for name, value in self if name not in {"guidance_interval", "cfg_weak", *later}}
        changed = {name: value for name, value in later.items() if value != Sample.model_fields[name].default}
        scale = {"cfg_weak": self.cfg_weak} if self.weak_routed else {}
        return {**plain, "guidance_interval": self.guidance_interval, **changed, **scale}
