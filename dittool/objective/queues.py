"""The newest real samples, by class and over all classes: where positives and unconditional negatives are drawn from.

A queue holds sample numbers and, beside them, the samples themselves; a checkpoint keeps the numbers alone.

K classes · Q capacity of a class's queue · A capacity of the queue over all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SampleReader = Callable[[Tensor], Tensor]

_EMPTY = -1


class SampleQueues:
    """Ring buffers: a new sample takes the place of the oldest one."""

    def __init__(self, classes: int, class_capacity: int, capacity: int, shape: tuple[int, ...]) -> None:
        self.numbers = torch.full((classes, class_capacity), _EMPTY)  # (K, Q)
        self.all_numbers = torch.full((capacity,), _EMPTY)  # (A,)
        self.pushed = torch.zeros(classes, dtype=torch.int64)  # (K,) samples that ever entered
        self._values = torch.zeros(classes, class_capacity, *shape)
        self._all_values = torch.zeros(capacity, *shape)

    def push(self, numbers: Tensor, labels: Tensor, values: Tensor) -> None:
        """Samples (n,) of classes (n,) with their values (n, *shape), the newest last."""
        for number, label, value in zip(numbers.tolist(), labels.tolist(), values, strict=True):
            place, place_in_all = (
                int(self.pushed[label]) % self.numbers.shape[1],
                int(self.pushed.sum()) % len(self.all_numbers),
            )
            self.numbers[label, place], self._values[label, place] = number, value
            self.all_numbers[place_in_all], self._all_values[place_in_all] = number, value
            self.pushed[label] += 1

    def held(self, label: int) -> int:
        """How many samples the queue of a class holds."""
        return min(int(self.pushed[label]), self.numbers.shape[1])

    @property
    def held_by_all(self) -> int:
        return min(int(self.pushed.sum()), len(self.all_numbers))

    def of_class(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` different places of a class's queue, (count, *shape). Raises ValueError when it holds fewer."""
        return self._values[label][_places(self.held(label), count, generator)]

    def of_all(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` different places of the queue over all classes, (count, *shape). Raises ValueError when it holds
        fewer.
        """
        return self._all_values[_places(self.held_by_all, count, generator)]

    def not_finite(self) -> list[int]:
        """Numbers of the held samples that have a value of NaN or infinity."""
        found: set[int] = set()
        for numbers, values in ((self.numbers, self._values), (self.all_numbers, self._all_values)):
            finite = torch.isfinite(values).flatten(numbers.dim()).all(dim=-1)
            found |= set(numbers[~finite].tolist())
        return sorted(found)

    def to_dict(self) -> dict[str, Tensor]:
        """Which samples stand where; `restore` with their values gives the same queues."""
        return {"numbers": self.numbers.clone(), "all_numbers": self.all_numbers.clone(), "pushed": self.pushed.clone()}

    def restore(self, state: Mapping[str, Tensor], read: SampleReader) -> None:
        """The queues of `to_dict`; `read` gives the values (n, *shape) of sample numbers (n,)."""
        for numbers, values, saved in (
            (self.numbers, self._values, state["numbers"]),
            (self.all_numbers, self._all_values, state["all_numbers"]),
        ):
            numbers.copy_(saved)
            held = numbers != _EMPTY
            values[held] = read(numbers[held])
        self.pushed.copy_(state["pushed"])


def _places(held: int, count: int, generator: torch.Generator) -> Tensor:
    if held < count:
        raise ValueError(f"{count} samples wanted from a queue that holds {held}")
    return torch.randperm(held, generator=generator)[:count]
