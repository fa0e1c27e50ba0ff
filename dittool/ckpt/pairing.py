"""Tensors of equal values under other names: an original repository's layout beside the one of diffusers.

A layer may be fused in one of the two: `qkv.weight` (3·D, D) holds `to_q`, `to_k` and `to_v` one below the other,
Flux's `linear1` also an MLP. The last modulation of some has its two halves, shift and scale, exchanged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One tensor of one side and one or more of the other that hold the same values."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    how: str  # "", "reshaped", "halves exchanged", "fused" or "a further copy"


def pair_by_content(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[Pair]:
    """Pairs of tensors that hold the same values, where the two sides' precisions differ in the coarser of both.

    Each tensor is used once, but for copies that only one side has (diffusers' DiT embeds time in every block). Of
    several with equal values (biases of zero) the one beside what its neighbours were paired with is taken. Nothing is
    paired where nothing but constants is equal.
    """
    coarser = _coarser(old.values(), new.values())
    sides = _Side(old, coarser), _Side(new, coarser)
    pairs = _whole(*sides)
    pairs += [Pair((name,), parts, "fused") for name, parts in _fused(*sides)]
    pairs += [Pair(parts, (name,), "fused") for name, parts in _fused(*reversed(sides))]
    pairs += [Pair((origin,), (name,), COPY) for name, origin in _copies(sides[1], old, sides[0])]
    pairs += [Pair((name,), (origin,), COPY) for name, origin in _copies(sides[0], new, sides[1])]
    return pairs if any(_tells(old[name]) for pair in pairs for name in pair.old) else []


COPY = "a further copy"


class _Side:
    """The tensors of one file that have no partner yet."""

    def __init__(self, tensors: Mapping[str, Tensor], coarser: torch.dtype) -> None:
        self.tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
        self._coarser = coarser
        self.partners: dict[str, list[str]] = {}  # layer → layers of the other side that it was paired with

    @property
    def order(self) -> list[str]:
        """Names of matrices first, because more of them differ from each other than of biases."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].dim() < 2, _natural(name)))

    def digest(self, tensor: Tensor) -> bytes:
        """Of the values in the coarser precision; a flat tensor and a folded one are the same."""
        values = tensor.to(self._coarser) if tensor.is_floating_point() else tensor
        raw = values.contiguous().view(-1).view(torch.uint8).numpy().data
        return hashlib.blake2b(raw, digest_size=16).digest()

    def by_digest(self) -> dict[bytes, list[str]]:
        found: dict[bytes, list[str]] = {}
        for name in self.order:
            found.setdefault(self.digest(self.tensors[name]), []).append(name)
        return found


def _whole(old: _Side, new: _Side) -> list[Pair]:
    found, pairs = new.by_digest(), []
    for name in old.order:
        tensor = old.tensors[name]
        how = ""
        candidates = found.get(old.digest(tensor), [])
        if not candidates and tensor.shape[:1] and tensor.shape[0] % 2 == 0:
            candidates, how = found.get(old.digest(torch.cat(tensor.chunk(2)[::-1])), []), "halves exchanged"
        if partner := _nearest(candidates, old.partners.get(_layer(name), [])):
            candidates.remove(partner)
            reshaped = not how and new.tensors[partner].shape != tensor.shape
            pairs.append(Pair((name,), (partner,), "reshaped" if reshaped else how))
            _take(old, [name], new, [partner])
    return pairs


def _copies(left: _Side, others: Mapping[str, Tensor], other: _Side) -> list[tuple[str, str]]:
    """Tensors without a partner that hold what a paired tensor of the other side holds; not constants."""
    waiting = [name for name in left.order if _tells(left.tensors[name])]
    if not waiting:
        return []
    sizes = {left.tensors[name].numel() for name in waiting}
    paired = {other.digest(one): name for name, one in others.items() if one.numel() in sizes}
    found = [(name, paired.get(left.digest(left.tensors[name]), "")) for name in waiting]
    return [(name, origin) for name, origin in found if origin and origin not in other.tensors]


def _fused(whole: _Side, parts: _Side) -> list[tuple[str, tuple[str, ...]]]:
    """Tensors of one side that are several of the other, one below the other."""
    found, fused = parts.by_digest(), []
    rows = {(tensor[0].numel(), len(tensor)) for tensor in parts.tensors.values() if tensor.dim()}
    for name in whole.order:
        tensor = whole.tensors[name]
        if not tensor.dim():
            continue
        heights = sorted((height for width, height in rows if width == tensor[0].numel()), reverse=True)
        taken: list[str] = []
        begin = 0
        while begin < len(tensor):
            for height in (height for height in heights if begin + height <= len(tensor)):
                left = [one for one in found.get(whole.digest(tensor[begin : begin + height]), []) if one not in taken]
                near = whole.partners.get(_layer(name), [])[len(taken) :]
                if partner := _nearest(left, near):
                    taken.append(partner)
                    begin += height
                    break
            else:
                break
        if begin == len(tensor) and len(taken) > 1:
            for one in taken:
                found[parts.digest(parts.tensors[one])].remove(one)
            fused.append((name, tuple(taken)))
            _take(whole, [name], parts, taken)
    return fused


def _tells(tensor: Tensor) -> bool:
    """Whether its values say which tensor it is: zeros and ones are everywhere."""
    return tensor.numel() > 1 and not bool((tensor == tensor.flatten()[0]).all())


def _take(one: _Side, names: list[str], other: _Side, partners: list[str]) -> None:
    for side, own, others in ((one, names, partners), (other, partners, names)):
        for name in own:
            side.partners.setdefault(_layer(name), [_layer(partner) for partner in others])
            del side.tensors[name]


def _nearest(candidates: list[str], layers: list[str]) -> str | None:
    """The first that belongs to the first of these layers, else the first."""
    beside = [name for layer in layers[:1] for name in candidates if _layer(name) == layer]
    return next(iter([*beside, *candidates]), None)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _natural(name: str) -> list[str]:
    """For an order in which block 10 follows block 9."""
    return [f"{int(part):09d}" if part.isdigit() and len(part) < 10 else part for part in re.split(r"(\d+)", name)]


def _coarser(*sides: Iterable[Tensor]) -> torch.dtype:
    """The coarser of the two files' usual precisions."""
    usual = []
    for side in sides:
        kinds = [tensor.dtype for tensor in side if tensor.is_floating_point() and tensor.element_size() > 1]
        usual.append(max(kinds, key=kinds.count, default=torch.float32))
    return min(usual, key=lambda kind: torch.finfo(kind).bits)


# Names to read


def names_of_pairs(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    """Names of paired tensors on both sides, all blocks and weight and bias in one row:
    `blocks.#.attn.proj.{weight,bias}`; what was fused or changed its order comes first.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[Pair]] = {}
    for pair in pairs:
        one_kind = len({name.rpartition(".")[2] for name in (*pair.old, *pair.new)}) == 1
        old, new = (_without_kind(names) if one_kind else names for names in (pair.old, pair.new))
        groups.setdefault((_numbered(old), _numbered(new), pair.how), []).append(pair)
    rows = []
    for (_, _, how), alike in sorted(groups.items(), key=lambda item: not item[0][2]):
        count = len({_without_kind((*pair.old, *pair.new)) for pair in alike})
        said = ", ".join([*([how] if how else []), *([f"{count} alike"] if count > 1 else [])])
        partners = _together([pair.new for pair in alike])
        rows.append((_together([pair.old for pair in alike]), f"{partners} ({said})" if said else partners))
    return rows


def _together(names: list[tuple[str, ...]]) -> str:
    """Names at one place of several pairs as one: a number that differs as #, weight and bias in braces."""
    shown = []
    for column in zip(*names, strict=True):
        stems, kinds = _without_kind(column), {name.rpartition(".")[2]: "" for name in column}
        stem = stems[0] if len(set(stems)) == 1 else _numbered(stems[:1])[0]
        shown.append(stem + (f".{{{','.join(kinds)}}}" if len(kinds) > 1 else column[0].removeprefix(stems[0])))
    return " + ".join(shown)


def _numbered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(re.sub(r"(^|\.)\d+\.", r"\1#.", name, count=1) for name in names)


def _without_kind(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(re.sub(r"\.(weight|bias)$", "", name) for name in names)
