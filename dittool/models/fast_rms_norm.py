"""RMS-norm with a gain on a CPU: torch computes it there operation by operation and keeps each result for backward;
this keeps the row's factor alone. On GPUs and under torch.compile torch fuses it itself.

With r = 1/√(mean(x²) + ε) for each row of K channels, and g the gradient of y:

    y = x·r·gain        dgain = Σ_rows r·(g·x)        dx = r·(g·gain) − x·r³·(Σ_channels g·x·gain)/K
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_EPSILON = 1e-6


def rms_norm_with_gain(x: Tensor, gain: Tensor) -> Tensor:
    """x/√(mean(x²) + 1e-6)·gain over the last axis. x: (…, K); gain: (K,), of the same precision."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        normed: Tensor = _RowByRow.apply(x, gain)
        return normed
    return F.rms_norm(x, gain.shape, gain, eps=_EPSILON)


class _RowByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (…, 1)
        factor = norms.square_().div_(x.shape[-1]).add_(_EPSILON).rsqrt_()
        ctx.save_for_backward(x, gain, factor)
        return torch.mul(x, factor).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, factor = ctx.saved_tensors  # type: ignore[attr-defined]  # torch declares it on its own subclass
        products = (gradient * x).reshape(-1, x.shape[-1])  # (rows, K), g·x
        of_gain = factor.reshape(-1) @ products
        along = (products @ gain).view(factor.shape)  # Σ g·x·gain of each row
        of_x = (gradient * gain).mul_(factor).addcmul_(x, along.mul_(factor**3), value=-1 / x.shape[-1])
        return of_x, of_gain
