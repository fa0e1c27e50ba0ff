"""The weights are exactly those of the network that the configuration builds.

## What it checks
Names and shapes of the raw and of the averaged weights against the network of the checkpoint's own configuration and
data, built without memory; with `--preset`, against the preset's. Somebody else's weights in a known layout (DiT, SiT,
REPA, LightningDiT, DDT, PixArt, SD3, Flux, Sana, PRX, U-ViT, MDT, minRF, Lumina, F5, Hunyuan) must have the same
tensors in every block; an unknown layout is described: repeated blocks, width, widest matrices.

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

from dittool.audit.rule import Finding, failed, judged, passed, skipped
from dittool.audit.subject import Checkpoint

CODE, NAME, SEVERITY, SCOPE, SINCE = "K3", "architecture", "error", ("checkpoint",), "0.1"

_SHOWN = 3
_FIX = "use the preset that it was trained with, or: dit warmstart OLD --preset P --out INIT.safetensors"


def check(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    keys = [key for key in ("model", "ema") if key in view.content] if view.ours else [None]
    against = {} if view.config is None else {"its own configuration": subject.specimen.shapes()}
    if subject.expected is not None:
        against["the preset"] = subject.expected.specimen.shapes()
    if not against and view.layout is not None:
        return _check_layout(subject, view.layout.name)
    if not against:
        unknown = "the file does not say which network it belongs to: name one with --preset"
        return skipped(view.config_problem or unknown + (f"; it holds {view.structure}" if view.part else ""))
    differences = {
        f"{key or 'weights'} against {name}": _difference(view.weights(key), wanted)
        for name, wanted in against.items()
        for key in keys
    }
    weights = view.weights(keys[0])
    parameters = sum(tensor.numel() for tensor in weights.values())
    what = "raw and averaged, " if len(keys) > 1 else ""
    held = f"{what}{len(weights)} tensors, {parameters:,} parameters, as {' and '.join(against)} says"
    return judged([f"{which}: {difference}" for which, difference in differences.items() if difference], _FIX, held)


def _check_layout(subject: Checkpoint, layout: str) -> list[Finding]:
    blocks, lacking = subject.specimen.incomplete_blocks()
    if lacking:
        which = (
            f"{len(lacking)} tensors are missing or differ from other blocks' in shape, first"
            f" {', '.join(lacking[:_SHOWN])}"
        )
        return failed(f"{layout}: {which}", _FIX)
    return passed(
        f"{layout}: {blocks} blocks with the same names and shapes, but for the last; {len(subject.view.weights())}"
        " tensors"
    )


def _difference(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Counts and first names; "" when there is none."""
    kinds = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "of another shape": [name for name in wanted if name in weights and tuple(weights[name].shape) != wanted[name]],
    }
    return "; ".join(
        f"{len(names)} {kind}, first {', '.join(names[:_SHOWN])}" for kind, names in kinds.items() if names
    )
