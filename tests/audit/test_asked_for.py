"""Arguments that a model asks for by name, and what a part of it misses in a dictionary that is handed on to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.leaves import leaves
from tests.audit.foreign_kinds import WIDTH, Net


class Sizes(nn.Module):
    """The picture's size as a condition, as PixArt's at 1024."""

    def __init__(self):
        super().__init__()
        self.size, self.ratio = nn.Linear(2, WIDTH), nn.Linear(1, WIDTH)

    def forward(self, timestep, resolution=None, aspect_ratio=None, batch_size=None):
        both = self.size(resolution.reshape(-1, 2) / 64) + self.ratio(aspect_ratio.reshape(-1, 1) / 500)
        return both + timestep


class AsksForSizes(Net):
    def __init__(self, depth=2):
        super().__init__(depth)
        self.sizes = Sizes()

    def forward(self, x, t, y=None, added_cond_kwargs: dict[str, torch.Tensor] | None = None):
        if added_cond_kwargs is None:
            raise ValueError("`added_cond_kwargs` cannot be None when sizes are conditions")
        given = added_cond_kwargs or {"resolution": None, "aspect_ratio": None}
        return self.drawn(x, lambda z: self.sizes(self.times(t), batch_size=len(x), **given))


class AsksStrictly(AsksForSizes):
    """Its part has no defaults."""

    def forward(self, x, t, extra: dict | None = None):
        assert extra is not None, "extra must be given"
        return self.drawn(x, lambda z: self._sized(self.times(t), **extra))

    def _sized(self, timestep, *, resolution, aspect_ratio):
        return self.sizes(timestep, resolution, aspect_ratio)


@pytest.mark.parametrize(("model", "name"), [(AsksForSizes, "added_cond_kwargs"), (AsksStrictly, "extra")])
def test_what_a_model_asks_for_is_fed(model, name):
    fed = leaves(Example(model(), {}, None).inputs())
    assert {f"{name}.resolution", f"{name}.aspect_ratio"} <= fed.keys()
