"""State dicts of published transformers, known by the names of their tensors, and what weights alone can tell.

D width · n vectors of a modulation, in groups of shift, scale, gate
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dittool.audit.specimens.specimen import Biases, NotAnswered, Positions, Specimen

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

    scopes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, weights: Mapping[str, Tensor], layout: Layout) -> None:
        self._weights, self._layout = weights, layout

    def _unanswered(self) -> str:
        return f"weights of the layout {self._layout.name}; there is no network to try out"

    def positions(self) -> Positions:
        layout = self._layout
        stored = {
            name: tuple(tensor.shape)
            for name, tensor in bare_names(self._weights).items()
            if any(re.search(pattern, name) for pattern in layout.positions)
        }
        if stored:
            return Positions(stored, source=f"{layout.name}: ")
        unseen = "whether they follow the grid shows only when the model runs"
        raise NotAnswered(f"{layout.name}: no positions among {len(self._weights)} tensors; {unseen}")

    def biases(self) -> Biases:
        """Those of linear layers in blocks are wrong, but for the modulation and what embeds time in a block."""
        bare, layout = bare_names(self._weights), self._layout
        inside = {name for name in bare if re.search(layout.block, name) and not re.search(layout.modulation, name)}
        inside = {name for name in inside if ".emb." not in name}
        sizes = {name: tensor.numel() for name, tensor in bare.items() if name.endswith("bias")}

        def is_linear(bias: str) -> bool:
            return bare.get(bias.removesuffix("bias") + "weight", bare[bias]).dim() >= 2

        wrong = {name: size for name, size in sizes.items() if name in inside and is_linear(name)}
        elsewhere = {name: size for name, size in sizes.items() if name not in wrong}
        layers = sum(name.endswith("weight") and bare[name].dim() >= 2 for name in inside)
        total = sum(tensor.numel() for tensor in self._weights.values())
        return Biases(wrong, layers, elsewhere, total, f"{layout.name}: ")

    def open_gates(self) -> dict[str, bool]:
        return gates(self._weights, self._layout)

    def incomplete_blocks(self) -> tuple[int, list[str]]:
        return incomplete_blocks(self._weights, self._layout)


class UnknownWeights(Specimen):
    """A state dict whose names say nothing."""

    scopes: ClassVar[frozenset[str]] = frozenset()

    def _unanswered(self) -> str:
        known = ", ".join(layout.name for layout in LAYOUTS)
        return f"the weights have the names of none of the known layouts ({known}), so their parts cannot be told"


def gates(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, bool]:
    """Each gate of each block by a name, and whether anything can open it: a weight, a bias or a table that is not
    zero.
    """
    bare, found = bare_names(weights), {}
    width = _width(bare, layout)
    shared = {name: tensor for name, tensor in bare.items() if layout.shared and re.search(layout.shared, name)}
    layers = dict.fromkeys(
        name.removesuffix("weight").removesuffix("bias")
        for name in bare
        if re.search(layout.block, name) and re.search(layout.modulation, name)
    )
    for layer in layers:
        stacked = [bare[name] for name in (f"{layer}weight", f"{layer}bias") if name in bare]
        own = [bare[layer]] if layer in bare else [tensor.unflatten(0, (-1, width)) for tensor in stacked]
        vectors = [*own, *(tensor.unflatten(0, (-1, width)) for tensor in shared.values())]  # each (n, D) or (n, D, D)
        if len(vectors[0]) % 3:
            continue  # scale and shift alone, as the last block of SD3 has for its text
        for index in range(2, len(vectors[0]), 3):
            found[f"{layer.rstrip('.')} vector {index}"] = any(bool(one[index].any()) for one in vectors)
    return found


def _width(weights: Mapping[str, Tensor], layout: Layout) -> int:
    """D: columns of the first modulation's weight or table."""
    return next(
        tensor.shape[1]
        for name, tensor in weights.items()
        if re.search(layout.block, name) and re.search(layout.modulation, name) and tensor.dim() == 2
    )


def incomplete_blocks(weights: Mapping[str, Tensor], layout: Layout) -> tuple[int, list[str]]:
    """How many blocks there are, and the tensors that one lacks although more than half of its list have them. The
    last may differ.
    """
    lists: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, tensor in bare_names(weights).items():
        if found := re.search(layout.block, name):
            blocks = lists.setdefault(name[: found.start(1)], {})
            blocks.setdefault(int(found[1]), {})[name[found.end() :]] = tuple(tensor.shape)
    lacking = []
    for prefix, blocks in lists.items():
        counts = Counter((leaf, shape) for tensors in blocks.values() for leaf, shape in tensors.items())
        usual = [one for one, count in counts.items() if count > len(blocks) / 2]
        for index in range(max(blocks)):
            lacking += [f"{prefix}{index}.{leaf}" for leaf, shape in usual if blocks.get(index, {}).get(leaf) != shape]
    return sum(map(len, lists.values())), lacking
