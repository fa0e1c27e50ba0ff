"""Where every random number comes from: a seed derived from what it is for, never from what ran before.

Order of samples, noise, timesteps and dropout are functions of names and counters, so a run that was resumed,
or that has another number of workers or processes, draws exactly what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts: `derive_seed(seed, "order", epoch)`. Equal parts give equal seeds on every
    machine.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def unit_interval(*parts: int | str) -> float:
    """A number in [0, 1) from the parts, evenly spread over different parts."""
    return derive_seed(*parts) / 2**63
