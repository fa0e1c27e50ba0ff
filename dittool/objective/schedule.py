"""What drives the updates: learning rate, EMA decay, weight decay. Pure functions of the update's number and of names.

An update is one optimizer step, however many micro-batches it accumulates; updates are counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dittool.config.schema import Ema, Train

UpdateRule = Literal["muon", "decayed", "plain"]  # plain: AdamW without weight decay


def learning_rate(step: int, train: Train) -> float:
    """The rate of update `step`: linear warm-up to `lr`, then by `train.schedule`

        cosine     half a cosine (arXiv 1608.03983, eq. 5) down to `min_lr` at the last update
        constant   `lr`
        wsd        `lr`, and over the last `cooldown_steps` updates min_lr + (lr − min_lr)·(1 − √p) with p from 0 to 1
                   (arXiv 2405.18392, eq. 1)

    A run of either of the last two has the same rates until a cooldown begins, so one may be started from any of its
    checkpoints.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule != "cosine":
        cooled = max(step + 1 - train.steps + (train.cooldown_steps or 0), 0) if train.schedule == "wsd" else 0
        share = min(cooled / (train.cooldown_steps or 1), 1.0)
        return train.min_lr + (train.lr - train.min_lr) * (1 - math.sqrt(share))
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


def power_exponent(width: float) -> float:
    """γ of the power function n^γ whose deviation is `width` of the past's length: σ² = (γ + 1)/((γ + 2)²·(γ + 3))
    (arXiv 2312.02696, eq. 126), for 0 < σ ≤ 0.28.
    """
    low, high = 0.0, 1 / width
    for _ in range(100):
        middle = (low + high) / 2
        wider = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wider else (low, middle)
    return low


def power_decay(updates: int, width: float) -> float:
    """The decay of update number `updates`, counted from 0, of an average of this relative width."""
    return (1 - 1 / (updates + 1)) ** (power_exponent(width) + 1)


def is_decayed(name: str, dimensions: int) -> bool:
    """Whether weight decay acts on a parameter: not on norm gains, biases and null tokens, where a pull to zero has
    no meaning.
    """
    return dimensions >= 2 and "null_" not in name


def update_rule(name: str, dimensions: int, optimizer: str) -> UpdateRule:
    """How `train.optimizer` updates a parameter. Muon is for the matrices through which tokens go from block to block,
    not for those that make scales and gates out of a condition, embed or put out.
    """
    if optimizer == "muon" and name.startswith("blocks.") and dimensions == 2 and "modulation" not in name:
        return "muon"
    return "decayed" if is_decayed(name, dimensions) else "plain"


def in_optimizer_order(dimensions: Mapping[str, int], optimizer: str) -> list[str]:
    """Names of the parameters that AdamW updates, as its state counts them: the decayed ones first.

    Args:
        dimensions: of each parameter, in the model's order.
    """
    rules = {name: update_rule(name, count, optimizer) for name, count in dimensions.items()}
    return [name for wanted in ("decayed", "plain") for name, rule in rules.items() if rule == wanted]
