"""What the training loop asks of a kind of model: one frozen dataclass of plain functions, a family.

    config/architectures.py     the name in `model.arch` → schema, and the module here that defines `FAMILY`
    flow.py  drift.py  toy.py   the families

The loop, the estimate and the bench know a model by these functions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.specimens.specimen import Specimen, UndescribedNetwork
from dittool.config.architectures import AnyConfig, architecture
from dittool.console import Talk
from dittool.data.provenance import Provenance
from dittool.encoders.cards import FeatureWidths
from dittool.errors import UsageError, described
from dittool.plugins import REMEDY
from dittool.validate.text_edit import CaptionChecker

if TYPE_CHECKING:
    from dittool.sampling.one_step import OneStepPipeline
    from dittool.sampling.pipeline import Pipeline
    from dittool.train.distributed import Ranks

Forward = Callable[..., Tensor]  # the network in the run's precision; in training the replica that averages gradients


class MicroBatch(Protocol):
    """This process's share of one micro-batch; `len` counts the samples that the network computes."""

    @property
    def ids(self) -> list[str]:
        """Names of what `Loss.per_sample` has a value for."""

    @property
    def weight(self) -> float:
        """Its share of the samples of its step."""

    def to(self: B, device: torch.device) -> B: ...

    def __len__(self) -> int: ...


class Loss(Protocol):
    """The loss of one micro-batch."""

    @property
    def mean(self) -> Tensor:
        """() what is minimised."""

    @property
    def per_sample(self) -> Tensor:
        """(n,) one value for each of the batch's ids."""


class TrainingData(Protocol):
    """What a family opened for a run: data, and whatever it carries beside model, average and optimizer."""

    @property
    def provenance(self) -> Provenance:
        """What checkpoints remember of the data."""

    @property
    def folder(self) -> Path | None:
        """Of the shards; None: none are read."""


C = TypeVar("C", bound=AnyConfig)  # the configuration
N = TypeVar("N", bound=nn.Module)  # the network
D = TypeVar("D", bound=TrainingData)
B = TypeVar("B", bound=MicroBatch)
L = TypeVar("L", bound=Loss)


@dataclass(frozen=True)
class BatchKind(Generic[B]):
    """Micro-batches of one shape, for estimate and bench."""

    name: str  # the bucket
    samples: int  # of the training set
    batch: int  # samples in a micro-batch of all processes
    tokens: int  # of the network, a sample
    context_tokens: int  # longest context of the example
    fresh: float  # samples of the training set that one takes up
    share: float  # of the micro-batches
    example: B


@dataclass(frozen=True)
class BatchBytes:
    """Of this process's largest micro-batch."""

    used: int  # on the host, by the batch itself
    handed_over: int  # by a process that reads ahead, at a time


@dataclass(frozen=True)
class Conclusion:
    """What is to be said of an ended run beside its figures."""

    facts: Mapping[str, object] = field(default_factory=dict)  # for --json
    verdict: str = ""
    next: str = ""  # the command to run next, before the run's folder


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of the averaged weights found."""

    figures: dict[str, float] = field(default_factory=dict)  # said while the run goes on, and kept beside checkpoints
    parts: dict[str, float] = field(default_factory=dict)  # of which they are made up, only written down


def _nothing(*_: object) -> dict[str, Any]:
    return {}


def _no_effect(*_: object) -> None:
    return None


def _undescribed(*_: object) -> Specimen:
    return UndescribedNetwork()


def _no_pipeline(checkpoint: Path) -> Pipeline:
    raise UsageError(
        f"{checkpoint}: nothing to draw pictures with: its network has no images",
        "its own drawings stand in the run's folder, under samples",
    )


def _no_losses(*_: object) -> None:
    return None


def _concluded(*_: object) -> Conclusion:
    return Conclusion()


@dataclass(frozen=True)
class Family(Generic[C, N, D, B, L]):
    """Functions that decide how models of one kind are built, fed, trained, drawn from and measured."""

    # The network.
    build: Callable[[C, FeatureWidths], N]
    known_widths: Callable[[C], FeatureWidths | None]  # the same where no data are at hand; None: not known without

    # A run.
    open_data: Callable[[C, Path, Ranks], D]
    batches: Callable[[D, int, int], Iterator[B]]  # the micro-batches of steps [first, end), in order
    loss: Callable[[D, Forward, B], L]
    inputs: Callable[[B], tuple[Any, ...]]  # what the loss calls the network with
    figures: Callable[[Sequence[L], Ranks], dict[str, float]]  # of an interval of the log; all processes ask together

    largest_batch: Callable[[D], BatchBytes] = lambda _: BatchBytes(0, 0)  # found without making it

    # What it carries beside model, average and optimizer.
    state: Callable[[D], dict[str, Any]] = _nothing  # further keys of a checkpoint
    # Before the first step, with the checkpoint that is resumed ({}: none). Returns figures for the log.
    begin: Callable[[D, Mapping[str, Any], Talk], dict[str, float]] = _nothing

    # On the way, with the averaged weights, in the first process.
    evaluate: Callable[[D, N, torch.device], Evaluated] = lambda *_: Evaluated()
    draw: Callable[[D, N, int, Path], None] = _no_effect  # (…, step, file)
    # Of a run's end, sample by sample, whatever it was trained with; None: only what `evaluate` gives.
    # (checkpoint, shards, at most so many samples) → (ids, columns, (samples, columns))
    losses: Callable[[Path, Path, int], tuple[list[str], list[str], Tensor] | None] = _no_losses
    measured_on_holdout: bool = False  # whether `losses` takes held-out samples, and so needs some
    judge_every: Callable[[C], int] = lambda _: 0  # steps; 0: never
    judge: Callable[[D, N, int, Path, CaptionChecker | None, Talk], None] = _no_effect  # (…, step, run folder, …)
    conclude: Callable[[D, Mapping[str, float]], Conclusion] = _concluded  # of the last evaluation's figures

    # A checkpoint, or a file exported from one, ready to be called for pictures.
    pipeline: Callable[[Path], Pipeline | OneStepPipeline] = _no_pipeline

    # What the audit's rules ask, with a checkpoint's weights where there are some.
    specimen: Callable[[C, CheckpointView | None], Specimen] = _undescribed

    # What estimate and bench measure.
    kinds: Callable[[D], list[BatchKind[B]]] = lambda _: []
    noise: Callable[[C, Path], None] = _no_effect  # writes a set of noise in the sizes of the configuration
    cheap_begin: Callable[[C], C] = lambda config: config  # the same steps, with little before the first
    fewest: Callable[[C], int] = lambda _: 1  # samples that a micro-batch can have
    # Of the largest batch as a reading process hands it over; a usual codec, image encoder and caption are assumed.
    batch_bytes: Callable[[C, FeatureWidths], int] = lambda _config, _widths: 0
    device_bytes: Callable[[D], int] = lambda _: 0  # of data that lie on the device throughout
    codec: Callable[[C], str | None] = lambda _: None  # the codec that its drawings are decoded with


AnyFamily = Family[AnyConfig, nn.Module, TrainingData, MicroBatch, Loss]


def family_of(config: AnyConfig) -> AnyFamily:
    """The family of a configuration, imported at its first use. What its functions take and give fits together, and
    callers hand it on without looking inside.
    """
    module = architecture(config).family
    if "." not in module:
        family: AnyFamily = import_module(f"dittool.families.{module}").FAMILY
        return family
    try:
        theirs: AnyFamily = import_module(module).FAMILY
    except (Exception, SystemExit) as error:  # another package's module
        raise UsageError(f"family '{config.model.arch}': {module}: {described(error)}", REMEDY) from error
    return theirs


def specimen_of(config: AnyConfig, view: CheckpointView | None = None) -> Specimen:
    """What a configuration's family gives the audit to look at, with a checkpoint's weights where one is given."""
    return family_of(config).specimen(config, view)
