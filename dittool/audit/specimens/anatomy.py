"""Where a network's blocks, its modulation and its tokens are: ours is known, a foreign one is found by running it.

B batch · N tokens · D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dittool.audit.specimens.watching import Call

_MOST_VECTORS = 12  # of a modulation


@dataclass(frozen=True)
class Anatomy:
    """What was found; names are those of `named_modules`."""

    blocks: tuple[str, ...]  # in the order of the model's forward
    # of each block: its own last linear layers that the condition vector feeds, by their full names
    modulation: dict[str, tuple[str, ...]]
    inner: dict[str, tuple[str, ...]]  # of each block: all linear layers that a vector feeds
    shared: tuple[str, ...]  # linear layers outside of the blocks whose output a block takes as its modulation
    tokens: int = 0  # of the latent in the first block's sequence; 0 when they do not stand together
    before: int = 0  # other tokens of that sequence in front of them …
    after: int = 0  # … and behind them
    stream: int = 0  # which of the first block's streams of tokens it is
    why_not: str = ""  # why no blocks were found

    def latent_tokens(self, call: Call) -> Tensor:
        """(B, N, D): the latent's tokens as the first block takes them in a call."""
        tokens = call.streams[self.stream][0]
        return tokens[:, self.before : tokens.shape[1] - self.after]

    @cached_property
    def where(self) -> str:
        """`blocks.*` for the evidence."""
        lists = dict.fromkeys(name.rpartition(".")[0] or name for name in self.blocks)
        counts = {one: sum((name.rpartition(".")[0] or name) == one for name in self.blocks) for one in lists}
        return ", ".join(f"{count} in {name}" for name, count in counts.items())


def alike_blocks(model: nn.Module, blocks: Sequence[str]) -> dict[Any, list[str]]:
    """Blocks of one class with the same parts, names and shapes, together."""
    groups: dict[Any, list[str]] = {}
    for name in blocks:
        block = model.get_submodule(name)
        parts = tuple((part, type(module), module.extra_repr()) for part, module in block.named_modules())
        shapes = tuple((parameter, tuple(tensor.shape)) for parameter, tensor in block.named_parameters())
        groups.setdefault((parts, shapes), []).append(name)
    return groups


def modulation_tables(block: nn.Module) -> dict[str, nn.Parameter]:
    """Tables of a few vectors that a block or a part of it holds beside its layers, as PixArt's scale_shift_table."""
    tables = {}
    for prefix, module in block.named_modules():
        if (any(module.children()) or module is block) and not isinstance(module, nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if 2 <= parameter.numel() // parameter.shape[-1] <= _MOST_VECTORS < parameter.shape[-1]:
                    tables[f"{prefix}.{name}".lstrip(".")] = parameter
    return tables
