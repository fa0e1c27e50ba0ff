"""Looks on the way: what they show, which rows they stop, and that runs stay what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dittool.ablate import runs
from dittool.ablate.ablation import ablate
from dittool.ablate.cost import Cost
from dittool.ablate.plan import read_plan
from dittool.ablate.runs import Job, Run, Work
from dittool.ablate.yardstick import Measured
from dittool.console import SILENT
from dittool.errors import UsageError
from tests.ablate.test_ablate import folder, state, written
from tests.run_states import assert_same_bits

ROWS = "[variant.harm]\n'train.lr' = 1e-5\n[variant.same]\n'train.init_draw' = 1\n"
KEYS = "seeds = [0, 1, 2]\nlooks = 3\n"


@pytest.fixture
def simulated(monkeypatch):
    """Losses without a training: of the base and `same` alike but for chance, of `harm` higher by a half. Returns the
    jobs that were asked for.
    """
    asked = []

    def measured(work, job):
        asked.append((job.run.row, job.run.seed, job.until, job.run.updates))
        rng = np.random.default_rng([job.run.seed, job.until, *job.run.row.encode()])
        losses = 1 / job.until + 0.01 * rng.normal(size=(4, 2)) + (0.5 if job.run.row == "harm" else 0)
        return Measured(list("abcd"), ["both 0.30", "none 0.30"], losses)

    def costs(work, remember=True):
        work.costs = dict.fromkeys(work.rows.changes, Cost(1.0, 1.25, 1.0))

    monkeypatch.setattr(Work, "_measured", measured)
    monkeypatch.setattr(Work, "measure_costs", costs)
    return asked


@pytest.fixture
def plan(tiny_shards, tmp_path):
    def read(keys=KEYS, updates=40):
        path = written(tiny_shards, tmp_path / "plan.toml", ROWS, keys)
        path.write_text(path.read_text().replace("updates = 4\n", f"updates = {updates}\n"))
        return read_plan(path)

    return read


def test_a_row_that_is_surely_worse_is_stopped_and_says_where(plan, tiny_shards, tmp_path, simulated):
    out = tmp_path / "out"
    results = ablate(plan(), tiny_shards.folder, out)
    harm, same = (next(row for row in results.rows if row.name == name) for name in ("harm", "same"))
    assert results.complete and harm.equal_updates is None and harm.equal_time is None
    assert {until for row, _, until, _ in simulated if row == "harm"} == {10}, "it is run no further"
    assert same.stopped is None and [look.updates for look in same.looks] == [10, 20, 30]
    assert same.equal_time.updates == 32
    written_down = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    low = harm.stopped.difference.low
    assert written_down["harm"]["stopped"]["interval"][0] == low > 0.4
    assert written_down["harm"]["verdict"] == f"worse, stopped after 10 of 40 updates: by at least {low:.4f} there"
    assert written_down["same"]["stopped"] is None and len(written_down["same"]["looks"]) == 3
    page = (out / "report.html").read_text()
    assert "worse, stopped after 10 of 40 updates" in page and "confidence sequence" in page


def test_the_same_call_again_stops_it_at_the_same_place(plan, tiny_shards, tmp_path, simulated):
    first = ablate(plan(), tiny_shards.folder, tmp_path / "out")
    again = ablate(plan(), tiny_shards.folder, tmp_path / "out")
    assert [row.stopped for row in first.rows] == [row.stopped for row in again.rows]
    on = ablate(plan(KEYS + "stop_worse = false\n"), tiny_shards.folder, tmp_path / "out")
    assert on.rows[1].stopped is None and on.rows[1].equal_updates.difference.mean > 0.4, "the key lets it run on"


def test_with_one_seed_less_than_decide_nothing_is_looked_at(plan):
    with pytest.raises(UsageError, match="looks: with 2 of 3 seeds"):
        plan("seeds = [0, 1]\nlooks = 3\n")
    with pytest.raises(UsageError, match="looks = 40: there are 40 updates"):
        plan("seeds = [0, 1, 2]\nlooks = 40\n")


def test_in_between_an_interval_is_one_that_may_be_looked_at(plan, tiny_shards, tmp_path, simulated, monkeypatch):
    """With two of four seeds there is none, with three a wider one, with all the usual one."""
    seen = []
    monkeypatch.setattr("dittool.ablate.ablation.write_results", lambda results: seen.append(results.rows[2]))
    ablate(plan("seeds = [0, 1, 2, 3]\nequal_time = false\n"), tiny_shards.folder, tmp_path / "out")
    by_seeds = {row.equal_updates.difference.seeds: row.equal_updates.difference for row in seen if row.equal_updates}
    widths = [by_seeds[seeds].high - by_seeds[seeds].low for seeds in (2, 3, 4)]
    assert np.isnan(widths[0]) and widths[1] > widths[2]


def test_a_run_that_was_looked_at_is_the_same_run_bit_by_bit(tiny_shards, tmp_path, monkeypatch):
    rows = "[variant.muon]\n'train.optimizer' = 'muon'\n"
    path, keys, run = tmp_path / "plan.toml", "seeds = [0, 1, 2]\n", Run("muon", 2, 4)
    plain = Work(read_plan(written(tiny_shards, path, rows, keys)), tiny_shards.folder, tmp_path / "straight", SILENT)
    plain.do(Job(run, 4))
    with_looks = read_plan(written(tiny_shards, path, rows, keys + "looks = 1\n"))
    looked = Work(with_looks, tiny_shards.folder, tmp_path / "looked", SILENT)
    for until in (2, 4):
        looked.do(Job(run, until))
    assert looked.looked[Job(run, 2)].losses.mean() != looked.measured[run].losses.mean()
    own, other = (state(folder(work.out, "muon", 2)) for work in (plain, looked))
    for content in (own, other):
        content["config"]["train"].pop("eval_every")
    assert_same_bits(own, other)
    # looks that a plan has later: the run is past them, and is not trained again for them
    monkeypatch.setattr(runs, "train", None)
    late = Work(with_looks, tiny_shards.folder, tmp_path / "straight", SILENT)
    for until in (2, 4):
        assert late.is_made(Job(run, until))
        late.do(Job(run, until))
    assert not late.looked and not late.failed and run in late.measured
