"""What a run will cost before it is paid for: parameters, tokens, memory, time and disk, from real steps on this
machine.

Nothing is written. Time is measured on a few updates of each bucket; memory on one update of the largest bucket: by the
device's own count on a GPU, on a CPU from the bytes of weights, gradients, moments and average plus those that autograd
kept for the backward pass.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dittool import machine
from dittool.ckpt.plain_state import state_bytes
from dittool.config.architectures import AnyConfig
from dittool.config.load import changed
from dittool.console import SILENT, Talk, duration_text
from dittool.devices import as_in_training, device_name, device_of_choice, wait_for
from dittool.errors import StorageError
from dittool.families.family import BatchKind, MicroBatch, family_of
from dittool.machine import Finding
from dittool.storage import bytes_text
from dittool.train.distributed import Ranks
from dittool.train.loop import train_step
from dittool.train.memory import CARDS, StepMemory, step_memory
from dittool.train.readiness import checkpoints_kept, require_room
from dittool.train.state import TrainState, saves_in_background
from dittool.train.trackers import trackers_of

_TIMED_STEPS = 3  # after one to warm up


@dataclass(frozen=True)
class BucketCost:
    """One bucket of the data."""

    name: str
    samples: int  # in training
    batch: int  # samples of a micro-batch
    tokens: int  # of the network, a sample
    context_tokens: int  # longest context of the batch that was timed
    share: float  # of the micro-batches
    seconds: float  # for a whole update of this bucket alone

    @property
    def row(self) -> tuple[object, ...]:
        """For people."""
        costs = f"{self.share:.0%}", f"{self.seconds:.3g} s"
        return (self.name, f"{self.samples:,}", self.batch, self.tokens, self.context_tokens, *costs)


@dataclass(frozen=True)
class Plan:
    """The resolved plan of a run."""

    parameters: int
    steps: int  # of the run
    begun: int  # the step that it goes on from
    samples_per_step: float  # mean, where each bucket has its own batch size
    epochs: float | None  # None: there is no training set to pass over
    buckets: list[BucketCost]
    device: str
    memory_bytes: int
    memory_from: str  # how the figure was found
    counted: StepMemory  # on a GPU, by counting
    checkpoint_bytes: int
    checkpoints_kept: int

    @property
    def seconds_per_step(self) -> float:
        """Mean over buckets, weighted by how often each comes."""
        return sum(bucket.share * bucket.seconds for bucket in self.buckets)

    @property
    def steps_left(self) -> int:
        return max(self.steps - self.begun, 0)

    @property
    def seconds(self) -> float:
        """For the steps that are left."""
        return self.seconds_per_step * self.steps_left

    @property
    def disk_bytes(self) -> int:
        return self.checkpoint_bytes * self.checkpoints_kept

    @property
    def table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Columns, and a row for each bucket."""
        columns = ("bucket", "samples", "batch", "tokens", "context", "of batches", "a step")
        return columns, [bucket.row for bucket in self.buckets]

    @property
    def lines(self) -> tuple[str, ...]:
        """For people."""
        epochs = "" if self.epochs is None else f" = {self.epochs:.3g} epochs"
        left = f" for the {self.steps_left:,} steps after step {self.begun:,}" if self.begun else ""
        a_step = f"{self.seconds_per_step:.3g} s a step, measured on {self.device}"
        return (
            f"{self.parameters:,} parameters, {self.steps:,} steps of {self.samples_per_step:.4g} samples{epochs}",
            f"time    {duration_text(self.seconds)}{left} at {a_step}",
            f"memory  {bytes_text(self.memory_bytes)}: {self.memory_from}",
            f"on GPUs {self.fitting}, counted, not measured",
        )

    @property
    def fitting(self) -> str:
        """The largest micro-batch of one process for cards of several sizes."""
        sizes = {card: self.counted.fitting(card) for card in CARDS}
        return "samples that fit: " + ", ".join(f"{size or 'none'} into {card} GB" for card, size in sizes.items())

    def room_in(self, out: Path) -> Finding:
        """Whether the disk of the run's folder holds its checkpoints."""
        kept = f"{self.checkpoints_kept} checkpoints of {bytes_text(self.checkpoint_bytes)} need"
        return machine.disk(out, self.disk_bytes, kept)

    def to_json(self) -> dict[str, object]:
        figures = {name: getattr(self, name) for name in ("seconds_per_step", "seconds", "disk_bytes")}
        return {**asdict(self), **figures, "fitting": {str(card): self.counted.fitting(card) for card in CARDS}}


def estimate(config: AnyConfig, data: Path, talk: Talk = SILENT, begun: int = 0) -> Plan:
    """Measures a plan on this machine, of a run that goes on from step `begun`. Raises what training would raise for
    the same data and configuration.
    """
    trackers_of(config, data, begun)  # a run begins them; a name that is none is said here
    family, ranks = family_of(config), Ranks(0, 1, device_of_choice())
    config = family.cheap_begin(config)
    opened = family.open_data(config, data, ranks)
    require_room(config, family.largest_batch(opened), talk, ranks.device.type == "cuda")
    require_memory(config, data, ranks)
    state = TrainState(config, opened, ranks)
    family.begin(opened, {}, talk)
    kinds, buckets, memory = batch_kinds(state), [], (0, "")
    largest = max(kind.tokens for kind in kinds)
    with as_in_training(ranks.device, "fp32"), talk.progress("measure", len(kinds), "bucket") as task:
        for kind in kinds:
            seconds = _seconds_per_step(state, kind.example)
            buckets.append(
                BucketCost(kind.name, kind.samples, kind.batch, kind.tokens, kind.context_tokens, kind.share, seconds)
            )
            if kind.tokens == largest:
                memory = memory_of_update(state, kind.example)
            task.advance()
    train = config.train
    samples = sum(kind.samples for kind in kinds)
    fresh_per_step = train.accumulate * sum(kind.share * kind.fresh for kind in kinds)
    return Plan(
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        steps=train.steps,
        begun=begun,
        samples_per_step=train.accumulate * sum(kind.share * kind.batch for kind in kinds),
        epochs=train.steps * fresh_per_step / samples if samples else None,
        buckets=sorted(buckets, key=lambda bucket: -bucket.share),
        device=device_name(ranks.device),
        memory_bytes=memory[0],
        memory_from=memory[1],
        counted=step_memory(config, opened, max(kinds, key=lambda kind: kind.tokens).example),
        checkpoint_bytes=state_bytes(state.to_checkpoint()),
        checkpoints_kept=checkpoints_kept(config),
    )


def require_memory(config: AnyConfig, data: Path, ranks: Ranks) -> None:
    """Raises `StorageError` when an update of this batch size does not fit into the memory of the device, going by one
    of as few samples as there can be: what is far too large is not begun.
    """
    family = family_of(config)
    fewest = family.fewest(config)
    small = changed(config, {"train.batch_size": fewest, "train.accumulate": 1}, "for one sample")
    opened = family.open_data(small, data, ranks)
    state = TrainState(small, opened, ranks)
    family.begin(opened, {}, SILENT)
    kind = max(batch_kinds(state), key=lambda kind: kind.tokens)
    weights = _bytes_beside_activations(state)
    with as_in_training(ranks.device, "fp32"):
        each = max(memory_of_update(state, kind.example)[0] - weights, 0) // len(kind.example)
    samples = (config.train.batch_size or max(1, (config.train.tokens_per_batch or 0) // kind.tokens)) // ranks.count
    needed = weights + each * samples
    if ranks.device.type == "cuda":
        there = torch.cuda.get_device_properties(ranks.device).total_memory
        fits, what = needed <= there, f"a run needs about {bytes_text(needed)}, the device has {bytes_text(there)}"
    else:
        found = machine.memory(needed)
        fits, what = found.status != machine.BITES, found.what
    if not fits:
        raise StorageError(
            f"memory: an update with {samples:,} samples in a micro-batch, going by one of {fewest:,}: {what}",
            "make train.batch_size or train.tokens_per_batch smaller, and train.accumulate larger for the same step",
        )


def batch_kinds(state: TrainState) -> list[BatchKind[MicroBatch]]:
    """What the family says of its micro-batches; where it says nothing, they are all as the first one."""
    if kinds := state.family.kinds(state.data):
        return kinds
    example = next(state.family.batches(state.data, 0, 1))
    return [BatchKind("one size", 0, len(example) * state.ranks.count, 1, 0, 0, 1.0, example)]


def _seconds_per_step(state: TrainState, batch: MicroBatch) -> float:
    times = []
    for _ in range(1 + _TIMED_STEPS):
        wait_for(state.device)
        start = time.perf_counter()
        train_step(state, iter([batch] * state.config.train.accumulate))
        wait_for(state.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def memory_of_update(state: TrainState, batch: MicroBatch) -> tuple[int, str]:
    """Bytes of one update and how they were found."""
    of_a_step = iter([batch] * state.config.train.accumulate)
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
        train_step(state, of_a_step)
        return torch.cuda.max_memory_allocated(state.device), "peak of one update, as the device counted it"
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in state.model.parameters()}  # counted as weights

    def remember(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        train_step(state, of_a_step)
    activations = sum(kept.values()) // state.config.train.accumulate
    return (
        _bytes_beside_activations(state) + activations,
        "weights, gradients, average, moments of the optimizer"
        + (", their copy for the thread that saves" if saves_in_background(state.config, state.device) else "")
        + " + what autograd kept in one micro-batch",
    )


def _bytes_beside_activations(state: TrainState) -> int:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in state.model.parameters())
    averages, moments = (1 + len(state.config.ema.averages)) * weights, state.optimizer.bytes_of_state()
    beside_device = state.device.type == "cpu" and saves_in_background(state.config, state.device)
    copy = weights + averages + moments if beside_device else 0
    return 2 * weights + averages + moments + copy + state.family.device_bytes(state.data)  # weights and gradients, …
