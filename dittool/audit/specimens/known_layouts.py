"""How published transformers name their tensors, so that weights alone can be judged.

Names of diffusers' classes were read off models built with diffusers 0.42; those of original repositories off their
source, where no comment says otherwise.

D width · a modulation gives n vectors: groups of shift, scale, gate; four are scale, gate, scale, gate
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_DEEPEST = 3  # prefixes before the names


@dataclass(frozen=True)
class Layout:
    """How one family names its tensors. Patterns are regular expressions, `block` with the block's number as its
    group.
    """

    name: str
    marks: tuple[str, ...]  # a state dict of this family has a name for each
    block: str
    modulation: str = ""  # within a block: the layer whose output, or the table whose rows, are shift, scale, gate, …
    positions: tuple[str, ...] = ()  # tensors of a fixed size that hold positions
    shared: str = ""  # a modulation of all blocks together


_BLOCKS, _LAYERS, _TRANSFORMER = r"^blocks\.(\d+)\.", r"^layers\.(\d+)\.", r"^transformer_blocks\.(\d+)\."
_REFINED = r"^(?:layers|noise_refiner|context_refiner)\.(\d+)\."
_ADALN, _TABLE, _NORM1 = r"adaLN_modulation\.\d\.", r"scale_shift_table$", r"norm1\.linear\."
_POSITIONS = (r"^pos_embed$",)

LAYOUTS = (  # the more special first
    Layout(
        "Sana, original names",
        (r"^t_block\.1\.weight$", r"^blocks\.\d+\.scale_shift_table$", r"^blocks\.\d+\.mlp\.inverted_conv\."),
        _BLOCKS,
        _TABLE,
        _POSITIONS,
        r"^t_block\.1\.",
    ),
    Layout(
        "PixArt, original names",
        (r"^t_block\.1\.weight$", r"^blocks\.\d+\.scale_shift_table$"),
        _BLOCKS,
        _TABLE,
        _POSITIONS,
        r"^t_block\.1\.",
    ),
    Layout(
        "DDT, original names",
        (r"^s_embedder\.proj\.weight$", r"^x_embedder\.proj\.weight$", r"^blocks\.\d+\.adaLN_modulation\.0\.weight$"),
        _BLOCKS,
        _ADALN,
    ),
    Layout(
        "REPA, original names",
        (r"^projectors\.\d+\.0\.weight$", r"^blocks\.\d+\.adaLN_modulation\.1\.weight$"),
        _BLOCKS,
        _ADALN,
        _POSITIONS,
    ),
    Layout(
        "LightningDiT, original names",
        (r"^blocks\.\d+\.adaLN_modulation\.1\.weight$", r"^blocks\.\d+\.mlp\.w12\.weight$"),
        _BLOCKS,
        _ADALN,
        (*_POSITIONS, r"^feat_rope\.freqs_(cos|sin)$"),
    ),
    Layout(
        "MDT, original names",
        (r"^en_inblocks\.\d+\.adaLN_modulation\.1\.weight$", r"^sideblocks\.\d+\."),
        r"^(?:en_inblocks|en_outblocks|de_blocks|sideblocks)\.(\d+)\.",
        _ADALN,
        (*_POSITIONS, r"^decoder_pos_embed$", r"relative_position_bias_table$"),
    ),
    Layout(
        "U-ViT, original names",
        (r"^in_blocks\.\d+\.attn\.qkv\.weight$", r"^out_blocks\.\d+\.skip_linear\.weight$"),
        r"^(?:in_blocks|out_blocks)\.(\d+)\.",
        positions=_POSITIONS,
    ),
    Layout(
        "Hunyuan-DiT, original names",
        (r"^blocks\.\d+\.default_modulation\.1\.weight$",),
        _BLOCKS,
        r"default_modulation\.1\.",
    ),
    Layout(
        "DiT or SiT, original names (the two are the same)",
        (r"^blocks\.\d+\.adaLN_modulation\.1\.weight$", r"^t_embedder\.mlp\.0\.weight$"),
        _BLOCKS,
        _ADALN,
        _POSITIONS,
    ),
    Layout(
        "minRF, original names",
        (r"^init_conv_seq\.0\.weight$", r"^layers\.\d+\.adaLN_modulation\.1\.weight$"),
        _LAYERS,
        _ADALN,
    ),
    Layout(
        "Lumina, original names",
        (r"^cap_embedder\.1\.weight$", r"^layers\.\d+\.adaLN_modulation\.1\.weight$"),
        _REFINED,
        _ADALN,
    ),
    Layout(
        "SD3, original names",
        (r"^joint_blocks\.\d+\.x_block\.attn\.qkv\.weight$",),
        r"^joint_blocks\.(\d+)\.",
        _ADALN,
        _POSITIONS,
    ),
    Layout(
        "Flux, original names",
        (r"^double_blocks\.\d+\.img_mod\.lin\.weight$",),
        r"^(?:double|single)_blocks\.(\d+)\.",
        r"(?:img_mod|txt_mod|modulation)\.lin\.",
    ),
    Layout(
        "HunyuanVideo, original names",  # names from memory of its source, not checked
        (r"^double_blocks\.\d+\.img_mod\.linear\.weight$",),
        r"^(?:double|single)_blocks\.(\d+)\.",
        r"(?:img_mod|txt_mod|modulation)\.linear\.",
    ),
    Layout(
        "F5-TTS, original names",  # its block's attn_norm was read, the names around it are from memory
        (r"^transformer_blocks\.\d+\.attn_norm\.linear\.weight$", r"^time_embed\.time_mlp\.0\.weight$"),
        _TRANSFORMER,
        r"attn_norm\.linear\.",
    ),
    Layout(
        "PRX, diffusers",
        (r"^blocks\.\d+\.modulation\.lin\.weight$", r"^blocks\.\d+\.attention\.img_qkv_proj\.weight$"),
        _BLOCKS,
        r"modulation\.lin\.",
    ),
    Layout(
        "Sana, diffusers",
        (r"^time_embed\.linear\.weight$", r"^transformer_blocks\.\d+\.ff\.conv_inverted\.weight$"),
        _TRANSFORMER,
        _TABLE,
        shared=r"^time_embed\.linear\.",
    ),
    Layout(
        "PixArt, diffusers",
        (r"^adaln_single\.linear\.weight$", r"^transformer_blocks\.\d+\.scale_shift_table$"),
        _TRANSFORMER,
        _TABLE,
        (r"^pos_embed\.pos_embed$",),
        r"^adaln_single\.linear\.",
    ),
    Layout(
        "Lumina, diffusers",
        (r"^time_caption_embed\.timestep_embedder\.linear_1\.weight$", r"^layers\.\d+\.norm1\.linear\.weight$"),
        _REFINED,
        _NORM1,
    ),
    Layout(
        "Hunyuan-DiT, diffusers",
        (r"^time_extra_emb\.timestep_embedder\.linear_1\.weight$", r"^blocks\.\d+\.norm1\.linear\.weight$"),
        _BLOCKS,
        _NORM1,
    ),
    Layout(
        "HunyuanVideo, diffusers",
        (
            r"^context_embedder\.token_refiner\.refiner_blocks\.\d+\.",
            r"^transformer_blocks\.\d+\.norm1\.linear\.weight$",
        ),
        r"^(?:single_)?transformer_blocks\.(\d+)\.",
        r"(?:norm1|norm1_context|norm)\.linear\.",
    ),
    Layout(
        "DiT, diffusers",
        (r"^transformer_blocks\.\d+\.norm1\.emb\.class_embedder\.", r"^proj_out_1\.weight$"),
        _TRANSFORMER,
        _NORM1,
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
        _TRANSFORMER,
        r"(?:norm1|norm1_context)\.linear\.",
        (r"^pos_embed\.pos_embed$",),
    ),
)


def known_layout(names: Iterable[str]) -> Layout | None:
    """The family whose names these are, exactly; None for no known one."""
    names = list(names)
    for layout in LAYOUTS:
        if all(any(re.search(mark, name) for name in names) for mark in layout.marks):
            return layout
    return None


def find_layout(weights: Mapping[str, Tensor]) -> Layout | None:
    """The family whose names these are, whatever prefix stands before them; None for no known one."""
    return known_layout(bare_names(weights))


def bare_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of their family, without a prefix before them, and without what has another prefix;
    of an unknown family all as they are.
    """
    bare = dict(weights)
    for _ in range(_DEEPEST + 1):
        if known_layout(bare):
            return bare
        firsts = [name.partition(".")[0] for name in bare if "." in name]
        if not firsts:
            break
        prefix = max(firsts, key=firsts.count) + "."
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name.startswith(prefix)}
    return dict(weights)
