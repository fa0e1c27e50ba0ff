"""What several tests of training plant."""

from __future__ import annotations

import pytest

from dittool.train import loop


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned(3, 5)`: the loss of the first sample, or group, is NaN at these steps, counted from 1, of the state's
    own count. Returns the list that its names will stand in.
    """
    real = loop.train_step

    def poison(*steps: int) -> list[str]:
        named = []

        def step(state, batches):
            batch = next(batches)
            if state.step + 1 in steps:
                (batch.latents if hasattr(batch, "latents") else batch.noise)[0] = float("nan")
                named.append(batch.ids[0])
            return real(state, iter([batch]))

        monkeypatch.setattr(loop, "train_step", step)
        return named

    return poison
