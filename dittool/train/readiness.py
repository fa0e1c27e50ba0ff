"""Whether this machine is ready for a run: what the run asks for, held against what `machine.py` finds.

Figures are those of a preset before there is any data; a run that has opened its shards knows them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dittool import installation, machine
from dittool.config.architectures import AnyConfig
from dittool.data.shards.read_ahead import AHEAD
from dittool.families.family import family_of
from dittool.machine import NOTE, Finding
from dittool.models.build import parameter_count

_FLOAT = 4  # bytes
_SCRATCH = 100 << 20  # bytes that libraries leave in the temporary folder
_REST = 1 << 30  # bytes of torch itself, of batches and of the activations of a small model


@dataclass(frozen=True)
class Needs:
    """What a run asks of a machine. Sizes are bytes."""

    workers: int
    batch: int  # what a worker process hands over at a time
    files: int  # shards that are open
    checkpoint: int  # weights, average and two moments
    checkpoints: int  # that stay on the disk
    model: int  # weights, gradients, average and two moments, without activations
    bf16: bool
    compiles: bool


def needs_of(config: AnyConfig, data: Path) -> Needs | None:
    """The needs of a preset; None where its encoders are of unknown width, and so the size of its model."""
    family = family_of(config)
    if (widths := family.known_widths(config)) is None:
        return None
    weights = parameter_count(lambda: family.build(config, widths)) * _FLOAT
    steps, kept = config.train.steps, config.checkpoint
    return Needs(
        workers=config.train.workers,
        batch=family.batch_bytes(config, widths),
        files=sum(1 for _ in data.rglob("*.tar")),
        checkpoint=4 * weights,
        checkpoints=kept.keep + 1 + (steps // kept.keep_every if kept.keep_every else 0),
        model=5 * weights,
        bf16=config.train.precision == "bf16",
        compiles=config.train.compile,
    )


def examine(config: AnyConfig, data: Path, out: Path) -> list[Finding]:
    """Every check, for a run of `config` on the shards in `data` that writes to `out`."""
    found = [installation.python_version(), *installation.versions(), installation.torchvision_build()]
    found.append(installation.compiler(config.train.compile))
    if (needs := needs_of(config, data)) is None:
        what = "the size of this preset's model is not known: its encoders are in no table of docs/encoders.md"
        found.append(Finding("needs", NOTE, what, "with data: dit train --dry-run --preset P"))
        needs = Needs(config.train.workers, 0, 0, 0, 0, 0, config.train.precision == "bf16", config.train.compile)
    shared = machine.shared_memory_needed(needs.batch, needs.workers, AHEAD)
    devices = machine.device(needs.model, needs.bf16)
    on_gpu = any(one.check.startswith("device: cuda") for one in devices)
    return [
        *found,
        *devices,
        machine.memory(_REST + (0 if on_gpu else needs.model)),
        machine.shared_memory(shared, needs.workers),
        machine.descriptors(machine.descriptors_needed(needs.files, needs.workers, AHEAD)),
        machine.processes(needs.workers),
        machine.file_size(needs.checkpoint),
        machine.disk(out, needs.checkpoint * needs.checkpoints, f"{needs.checkpoints} checkpoints need"),
        machine.disk(machine.temporary_folder(), _SCRATCH, "temporary files need"),
        machine.terminal(),
    ]
