"""Runs on the drawn set, judged by what a checker reads from their pictures."""

from __future__ import annotations

import json
import re

import pytest

from dittool.ablate.ablation import ablate
from dittool.ablate.cost import Cost
from dittool.ablate.plan import BASE, read_plan
from dittool.ablate.results import planned, summarised
from dittool.ablate.runs import Run, Work
from dittool.console import SILENT
from dittool.demo.checker import SCENE_CHECKER
from dittool.errors import UsageError
from dittool.validate.captions import Share

PLAN = """
base = "demo"
updates = 4
samples = 2
equal_time = false
drawn_images = 24
scenes = 2
tests = ["text_manip"]
{keys}

[set]
"model.depth" = 1
"model.width" = 32
"model.heads" = 2
"train.batch_size" = 4
"sample.steps" = 1
"validate.limit" = 8

[variant.muon]
"train.optimizer" = "muon"
"""


@pytest.fixture
def plan(tmp_path):
    def write(keys=""):
        path = tmp_path / "plan.toml"
        path.write_text(PLAN.format(keys=keys))
        return path

    return write


def shares(right, of=2):
    part = {"text_only": {"shape": Share(right, of)}, "both": {"shape": Share(of, of)}}
    return {"known": part, "new": part}


def test_a_plan_draws_its_own_set_and_reads_what_its_runs_draw(plan, dit, tmp_path):
    out = tmp_path / "out"
    done = dit("ablate", plan("target = 0.0"), "--out", out, "--json")
    assert done.code == 0, done.err
    base, muon = json.loads(done.out)["rows"]
    assert muon["scenes"]["4"]["new"]["text_only"]["shape"]["of"] == 2
    assert base["target"]["updates"] == 4 and base["target"]["seconds"] > 0
    assert "sensitivity" in muon["equal_updates"]["figures"]
    page = (out / "report.html").read_text()
    assert "captions never seen" in page and "sensitivity" in page
    scenes = out / "runs" / "muon" / "seed0_updates4" / "scenes.json"
    scenes.write_text(scenes.read_text().replace('"right": 0', '"right": 1'))
    again = json.loads(dit("ablate", plan("target = 0.0"), "--out", out, "--json").out)
    assert again["rows"][1]["scenes"]["4"]["new"]["text_only"]["shape"]["right"] == 1, "they are not drawn again"
    assert dit("ablate", plan(), "--out", out, "--data", tmp_path).code == 2


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("target = 0.5", "target = 0.5\ntarget_attribute = 'shade'", "reads no 'shade'"),
        ('"text_manip"', '"text_manib"', "no test is called 'text_manib'"),
        ('base = "demo"', 'base = "drift-demo"', "models with captions"),
    ],
)
def test_what_no_run_could_be_judged_by_is_said_before_anything_is_made(plan, dit, tmp_path, right, wrong, said):
    path = plan("target = 0.5")
    text = path.read_text().replace(right, wrong)
    if "drift" in wrong:  # which has none of these keys
        text = re.sub(r"\[set\].*?\n\n", "", text, flags=re.DOTALL)
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        ablate(read_plan(path), tmp_path, tmp_path / "out", checker=SCENE_CHECKER)
    refused = dit("ablate", path, "--out", tmp_path / "out")
    assert refused.code == 2 and said in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_figures_are_of_the_tests_that_the_plan_names_now(plan, dit, tmp_path):
    out, path = tmp_path / "out", plan()
    assert dit("ablate", path, "--out", out).code == 0
    path.write_text(path.read_text().replace('["text_manip"]', '["dino_swap"]'))
    again = json.loads(dit("ablate", path, "--out", out, "--json").out)
    assert "swap_closer" in again["rows"][1]["equal_updates"]["figures"]


def test_the_shortest_schedule_that_reaches_the_target_counts_over_all_seeds(plan, tmp_path):
    rows = read_plan(plan("target = 0.5\nseeds = [0, 1]\nshorter = [0.25, 0.5]"))
    work = Work(rows, tmp_path, tmp_path, SILENT)
    assert {run.updates for run in planned(work) if run.row == BASE} == {2, 4}
    work.costs = dict.fromkeys(rows.changes, Cost(3.0, 1.0, 1.0))
    work.scenes = {
        Run("muon", 0, 2): shares(2),
        Run("muon", 1, 2): shares(0),  # together a half
        Run(BASE, 0, 2): shares(0),
        Run(BASE, 0, 4): shares(1),
    }
    base, muon = summarised(work).rows
    assert (muon.target.updates, muon.target.seconds, muon.target.share) == (2, 6.0, Share(2, 4))
    assert base.target.updates == 4
