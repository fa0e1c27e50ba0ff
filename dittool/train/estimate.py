"""What a run will cost before it is paid for: parameters, tokens, memory, time and disk, from real steps on this
machine.

Nothing is written. Time is measured on a few updates of each bucket; memory on one update of the largest bucket: by the
device's own count on a GPU, on a CPU from the bytes of weights, gradients, moments and average plus those that autograd
kept for the backward pass.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.files import state_bytes
from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import Batch
from dittool.data.shards.write import TRAIN
from dittool.encoders.pretrained import device_of_choice
from dittool.errors import UsageError
from dittool.train.batches import training_stream
from dittool.train.distributed import Ranks
from dittool.train.loop import require_features, train_step
from dittool.train.state import TrainState

_TIMED_STEPS = 3  # after one to warm up
_LOOKED_AT = 2000  # micro-batches, to see how often each bucket comes


@dataclass(frozen=True)
class BucketCost:
    """One bucket of the data."""

    name: str
    samples: int  # in training
    batch: int  # samples of a micro-batch
    tokens: int  # latent tokens of a sample
    context_tokens: int  # longest context of the batch that was timed
    share: float  # of the micro-batches
    seconds: float  # for a whole update of this bucket alone


@dataclass(frozen=True)
class Plan:
    """The resolved plan of a run."""

    parameters: int
    steps: int
    samples_per_step: float  # mean, where each bucket has its own batch size
    epochs: float
    buckets: list[BucketCost]
    device: str
    memory_bytes: int
    memory_from: str  # how the figure was found
    checkpoint_bytes: int
    checkpoints_kept: int

    @property
    def seconds_per_step(self) -> float:
        """Mean over buckets, weighted by how often each comes."""
        return sum(bucket.share * bucket.seconds for bucket in self.buckets)

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps

    @property
    def disk_bytes(self) -> int:
        return self.checkpoint_bytes * self.checkpoints_kept


def estimate(config: Config, data: Path, talk: Talk = SILENT) -> Plan:
    """Measures a plan on this machine. Raises what training would raise for the same data and configuration."""
    if config.model.arch != "dit":
        raise UsageError(
            "--dry-run measures the first family of models alone",
            "try a few steps of it: dit train -s train.steps=20 --out F",
        )
    shards = ShardSet.open(data)
    require_features(config, shards)
    refs = shards.split(TRAIN)
    provenance, device = Provenance.of(shards, refs, config), device_of_choice()
    ranks = Ranks(0, 1, device)
    stream, state = training_stream(config, shards, refs, provenance.norm, ranks), TrainState(config, provenance, ranks)
    shares = Counter(refs[stream.plan.batch(number)[0]].bucket for number in range(_LOOKED_AT))
    samples = Counter(ref.bucket for ref in refs)
    buckets, memory = [], (0, "")
    with talk.progress("measure", len(shares), "bucket") as task:
        for name in shares:
            batch = stream[next(n for n in count() if refs[stream.plan.batch(n)[0]].bucket == name)]
            rows, columns = state.model.token_grid(batch.latents)
            buckets.append(
                BucketCost(
                    name,
                    samples[name],
                    stream.plan.sizes[name],
                    rows * columns,
                    _context_tokens(batch),
                    shares[name] / _LOOKED_AT,
                    _seconds_per_step(state, batch),
                )
            )
            if rows * columns >= max(bucket.tokens for bucket in buckets):
                memory = _memory(state, batch)
            task.advance()
    samples_per_step = (
        config.train.accumulate * sum(count * stream.plan.sizes[name] for name, count in shares.items()) / _LOOKED_AT
    )
    kept = (
        config.checkpoint.keep
        + 1
        + (config.train.steps // config.checkpoint.keep_every if config.checkpoint.keep_every else 0)
    )
    return Plan(
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        steps=config.train.steps,
        samples_per_step=samples_per_step,
        epochs=config.train.steps * samples_per_step / len(refs),
        buckets=sorted(buckets, key=lambda bucket: -bucket.share),
        device=device_name(device),
        memory_bytes=memory[0],
        memory_from=memory[1],
        checkpoint_bytes=state_bytes(state.to_checkpoint()),
        checkpoints_kept=kept,
    )


def _seconds_per_step(state: TrainState, batch: Batch) -> float:
    times = []
    for _ in range(1 + _TIMED_STEPS):
        wait_for(state.device)
        start = time.perf_counter()
        train_step(state, iter([batch] * state.config.train.accumulate))
        wait_for(state.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _memory(state: TrainState, batch: Batch) -> tuple[int, str]:
    """Bytes of one update and how they were found."""
    one = iter([batch] * state.config.train.accumulate)
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
        train_step(state, one)
        return torch.cuda.max_memory_allocated(state.device), "peak of one update, as the device counted it"
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        train_step(state, one)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in state.model.parameters())
    activations = sum(kept.values()) // state.config.train.accumulate
    return (
        5 * weights + activations,
        "5 × weights (weights, gradients, two moments, average) + what autograd kept in one micro-batch",
    )


def _context_tokens(batch: Batch) -> int:
    c = batch.conditions
    return c.text.shape[1] + 1 + (0 if c.patches is None else c.patches.shape[1])


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What figures were measured on."""
    return torch.cuda.getdevice_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
