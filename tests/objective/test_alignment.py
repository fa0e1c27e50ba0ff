"""REPA: which samples are aligned, with what, and that a split batch has the same mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dittool.models.dit import DiT
from dittool.objective.alignment import Alignment, patches_at_tokens
from dittool.objective.flow import flow_loss
from tests.models.test_dit import CONFIG, build, conditions

ALIGNMENT = Alignment(0.5, CONFIG.patch_size, active=True)
MODES = torch.tensor([0, 1, 2, 3])  # none, text only, reference only, both


def batch(grid=(2, 3), size=4):
    g = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, size, 16, 4, 6, generator=g)
    return x0, noise, torch.linspace(0.1, 0.9, size), conditions(size, grid=grid)


def test_the_loss_is_one_minus_the_cosine_of_the_blocks_tokens_and_the_patches_at_their_places():
    model, (x0, noise, t, c) = build(aligned_block=2), batch()
    seen = []
    model.blocks[1].register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))
    found = flow_loss(model, x0, noise, t, c, MODES, ALIGNMENT)
    for sample in (0, 1):
        tokens = model.alignment_head(seen[0][sample])
        each = [1 - torch.cosine_similarity(a, b, dim=0) for a, b in zip(tokens, c.patches[sample], strict=True)]
        torch.testing.assert_close(found.alignment[sample], torch.stack(each).mean())
    torch.testing.assert_close(found.mean, found.per_sample.mean() + 0.5 * found.alignment[:2].sum() / 4)


def test_samples_that_see_their_reference_are_left_out():
    model, (x0, noise, t, c) = build(aligned_block=2), batch()
    found = flow_loss(model, x0, noise, t, c, MODES, ALIGNMENT)
    other = flow_loss(
        model,
        x0,
        noise,
        t,
        replace(c, patches=c.patches * torch.tensor([1, 1, -1, -1])[:, None, None]),
        MODES,
        ALIGNMENT,
    )
    assert found.alignment[2:].tolist() == [0, 0] and torch.equal(found.alignment, other.alignment)
    assert not torch.equal(found.per_sample[2:], other.per_sample[2:])  # they see them


def test_what_is_drawn_is_as_without_it_and_the_target_stands_in_no_context():
    """The head is built last and read only where it is asked for."""
    plain, aligned = build(awake=False), build(awake=False, aligned_block=2)
    shared = plain.state_dict()
    assert all(torch.equal(shared[name], tensor) for name, tensor in aligned.state_dict().items() if name in shared)
    model, (x0, noise, t, c) = build(aligned_block=2), batch()
    found = flow_loss(model, x0, noise, t, c, MODES, ALIGNMENT)
    torch.testing.assert_close(found.per_sample, flow_loss(model, x0, noise, t, c, MODES).per_sample, rtol=0, atol=0)
    other = flow_loss(model, x0, noise, t, replace(c, patches=c.patches.roll(1, 0)), MODES, ALIGNMENT)
    assert torch.equal(found.per_sample[:2], other.per_sample[:2])
    assert not torch.equal(found.alignment[:2], other.alignment[:2])


@pytest.mark.parametrize("active", [True, False])
def test_every_parameter_has_a_gradient_also_when_it_is_over_or_nobody_is_aligned(active):
    """Processes that average gradients wait for all of them."""
    model, (x0, noise, t, c) = build(aligned_block=2), batch()
    modes = torch.tensor([2, 3, 2, 3]) if active else MODES
    flow_loss(model, x0, noise, t, c, modes, replace(ALIGNMENT, active=active)).mean.backward()
    of_head = [parameter.grad for parameter in model.alignment_head.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in of_head)


def test_a_batch_in_parts_has_the_same_mean_however_many_of_each_part_are_aligned():
    model, (x0, noise, t, c) = build(aligned_block=2), batch()

    def mean(rows):
        return flow_loss(model, x0[rows], noise[rows], t[rows], c.map(lambda x: x[rows]), MODES[rows], ALIGNMENT).mean

    parts = (mean(slice(0, 1)) + 3 * mean(slice(1, 4))) / 4
    torch.testing.assert_close(mean(slice(0, 4)), parts)


# Grids that differ


def painted(grid, shift=0.0):
    """(1, N, 3): a smooth picture by its place in [0, 1]², at the centres of a grid's cells."""
    y, x = (((torch.arange(cells) + 0.5) / cells) for cells in grid)
    rows, columns = torch.meshgrid(y, x + shift, indexing="ij")
    return torch.stack([rows, columns, torch.sin(3 * rows) * columns], dim=-1).flatten(0, 1)[None]


@pytest.mark.parametrize(("patches", "tokens"), [((37, 28), (32, 24)), ((8, 12), (16, 24)), ((18, 11), (6, 4))])
def test_patches_of_another_grid_are_the_pictures_content_at_the_tokens(patches, tokens):
    """14 pixels a patch and 16 a token, pooled patches, finer ones."""
    found, wanted = patches_at_tokens(painted(patches), patches, tokens), painted(tokens)
    inner = torch.zeros(*tokens, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # at the edges there is nothing to take the mean with
    off = (found - wanted)[0][inner.flatten()].abs().max()
    assert off < 0.02 < (found - painted(tokens, shift=1 / tokens[1]))[0][inner.flatten()].abs().max()
    if patches[0] * patches[1] != patches[1]:  # rows are not columns
        turned = patches_at_tokens(painted(patches[::-1]), patches[::-1], tokens[::-1])
        assert not torch.allclose(found.mean(1), turned[:, : len(turned[0]) // 2].mean(1))


def test_equal_grids_are_left_as_they_are_and_none_stay_none():
    patches = torch.randn(2, 6, 5)
    assert patches_at_tokens(patches, (2, 3), (2, 3)) is patches
    assert patches_at_tokens(patches[:0], (2, 3), (4, 6)).shape == (0, 24, 5)


def test_the_alignment_reaches_blocks_up_to_its_own_and_no_further():
    model: DiT = build(aligned_block=2)
    x0, noise, t, c = batch(grid=(5, 4))  # patches of another grid than the tokens'
    flow_loss(model, x0, noise, t, c, MODES, ALIGNMENT).alignment.sum().backward()
    reached = [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in model.blocks]
    assert reached == [True, True, False]
