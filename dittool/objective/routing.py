"""Which tokens of a sample pass the routed blocks in training (TREAD, arXiv 2501.04765, section 3): a random share of
them skips the middle of the network, which is cheaper and, where tokens are many, learns faster.

Each sample has its own draw, a function of the seed that it is given, so it does not depend on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_TOKENS = 1024  # below it routing was found to hurt: at 256 tokens, Photoroom PRX, part 2


def passing_tokens(seeds: Sequence[int], tokens: int, share: float) -> Tensor:
    """(B, K) numbers of the tokens that pass, in their order: all but ⌊share·N⌋ of N, drawn without replacement."""
    passing = tokens - int(share * tokens)
    draws = torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])  # (B, N)
    return draws.topk(passing, dim=1, sorted=False).indices.sort(dim=1).values
