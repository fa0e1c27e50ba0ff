"""Positions follow the latent's own height and width; nothing of them is learned or stored.

## What it checks
The network runs at four shapes and answers in each shape. What tells two tokens of equal content apart is the same
under other weights, so it is not learned, and no tensor in the state dict grows with the grid. Position must split into
a row's and a column's part on a grid that is not square, which a transposed one does not. With closed blocks, changing
one token of the input changes that token of the output alone. Exchanging two tokens must not merely exchange the
answers. A reference's patches, on the tokens' grid, must carry the tokens' positions. Where a foreign model turns
queries and keys instead, attention between equal tokens must depend on their distance in rows and columns alone.

## Why it matters
Training runs over seven aspect ratios. A learned table of one size, or height and width exchanged, trains without an
error and draws torn pictures at every other shape.

## Example
`nn.Parameter(torch.zeros(1, 1024, width))` for positions fails: its size is that of one bucket.

## Fix
Make 2-D sin-cos positions on the fly from the batch's rows and columns (`models/positions.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.positions import check_positions
from dittool.audit.specimens.layouts import stored_positions
from dittool.audit.specimens.ours import ModelProbe, relative_change, watch_blocks
from dittool.audit.subject import Subject
from dittool.models.dit import DiT, patchify

CODE, NAME, SEVERITY, SCOPE, SINCE = "E2", "dynamic-positions", "error", ("model", "checkpoint"), "0.1"

_SHAPES = ((3, 3), (2, 4), (4, 2), (1, 6))  # (rows, columns) in tokens
_ODD = (2, 3)
_FIX = "make 2-D sin-cos positions from the batch's own rows and columns (models/positions.py)"
_NOISE = 1e-4  # what rounding may leave of a difference that must be zero, against values of about 1


@torch.no_grad()
def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return check_positions(subject.foreign)
    if subject.without_configuration:
        return _check_weights(subject)
    probe = subject.probe
    model = probe.shared_awake
    faults = []
    for grid in _SHAPES:
        inputs = probe.inputs(grid, batch=1)
        try:
            answer = tuple(model(inputs.z, inputs.t, inputs.conditions).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            faults.append(f"at {grid[0]}×{grid[1]} tokens the network does not run: {error}")
            continue
        if answer != tuple(inputs.z.shape):
            faults.append(
                f"at {grid[0]}×{grid[1]} tokens it answers in the shape {answer}, not {tuple(inputs.z.shape)}"
            )
    if not faults:
        faults = [fault for fault in _position_faults(probe, model) if fault]
    if faults:
        return [finding for fault in faults for finding in failed(fault + probe.note, _FIX)]
    shapes = ", ".join(f"{rows}×{columns}" for rows, columns in _SHAPES)
    held = "positions are not learned, split into row and column, and bind tokens to places"
    return passed(f"runs at {shapes} tokens and answers in kind; {held}{probe.note}")


def _check_weights(subject: Subject) -> list[Finding]:
    view = subject.checkpoint
    if view.layout is None:
        return skipped(view.layout_problem)
    if stored := stored_positions(view.weights(), view.layout):
        name, tensor = next(iter(stored.items()))
        return failed(f"{view.layout.name}: {name} holds positions of a fixed size, {tuple(tensor.shape)}", _FIX)
    unseen = "whether they follow the grid shows only when the model runs"
    return skipped(f"{view.layout.name}: no positions among {len(view.weights())} tensors; {unseen}")


def _position_faults(probe: ModelProbe, model: DiT) -> list[str]:
    rows, columns = _ODD
    here, elsewhere = _positions(probe, model), _positions(probe, probe.awake(seed=1))
    if not here.any():
        return [f"all {len(here)} tokens of equal content look equal to the first block: there are no positions"]
    learned = float((here - elsewhere).abs().max())
    grid = here.unflatten(0, _ODD)  # (h, w, D)
    # zero when f(row, column) = a(row) + b(column)
    mixed = float((grid - grid[:1] - grid[:, :1] + grid[:1, :1]).abs().max())
    unsplit = (
        f"on a grid of {rows}×{columns} positions do not split into row and column (rest {mixed:.2g}): height and width"
        " are exchanged"
    )
    return [
        f"positions differ by {learned:.2g} between two sets of weights: they are learned" if learned > _NOISE else "",
        unsplit if mixed > _NOISE else "",
        _stray_token(probe),
        _equivariance(probe, model),
        _patch_positions(probe, model, here),
    ]


def _positions(probe: ModelProbe, model: DiT) -> Tensor:
    """(N, D): what tells the first block's tokens of equal content apart, relative to the first token."""
    inputs = probe.inputs(_ODD, batch=1)
    with watch_blocks(model) as seen:
        model(torch.zeros_like(inputs.z), inputs.t, inputs.conditions)
    tokens = seen[0][0][0]
    return tokens - tokens[0]


def _stray_token(probe: ModelProbe) -> str:
    """With closed gates a token of the output depends on that token of the input alone."""
    model = probe.fresh()
    torch.nn.init.normal_(model.output.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    inputs, p = probe.inputs(_ODD, batch=1), probe.config.model.patch_size
    last_of_first_row = _ODD[1] - 1
    changed = inputs.z.clone()
    changed[:, :, :p, -p:] += 1.0
    before, after = (patchify(model(z, inputs.t, inputs.conditions), p)[0] for z in (inputs.z, changed))
    moved = (before - after).abs().amax(dim=1).nonzero().flatten().tolist()
    return (
        ""
        if moved == [last_of_first_row]
        else f"changing token {last_of_first_row} of the input changes tokens {moved} of the output"
    )


def _equivariance(probe: ModelProbe, model: DiT) -> str:
    inputs, p = probe.inputs(_ODD, batch=1), probe.config.model.patch_size
    swapped = inputs.z.clone()
    swapped[..., :p, :p], swapped[..., -p:, -p:] = inputs.z[..., -p:, -p:], inputs.z[..., :p, :p]
    plain, other = (patchify(model(z, inputs.t, inputs.conditions), p)[0] for z in (inputs.z, swapped))
    order = [len(plain) - 1, *range(1, len(plain) - 1), 0]
    change = relative_change(plain[order], other)
    return (
        ""
        if change > _NOISE
        else f"exchanging two tokens merely exchanges their answers (relative change {change:.1g}): places do not count"
    )


def _patch_positions(probe: ModelProbe, model: DiT, tokens: Tensor) -> str:
    if not (probe.config.model.patches and probe.config.model.patch_positions):
        return ""
    conditions = probe.inputs(_ODD, batch=1).conditions.map(torch.zeros_like)
    context = model.context(conditions, None, 1, _ODD).tokens[0, -len(tokens) :]  # the patches come last
    apart = float((context - context[0] - tokens).abs().max())
    return (
        ""
        if apart <= _NOISE
        else f"the reference's patches carry positions up to {apart:.2g} away from the tokens' at the same places"
    )
