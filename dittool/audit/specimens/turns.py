"""Whether positions turn queries: by what q of each place differs between contents is one linear map of what q of the
first differs by, and whether that map keeps lengths, as a rotation does. What is added to queries makes no difference
there, and what is normed afterwards is no linear map.

H heads · N places · d channels of a head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dittool.audit.specimens.watching import CallsOfTorch, attention_logits

CONTENTS = 10  # of equal tokens, drawn from two directions: with biases no more than a few dimensions of queries
_FITS = 1e-3  # relative residual of a linear map, of queries that may be rounded
_SPANNED = 1e-4  # singular values below are rounding, relative
_PRODUCTS = (torch.matmul, torch.bmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm)


class AttentionQueries(CallsOfTorch):
    """Inside a `with`, after `begin`, `seen` receives (H, N, d) of the first sample in each attention, in the order of
    `AttentionLogits`; None where the product in front of a softmax was not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor | None] = []
        self._begun, self._product = False, (torch.Size(), torch.empty(0))

    def begin(self, *_call: object) -> None:
        """From here on: a hook in front of the module whose attention is wanted."""
        self._begun = True

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        logits = attention_logits(function, args, kwargs) if self._begun else None
        if logits is not None:
            given = args[0] if args else kwargs["query" if "query" in kwargs else "input"]
            query = given if function is F.scaled_dot_product_attention else self._left(given, logits.shape[-2])
            self.seen.append(None if query is None else query[:1].detach().float().flatten(0, -3))
        result = function(*args, **kwargs)
        if function in _PRODUCTS and isinstance(result, Tensor):
            operands = [part for part in args if isinstance(part, Tensor)]
            self._product = result.shape, operands[0] if operands else torch.empty(0)
        return result

    def _left(self, logits: Tensor, queries: int) -> Tensor | None:
        """What was multiplied from the left to make logits of this shape, with places last but one."""
        shape, left = self._product
        if shape != logits.shape or left.dim() < 3:
            return None
        for query in (left, left.transpose(-2, -3)):
            if query.shape[-2] == queries:
                return query
        return None


def stretch_of_turn(queries: Sequence[Tensor]) -> float | None:
    """How much a turn changes the length of queries, relative; None where there is no turn.

    Args:
        queries: of several contents, (H, N, d) each, of places with equal content.
    """
    contents = torch.stack(list(queries)).movedim(0, 2)  # (H, N, contents, d)
    contents = contents[:, :, 1:] - contents[:, :, :1]  # what is added, of all contents the same, falls out
    first, size = contents[:, :1], contents.norm().clamp_min(1e-30)
    if (contents - first).norm() / size <= _FITS:
        return None  # nothing else was there
    if int(torch.linalg.matrix_rank(first, rtol=_SPANNED).max()) >= contents.shape[2] - 1:
        return None  # as many dimensions as contents: any map would fit
    turned = torch.linalg.pinv(first, rtol=_SPANNED) @ contents  # (H, N, d, d)
    if (first @ turned - contents).norm() / size > _FITS:
        return None
    lengths = contents.norm(dim=-1)  # (H, N, contents)
    return float((lengths.amax(1) / lengths.amin(1).clamp_min(1e-30) - 1).max())
