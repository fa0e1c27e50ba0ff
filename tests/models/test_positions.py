"""Positions: rows are rows, columns are columns, and two grids over one image agree where they meet."""

from __future__ import annotations

import torch

from dittool.models.positions import cached_positions, grid_positions


def test_the_first_half_tells_the_row_and_the_second_the_column():
    positions = grid_positions((3, 5), 16).reshape(3, 5, 16)
    assert torch.equal(positions[1, 0, :8], positions[1, 4, :8])
    assert torch.equal(positions[0, 2, 8:], positions[2, 2, 8:])
    assert not torch.equal(positions[0, 0, :8], positions[1, 0, :8])
    assert not torch.equal(positions[0, 0, 8:], positions[0, 1, 8:])


def test_height_and_width_are_not_exchanged():
    assert grid_positions((2, 6), 16).shape == (12, 16)
    tall, wide = grid_positions((6, 2), 16).reshape(6, 2, 16), grid_positions((2, 6), 16).reshape(2, 6, 16)
    torch.testing.assert_close(tall[:, 0, :8], wide[0, :, 8:])


def test_all_cells_of_a_grid_differ():
    positions = grid_positions((8, 11), 32)
    distances = torch.cdist(positions, positions) + torch.eye(88) * 9
    assert distances.min() > 0.1


def test_a_patch_grid_of_the_same_shape_has_the_tokens_positions():
    torch.testing.assert_close(grid_positions((4, 6), 32, span=(4, 6)), grid_positions((4, 6), 32))


def test_a_finer_patch_grid_brackets_the_tokens_positions():
    """With twice the cells, the mean place of cells 0 and 1 is the place of token 0."""
    y_fine, y_token = ((torch.arange(8) + 0.5) / 8 - 0.5) * 4, ((torch.arange(4) + 0.5) / 4 - 0.5) * 4
    torch.testing.assert_close(y_fine.reshape(4, 2).mean(1), y_token)
    fine = grid_positions((8, 1), 16, span=(4, 1)).reshape(8, 16)
    coarse = grid_positions((4, 1), 16).reshape(4, 16)
    middle_frequency = 3  # low enough that sine is nearly linear between neighbours
    torch.testing.assert_close(
        fine.reshape(4, 2, 16).mean(1)[:, middle_frequency], coarse[:, middle_frequency], atol=1e-3, rtol=0
    )


def test_positions_that_sampling_asked_for_first_serve_training_too():
    with torch.inference_mode():
        positions = cached_positions((2, 2), 8, None, torch.device("cpu"))
    weight = torch.ones(8, requires_grad=True)
    (positions * weight).sum().backward()
    torch.testing.assert_close(weight.grad, positions.sum(dim=0))
