"""Attention to a context of which only the first columns have a mask, as two attentions that are joined: a short masked
one, and a long one without a mask, for which a GPU has a kernel that is two to three times faster.

    O = Σᵢ exp(Lᵢ − L)·Oᵢ        L = log Σᵢ exp(Lᵢ)        Oᵢ, Lᵢ: output and log-sum-exp of the logits of part i

Backward, a kernel that is given O and L instead of its own Oᵢ and Lᵢ makes P = exp(S − L), the probabilities in the
whole softmax, so the gradients of its part are exact and those of the queries add up (as in arXiv 2310.01889, section
3). `scaled_dot_product_attention` gives no log-sum-exp away; the kernels below it do.

B batch · H heads · N queries · M keys, of which the first m have a mask · D channels of a head
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BIAS_MULTIPLE, _ROW_MULTIPLE = 16, 32  # of the masked kernel's columns of bias, and of its rows of log-sum-exp
_kernels = torch.ops.aten


def joining_pays(q: Tensor) -> bool:
    """Whether the device has the faster kernel, for these types and widths; a CPU computes both alike, and slower."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0


def joined_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, unmasked: int) -> Tensor:
    """Attention of q (B, H, N, D) to k and v (B, H, M, D), (B, H, N, D). `bias` (B, 1, 1, M) is added to the logits and
    has no gradient; it is one number for all of the last `unmasked` columns and samples.
    """
    masked = k.shape[2] - unmasked
    short, common = bias[..., :masked].to(q.dtype), bias[0, 0, 0, -1].float()
    joined: Tensor = _JoinedAttention.apply(q, k, v, short.detach(), common.detach())
    return joined


class _JoinedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, short: Tensor, common: Tensor) -> Tensor:
        m = short.shape[-1]
        short = _aligned(short, q.shape[2])
        o1, l1 = _masked(q, k[:, :, :m], v[:, :, :m], short)
        o2, l2, *rest = _plain(q, k[:, :, m:], v[:, :, m:])
        joint = torch.logaddexp(l1, l2 + common)  # (B, H, N)
        w1, w2 = (l1 - joint).exp()[..., None], (l2 + common - joint).exp()[..., None]
        out = (o1 * w1 + o2 * w2).to(q.dtype)
        ctx.save_for_backward(q, k, v, short, common, out, joint)
        ctx.rest = rest
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, short, common, out, joint = ctx.saved_tensors
        m, grad = short.shape[-1], grad.to(q.dtype)
        q1, k1, v1 = _masked_backward(grad, q, k[:, :, :m], v[:, :, :m], short, out, joint)
        q2, k2, v2 = _plain_backward(grad, q, k[:, :, m:], v[:, :, m:], out, joint - common, ctx.rest)
        return q1 + q2, torch.cat([k1, k2], dim=2), torch.cat([v1, v2], dim=2), None, None


def _aligned(bias: Tensor, queries: int) -> Tensor:
    """(B, 1, 1, m) → (B, 1, N, m), whose rows lie where the kernel for masks wants them."""
    columns = bias.shape[-1]
    return F.pad(bias, (0, -columns % _BIAS_MULTIPLE))[..., :columns].expand(-1, -1, queries, -1)


def _masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D) and log-sum-exp (B, H, N)."""
    if q.device.type == "cpu":
        out, lse = _kernels._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        return out, lse
    bias = bias.expand(-1, q.shape[1], -1, -1)
    out, lse, *_ = _kernels._scaled_dot_product_efficient_attention(q, k, v, bias, True)
    return out, lse[..., : q.shape[2]]


def _masked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        kernel = _kernels._scaled_dot_product_flash_attention_for_cpu_backward
        return kernel(grad, q, k, v, out, lse, 0.0, False, attn_mask=bias)
    bias, none = bias.expand(-1, q.shape[1], -1, -1), torch.zeros((), dtype=torch.int64, device=q.device)
    lse = F.pad(lse, (0, -lse.shape[2] % _ROW_MULTIPLE), value=math.inf).contiguous()
    kernel, wanted = _kernels._scaled_dot_product_efficient_attention_backward, [True, True, True, False]
    dq, dk, dv, _ = kernel(grad, q, k, v, bias, out, lse, none, none, 0.0, wanted)
    return dq, dk, dv


def _plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    """Output, log-sum-exp, and what else its backward asks for."""
    if q.device.type == "cpu":
        return _kernels._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    out, lse, cum_q, cum_k, most_q, most_k, seed, offset, _ = _kernels._scaled_dot_product_flash_attention(q, k, v)
    return out, lse, cum_q, cum_k, most_q, most_k, seed, offset


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: list[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        kernel = _kernels._scaled_dot_product_flash_attention_for_cpu_backward
        return kernel(grad, q, k, v, out, lse, 0.0, False)
    cum_q, cum_k, most_q, most_k, seed, offset = rest
    kernel = _kernels._scaled_dot_product_flash_attention_backward
    return kernel(grad, q, k, v, out, lse.contiguous(), cum_q, cum_k, most_q, most_k, 0.0, False, seed, offset)
