"""Whether this machine is ready for a run: what the run asks for, held against what `machine.py` finds.

`examine` has the figures of a preset before there is any data. A run that has opened its shards knows them exactly, and
asks `require_room` before its first step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dittool import installation, machine
from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import named_tensors
from dittool.config.architectures import AnyConfig
from dittool.console import Talk
from dittool.data.shards.open_files import most_open
from dittool.data.shards.read_ahead import items_ahead
from dittool.devices import device_of_choice
from dittool.errors import StorageError
from dittool.families.family import BatchBytes, family_of
from dittool.machine import NOTE, Finding
from dittool.models.build import parameter_count
from dittool.storage import bytes_text
from dittool.train.state import TrainState, compiles, saves_in_background

_FLOAT = 4  # bytes
_SCRATCH = 100 << 20  # bytes that libraries leave in the temporary folder
_REST = 1 << 30  # bytes of torch itself, of batches and of the activations of a small model


@dataclass(frozen=True)
class Needs:
    """What a run asks of a machine. Sizes are bytes."""

    workers: int
    batch: int  # what a worker process hands over at a time
    files: int  # shards that are open
    checkpoint: int  # weights, averages and two moments
    checkpoints: int  # that stay on the disk
    model: int  # weights, gradients, averages and two moments, without activations
    copy: int  # of a checkpoint in the host's memory, while it is saved beside the steps
    bf16: bool
    compiles: bool


def needs_of(config: AnyConfig, data: Path) -> Needs | None:
    """The needs of a preset; None where its encoders are of unknown width, and so the size of its model."""
    family = family_of(config)
    if (widths := family.known_widths(config)) is None:
        return None
    weights = parameter_count(lambda: family.build(config, widths)) * _FLOAT
    return Needs(
        workers=config.train.workers,
        batch=family.batch_bytes(config, widths),
        files=min(sum(1 for _ in data.rglob("*.tar")), most_open()),
        checkpoint=(4 + len(config.ema.averages)) * weights,
        checkpoints=checkpoints_kept(config),
        model=(5 + len(config.ema.averages)) * weights,
        copy=(4 + len(config.ema.averages)) * weights if saves_in_background(config, device_of_choice()) else 0,
        bf16=config.train.precision == "bf16",
        compiles=compiles(config, device_of_choice()),
    )


def examine(config: AnyConfig, data: Path, out: Path) -> list[Finding]:
    """Every check, for a run of `config` on the shards in `data` that writes to `out`."""
    compiled = compiles(config, device_of_choice())
    found = [installation.python_version(), *installation.versions(), installation.torchvision_build()]
    found.append(installation.compiler(compiled))
    if (needs := needs_of(config, data)) is None:
        what = "the size of this preset's model is not known: its encoders are in no table of docs/encoders.md"
        found.append(Finding("needs", NOTE, what, "with data: dit train --dry-run --preset P"))
        needs = Needs(config.train.workers, 0, 0, 0, 0, 0, 0, config.train.precision == "bf16", compiled)
    ahead = items_ahead(needs.batch, needs.workers)
    shared = machine.shared_memory_needed(needs.batch, needs.workers, ahead)
    devices = machine.device(needs.model, needs.bf16)
    on_gpu = any(finding.check.startswith("device: cuda") for finding in devices)
    return [
        *found,
        *devices,
        machine.memory(_REST + needs.copy + (0 if on_gpu else needs.model)),
        machine.shared_memory(shared, needs.workers),
        machine.descriptors(machine.descriptors_needed(needs.files, needs.workers, ahead)),
        machine.processes(needs.workers),
        machine.file_size(needs.checkpoint),
        machine.disk(out, needs.checkpoint * needs.checkpoints, f"{needs.checkpoints} checkpoints need"),
        machine.disk(machine.temporary_folder(), _SCRATCH, "temporary files need"),
        machine.terminal(),
    ]


def checkpoints_kept(config: AnyConfig) -> int:
    """How many checkpoints lie on the disk when a run ends: the newest, those for good, and the final one."""
    steps, keys = config.train.steps, config.checkpoint
    for_good = steps // keys.keep_every if keys.keep_every else 0
    return min(keys.keep + for_good, -(-steps // keys.every)) + 1


def require_room(config: AnyConfig, batch: BatchBytes, talk: Talk, pinned: bool = False) -> None:
    """Raises `StorageError` when batches of this size do not fit into memory or /dev/shm; warns where descriptors may
    run out. All processes of this machine ask for themselves, each with its share.

    Args:
        pinned: batches are copied into pinned memory on their way to a GPU, as many as are read ahead.
    """
    workers, here = config.train.workers, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    items = items_ahead(batch.handed_over, workers)
    ahead = machine.shared_memory_needed(batch.handed_over, workers, items) * here
    found = machine.memory(batch.used * here + (2 if pinned else 1) * ahead)
    if found.status == machine.BITES:
        size = config.train.batch_size or f"by train.tokens_per_batch = {config.train.tokens_per_batch}"
        raise StorageError(
            f"memory: a micro-batch of {bytes_text(batch.used)} (train.batch_size {size}), and those that are read"
            f" ahead: {found.what}",
            "make train.batch_size smaller, and train.accumulate larger for the same step",
        )
    found = machine.shared_memory(ahead, workers)
    if found.status == machine.BITES:
        raise StorageError(f"{found.check}: batches of {bytes_text(batch.handed_over)}: {found.what}", found.remedy)
    found = machine.descriptors(machine.descriptors_needed(most_open(), workers, items))
    if found.status == machine.BITES:
        talk.warn(f"{found.check}: {found.what}; {found.remedy}")


def tell_disk(state: TrainState, out: Path, talk: Talk) -> None:
    """Says whether all checkpoints that the run will keep fit on the disk."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in state.model.parameters())
    own = sum(tensor.nbytes for _, tensor in named_tensors(state.family.state(state.data)))
    each, kept = (4 + len(state.config.ema.averages)) * weights + own, checkpoints_kept(state.config)
    missing = max(kept - len(list_checkpoints(out / "checkpoints")), 0)
    found = machine.disk(out, each * missing, f"{kept} checkpoints of {bytes_text(each)} are kept; {missing} more need")
    if found.status == machine.BITES:
        talk.warn(f"{found.what}; {found.remedy}")
    else:
        talk.note(found.what)
