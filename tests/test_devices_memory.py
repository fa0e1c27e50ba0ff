"""What does not fit into memory at once is computed in parts, and comes out the same."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from dittool.devices import in_parts


@pytest.mark.parametrize(
    "refusal", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: no")]
)
@pytest.mark.parametrize(
    ("fits", "tried"), [(16, [10]), (5, [10, 5, 5]), (3, [10, 5, 3, 3, 3, 1]), (1, [10, 5, 3, 2] + [1] * 10)]
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(refusal, fits, tried):
    asked = []

    def compute(rows):
        asked.append(rows.stop - rows.start)
        if asked[-1] > fits:
            raise refusal
        return list(range(rows.start, rows.stop))

    assert list(chain.from_iterable(in_parts(compute, 10, 10))) == list(range(10))
    assert asked == tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("shapes differ")])
def test_a_row_that_does_not_fit_alone_and_any_other_error_are_raised(error):
    def fail(_: slice) -> None:
        raise error

    with pytest.raises(type(error)):
        in_parts(fail, 4, 4)


def test_judging_on_a_device_of_little_memory_gives_the_figures_of_one_with_much(tiny_run, tiny_shards, monkeypatch):
    from dittool.data.shards.read import ShardSet
    from dittool.models.dit import DiT
    from dittool.sampling.pipeline import Pipeline
    from dittool.validate.mode_losses import measure_modes
    from dittool.validate.samples import Trial

    shards = ShardSet.open(tiny_shards.folder)
    refs = [ref for ref in shards.split("train") if ref.bucket == "128x128"][:4]
    pipeline = Pipeline.load(tiny_run / "checkpoints/checkpoint_final.pt")
    trial = Trial(pipeline, shards, "train", [], limit=0, folder=tiny_run)
    much = measure_modes(trial, {"train": refs})
    velocity, most = DiT.velocity, [0]

    def little_memory(self, z, *others):
        most[0] = max(most[0], len(z))
        if len(z) > 12:  # two samples of six branches
            raise torch.OutOfMemoryError("CUDA out of memory")
        return velocity(self, z, *others)

    monkeypatch.setattr(DiT, "velocity", little_memory)
    little = measure_modes(trial, {"train": refs})
    assert most[0] > 12
    for mode, losses in much.judged.by_timestep.items():
        assert little.judged.by_timestep[mode] == pytest.approx(losses, rel=1e-5)
