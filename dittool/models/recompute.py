"""What a block keeps for its backward pass when it is to be computed again there (`model.gradient_checkpointing`).

true          its inputs alone: all of it is computed again (arXiv 1604.06174)
"selective"   also what attention gave out, the dearest of it to compute; projections, norms and MLP are computed again
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = bool | Literal["selective"]

_aten = torch.ops.aten
ATTENTION = [  # of scaled_dot_product_attention, and of models/joined_attention.py
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def keeping_attention(compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`compute(*inputs)`, computed again in the backward pass but for its attention. It is called inside of what is
    compiled: the compiler then plans what is kept.
    """
    contexts = partial(create_selective_checkpoint_contexts, ATTENTION)
    out: Tensor = checkpoint(compute, *inputs, use_reentrant=False, context_fn=contexts)
    return out
