"""Attention of the one-step generator can choose: it is able to put its weight on few tokens.

## What it checks
In each block the projections of queries and keys are made equal and large, so that every token's own key is the best
answer to its query, as training could make them. The entropy of attention over tokens, as a share of the largest
possible, must then be below 0.9 in every block. For a checkpoint the entropy of its own weights on noise is told beside
it.

## Why it matters
Queries and keys of length 1 with a further 1/√(head width) have logits within ±1/√(head width), ±0.125 for 64 channels:
softmax over them is almost uniform for ever, whatever is learned, and every block only averages. Shapes, parameter
counts and the first losses look right.

## Example
`qk_norm = "l2"` fails: "sharpest possible attention of block 0 has 99.9% of the largest entropy".

## Fix
Use `qk_norm = "rms"`: L2-normed vectors times √(head width), so that logits reach ±√(head width).
"""

from __future__ import annotations

import torch

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Subject
from dittool.models.drift_dit import DriftDiT, attention_entropy

CODE, NAME, SEVERITY, SCOPE, SINCE = "G1", "attention-entropy", "error", ("generator",), "0.1"

_MOST = 0.9
_LARGE = 20.0  # factor on the projections: norms take it away again, and without a norm it is what training may reach
_FIX = 'set model.qk_norm = "rms", or rms_gain for a learned gain'


@torch.no_grad()
def check(subject: Subject) -> list[Finding]:
    probe = subject.probe
    shares = _sharpest(probe.awake(), probe.inputs(batch=1))
    worst = max(range(len(shares)), key=shares.__getitem__)
    learned = ""
    if subject.checkpoint is not None and (model := subject.trained_model()) is not None:
        own = _own(model, probe.inputs(batch=2))
        learned = f"; the checkpoint's own attention has {min(own):.1%} to {max(own):.1%} on noise"
    if shares[worst] > _MOST:
        evidence = (
            f"sharpest possible attention of block {worst} has {shares[worst]:.2%} of the largest entropy, not"
            f" {_MOST:.0%} or less"
        )
        return failed(evidence + learned + probe.note, _FIX)
    return passed(
        f"attention can be as sharp as {min(shares):.1%} to {shares[worst]:.1%} of the largest"
        f" entropy{learned}{probe.note}"
    )


def _sharpest(model: DriftDiT, inputs) -> list[float]:
    for block in model.blocks:
        for tensor in (block.attention.qkv.weight, block.attention.qkv.bias):
            queries, keys, _ = tensor.chunk(3)
            queries.mul_(_LARGE)
            keys.copy_(queries)
    return _own(model, inputs)


def _own(model: DriftDiT, inputs) -> list[float]:
    """Mean entropy share of each block when the model runs."""
    seen: list[float] = []
    hooks = [
        block.attention.register_forward_pre_hook(
            lambda attention, given: seen.append(float(attention_entropy(attention, *given).mean()))
        )
        for block in model.blocks
    ]
    model(inputs.z, inputs.t, inputs.conditions)
    for hook in hooks:
        hook.remove()
    return seen
