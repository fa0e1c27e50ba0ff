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

from dittool.config.drift_schema import DriftConfig
from dittool.config.schema import Config

Grid = tuple[int, int]  # (rows, columns) in tokens
Guidance = Literal["additive", "nested"]
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


@dataclass(frozen=True)
class Biases:
    """Biases inside and outside of the blocks' attention and MLP, with their sizes."""

    wrong: dict[str, int]
    layers: int  # of attention and MLP
    elsewhere: dict[str, int]
    parameters: int  # of the whole network
    source: str = ""  # of weights alone: the layout whose names they have


@dataclass(frozen=True)
class Positions:
    """What makes tokens of equal content differ. Changes are relative; None: not measured."""

    stored: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of a fixed size
    ran: list[Grid] = field(default_factory=list)  # grids at which the network ran and answered in kind
    problem: str = ""  # the first at which it did not
    grid: Grid = (0, 0)  # not square; the following is of it
    rounding: float = 0.0  # of the network's precision
    learned: float | None = None  # change of what tokens of equal content differ by, under other weights
    mixed: float | None = None  # what is left of it when a row's and a column's part are taken away
    exchanged: float | None = None  # between exchanged answers and the answers to exchanged tokens
    by_step: float | None = None  # spread of attention's logits between tokens the same rows and columns apart
    by_distance: float | None = None  # … and the same distance in the sequence apart
    strayed: tuple[int, int] | None = None  # a changed token, and another place that answers when blocks are passed by
    reference: float | None = None  # between the reference's patches' positions and the tokens'
    source: str = ""  # of weights alone: the layout whose names they have


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward in training mode."""

    runs: Counter[str]  # of each block's forward, before backward …
    again: Counter[str]  # … and in backward
    saved: int  # bytes kept for backward, outside of recomputation
    gradients: dict[str, Tensor]  # of a large network's large parameters some entries
    answer: Tensor
    linear: Counter[str]  # kinds of numbers that the blocks' linear layers gave


@dataclass(frozen=True)
class Checkpointing:
    """Two passes under a switch for gradient checkpointing."""

    switch: str  # in words, with a space behind; "" for the key of our configurations
    off: TrainingPass
    on: TrainingPass
    blocks: tuple[str, ...]
    gradient: tuple[str, float]  # the parameter whose gradients differ most, and by how much of the largest
    setting: str = ""  # what the configuration says, for the evidence


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


@dataclass(frozen=True)
class Effect:
    """What became of one setting that was changed."""

    kind: Literal["acts", "dead", "unseen"]
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

    def features(self) -> Config | DriftConfig:
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
