"""Energy distance (Székely and Rizzo, 2013): how far two sets of samples are from being of one distribution.

E = 2·E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖        0 where the distributions are equal, above 0 elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate from x (n, C) and y (m, C); around 0, also below it, where both are of one distribution."""
    x, y = x.double(), y.double()
    within = sum(torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * torch.cdist(x, y).mean() - within)
