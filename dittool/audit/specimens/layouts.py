"""State dicts without a network: of a known family by the names of their tensors, of an unknown one by its structure,
and what weights alone can show.

D width · n vectors of a modulation, in groups of shift, scale, gate; four are scale, gate, scale, gate
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dittool.audit.specimens.known_layouts import Layout, bare_names
from dittool.audit.specimens.specimen import Biases, NotAnswered, Positions, Scope, Specimen

_SHOWN = 3  # lists of blocks, matrices


class WeightsAlone(Specimen):
    """A state dict that does not say which network it belongs to: its tensors' names tell a little of it."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"weights"})

    def __init__(self, weights: Mapping[str, Tensor], layout: Layout) -> None:
        self._weights, self._layout = bare_names(weights), layout
        self._tensors, self._parameters = len(weights), sum(tensor.numel() for tensor in weights.values())

    def _unanswered(self) -> str:
        return f"weights of the layout {self._layout.name}; there is no network to try out"

    def _like(self, *patterns: str) -> dict[str, Tensor]:
        """Tensors whose name fits each pattern."""
        fitting = (name for name in self._weights if all(re.search(pattern, name) for pattern in patterns))
        return {name: self._weights[name] for name in fitting}

    def positions(self) -> Positions:
        name, held = self._layout.name, [self._like(pattern) for pattern in self._layout.positions]
        if stored := {place: tuple(tensor.shape) for tensors in held for place, tensor in tensors.items()}:
            return Positions(stored, source=f"{name}: ")
        unseen = "whether they follow the grid shows only when the model runs"
        raise NotAnswered(f"{name}: no positions among {self._tensors} tensors; {unseen}")

    def biases(self) -> Biases:
        """Those of linear layers in blocks are wrong, but for the modulation and what embeds time in a block."""
        bare, layout = self._weights, self._layout
        modulation = self._like(layout.modulation)
        inside = {name for name in self._like(layout.block) if name not in modulation and ".emb." not in name}
        sizes = {name: tensor.numel() for name, tensor in bare.items() if name.endswith("bias")}

        def is_linear(bias: str) -> bool:
            return bare.get(bias.removesuffix("bias") + "weight", bare[bias]).dim() >= 2

        wrong = {name: size for name, size in sizes.items() if name in inside and is_linear(name)}
        elsewhere = {name: size for name, size in sizes.items() if name not in wrong}
        layers = sum(name.endswith("weight") and bare[name].dim() >= 2 for name in inside)
        return Biases(wrong, layers, elsewhere, self._parameters, f"{layout.name}: ")

    def open_gates(self) -> dict[str, bool]:
        layout, found = self._layout, {}
        stacked = self._like(layout.block, layout.modulation) if layout.modulation else {}
        width = self._width(stacked)
        shared = [_vectors(tensor, width) for tensor in self._like(layout.shared).values()] if layout.shared else []
        layers: dict[str, list[Tensor]] = {}
        for name, tensor in stacked.items():
            layers.setdefault(re.sub(r"(weight|bias)$", "", name), []).append(_vectors(tensor, width))
        for layer, own in layers.items():
            held = [vectors for vectors in (*own, *shared) if len(vectors) == len(own[0])]
            for index in _gates(len(own[0])):
                found[f"{layer.rstrip('.')} vector {index}"] = any(bool(vectors[index].any()) for vectors in held)
        if not found:
            raise NotAnswered(f"{layout.name}: its blocks have no gates that a modulation opens")
        return found

    def _width(self, modulation: Collection[str]) -> int:
        """D: the number of columns that most matrices of the blocks have."""
        inside = self._like(self._layout.block)
        columns = Counter(
            tensor.shape[1] for name, tensor in inside.items() if tensor.dim() == 2 and name not in modulation
        )
        if not columns:
            raise NotAnswered(f"{self._layout.name}: no matrices in its blocks")
        return columns.most_common(1)[0][0]

    def incomplete_blocks(self) -> tuple[int, list[str]]:
        lists: dict[str, dict[int, list[tuple[str, torch.Size]]]] = {}
        for name, tensor in self._weights.items():
            if found := re.search(self._layout.block, name):
                blocks = lists.setdefault(name[: found.start(1)], {})
                blocks.setdefault(int(found[1]), []).append((name[found.end() :], tensor.shape))
        lacking = []
        for prefix, blocks in lists.items():
            counts = Counter(part for parts in blocks.values() for part in parts)
            usual = [part for part, count in counts.items() if count > len(blocks) / 2]
            for index in range(max(blocks)):
                lacking += [f"{prefix}{index}.{part[0]}" for part in usual if part not in blocks.get(index, ())]
        return sum(map(len, lists.values())), lacking


def _vectors(tensor: Tensor, width: int) -> Tensor:
    """A modulation's n vectors: (n, D) of a table or a bias, (n, D, C) of a weight, none of another form."""
    if tensor.dim() == 2 and tensor.shape[1] == width and tensor.shape[0] % width:
        return tensor
    if tensor.dim() not in (1, 2) or not width or tensor.shape[0] % width:
        return tensor.new_empty(0)
    return tensor.unflatten(0, (-1, width))


def _gates(vectors: int) -> range:
    """Which vectors of a modulation are gates. Two are shift and scale alone, one a shift, as Hunyuan-DiT has."""
    return range(1, 4, 2) if vectors == 4 else range(2, vectors, 3) if vectors % 3 == 0 else range(0)


class UnknownWeights(Specimen):
    """A state dict whose names no known family has: its structure is told."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"weights"})

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        self._structure = describe(weights or {})

    def _unanswered(self) -> str:
        return f"an unknown layout ({self._structure}): nothing says which part is which"


def describe(weights: Mapping[str, Tensor]) -> str:
    """Depth, width and the widest matrices, from the shapes of repeated groups: `28 × layers (12 tensors each), …`."""
    lists: dict[str, dict[str, list[torch.Size]]] = {}
    for name, tensor in weights.items():
        if found := re.match(r"(.*?)(?:^|\.)(\d+)\.", name):
            lists.setdefault(found[1], {}).setdefault(found[2], []).append(tensor.shape)
    repeated = []
    for prefix, blocks in sorted(lists.items(), key=lambda item: -len(item[1])):
        forms = Counter(tuple(sorted(map(tuple, shapes))) for shapes in blocks.values())
        form, alike = forms.most_common(1)[0]
        if alike > 1 and len(form) > 1:
            others = f", {len(blocks) - alike} of other shapes" if alike < len(blocks) else ""
            repeated.append(f"{alike} × {prefix or 'numbers'} of {len(form)} tensors{others}")
    matrices = {name: tensor.shape for name, tensor in weights.items() if tensor.dim() == 2}
    widest = sorted(matrices, key=lambda name: -matrices[name].numel())[:_SHOWN]
    width = Counter(shape[1] for shape in matrices.values()).most_common(1)
    parts = ["; ".join(repeated[:_SHOWN]) or "no blocks that repeat", f"{len(weights)} tensors"]
    parts += [f"width {width[0][0]}"] if width else []
    shapes = ", ".join(f"{name} {matrices[name][0]}×{matrices[name][1]}" for name in widest)
    return ", ".join(parts) + (f", widest {shapes}" if shapes else "")
