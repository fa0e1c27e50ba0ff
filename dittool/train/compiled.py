"""torch.compile of the transformer's blocks, block by block: their graph is the same, so one compilation serves all of
them.

Samples, latent tokens and context tokens are symbols in it from the first call on, so buckets and caption lengths add
no graph. There are two: with an attention mask and without. A batch of a single sample has two of its own, because the
compiler takes a size of 1 as fixed. Nothing is specialised first and generalised later, so a resumed run computes with
the graphs of the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dittool.errors import UsageError
from dittool.models.dit import DiT

BACKEND = "inductor"


def compile_blocks(model: DiT) -> None:
    """Compiles the blocks in place, at their first call. Names of parameters stay."""
    for block in model.blocks:
        block.compile(dynamic=True, backend=BACKEND)


@contextmanager
def compiler_errors_explained() -> Iterator[None]:
    """Inside, a failure of the compiler is a `UsageError` that says what is missing."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().splitlines()[:2])  # then come stack traces and advice to programmers
        raise UsageError(
            f"train.compile: the model cannot be compiled on this machine: {reason}",
            "install a C++ compiler (for a GPU also Triton), or go on without: -s train.compile=false",
        ) from error
