"""Attention's logits, caught while somebody else's model computes them.

H heads · N tokens · d width of a head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def attention_logits() -> Iterator[list[Tensor]]:
    """Yields a list that receives (…, N, N) before each softmax: of `scaled_dot_product_attention`, and of a
    softmax over a square of tokens.
    """
    catcher = _Catcher()
    with catcher:
        yield catcher.seen


class _Catcher(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query, key = (
                kwargs.get(name, args[index] if len(args) > index else None)
                for index, name in enumerate(("query", "key"))
            )
            self.seen.append((query @ key.transpose(-1, -2)).detach())  # (…, N, N)
        elif function in (torch.softmax, F.softmax, Tensor.softmax):
            logits = args[0] if args else kwargs["input"]
            if logits.dim() >= 3 and logits.shape[-1] == logits.shape[-2]:
                self.seen.append(logits.detach())
        return function(*args, **kwargs)
