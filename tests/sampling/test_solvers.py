"""Solvers: their order of convergence where the solution is known, and on a trained model against a fine Euler
solution.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from dittool.config.schema import Sample
from dittool.sampling.latents import sample_latents
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.solvers import SOLVERS, euler, evaluation_times, time_grid
from dittool.train.loop import train

ORDERS = {"euler": 1, "heun": 2, "ab2": 2}


def test_every_solver_can_be_configured_and_its_order_is_known():
    assert set(SOLVERS) == set(ORDERS) == set(get_args(Sample.model_fields["solver"].annotation))


def test_times_run_from_noise_to_data():
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(2, shift=3.0) == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_may_begin_on_the_way_and_all_steps_lie_behind(shift):
    times = time_grid(5, shift, start=0.6)
    assert times[0] == pytest.approx(0.6) and times[-1] == 0 and len(times) == 6
    assert times == sorted(times, reverse=True)
    assert time_grid(5, shift, start=0.0) == [0.0]


def test_a_shifted_grid_from_the_middle_is_as_dense_as_the_part_of_the_whole_one():
    assert time_grid(2, shift=3.0, start=0.75) == pytest.approx(time_grid(4, shift=3.0)[2:])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_exact_on_a_straight_path(solver):
    x0, noise = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(SOLVERS[solver](lambda z, t: noise - x0, noise, time_grid(3, shift=2.0)), x0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_the_order_of_convergence_on_a_known_solution(solver, order, shift):
    """dz/dt = 2·t·z² has z(t) = 1 / (1/z(1) + 1 − t²). Halving the step divides the error by 2^order, on even and
    uneven grids.
    """
    start = torch.tensor([[[[1.0, 0.5]]]], dtype=torch.float64)
    solution = 1 / (1 / start + 1)
    errors = [
        float((SOLVERS[solver](lambda z, t: 2 * t * z**2, start, time_grid(steps, shift)) - solution).abs().max())
        for steps in (100, 200, 400)
    ]
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_the_order_holds_when_steps_jump_in_length(solver, order):
    """Every other step three times as long: what a smooth grid hides."""
    start, errors = torch.ones(1, 1, 1, 1, dtype=torch.float64), []
    for pairs in (50, 100, 200):
        times = [1 - (pair + part) / pairs for pair in range(pairs) for part in (0, 0.25)] + [0.0]
        errors.append(abs(float(SOLVERS[solver](lambda z, t: 2 * t * z**2, start, times)) - 0.5))
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([order, order], abs=0.1)


def test_what_a_solver_costs_is_what_it_asks_for():
    times = time_grid(4)
    assert evaluation_times("euler", times) == evaluation_times("ab2", times) == times[:-1]
    assert evaluation_times("heun", times) == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0]
    assert evaluation_times("heun", [0.0]) == []


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory):
    """Long enough for a velocity that bends."""
    config = tiny_shards.config_with(
        "train.steps=120", "train.lr=3e-3", "train.warmup_steps=10", "ema.target=0.9", "checkpoint.every=1000"
    )
    done = train(config, tiny_shards.folder, tmp_path_factory.mktemp("trained") / "run")
    return Pipeline.load(done.checkpoint)


def test_second_order_solvers_are_far_nearer_to_a_fine_euler_solution_of_a_trained_model(trained):
    bucket = trained.sample_size((64, 64), None)
    conditions, noise = trained.conditions("a red circle", None, bucket, 4), trained.noise(bucket, [0, 1, 2, 3])

    def solved(solver, steps):
        return sample_latents(
            trained.model, conditions, noise, trained.settings.changed({"solver": solver, "steps": steps})
        )

    fine = 2 * solved("euler", 400) - solved("euler", 200)  # without Euler's own first-order error (Richardson)
    error = {
        (solver, steps): float((solved(solver, steps) - fine).norm() / fine.norm())
        for solver in SOLVERS
        for steps in (5, 10)
    }
    # there is a way to go
    assert float((euler(lambda z, t: z * 0, noise, [1.0, 0.0]) - fine).norm() / fine.norm()) > 0.5
    assert error["euler", 10] > 2.5 * max(error["heun", 10], error["ab2", 10])
    assert error["euler", 10] > error["heun", 5], "at the same number of evaluations"
