"""What can be configured for the one-step generator and its toy, beside the sections that they share with `schema.py`.

Which of the schemas a preset has, `model.arch` decides: `architectures.py`. Sections of another schema are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dittool.config.features import CaptionPlace, Data, Encoders
from dittool.config.schema import Checkpoint, Ema, Train
from dittool.config.values import Counted, Positive, PositiveFloat, Section, Share, Size, Whole, require
from dittool.geometry import parse_size


class Generator(Section):
    """The class-conditioned transformer. Defaults are those of the documented implementation; `drift-b2-paper` sets
    the authors' parts.
    """

    arch: Literal["drift"]
    depth: Positive
    width: Positive
    heads: Positive
    mlp_width: Positive  # inner width of SwiGLU
    patch_size: Positive = 2  # latent cells along one side of a token
    channels: Positive = 4  # of the latent; must be the data's
    input: Size = "32x32"  # latent cells, WIDTHxHEIGHT; positions are learned, so the model draws at this size only
    classes: Positive = 1000  # rows of the class table; there is no null class
    registers: Counted = 16  # in-context tokens in front of the patches
    # two learned tensors that are added, or their sum as one
    register_tensors: Literal["base_and_position", "one"] = "base_and_position"
    style_tokens: Counted = 32  # random code words whose embeddings are summed into the condition
    style_codebook: Positive = 64  # code words to choose from
    style_tables: Literal["shared", "separate"] = "shared"  # one codebook for all style tokens, or one each
    alpha_embedding: Literal["mlp", "sinusoid"] = "mlp"  # of the guidance scale
    patch_embedding: Literal["conv", "linear"] = "conv"
    norm: Literal["rms", "layer"] = "rms"  # of tokens, with a learned gain
    # of queries and keys; l2 keeps attention almost uniform: dit audit --explain G1
    qk_norm: Literal["rms", "rms_gain", "l2", "none"] = "rms"
    # rotary positions: none, over all tokens, or axial on the patches with registers unrotated
    rope: Literal["none", "1d", "2d"] = "2d"
    swiglu: Literal["fused", "split"] = "fused"  # value and gate as one matrix or two
    output_modulation: bool = False  # adaLN shift and scale before the output layer
    zero_output: bool = False  # the output layer begins at zero
    embedding_std: PositiveFloat = 0.02  # of class and style embeddings at step 0
    # recompute each block in backward; "selective": all of it but attention
    gradient_checkpointing: bool | Literal["selective"] = False

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the latent."""
        columns, rows = parse_size(self.input)
        return rows, columns

    @model_validator(mode="after")
    def _divisible(self) -> Generator:
        head, needed = self.width // self.heads, {"none": 1, "1d": 2, "2d": 4}[self.rope]
        rows, columns = self.cells
        require(
            (self.width % self.heads == 0, f"width {self.width} is not divisible by heads {self.heads}"),
            (
                head % needed == 0,
                f'a head of {head} channels is not divisible by {needed}, which rope = "{self.rope}" needs',
            ),
            (
                rows % self.patch_size + columns % self.patch_size == 0,
                f"input {self.input} is not whole tokens of patch_size {self.patch_size}",
            ),
            (
                self.registers > 0 or self.register_tensors == "base_and_position",
                'register_tensors = "one" has no effect without registers',
            ),
            (
                self.style_tokens > 0 or self.style_tables == "shared",
                'style_tables = "separate" has no effect without style_tokens',
            ),
        )
        return self


class MaskedAutoencoder(Section):
    """The feature encoder that is trained for itself, on the latents that the generator will draw."""

    arch: Literal["latent-mae"]
    width: Annotated[Whole, Field(ge=8)] = 640  # channels of every map
    levels: Positive = 4  # maps, each of half the resolution of the one before: the depths of its features
    depth: Positive = 2  # residual blocks of a level
    channels: Positive = 4  # of the latent; must be the data's
    input: Size = "32x32"  # latent cells, WIDTHxHEIGHT
    classes: Positive = 1000

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the latent."""
        columns, rows = parse_size(self.input)
        return rows, columns

    @property
    def patch_size(self) -> int:
        """Cells along one side of what it reads as one: any latent fits."""
        return 1

    @model_validator(mode="after")
    def _deep_enough(self) -> MaskedAutoencoder:
        smallest = min(self.cells)
        require(
            (
                2 ** (self.levels - 1) <= smallest,
                f"levels {self.levels} halve an input of {self.input} to less than a cell",
            )
        )
        return self


class ToyGenerator(Section):
    """A small network from noise to points of the plane."""

    arch: Literal["drift-toy"]
    depth: Positive = 3  # hidden layers
    width: Positive = 128
    noise: Annotated[Whole, Field(ge=2)] = 2  # dimensions of the noise


Feature = Literal["raw", "locations", "moments", "patches2", "patches4"]


class Drift(Section):
    """The objective: which fields, of which samples. A group is one class with one guidance scale."""

    generated: Annotated[Whole, Field(ge=2)] = 64  # samples of a group; they are each other's negatives
    positives: Positive = 64  # real samples of the group's class
    unconditional: Counted = 16  # real samples of any class, negatives whose weight makes the guidance
    # of the kernel, in mean distances
    temperatures: list[PositiveFloat] = Field(default=[0.02, 0.05, 0.2], min_length=1)
    normalise_distances: bool = True  # distances in units of their mean over the field
    normalise_drift: bool = True  # each temperature's drift in units of its root mean square
    # factor; anything but 1 breaks the antisymmetry: a negative control, not a setting
    repulsion: Annotated[float, Field(ge=0)] = 1.0
    # one field for each vector of each kind: docs/drifting.md
    features: list[Feature] = Field(default=["raw"], min_length=1)
    # whose maps: fixed random convolutions, a small encoder trained first, or that of a `drift-mae` run
    encoder: Literal["seeded", "trained", "mae"] = "seeded"
    encoder_run: Annotated[str, Field(min_length=1)] | None = None  # its folder or checkpoint
    maps_weight: PositiveFloat = 1.0  # of the losses in maps beside that in raw input
    alpha_max: Annotated[float, Field(ge=1)] = 4.0  # guidance scales are drawn from [1, alpha_max] …
    # … with density proportional to alpha to the power of minus this
    alpha_exponent: Annotated[float, Field(ge=0)] = 3.0
    unguided: Share = 0.0  # of the groups, whose guidance scale is 1 whatever the power law says
    class_queue: Positive = 128  # newest real samples kept for each class
    global_queue: Positive = 1000  # newest real samples kept over all classes
    pushed: Positive = 64  # real samples that enter the queues with each step
    kernel_values: Positive = 1 << 24  # entries of the kernel computed at once: bounds memory, changes no result

    @model_validator(mode="after")
    def _drawn_without_replacement(self) -> Drift:
        require(
            (self.positives <= self.class_queue, f"positives {self.positives} is above class_queue {self.class_queue}"),
            (
                self.unconditional <= self.global_queue,
                f"unconditional {self.unconditional} is above global_queue {self.global_queue}",
            ),
            (
                self.unconditional > 0 or self.alpha_max == 1,
                "guidance scales above 1 need unconditional negatives; set alpha_max = 1",
            ),
            (self.unguided == 0 or self.alpha_max > 1, "unguided has no effect when alpha_max is 1"),
            (len(set(self.temperatures)) == len(self.temperatures), "a temperature stands in temperatures twice"),
            (len(set(self.features)) == len(self.features), "a kind stands in features twice"),
            (
                (self.encoder == "mae") == (self.encoder_run is not None),
                'encoder = "mae" and encoder_run, the run whose encoder it is, go together',
            ),
            (
                self.maps_weight == 1 or ("raw" in self.features and len(self.features) > 1),
                f"maps_weight weighs maps against raw input, and features is {self.features}",
            ),
        )
        return self


class FeatureEncoder(Section):
    """The small encoder that `drift.encoder = "trained"` trains on the training latents before the first step, and
    then freezes.
    """

    width: Positive = 32  # channels of its map at full resolution; the map at half resolution has twice as many
    steps: Positive = 400
    batch_size: Positive = 64
    lr: PositiveFloat = 2e-3  # peak; it falls to 0
    masked: Share = 0.5  # of the patches of 2x2 cells, hidden from it and filled in by it
    labels: bool = True  # it learns to name the classes as well

    @model_validator(mode="after")
    def _learns(self) -> FeatureEncoder:
        require((self.labels or self.masked > 0, "with masked = 0 and labels = false there is nothing to learn"))
        return self


class Masking(Section):
    """What the feature encoder learns: to fill in what it does not see and, where asked for, to name classes."""

    patch_size: Positive = 2  # cells along one side of what is hidden at once
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.75  # of the patches, hidden from it
    noise: Annotated[float, Field(ge=0)] = 0.3  # largest deviation on what it sees: drawn samples are not clean either
    class_weight: Annotated[float, Field(ge=0)] = (
        0.0  # of the cross-entropy of classes beside the error of hidden cells
    )


class Toy(Section):
    """What the toy learns, and where it begins."""

    distribution: Literal["two-modes", "checkerboard"] = "two-modes"
    start: Literal["middle", "far", "collapsed"] = "middle"  # of the generated points before the first step


class OneStep(Section):
    """Defaults of `dit sample`."""

    alpha: Annotated[float, Field(ge=1)] = 1.5  # guidance scale


def _require_whole_groups(train: Train, drift: Drift) -> None:
    divides = train.batch_size is None or train.batch_size % drift.generated == 0
    require(
        (
            train.batch_size is not None,
            "a one-step generator has train.batch_size, not tokens_per_batch: all its samples have one size",
        ),
        (divides, f"train.batch_size {train.batch_size} is not whole groups of drift.generated {drift.generated}"),
    )


class ClassData(Data):
    """Data of classes: the names of folders, unless another source of captions is asked for."""

    captions: CaptionPlace = "folder"


class DriftConfig(Section):
    """A one-step generator on latents."""

    description: str
    model: Generator
    encoders: Encoders
    data: ClassData
    drift: Drift = Drift()
    feature_encoder: FeatureEncoder = FeatureEncoder()
    train: Train
    ema: Ema = Ema()
    checkpoint: Checkpoint = Checkpoint()
    sample: OneStep = OneStep()

    @model_validator(mode="after")
    def _fits(self) -> DriftConfig:
        _require_whole_groups(self.train, self.drift)
        trained, maps_wanted = self.drift.encoder == "trained", self.drift.features != ["raw"]
        read = self.drift.encoder != "seeded"
        require(
            (
                self.sample.alpha <= self.drift.alpha_max,
                f"sample.alpha {self.sample.alpha:g} is above drift.alpha_max {self.drift.alpha_max:g}",
            ),
            (
                maps_wanted or not read,
                f'drift.encoder = "{self.drift.encoder}" has no effect when drift.features is ["raw"]',
            ),
            (
                trained or self.feature_encoder == FeatureEncoder(),
                'feature_encoder has no effect unless drift.encoder = "trained"',
            ),
        )
        return self


class MaeConfig(Section):
    """A feature encoder on latents."""

    description: str
    model: MaskedAutoencoder
    encoders: Encoders
    data: ClassData
    mae: Masking = Masking()
    train: Train
    ema: Ema = Ema()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _fits(self) -> MaeConfig:
        require(
            (
                self.train.batch_size is not None,
                "a feature encoder has train.batch_size, not tokens_per_batch: all its samples have one size",
            ),
            (self.train.sample_every == 0, "train.sample_every has no effect: a feature encoder draws nothing"),
        )
        return self


class ToyConfig(Section):
    """The same objective on points of the plane."""

    description: str
    model: ToyGenerator
    toy: Toy = Toy()
    drift: Drift = Drift()
    train: Train
    ema: Ema = Ema()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _fits(self) -> ToyConfig:
        _require_whole_groups(self.train, self.drift)
        drift = self.drift
        require(
            (self.train.workers == 0, "train.workers has no effect on a toy: it reads no data"),
            (
                drift.features == ["raw"],
                f'a toy has points for features: drift.features must be ["raw"], not {drift.features}',
            ),
            (drift.encoder == "seeded", "drift.encoder has no effect on a toy: its points are their own features"),
            (
                drift.alpha_max == 1 and drift.unconditional == 0,
                "a toy has no guidance: drift.alpha_max must be 1 and drift.unconditional 0",
            ),
        )
        return self
