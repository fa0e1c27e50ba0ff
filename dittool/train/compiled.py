"""torch.compile of the transformer's blocks, block by block: their graph is the same, so one compilation serves all of
them.

Samples, latent tokens and context tokens are symbols in it from the first call on, so buckets and caption lengths add
no graph. There are two: with an attention mask and without. A batch of a single sample has two of its own, because the
compiler takes a size of 1 as fixed. Nothing is specialised first and generalised later, so a resumed run computes with
the graphs of the uninterrupted one.
"""

from __future__ import annotations

from torch import nn

BACKEND = "inductor"


def compile_blocks(model: nn.Module) -> None:
    """Compiles the blocks in place, at their first call. Names of parameters stay."""
    for block in model.get_submodule("blocks").children():
        block.compile(dynamic=True, backend=BACKEND)
