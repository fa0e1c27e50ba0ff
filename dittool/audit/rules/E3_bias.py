"""Attention and MLP have no biases; norms, input projections, timestep MLP, modulation and output layer may have.

## What it checks
Every bias in the network at its real size: none may stand in a block's q, k, v, attention output or MLP. The evidence
names those that do and counts what all biases cost. In a foreign model's blocks every layer is looked at but norms and
what the condition vector feeds.

## Why it matters
The recipe has none there: the modulation's shifts already do what they could do, and weights with them fit no other
model of the recipe. It is not about size: the biases that stay cost a third of a percent of a tiny network and a few
hundredths of a percent of a large one.

## Example
`nn.Linear(width, 3 * width)` for q, k, v fails; `nn.Linear(width, 3 * width, bias=False)` passes.

## Fix
Build those layers with `bias=False`.
"""

from __future__ import annotations

from torch import nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.biases import check_biases
from dittool.audit.specimens.layouts import block_biases
from dittool.audit.subject import Subject

CODE, NAME, SEVERITY, SCOPE, SINCE = "E3", "bias", "error", ("model", "checkpoint"), "0.1"

_BARE = ("attention", "cross_attention", "mlp")  # parts of a block whose linear layers have no bias
_FIX = "build these layers with bias=False"


def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return check_biases(subject.foreign)
    if subject.without_configuration:
        return _check_weights(subject)
    model = subject.probe.at_real_size()
    total = sum(parameter.numel() for parameter in model.parameters())
    biases = {name: parameter.numel() for name, parameter in model.named_parameters() if name.endswith("bias")}
    wrong = [
        f"blocks.{index}.{part}.{name}.bias"
        for index, block in enumerate(model.blocks)
        for part in _BARE
        for name, layer in getattr(block, part).named_modules()
        if isinstance(layer, nn.Linear) and layer.bias is not None
    ]
    if wrong:
        cost = sum(biases[name] for name in wrong)
        return failed(
            f"{len(wrong)} biases where none belongs, first {wrong[0]}; {cost:,} parameters, {cost / total:.3%} of"
            f" {total:,}",
            _FIX,
        )
    cost = sum(biases.values())
    linear = sum(
        isinstance(layer, nn.Linear)
        for block in model.blocks
        for part in _BARE
        for layer in getattr(block, part).modules()
    )
    return passed(
        f"none in {linear} attention and MLP layers; {len(biases)} elsewhere, {cost:,} parameters, {cost / total:.3%}"
        f" of {total:,}"
    )


def _check_weights(subject: Subject) -> list[Finding]:
    view = subject.checkpoint
    if view.layout is None:
        return skipped(view.layout_problem)
    weights = view.weights()
    total, wrong = sum(tensor.numel() for tensor in weights.values()), block_biases(weights, view.layout)
    if wrong:
        cost = sum(tensor.numel() for tensor in wrong.values())
        which = f"{len(wrong)} biases in the blocks' attention and MLP, first {next(iter(wrong))}"
        return failed(f"{view.layout.name}: {which}; {cost:,} parameters, {cost / total:.3%} of {total:,}", _FIX)
    return passed(
        f"{view.layout.name}: none in the blocks' attention and MLP among {len(weights)} tensors, {total:,} parameters"
    )
