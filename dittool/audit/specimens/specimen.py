"""What a rule may ask of a network: the protocol, and the forms of its answers.

Ours (`ours.py`) answers from what we know, a foreign one (`foreign/`) finds out by running, weights alone
(`layouts.py`) read their tensors' names. A rule asks, compares with its thresholds and says what it means. A question
that a specimen has no answer to raises `NotAnswered` with the reason, which becomes the rule's skip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from dittool.config.architectures import ImageConfig
from dittool.config.drift_schema import DriftConfig
from dittool.config.schema import Config

OF_LOGITS = 0.03  # of the range of attention's logits that is none: angles may be rounded to bf16
Grid = tuple[int, int]  # (rows, columns) in tokens
Guidance = Literal["additive", "nested", "joint"]
Scope = Literal["model", "generator", "weights", "checkpoint", "preset", "plan", "data"]  # of a rule: see `Rule`


class NotAnswered(Exception):
    """A specimen cannot answer. `reason` is the evidence of the skip."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Gates:
    """How far blocks move their tokens, max |block(x) − x| by block, and what stands in their modulation at step 0."""

    where: str  # the blocks, in words
    at_start: dict[str, float]
    without_modulation: dict[str, float]  # modulation zero, every other weight drawn again; of large networks some
    opened: dict[str, float]  # everything that begins at zero drawn at random
    modulation: dict[str, float]  # the largest value of each of its tensors
    redrawn: str = ""  # what of the blocks was tried without modulation, when not all
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each block: its class and parameters' names
    stuck: tuple[str, ...] = ()  # blocks at the identity whose weights and conditions get no gradient whatever follows
    normalised: frozenset[str] = frozenset()  # blocks that return their tokens normed: a norm behind the residual
    reshaping: frozenset[str] = frozenset()  # blocks that give tokens of another shape: what is not linear counts


@dataclass(frozen=True)
class Biases:
    """Biases inside and outside of the blocks' attention and MLP, with their sizes."""

    wrong: dict[str, int]
    layers: int  # of attention and MLP
    elsewhere: dict[str, int]
    parameters: int  # of the whole network
    source: str = ""  # of weights alone: the layout whose names they have


@dataclass(frozen=True)
class Problem:
    """Why a network does not answer in kind at a grid."""

    grid: Grid
    evidence: str
    # by an error of its own, by another one; it answers in another shape, or with values that are not finite
    kind: Literal["refused", "broke", "wrong", "infinite"]


@dataclass(frozen=True)
class OnGrid:
    """What makes tokens of equal content differ on one grid. Changes are relative; None: not measured."""

    grid: Grid
    exchanged: float | None = None  # between exchanged answers and the answers to exchanged tokens
    strayed: tuple[int, int] | None = None  # a changed token, and another place that answers when blocks are passed by
    astray: tuple[int, int] | None = None  # … and one that a block moves, with none beside the token's own place
    rounding: float = 0.0  # of the network's precision
    learned: float | None = None  # change of what tokens of equal content differ by, under other weights
    mixed: float | None = None  # what is left of it when a row's and a column's part are taken away
    same_place: tuple[int, int] | None = None  # two tokens that are given the same
    by_step: float | None = None  # spread of attention's logits between tokens the same rows and columns apart
    by_distance: float | None = None  # … and the same distance in the sequence apart
    block: str = ""  # in which it was seen, when that is not the first
    stretch: float | None = None  # how much positions that turn queries change their lengths


@dataclass(frozen=True)
class Positions:
    """Where positions come from, and what they do on several grids."""

    stored: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of a fixed size
    ran: list[Grid] = field(default_factory=list)  # grids at which the network ran and answered in kind
    problems: list[Problem] = field(default_factory=list)  # where it did not
    tables: dict[Grid, float] = field(default_factory=dict)  # what of a table's rows and columns is neither, relative
    grids: list[OnGrid] = field(default_factory=list)
    reference: float | None = None  # between the reference's patches' positions and the tokens'
    not_fed: tuple[str, ...] = ()  # inputs that may say where tokens are, and were left out
    source: str = ""  # of weights alone: the layout whose names they have


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward in training mode."""

    runs: Counter[str]  # of each module's forward, before backward …
    again: Counter[str]  # … and in backward
    saved: int  # bytes kept for backward, outside of recomputation
    gradients: dict[str, Tensor]  # of a large network's large parameters some entries
    answer: Tensor  # all values that the network gave
    linear: Counter[str]  # kinds of numbers that the blocks' linear layers gave

    def recomputed(self, block: str) -> list[str]:
        """The outermost modules of a block, or the block itself, that run again in backward."""
        again = [name for name in self.again if self.again[name] and f"{name}.".startswith(f"{block}.")]
        return [name for name in again if not any(name.startswith(f"{other}.") for other in again)]


@dataclass(frozen=True)
class Checkpointing:
    """Two passes under a switch for gradient checkpointing."""

    switch: str  # in words, with a space behind; "" for the key of our configurations
    off: TrainingPass
    on: TrainingPass
    blocks: tuple[str, ...]
    gradient: tuple[str, float]  # the parameter whose gradients differ most, and by how much of the largest
    setting: str = ""  # what the configuration says, for the evidence
    kinds: dict[str, str] = field(default_factory=dict)  # of each block: its list and class
    broken: str = ""  # what the switch itself does wrong


@dataclass(frozen=True)
class Precision:
    """Kinds of numbers, counted."""

    planned: str  # fp32, bf16; "" when training decides
    parameters: Counter[str]
    gradients: Counter[str] = field(default_factory=Counter)
    linear: Counter[str] = field(default_factory=Counter)  # answers of the blocks' linear layers
    not_finite: int = 0
    values: int = 0  # of the answer


@dataclass(frozen=True)
class Liveness:
    """Which inputs move the answer; changes are relative."""

    changes: dict[str, float]  # when each input is exchanged for another
    dead: list[str]  # parameters that no gradient reaches
    network: str  # with which weights, in words
    leaks: dict[str, float] = field(default_factory=dict)  # when something changes that must not show
    sealed: str = ""  # what is said when none of them shows
    time: str = "t"  # the timestep's name; "" when there is none
    turns: dict[float, float] = field(default_factory=dict)  # of t's embedding over a fifth of [0, key]
    unit_time: bool = False  # whether t is known to be given in [0, 1]
    time_known: bool = True
    not_fed: list[str] = field(default_factory=list)  # arguments that the inputs leave out
    unsteady: float = 0.0  # change between two runs of the same
    spare: tuple[str, ...] = ()  # inputs that move nothing, of a list of others like them that do
    truncated: bool | None = None  # whether t is cut to whole numbers; None when it is given as such
    idle: tuple[str, ...] = ()  # members of lists of blocks that never run, while others of their list do


@dataclass(frozen=True)
class AsBuilt:
    """What a network whose weights are narrower than float32, and that was judged cast to it, does as it was built."""

    kinds: str  # bfloat16, float16
    way: str  # in which it runs: given bfloat16, given float32, under autocast; "" when in none
    error: str = ""  # of the first way that was tried before; of the last where it runs in none
    not_finite: int = 0
    values: int = 0  # of all its answers


@dataclass(frozen=True)
class ForwardRun:
    """How the network runs before anything of it is judged. Changes are relative."""

    shapes: list[tuple[int, ...]]  # of its answers
    not_finite: int
    values: int  # of all its answers
    never_written: list[str]  # parameters and buffers whose memory was taken and never filled
    not_finite_weights: list[str]  # looked for where an answer is not finite
    as_built: AsBuilt | None  # of weights in half precision, which were judged in float32
    chance: float  # change when the same input is given twice, one run after the other
    unsteady: float  # … with all draws of chance fixed
    where: str  # the blocks that were found, in words
    share: float  # of the parameters, in these blocks
    outside: list[str]  # the largest parts outside of them, with their shares
    in_training: str = ""  # what the model's own code raises in training mode
    compiled: str = ""  # what of it torch.compile wraps; run uncompiled
    copies: tuple[str, ...] = ()  # parts that are not trained and never run, which the shares leave out
    wild: tuple[str, ...] = ()  # parameters whose gradients are not finite in training mode


@dataclass(frozen=True)
class Independence:
    """What one sample's inputs do to the answers of others, and to its own. Changes are relative, by input."""

    others: dict[str, float]  # the largest change of another sample's answer
    own: dict[str, float]  # the smallest change of the sample's own answer over the samples of a batch
    most: dict[str, float]  # … and the largest
    samples: int
    in_training: dict[str, float] = field(default_factory=dict)  # as `others`, in training mode
    tolerance: float = 0.0  # of the network's own unsteadiness


@dataclass(frozen=True)
class Effect:
    """What became of one setting that was changed."""

    kind: Literal["acts", "dead", "kept", "unseen", "broken"]  # kept: dead, but stored on the model
    evidence: str  # what changed, or which values were tried, or why it cannot be judged


@dataclass(frozen=True)
class Options:
    """The effect of each setting, by name."""

    kind: str  # keys of a configuration, arguments of a factory
    effects: dict[str, Effect]
    note: str = ""


@dataclass(frozen=True)
class Attention:
    """Entropy of attention over tokens as a share of the largest possible, by block."""

    sharpest: list[float]  # with queries and keys as training could make them
    own: list[float] = field(default_factory=list)  # with a checkpoint's weights, on noise


class Specimen(Protocol):
    """A network under audit. What it does not answer is said by `_unanswered`."""

    @property
    def scopes(self) -> frozenset[Scope]:
        """Which scopes of rules it can be asked for."""
        ...

    @property
    def note(self) -> str:
        """What was tried instead of the network at its real size, for the evidence; "" when nothing was."""
        return ""

    @property
    def structure_note(self) -> str:
        """The same, where structure alone is asked for."""
        return self.note

    def _unanswered(self) -> str:
        """Why a question has no answer here."""
        ...

    def gates(self) -> Gates:
        raise NotAnswered(self._unanswered())

    def biases(self) -> Biases:
        raise NotAnswered(self._unanswered())

    def positions(self) -> Positions:
        raise NotAnswered(self._unanswered())

    def checkpointing(self) -> Checkpointing:
        raise NotAnswered(self._unanswered())

    def options(self) -> Options:
        raise NotAnswered(self._unanswered())

    def precision(self) -> Precision:
        raise NotAnswered(self._unanswered())

    def liveness(self) -> Liveness:
        raise NotAnswered(self._unanswered())

    def forward_run(self) -> ForwardRun:
        raise NotAnswered(self._unanswered())

    def independence(self) -> Independence:
        raise NotAnswered(self._unanswered())

    def branch(self, text: bool, reference: bool) -> Tensor:
        """The prediction at t = 1 with these conditions kept, (B, C, H, W)."""
        raise NotAnswered(self._unanswered())

    def guided(self, kind: Guidance, text: float, reference: float) -> Tensor:
        """The guided velocity at t = 1 for these scales, (B, C, H, W)."""
        raise NotAnswered(self._unanswered())

    def attention(self) -> Attention:
        raise NotAnswered(self._unanswered())

    def zero_at_start(self) -> list[str]:
        """Parameters that are zero throughout at step 0."""
        raise NotAnswered(self._unanswered())

    def no_longer_trained(self, step: int) -> frozenset[str]:
        """Parameters that get no gradient after so many updates, and had some before."""
        return frozenset()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of each tensor of the state dict, at the network's real size."""
        raise NotAnswered(self._unanswered())

    def open_gates(self) -> dict[str, bool]:
        """Each gate of each block by a name, and whether anything can open it: a weight, a bias or a table that is not
        zero.
        """
        raise NotAnswered(self._unanswered())

    def incomplete_blocks(self) -> tuple[int, list[str]]:
        """How many blocks there are, and the tensors that one lacks although more than half of its list have them. The
        last may differ.
        """
        raise NotAnswered(self._unanswered())

    def flow(self) -> Config:
        """The configuration of a rectified flow's network."""
        raise NotAnswered(self._unanswered())

    def features(self) -> ImageConfig:
        """The configuration that says which features its data are made of."""
        raise NotAnswered(self._unanswered())

    def generator(self) -> DriftConfig:
        """The configuration of a one-step generator."""
        raise NotAnswered(self._unanswered())


def relative_change(a: Tensor, b: Tensor) -> float:
    """Root mean square of a − b over that of a."""
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp_min(1e-30))


class UndescribedNetwork(Specimen):
    """A network whose family tells the audit nothing of it: only its plan can be judged."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"plan"})

    def _unanswered(self) -> str:
        return "the family of this configuration does not describe its network to the audit (Family.specimen)"
