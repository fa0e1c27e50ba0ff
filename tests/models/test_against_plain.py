"""The fast model against the plain one, number by number: both modes of nulls, padding, grids that differ, with and
without q/k norm.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dittool.models.conditioning import Kept
from tests.models.plain_dit import PlainDiT
from tests.models.test_dit import build, conditions

PARTS = ((True, True), (True, False), (False, True), (False, False))  # (text, reference) kept, one sample each


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"patches": False},
        {"depth": 1, "heads": 2},
        {"mlp": "swiglu"},
        {"norm": "rms"},
        {"positions": "rope"},
        {"shared_modulation": True},
        {"context_norm": True},
        {"context_balance": True},
        {"context_norm": True, "context_balance": True, "patches": False},
        {"mlp": "swiglu", "norm": "rms", "positions": "rope", "shared_modulation": True},
    ],
)
# latent (H, W), patches (rows, columns)
@pytest.mark.parametrize("grids", [((4, 6), (2, 3)), ((6, 4), (5, 3)), ((4, 4), (1, 7))])
def test_the_model_computes_what_the_design_says(changes, grids):
    agree(changes, *grids)


@pytest.mark.parametrize("changes", [{}, {"context_norm": True, "context_balance": True, "positions": "rope"}])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 4)])
def test_added_patches_join_the_tokens_at_their_places(changes, grid):
    agree({"patch_fusion": "added", **changes}, (2 * grid[0], 2 * grid[1]), grid)


def agree(changes, latent, patch_grid):
    model = build(**changes)
    c = conditions(4, length=6, grid=patch_grid)
    lengths = torch.tensor([6, 2, 4, 5])
    c = dataclasses.replace(
        c, text_mask=torch.arange(6)[None] < lengths[:, None], patches=c.patches if model.config.patches else None
    )
    z, t = torch.randn(4, 16, *latent), torch.tensor([0.03, 0.4, 0.77, 0.99])
    kept = Kept(*(torch.tensor(column) for column in zip(*PARTS, strict=True)))
    with torch.no_grad():
        fast = model(z, t, c, kept)
        plain = PlainDiT(model.state_dict(), model.config)
        for i, (has_text, has_reference) in enumerate(PARTS):
            text = c.text[i, : lengths[i]] if has_text else None
            cls = c.cls[i] if has_reference else None
            patches = c.patches[i] if has_reference and c.patches is not None else None
            expected = plain.velocity(z[i], t[i], text, cls, patches, patch_grid)
            torch.testing.assert_close(fast[i], expected, rtol=1e-5, atol=1e-5)
            if not has_reference:  # the way of sampling: one null patch raised by log N
                alone = dataclasses.replace(c.map(lambda x, i=i: x[i : i + 1]), cls=None, patches=None)
                collapsed = model(
                    z[i : i + 1], t[i : i + 1], alone, Kept(kept.text[i : i + 1], kept.reference[i : i + 1])
                )
                torch.testing.assert_close(collapsed[0], expected, rtol=1e-5, atol=1e-5)
