"""The weights are exactly those of the network that the configuration builds.

## What it checks
Names and shapes of the raw and of the averaged weights against the network of the checkpoint's own configuration and
data, built without memory; with `--preset`, against the preset's. Somebody else's weights in a known layout (DiT, SiT,
PixArt, SD3, Flux) must have the same tensors in every block.

## Why it matters
Loading in part, with what is missing left at random, gives a model that runs and was never trained.

## Example
A checkpoint of depth 12 under a preset of depth 18 fails: "54 missing, first blocks.12.…".

## Fix
Use the preset that it was trained with, or `dit warmstart` to carry weights over to another network, which lists every
tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.generator import probe_of
from dittool.audit.specimens.layouts import incomplete_blocks
from dittool.audit.subject import Subject
from dittool.config.schema import Config

CODE, NAME, SEVERITY, SCOPE, SINCE = "K3", "architecture", "error", ("checkpoint",), "0.1"

_SHOWN = 3
_FIX = "use the preset that it was trained with, or: dit warmstart OLD --preset P --out INIT.safetensors"


def check(subject: Subject) -> list[Finding]:
    view = subject.checkpoint
    keys = [key for key in ("model", "ema") if key in view.content] if view.ours else [None]
    against = {"its own configuration": view.config, "the preset": subject.expected}
    against = {name: config for name, config in against.items() if config is not None}
    if not against and view.layout is not None:
        return _check_layout(view)
    if not against:
        return skipped(
            view.config_problem or "the file does not say which network it belongs to: name one with --preset"
        )
    findings = []
    for name, config in against.items():
        for key in keys:
            if difference := _difference(view.weights(key), config, view.dims(config)):
                findings += failed(f"{key or 'weights'} against {name}: {difference}", _FIX)
    if findings:
        return findings
    weights = view.weights(keys[0])
    parameters = sum(tensor.numel() for tensor in weights.values())
    what = "raw and averaged, " if len(keys) > 1 else ""
    return passed(f"{what}{len(weights)} tensors, {parameters:,} parameters, as {' and '.join(against)} says")


def _check_layout(view: CheckpointView) -> list[Finding]:
    blocks, lacking = incomplete_blocks(view.weights(), view.layout)
    if lacking:
        which = (
            f"{len(lacking)} tensors are missing or differ from other blocks' in shape, first"
            f" {', '.join(lacking[:_SHOWN])}"
        )
        return failed(f"{view.layout.name}: {which}", _FIX)
    return passed(
        f"{view.layout.name}: {blocks} blocks with the same names and shapes, but for the last; {len(view.weights())}"
        " tensors"
    )


def _difference(weights: Mapping[str, Tensor], config: Config, dims: dict[str, int] | None) -> str:
    """Counts and first names; "" when there is none. Without `dims` it is another kind of network, and all names
    differ.
    """
    wanted = probe_of(config, dims).at_real_size().state_dict()
    kinds = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "of another shape": [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape],
    }
    return "; ".join(
        f"{len(names)} {kind}, first {', '.join(names[:_SHOWN])}" for kind, names in kinds.items() if names
    )
