"""Old weights carried over to a new architecture, with an account of every tensor.

Tensors are matched by name, so block i becomes block i. Blocks that the old model did not have keep their fresh
initialisation, in which a block is the identity (its gates are zero): a deeper model starts as the old one. Blocks that
the new model does not have are left out.

A tensor of another shape takes the part that both shapes share and keeps its fresh initialisation in the rest. Layers
that stack several matrices along their rows are cut matrix by matrix, so that a gate stays a gate. A resized model is a
start, not the old model: heads and norms mix other channels than before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.files import write_safetensors
from dittool.ckpt.load import check_pt, require_finite
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict
from dittool.errors import BadDataError, UsageError

COPIED, RESIZED, FRESH, SKIPPED = "copied", "resized", "re-initialised", "skipped"
Shape = tuple[int, ...]

_STACKED = {"qkv": 3, "kv": 2, "modulation": 9, "output_modulation": 2}  # matrices along the rows, by the layer's name
_WIDTH_OF_COLUMNS = {"text": "conditioning.text_proj.weight", "image": "conditioning.dino_proj.weight"}
_PATCH_EMBEDDING = "patch_embedding.weight"  # columns: latent channels × patch size²


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor. `axes` are those whose lengths differ, for a resized one."""

    name: str
    status: str
    old: Shape | None
    new: Shape | None
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class WarmStart:
    """The new model's complete weights, and one report for each tensor of either model."""

    weights: dict[str, Tensor]
    report: tuple[TensorReport, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of tensors by status, all four statuses present."""
        counted = Counter(row.status for row in self.report)
        return {status: counted[status] for status in (COPIED, RESIZED, FRESH, SKIPPED)}


def warmstart(old: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> WarmStart:
    """Weights for `target` (a freshly initialised model's state dict) that take from `old` what fits. Neither is
    changed.

    Raises `BadDataError` when nothing fits, or when the old weights hold NaN or infinity.
    """
    require_finite(old, "old weights")
    weights, report = {}, []
    for name, fresh in target.items():
        before = old.get(name)
        if before is None or before.dim() != fresh.dim():
            weights[name] = fresh.clone()
            report.append(
                TensorReport(name, FRESH, None if before is None else tuple(before.shape), tuple(fresh.shape))
            )
        elif before.shape == fresh.shape:
            weights[name] = before.to(fresh.dtype, copy=True)
            report.append(TensorReport(name, COPIED, tuple(before.shape), tuple(fresh.shape)))
        else:
            weights[name] = _resized(before, fresh, _stacked(name))
            axes = tuple(axis for axis in range(fresh.dim()) if before.shape[axis] != fresh.shape[axis])
            report.append(TensorReport(name, RESIZED, tuple(before.shape), tuple(fresh.shape), axes))
    report += [
        TensorReport(name, SKIPPED, tuple(tensor.shape), None) for name, tensor in old.items() if name not in target
    ]
    if not any(row.status in (COPIED, RESIZED) for row in report):
        raise BadDataError(
            f"none of the old model's {len(old)} tensors ({', '.join(list(old)[:3])} …) has the name and rank of one of"
            f" the new model's {len(target)} ({', '.join(list(target)[:3])} …)",
            "the old weights must come from a model with the same names",
        )
    return WarmStart(weights, tuple(report))


def old_configuration(path: Path) -> AnyConfig | None:
    """The configuration that a checkpoint of ours remembers; None for bare weights, and where it is not readable."""
    content = None if path.suffix.lower() == ".safetensors" else check_pt(path).content
    tree = content.get("config") if isinstance(content, dict) else None
    try:
        return config_from_dict(tree, str(path)) if isinstance(tree, dict) else None
    except UsageError:
        return None


def old_feature_widths(path: Path, weights: Mapping[str, Tensor], patch_size: int) -> dict[str, int]:
    """Widths of the features that the old model was built for, under "text", "image" and "latent_channels"; the unknown
    ones are absent.

    One of our checkpoints remembers them with its data. Else they are read off the shapes, the channels with
    `patch_size`, in latent cells.
    """
    if path.suffix.lower() != ".safetensors":
        content = check_pt(path).content
        data = content.get("data") if isinstance(content, dict) else None
        dims = data.get("dims") if isinstance(data, dict) else None
        if isinstance(dims, dict):
            return {name: dims[name] for name in ("text", "image", "latent_channels") if type(dims.get(name)) is int}
    widths = {
        name: weights[layer].shape[1]
        for name, layer in _WIDTH_OF_COLUMNS.items()
        if layer in weights and weights[layer].dim() == 2
    }
    cells = patch_size**2
    if _PATCH_EMBEDDING in weights and weights[_PATCH_EMBEDDING].shape[-1] % cells == 0:
        widths["latent_channels"] = weights[_PATCH_EMBEDDING].shape[-1] // cells
    return widths


def write_init(path: Path, result: WarmStart, source: str) -> None:
    """The new weights as `.safetensors`, for `dit train --init`; the metadata say where they come from."""
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    write_safetensors(
        path, result.weights, {"format": "pt", "weights": "warm start", "source": source, "tensors": counts}
    )


def _resized(old: Tensor, fresh: Tensor, stacked: int) -> Tensor:
    result = fresh.clone()
    if old.shape[0] % stacked or fresh.shape[0] % stacked:
        stacked = 1
    # (stacked · rows, …) → (stacked, rows, …): each matrix is cut on its own
    parts, source = result.unflatten(0, (stacked, -1)), old.unflatten(0, (stacked, -1))
    shared = tuple(slice(0, min(new, before)) for new, before in zip(parts.shape, source.shape, strict=True))
    with torch.no_grad():
        parts[shared] = source[shared].to(result.dtype)
    return result


def _stacked(name: str) -> int:
    """How many matrices the layer of a tensor stacks along its rows: `blocks.0.attention.qkv.weight` → 3."""
    layer = name.rpartition(".")[0].rpartition(".")[2]
    return _STACKED.get(layer, 1)
