"""State dicts of published transformers, known by the names of their tensors, and what weights alone can show.

D width · n vectors of a modulation, in groups of shift, scale, gate
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dittool.audit.specimens.specimen import Biases, NotAnswered, Positions, Scope, Specimen

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "net.")


@dataclass(frozen=True)
class Layout:
    """How one family names its tensors. Patterns are regular expressions, `block` with the block's number as its
    group.
    """

    name: str
    marks: tuple[str, ...]  # a state dict of this family has a name for each
    block: str
    modulation: str  # within a block: the layer whose output, or the table whose rows, are shift, scale, gate, …
    positions: tuple[str, ...] = ()  # tensors of a fixed size that hold positions
    shared: str = ""  # a modulation of all blocks together


LAYOUTS = (  # the more special first
    Layout(
        "PixArt, original names",
        (r"^t_block\.1\.weight$", r"^blocks\.\d+\.scale_shift_table$"),
        r"^blocks\.(\d+)\.",
        r"scale_shift_table$",
        (r"^pos_embed$",),
        r"^t_block\.1\.",
    ),
    Layout(
        "DiT or SiT, original names (the two are the same)",
        (r"^blocks\.\d+\.adaLN_modulation\.1\.weight$", r"^t_embedder\.mlp\.0\.weight$"),
        r"^blocks\.(\d+)\.",
        r"adaLN_modulation\.1\.",
        (r"^pos_embed$",),
    ),
    Layout(
        "SD3, original names",
        (r"^joint_blocks\.\d+\.x_block\.attn\.qkv\.weight$",),
        r"^joint_blocks\.(\d+)\.",
        r"adaLN_modulation\.1\.",
        (r"^pos_embed$",),
    ),
    Layout(
        "Flux, original names",
        (r"^double_blocks\.\d+\.img_mod\.lin\.weight$",),
        r"^(?:double|single)_blocks\.(\d+)\.",
        r"(?:img_mod|txt_mod|modulation)\.lin\.",
    ),
    Layout(
        "PixArt, diffusers",
        (r"^adaln_single\.linear\.weight$", r"^transformer_blocks\.\d+\.scale_shift_table$"),
        r"^transformer_blocks\.(\d+)\.",
        r"scale_shift_table$",
        (r"^pos_embed\.pos_embed$",),
        r"^adaln_single\.linear\.",
    ),
    Layout(
        "DiT, diffusers",
        (r"^transformer_blocks\.\d+\.norm1\.emb\.class_embedder\.", r"^proj_out_1\.weight$"),
        r"^transformer_blocks\.(\d+)\.",
        r"norm1\.linear\.",
        (r"^pos_embed\.pos_embed$",),
    ),
    Layout(
        "Flux, diffusers",
        (r"^single_transformer_blocks\.\d+\.proj_mlp\.weight$", r"^x_embedder\.weight$"),
        r"^(?:single_)?transformer_blocks\.(\d+)\.",
        r"(?:norm1|norm1_context|norm)\.linear\.",
    ),
    Layout(
        "SD3, diffusers",
        (r"^transformer_blocks\.\d+\.norm1_context\.linear\.weight$", r"^pos_embed\.proj\.weight$"),
        r"^transformer_blocks\.(\d+)\.",
        r"(?:norm1|norm1_context)\.linear\.",
        (r"^pos_embed\.pos_embed$",),
    ),
)


def bare_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix under which a whole pipeline keeps its transformer; of such a file the transformer alone."""
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return dict(weights)


def find_layout(weights: Mapping[str, Tensor]) -> Layout | None:
    """The family whose names these are; None for no known one."""
    names = list(bare_names(weights))
    for layout in LAYOUTS:
        if all(any(re.search(mark, name) for name in names) for mark in layout.marks):
            return layout
    return None


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
        stacked = self._like(layout.block, layout.modulation)
        width = next(tensor.shape[1] for tensor in stacked.values() if tensor.dim() == 2)  # D, of a weight or a table

        def vectors(tensor: Tensor) -> Tensor:
            """(n, D) or (n, D, D)."""
            return tensor.unflatten(0, (-1, width))

        shared = [vectors(tensor) for tensor in self._like(layout.shared).values()] if layout.shared else []
        layers: dict[str, list[Tensor]] = {}
        for name, tensor in stacked.items():
            layer = name.removesuffix("weight").removesuffix("bias")
            layers.setdefault(layer, []).append(tensor if layer == name else vectors(tensor))  # or a table (n, D)
        for layer, own in layers.items():
            if len(own[0]) % 3:
                continue  # scale and shift alone, as the last block of SD3 has for its text
            for index in range(2, len(own[0]), 3):
                is_open = any(bool(tensor[index].any()) for tensor in (*own, *shared))
                found[f"{layer.rstrip('.')} vector {index}"] = is_open
        return found

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


class UnknownWeights(Specimen):
    """A state dict whose names say nothing."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"weights"})

    def _unanswered(self) -> str:
        known = ", ".join(layout.name for layout in LAYOUTS)
        return f"the weights have the names of none of the known layouts ({known}), so nothing says which part is which"
