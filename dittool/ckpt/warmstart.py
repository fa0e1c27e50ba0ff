"""Old weights carried over to a new architecture, with an account of every tensor.

Tensors are matched by name, so block i becomes block i, and numbers by what they stand for:

    features, latent channels   carried over when the same encoder makes them; another encoder's columns mean other
                                things, and its layer starts fresh
    cells of a patch            resized in space: the new model sees and predicts each patch as the old one would at the
                                old patch's resolution (as FlexiViT resizes embeddings, arXiv 2212.08013)
    matrices stacked in rows    cut matrix by matrix, so that a gate stays a gate; another number of matrices starts
                                fresh
    heads, positions, norm      the numbers are kept, and reported as resized: they attend, or read, otherwise
    modulation, own or shared   a shared one is handed out to the blocks as exactly what it was; many become their mean
                                and what each block's bias adds to it

Blocks that the old model did not have keep their fresh initialisation, in which a block is the identity (its gates are
zero): a deeper model starts as the old one. A tensor of another width takes the corner that both shapes share and keeps
its fresh initialisation in the rest: a start, not the old model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.ckpt.inspect import config_in
from dittool.ckpt.load import content_of, require_finite
from dittool.ckpt.opened import is_weights_alone
from dittool.ckpt.safetensors_file import check_safetensors
from dittool.ckpt.write import write_safetensors
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config
from dittool.errors import BadDataError, DitError

COPIED, RESIZED, FRESH, SKIPPED = "copied", "resized", "re-initialised", "skipped"
WARM_START = "warm start"  # the key `weights` in the metadata of a file that `write_init` wrote
Shape = tuple[int, ...]

_STACKED = {"qkv": 3, "kv": 2, "modulation": 9, "output_modulation": 2}  # matrices along the rows, by the layer's name
_OWN_MODULATION = re.compile(r"blocks\.\d+\.modulation\.weight")
_SHARED, _HANDED_OUT = "shared: the mean of the old blocks'", "the shared one, with the block's own offset"
_OF_NORMED_TOKENS = (".attention.qkv", ".cross_attention.q", ".mlp.up")  # and the output layer: what reads them
_MLP = {0: "other layers", 1: "GELU", 2: "SwiGLU"}  # by the matrices in `mlp.up`
_OF_ENCODER = {
    "conditioning.text_proj": "text",
    "conditioning.null_text": "text",
    "conditioning.dino_proj": "image",
    "conditioning.dino_patch_proj": "image",
    "conditioning.null_dino": "image",
    "conditioning.null_dino_patch_token": "image",
    "alignment_head.out": "image",
    "patch_embedding": "vae",
    "output": "vae",
}
_WIDTH_OF_COLUMNS = {"text": "conditioning.text_proj.weight", "image": "conditioning.dino_proj.weight"}
_PATCH_AXIS = {"patch_embedding.weight": 1, "output.weight": 0, "output.bias": 0}  # C·p·p values lie along it


@dataclass(frozen=True)
class Features:
    """What an encoder makes, as far as it is known."""

    name: str | None  # of the encoder: hub id, folder or built-in name
    width: int | None

    def differs(self, old: Features) -> str:
        """In what these are others than the old ones, "" when they are the same: by the encoders' names, else by
        width. A folder is the hub id of the same last name.
        """
        if self.name and old.name:
            same = PurePath(self.name).name.lower() == PurePath(old.name).name.lower()
            return "" if same else f"encoder {old.name} before, {self.name} now"
        same = self.width is None or old.width is None or self.width == old.width
        return "" if same else f"width {old.width} before, {self.width} now"


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a model stand for, beyond the shapes of its tensors; None and absent: not known."""

    heads: int | None = None
    patch_size: int | None = None  # latent cells
    features: Mapping[str, Features] = field(default_factory=dict)  # text, image, vae
    positions: str | None = None  # as in model.positions
    norm: str | None = None  # as in model.norm

    @staticmethod
    def of(config: Config | None, widths: Mapping[str, int]) -> Meaning:
        """Of a model with this configuration, where it is known, and with features of these widths."""
        text, image, channels = widths.get("text"), widths.get("image"), widths.get("latent_channels")
        if config is None:
            return Meaning(
                features={"text": Features(None, text), "image": Features(None, image), "vae": Features(None, channels)}
            )
        names, model = config.encoders, config.model
        features = {
            "text": Features(names.text, text),
            "image": Features(names.image, image),
            "vae": Features(names.vae, channels),
        }
        return Meaning(model.heads, model.patch_size, features, model.positions, model.norm)


_UNKNOWN = Meaning()


def other_meanings(before: AnyConfig, after: AnyConfig) -> list[str]:
    """In what the numbers of two models of one architecture mean other things, whether or not their shapes are the
    same: `model.heads: 2 before, 4 now`.
    """
    was, now = (_meaning_of_any(config_to_dict(config)) for config in (before, after))
    numbers = {
        f"model.{key}": (getattr(was, key), getattr(now, key)) for key in ("heads", "patch_size", "positions", "norm")
    }
    return [f"{key}: {old} before, {new} now" for key, (old, new) in numbers.items() if old != new] + [
        f"encoders.{kind}: {why}" for kind in now.features if (why := now.features[kind].differs(was.features[kind]))
    ]


def _meaning_of_any(config: Mapping[str, Any]) -> Meaning:
    names, model = config.get("encoders", {}), config["model"]
    features = {kind: Features(names.get(kind), None) for kind in ("text", "image", "vae")}
    return Meaning(model.get("heads"), model.get("patch_size"), features, model.get("positions"), model.get("norm"))


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor, and why where the shapes do not say it. `axes` are those whose lengths differ, for a
    resized one.
    """

    name: str
    status: str
    old: Shape | None
    new: Shape | None
    axes: tuple[int, ...] = ()
    why: str = ""


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


def warmstart(
    old: Mapping[str, Tensor], target: Mapping[str, Tensor], before: Meaning = _UNKNOWN, after: Meaning = _UNKNOWN
) -> WarmStart:
    """Weights for `target` (a freshly initialised model's state dict) that take from `old` what has a meaning there.
    `before` and `after` say what the numbers of either stand for. Neither is changed.

    Raises `BadDataError` when nothing fits, or when the old weights hold NaN or infinity.
    """
    require_finite(old, "old weights")
    weights, report = {}, []
    remade = _modulation_as_in(target, old)
    for name in target:
        weights[name], row = _carried(name, {**old, **remade}, target, before, after)
        if name in remade and row.status != FRESH:
            row = replace(row, status=RESIZED, why=_SHARED if "modulation.weight" in target else _HANDED_OUT)
        report.append(row)
    report += [
        TensorReport(name, SKIPPED, tuple(tensor.shape), None) for name, tensor in old.items() if name not in target
    ]
    if not any(row.status in (COPIED, RESIZED) for row in report):
        raise BadDataError(
            f"none of the old model's {len(old)} tensors ({', '.join(list(old)[:3])} …) has the name, rank and meaning"
            f" of one of the new model's {len(target)} ({', '.join(list(target)[:3])} …)",
            "the old weights must come from a model with the same names",
        )
    return WarmStart(weights, tuple(report))


def old_configuration(path: Path) -> AnyConfig | None:
    """The configuration that a checkpoint of ours, or an exported file, remembers; None for bare weights, and where it
    is not readable.
    """
    tree = config_in(path)
    try:
        return None if tree is None else config_from_dict(tree, str(path))
    except DitError:
        return None


def old_feature_widths(path: Path, weights: Mapping[str, Tensor], patch_size: int) -> dict[str, int]:
    """Widths of the features that the old model was built for, under "text", "image" and "latent_channels"; the unknown
    ones are absent.

    One of our checkpoints remembers them with its data. Else they are read off the shapes, the channels with the old
    model's `patch_size`, in latent cells.
    """
    if not is_weights_alone(path):
        content = content_of(path)
        data = content.get("data") if isinstance(content, dict) else None
        dims = data.get("dims") if isinstance(data, dict) else None
        if isinstance(dims, dict):
            return {name: dims[name] for name in ("text", "image", "latent_channels") if type(dims.get(name)) is int}
    widths = {
        name: weights[layer].shape[1]
        for name, layer in _WIDTH_OF_COLUMNS.items()
        if layer in weights and weights[layer].dim() == 2
    }
    embedding, cells = weights.get("patch_embedding.weight"), patch_size**2
    if embedding is not None and embedding.shape[-1] % cells == 0:
        widths["latent_channels"] = embedding.shape[-1] // cells
    return widths


def write_init(path: Path, result: WarmStart, source: str, config: Config) -> None:
    """The new weights as `.safetensors`, for `dit train --init`; the metadata say where they come from and which
    configuration they are of.
    """
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    metadata = {"format": "pt", "weights": WARM_START, "source": source, "tensors": counts}
    write_safetensors(path, result.weights, metadata | {"config": json.dumps(config_to_dict(config))})


def is_warm_start(path: Path) -> bool:
    """Whether a file is one that `write_init` wrote."""
    try:
        return check_safetensors(path).metadata.get("weights") == WARM_START
    except DitError:
        return False


def _carried(
    name: str, old: Mapping[str, Tensor], target: Mapping[str, Tensor], before: Meaning, after: Meaning
) -> tuple[Tensor, TensorReport]:
    """One tensor of the new model, and what became of it."""
    given, fresh = old.get(name), target[name]
    was, now = None if given is None else tuple(given.shape), tuple(fresh.shape)
    if given is None or (why := _without_counterpart(name, old, target, before, after)):
        return fresh.clone(), TensorReport(name, FRESH, was, now, why="not in the old model" if given is None else why)
    axes = tuple(axis for axis in range(fresh.dim()) if given.shape[axis] != fresh.shape[axis])
    p, q = before.patch_size, after.patch_size
    if name in _PATCH_AXIS and p and q and p != q:
        resized, why = _patches_resized(name, given, p, q), f"patches of {p}×{p} cells become {q}×{q}"
        return _corner(resized, fresh, 1), TensorReport(name, RESIZED, was, now, axes, why)
    if axes:
        stacked = _parts_of_mlp(name, target) or _STACKED.get(_layer(name), 1)
        return _corner(given, fresh, stacked), TensorReport(name, RESIZED, was, now, axes)
    copied = given.to(fresh.dtype, copy=True)
    if why := _read_otherwise(name, before, after):
        return copied, TensorReport(name, RESIZED, was, now, why=why)
    return copied, TensorReport(name, COPIED, was, now)


def _read_otherwise(name: str, before: Meaning, after: Meaning) -> str:
    """In what the same numbers compute something else in the new model; "" where they do not."""
    changed: list[str] = []
    if "attention." in name and before.heads and after.heads and before.heads != after.heads:
        changed.append(f"{before.heads} heads become {after.heads}: the same numbers attend otherwise")
    if ".attention." in name and before.positions and after.positions and before.positions != after.positions:
        changed.append(f"positions {before.positions} become {after.positions}: the same numbers attend otherwise")
    reads_tokens = f".{name}".rpartition(".")[0].endswith((*_OF_NORMED_TOKENS, ".output"))
    if reads_tokens and before.norm and after.norm and before.norm != after.norm:
        changed.append(f"the norm {before.norm} becomes {after.norm}: the same numbers read other tokens")
    return "; ".join(changed)


def _modulation_as_in(target: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The modulation of the old blocks by the names of the new model, where one of them shares it and the other does
    not; empty where they agree.

    shared → each:  W_i = W, b_i = b + o_i        each → shared:  W = mean W_i, b = mean b_i, o_i = b_i − b
    """
    blocks = [name.removesuffix(".weight") for name in old if _OWN_MODULATION.fullmatch(name)]
    offsets = {name.removesuffix(".offset"): tensor for name, tensor in old.items() if name.endswith("lation.offset")}
    if "modulation.weight" in target and blocks:
        mean = {
            f"modulation.{kind}": torch.stack([old[f"{block}.{kind}"].float() for block in blocks]).mean(0)
            for kind in ("weight", "bias")
        }
        own = {f"{block}.offset": old[f"{block}.bias"].float() - mean["modulation.bias"] for block in blocks}
        return {**mean, **own}
    if "modulation.weight" in old and "modulation.weight" not in target:
        handed_out = {f"{block}.weight": old["modulation.weight"] for block in offsets}
        return {**handed_out, **{f"{block}.bias": old["modulation.bias"] + own for block, own in offsets.items()}}
    return {}


def _without_counterpart(
    name: str, old: Mapping[str, Tensor], target: Mapping[str, Tensor], before: Meaning, after: Meaning
) -> str:
    """Why the old tensor of this name means something else than the new one; "" when it means the same."""
    given, fresh = old[name], target[name]
    if given.dim() != fresh.dim():
        return f"of {given.dim()} axes in the old model, {fresh.dim()} in the new one"
    kind = _OF_ENCODER.get(name.removesuffix(".weight").removesuffix(".bias"))
    known = kind in before.features and kind in after.features
    if kind and known and after.features[kind].differs(before.features[kind]):
        return f"other {kind} features"
    if (was := _parts_of_mlp(name, old)) != (now := _parts_of_mlp(name, target)):
        return f"an MLP of {_MLP[was]} in the old model, of {_MLP[now]} in the new one"
    matrices, weight = _STACKED.get(_layer(name)), old.get(f"{name.rpartition('.')[0]}.weight")
    if matrices and weight is not None and weight.dim() == 2:
        found = weight.shape[0] / weight.shape[1]
        return "" if found == matrices else f"{found:g} matrices in the old model, {matrices} in the new one"
    return ""


def _patches_resized(name: str, values: Tensor, p: int, q: int) -> Tensor:
    """The C·p·p values along the patch axis as C·q·q.

    resize(unit patches) is the matrix A of q² → p² cells. The embedding of a patch x is W·A·x, so its columns are W·A;
    a prediction y becomes A'·y with A' of p² → q².
    """
    axis = _PATCH_AXIS[name]
    matrix = _resizing(q, p).T if axis == 1 else _resizing(p, q)  # (q², p²)
    cells = values.movedim(axis, -1).unflatten(-1, (-1, p * p)).float()  # (…, C, p²)
    return (cells @ matrix.T).flatten(-2).movedim(-1, axis).to(values.dtype)


def _resizing(p: int, q: int) -> Tensor:
    """(q², p²) the matrix that resizes a patch of p×p cells to q×q, bilinear, averaging when it shrinks."""
    units = torch.eye(p * p).view(p * p, 1, p, p)
    resized = F.interpolate(units, size=(q, q), mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(1).T


def _corner(old: Tensor, fresh: Tensor, stacked: int) -> Tensor:
    """`fresh` with the part that both shapes share taken from `old`, in each of `stacked` matrices on its own."""
    result = fresh.clone()
    if old.shape[0] % stacked or fresh.shape[0] % stacked:
        stacked = 1
    # (stacked · rows, …) → (stacked, rows, …)
    parts, source = result.unflatten(0, (stacked, -1)), old.unflatten(0, (stacked, -1))
    shared = tuple(slice(0, min(new, before)) for new, before in zip(parts.shape, source.shape, strict=True))
    with torch.no_grad():
        parts[shared] = source[shared].to(result.dtype)
    return result


def _layer(name: str) -> str:
    """`blocks.0.attention.qkv.weight` → `qkv`"""
    return name.rpartition(".")[0].rpartition(".")[2]


def _parts_of_mlp(name: str, tensors: Mapping[str, Tensor]) -> int:
    """How many matrices `mlp.up` stacks along its rows, told by the columns of `mlp.down`: 1 of GELU, 2 of SwiGLU; 0
    for the name of another tensor.
    """
    mlp, found, _ = name.partition(".mlp.")
    up, down = (tensors.get(f"{mlp}.mlp.{layer}.weight") for layer in ("up", "down"))
    return up.shape[0] // down.shape[1] if found and up is not None and down is not None else 0
