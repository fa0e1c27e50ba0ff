"""What an update of a variant costs beside one of the base, measured by turns: a machine that is busy for a while then
slows both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from dittool.config.architectures import AnyConfig
from dittool.console import SILENT
from dittool.devices import device_of_choice, wait_for
from dittool.families.family import family_of
from dittool.train.distributed import Ranks
from dittool.train.estimate import batch_kinds, memory_of_update
from dittool.train.loop import train_step
from dittool.train.state import TrainState

_TURNS = 9  # after one that warms up


@dataclass(frozen=True)
class Cost:
    """Of one update."""

    seconds: float  # of the variant, the shortest
    time: float  # over the base's: the median over the turns; 1 where they do not tell
    memory: float  # over the base's


def cost(base: AnyConfig, variant: AnyConfig, data: Path) -> Cost:
    """Measures both on their most frequent bucket. Nothing is written. Raises what training would raise."""
    sides = [_Side(config, data) for config in (base, variant)]
    turns = [[side.update() for side in sides] for _ in range(1 + _TURNS)][1:]
    memory = [side.memory() for side in sides]
    ratios = sorted(mine / reference for reference, mine in turns)
    lower, _, upper = quantiles(ratios, n=4)
    # turns of which the middle half lies on both sides of 1 do not tell the two apart
    return Cost(min(mine for _, mine in turns), 1.0 if lower < 1 < upper else median(ratios), memory[1] / memory[0])


class _Side:
    """A fresh model with one micro-batch that it is updated on again and again."""

    def __init__(self, config: AnyConfig, data: Path) -> None:
        family = family_of(config)
        config = family.cheap_begin(config)
        ranks = Ranks(0, 1, device_of_choice())
        opened = family.open_data(config, data, ranks)
        self._state = TrainState(config, opened, ranks)
        family.begin(opened, {}, SILENT)
        self._example = max(batch_kinds(self._state), key=lambda kind: kind.share).example

    def update(self) -> float:
        """Seconds of one."""
        wait_for(self._state.device)
        start = time.perf_counter()
        train_step(self._state, iter([self._example] * self._state.config.train.accumulate))
        wait_for(self._state.device)
        return time.perf_counter() - start

    def memory(self) -> int:
        return memory_of_update(self._state, self._example)[0]
