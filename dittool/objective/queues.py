"""The newest real samples, by class and over all classes: where positives and unconditional negatives are drawn from.

A queue holds sample numbers and, on the device that computes with them, the samples themselves; a checkpoint keeps the
numbers alone. Which places are drawn is decided on the host, so that nobody waits for the device.

K classes · Q capacity of a class's queue · A capacity of the queue over all · G groups · n places drawn for each
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

SampleReader = Callable[[Tensor], Tensor]

_EMPTY = -1
_CPU = torch.device("cpu")


class SampleQueues:
    """Ring buffers: a new sample takes the place of the oldest one."""

    def __init__(
        self, classes: int, class_capacity: int, capacity: int, shape: tuple[int, ...], device: torch.device = _CPU
    ) -> None:
        self.numbers = torch.full((classes, class_capacity), _EMPTY)  # (K, Q)
        self.all_numbers = torch.full((capacity,), _EMPTY)  # (A,)
        self.pushed = torch.zeros(classes, dtype=torch.int64)  # (K,) samples that ever entered
        self._entered = 0  # the same of all classes
        self._values = torch.zeros(classes, class_capacity, *shape, device=device)
        self._all_values = torch.zeros(capacity, *shape, device=device)
        self._broken: set[int] = set()  # numbers of the samples that have a value of NaN or infinity

    @property
    def nbytes(self) -> int:
        """Of the samples, on the device."""
        return self._values.nbytes + self._all_values.nbytes

    @property
    def sample_bytes(self) -> int:
        return self._all_values[0].nbytes

    def push(self, numbers: Tensor, labels: Tensor, values: Iterable[Tensor]) -> None:
        """Samples (n,) of classes (n,) with their n values, the newest last. All lie on the host; pinned values are
        copied while it goes on.
        """
        for number, label, value in zip(numbers.tolist(), labels.tolist(), values, strict=True):
            if not bool(torch.isfinite(value).all()):
                self._broken.add(number)
            place = int(self.pushed[label]) % self.numbers.shape[1]
            place_in_all = self._entered % len(self.all_numbers)
            self.numbers[label, place], self.all_numbers[place_in_all] = number, number
            self._values[label, place].copy_(value, non_blocking=True)
            self._all_values[place_in_all].copy_(value, non_blocking=True)
            self.pushed[label] += 1
            self._entered += 1

    def held(self, label: int) -> int:
        """How many samples the queue of a class holds."""
        return min(int(self.pushed[label]), self.numbers.shape[1])

    @property
    def held_by_all(self) -> int:
        return min(self._entered, len(self.all_numbers))

    def places_of_class(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` different places of a class's queue. Raises ValueError when it holds fewer."""
        return _places(self.held(label), count, generator)

    def places_of_all(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` different places of the queue over all classes. Raises ValueError when it holds fewer."""
        return _places(self.held_by_all, count, generator)

    def of_classes(self, labels: Tensor, places: Tensor) -> Tensor:
        """The samples (G, n, *shape) at places (G, n) of the queues of classes (G,)."""
        at = sent(torch.stack([labels[:, None].expand_as(places), places]), self._values.device)
        return self._values[at[0], at[1]]

    def of_all(self, places: Tensor) -> Tensor:
        """The samples (G, n, *shape) at places (G, n) of the queue over all classes."""
        return self._all_values[sent(places, self._all_values.device)]

    def not_finite(self, label: int, places: Tensor, places_in_all: Tensor) -> list[int]:
        """Numbers of the samples at places of a class's queue, and of the queue over all, that are not finite."""
        if not self._broken:
            return []
        drawn = {*self.numbers[label, places].tolist(), *self.all_numbers[places_in_all].tolist()}
        return sorted(drawn & self._broken)

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
            given = read(numbers[held])
            self._broken |= set(numbers[held][~torch.isfinite(given).flatten(1).all(dim=1)].tolist())
            values[held.nonzero(as_tuple=True)] = given.to(values.device)
        self.pushed.copy_(state["pushed"])
        self._entered = int(self.pushed.sum())


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without a wait for it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _places(held: int, count: int, generator: torch.Generator) -> Tensor:
    if held < count:
        raise ValueError(f"{count} samples wanted from a queue that holds {held}")
    return torch.randperm(held, generator=generator)[:count]
