"""Lines of a chart: where points lie, which are left out, what the axes say."""

from __future__ import annotations

import math

import pytest

from dittool.runs.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Band, chart, points


def rows(values, key="loss"):
    return [{"step": 10 * (number + 1), key: value} for number, value in enumerate(values)]


def places(path):
    return [tuple(map(float, point.split())) for point in path.removeprefix("M").split(" L")]


def test_a_line_goes_from_edge_to_edge():
    drawn = chart("loss", rows([2.0, 3.0, 1.0]), {"loss": "training"})
    line = places(drawn.lines[0].path)
    assert [x for x, _ in line] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert line[1][1] == TOP and line[2][1] > line[0][1] > line[1][1]
    assert not drawn.logarithmic and drawn.lines[0].values == [2.0, 3.0, 1.0]


def test_values_far_apart_are_drawn_on_a_logarithmic_axis():
    drawn = chart("loss", rows([1.0, 0.1, 0.01]), {"loss": "training"})
    heights = [y for _, y in places(drawn.lines[0].path)]
    assert drawn.logarithmic
    assert heights == [TOP, pytest.approx((TOP + HEIGHT - BOTTOM) / 2), HEIGHT - BOTTOM]
    assert [tick.text for tick in drawn.up] == ["0.01", "0.1", "1"]


def test_what_is_no_finite_number_is_left_out():
    given = [*rows([1.0, math.nan, math.inf, None, "x", 2.0]), {"step": 70, "failed": "drawing"}]
    assert points(given, "loss") == ([10.0, 60.0], [1.0, 2.0])
    assert chart("loss", rows([math.nan]), {"loss": "training"}) is None


def test_of_many_points_neighbours_are_averaged():
    steps, values = points(rows([float(n) for n in range(1000)]), "loss", most=100)
    assert len(steps) == 100 and values[0] == 4.5 and steps[0] == 55 and values[-1] == 994.5


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-1.0, -1.0, -1.0], [1e-9, 2e-9], [1e12, 3e12]])
def test_any_values_lie_in_the_frame(values):
    drawn = chart("x", rows(values), {"loss": "l"})
    assert all(LEFT <= x <= WIDTH and TOP <= y <= HEIGHT - BOTTOM for x, y in places(drawn.lines[0].path))
    assert all(TOP <= tick.at <= HEIGHT - BOTTOM for tick in drawn.up) and drawn.up


def test_a_band_is_drawn_where_the_line_is():
    drawn = chart("x", rows([1.0, 1.0]), {"loss": "l"}, Band([10, 20, 500], [0.5, 0.5, 0.1], [1.5, 1.5, 0.2]))
    assert drawn.outline.endswith("Z") and drawn.outline.count("L") == 3
