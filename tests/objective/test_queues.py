"""Queues of real samples: the newest stay, draws do not repeat a place, and they come back from sample numbers
alone.
"""

from __future__ import annotations

import pytest
import torch

from dittool.objective.queues import SampleQueues


def value_of(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.float()[:, None] * torch.ones(2)


def filled(count: int, classes: int = 2) -> SampleQueues:
    queues = SampleQueues(classes, 4, 6, (2,))
    numbers = torch.arange(count)
    queues.push(numbers, numbers % classes, value_of(numbers))
    return queues


def drawn(queues: SampleQueues, label: int, count: int, seed: int = 0) -> list[int]:
    places = queues.places_of_class(label, count, torch.Generator().manual_seed(seed))
    return sorted(int(row[0]) for row in queues.of_classes(torch.tensor([label]), places[None])[0])


def drawn_of_all(queues: SampleQueues, count: int, seed: int = 0) -> list[int]:
    places = queues.places_of_all(count, torch.Generator().manual_seed(seed))
    return [int(row[0]) for row in queues.of_all(places[None])[0]]


def test_the_newest_samples_of_a_class_stay():
    assert drawn(filled(20), 0, 4) == [12, 14, 16, 18] and drawn(filled(20), 1, 4) == [13, 15, 17, 19]


def test_the_queue_over_all_holds_the_newest_of_every_class():
    assert sorted(drawn_of_all(filled(20), 6)) == [14, 15, 16, 17, 18, 19]


def test_a_draw_repeats_no_place_and_follows_its_generator():
    queues = filled(20)
    assert all(len(set(drawn(queues, 0, 3, seed))) == 3 for seed in range(10))
    assert drawn(queues, 0, 2, 5) == drawn(queues, 0, 2, 5)
    assert len({tuple(drawn(queues, 0, 2, seed)) for seed in range(20)}) > 1


def test_more_than_is_held_is_refused():
    queues = filled(4)
    assert (queues.held(0), queues.held_by_all) == (2, 4)
    with pytest.raises(ValueError, match="3 samples wanted from a queue that holds 2"):
        drawn(queues, 0, 3)


@pytest.mark.parametrize("count", [3, 20])
def test_queues_come_back_from_sample_numbers_and_go_on_alike(count):
    queues, again = filled(count), SampleQueues(2, 4, 6, (2,))
    again.restore(queues.to_dict(), value_of)
    more = torch.arange(100, 103)
    for one in (queues, again):
        one.push(more, more % 2, value_of(more))
    for label in (0, 1):
        assert drawn(queues, label, 2) == drawn(again, label, 2)
    assert drawn_of_all(queues, 4, 1) == drawn_of_all(again, 4, 1)


def test_several_groups_are_drawn_at_once():
    queues, labels = filled(20), torch.tensor([1, 0, 1])
    places = torch.tensor([[0, 3], [1, 2], [2, 2]])
    drawn_at_once = queues.of_classes(labels, places)
    assert drawn_at_once.shape == (3, 2, 2)
    assert drawn_at_once[..., 0].tolist() == queues.numbers[labels[:, None], places].tolist()


def test_a_sample_that_is_not_finite_is_known_without_looking_at_the_values_again():
    queues = SampleQueues(2, 4, 6, (2,), torch.device("meta"))
    values = value_of(torch.arange(6))
    values[3, 1] = torch.nan
    queues.push(torch.arange(6), torch.arange(6) % 2, values)
    everywhere, some = torch.arange(3), torch.tensor([0, 1])
    assert queues.not_finite(1, everywhere, some) == [3] and queues.not_finite(0, everywhere, some) == []
    assert queues.not_finite(0, everywhere, torch.tensor([3])) == [3]
    assert queues.of_classes(torch.tensor([0]), some[None]).device.type == "meta"
