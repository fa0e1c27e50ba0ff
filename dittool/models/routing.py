"""Tokens that skip some blocks: what the others are, and how both come together again (TREAD, arXiv 2501.04765).

B batch · N tokens · K tokens that pass the blocks · D width
"""

from __future__ import annotations

from torch import Tensor


def taken(x: Tensor, route: Tensor) -> Tensor:
    """(B, N, D) → (B, K, D): the tokens whose numbers are in `route`, (B, K)."""
    return x.gather(1, route[..., None].expand(-1, -1, x.shape[-1]))


def returned(x: Tensor, passed: Tensor, route: Tensor) -> Tensor:
    """(B, N, D): `passed` (B, K, D) at the places of `route`, and the tokens of x at all others."""
    return x.scatter(1, route[..., None].expand_as(passed), passed.to(x.dtype))


def angles_of(angles: Tensor, route: Tensor) -> Tensor:
    """Rotary angles (N, D/2H) → (B, 1, K, D/2H), those of each sample's own tokens for all heads."""
    return angles[route][:, None]
