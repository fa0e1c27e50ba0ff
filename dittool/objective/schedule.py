"""What drives the updates: learning rate, EMA decay, weight decay. Pure functions of the update's number and of names.

An update is one optimizer step, however many micro-batches it accumulates; updates are counted from 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dittool.config.schema import Ema, Train


def learning_rate(step: int, train: Train) -> float:
    """The rate of update `step`: linear warm-up to `lr`, then half a cosine (arXiv 1608.03983, eq. 5) down to
    `min_lr` at the last one.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(train.steps - 1 - train.warmup_steps, 1)
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def ema_decay(updates: int, ema: Ema) -> float:
    """The decay of update number `updates`. It starts low, so that the first weights are forgotten.

    power: min(target, (1 + n)/(10 + n)); linear: from 0 to target over warmup_steps.
    """
    if ema.warmup == "linear":
        assert ema.warmup_steps is not None  # the schema asks for it
        return ema.target * min(1.0, updates / ema.warmup_steps)
    return min(ema.target, (1 + updates) / (10 + updates))


def is_decayed(name: str, dimensions: int) -> bool:
    """Whether weight decay acts on a parameter: not on norm gains, biases and null tokens, where a pull to zero has
    no meaning.
    """
    return dimensions >= 2 and "null_" not in name
