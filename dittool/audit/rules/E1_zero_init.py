"""At step 0 every block returns its input exactly, because its gates are zero.

## What it checks
The network is built at step 0, and then every weight except the modulations is drawn again. For random tokens,
timesteps and conditions each block must still return its input bit for bit, and each block's modulation must be zero.
Then the gates are opened: each block must now change its input. Of a foreign model the blocks are the lists of modules
that hand tokens on, and the modulation is what the condition vector feeds in them; parameters that a block holds beside
its layers, as PixArt's table, belong to it.

## Why it matters
With adaLN-Zero a deep network begins as the identity and lets its blocks in one by one; without it training from
scratch is unstable or slow. Six modulation vectors without gates look compliant and are not: zero shift and scale leave
the block's branches wide open. A zero output layer alone hides the fault, since the first prediction is zero either
way.

## Example
`x + attention(modulate(norm(x), shift, scale))` fails with max |block(x) − x| of about 1; `x + gate * attention(…)`
passes with 0.

## Fix
Give each branch of a block its own gate, nine vectors for three branches, and set weight and bias of the modulation's
last layer to zero.
"""

from __future__ import annotations

import torch

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.zero_init import check_zero_init
from dittool.audit.specimens.ours import ModelProbe, watch_blocks
from dittool.audit.specimens.trial import wake
from dittool.audit.subject import Subject
from dittool.models.dit import DiT

CODE, NAME, SEVERITY, SCOPE, SINCE = "E1", "zero-init", "error", ("model", "generator"), "0.1"

_FIX = "multiply each branch by its own gate, and set the modulation's last layer to zero in initialize_weights"
_INPUTS = 3


def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return check_zero_init(subject.foreign)
    if subject.checkpoint is not None:
        return skipped("training has opened the gates of a checkpoint; audit its preset instead")
    probe = subject.probe
    model = probe.fresh()
    left = [
        f"blocks.{index}.modulation"
        for index, block in enumerate(model.blocks)
        if any(p.any() for p in block.modulation.parameters())
    ]
    _redraw_all_but_modulations(model)
    moved = _largest_change(probe, model)
    wake(model, seed=1)
    opened = _largest_change(probe, model)

    faults = []
    if left:
        faults += failed(
            f"{len(left)} of {len(moved)} modulations are not zero at step 0, first {left[0]}{probe.note}", _FIX
        )
    if any(moved):
        worst = moved.index(max(moved))
        faults += failed(
            f"max |block(x) − x| is {max(moved):.3g} in block {worst}, not 0; by block: {_numbers(moved)}{probe.note}",
            _FIX,
        )
    if dead := [index for index, change in enumerate(opened) if change == 0]:
        faults += failed(
            f"with its gates open, block {dead[0]} still returns its input: it can never learn{probe.note}", _FIX
        )
    return faults or passed(
        f"max |block(x) − x| = 0 in each of {len(moved)} blocks with all other weights redrawn; {min(opened):.2g} or"
        f" more with open gates{probe.note}"
    )


def _redraw_all_but_modulations(model: DiT) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modulation" not in name:
                parameter.normal_(std=0.05, generator=generator)


@torch.no_grad()
def _largest_change(probe: ModelProbe, model: DiT) -> list[float]:
    """max |block(x) − x| of each block over several inputs."""
    largest = [0.0] * len(model.blocks)
    for seed in range(_INPUTS):
        inputs = probe.inputs(seed=seed)
        with watch_blocks(model) as seen:
            model(inputs.z, inputs.t, inputs.conditions)
        largest = [
            max(before, float((output - x).abs().max())) for before, (x, output) in zip(largest, seen, strict=True)
        ]
    return largest


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:.2g}" for value in values[:6])
    return f"{shown}, …" if len(values) > 6 else shown
