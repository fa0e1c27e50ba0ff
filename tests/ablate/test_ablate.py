"""A plan from its file to its page: which runs are made, that pairs are pairs, and that it may be killed anywhere."""

from __future__ import annotations

import errno
import html
import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from dittool.ablate import runs
from dittool.ablate.ablation import ablate, duration
from dittool.ablate.cost import Cost
from dittool.ablate.plan import BASE, read_plan
from dittool.ablate.results import summary
from dittool.ablate.statistics import Difference
from dittool.ablate.yardstick import Measured
from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.console import SILENT
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, Interrupted, NonFiniteError, StorageError, UsageError
from dittool.train import loop, saving
from tests.run_states import assert_same_bits

PLAN = """
base = "{base}"
updates = 4
samples = 3
{keys}

[set]
"train.lr" = 0.002
{small}

{rows}
"""
ROWS = """
[variant.same]
"train.init_draw" = 0

[variant.muon]
"train.optimizer" = "muon"

[variant.broken]
"train.lr" = 1e30
"train.clip" = 1e30
"""


def toml(override: str) -> str:
    key, _, value = override.partition("=")
    try:
        json.loads(value)
    except ValueError:
        value = json.dumps(value)
    return f'"{key}" = {value}'


def written(shards, path, rows: str = ROWS, keys: str = "seeds = [0, 1]"):
    """The file of a plan on the small preset of these shards."""
    chosen = {line.partition("=")[0]: line for line in shards.overrides}
    for key in ("train.steps", "train.lr", "checkpoint.every", "train.eval_every", "train.sample_every"):
        chosen.pop(key, None)
    small = "\n".join(toml(line) for line in chosen.values())
    path.write_text(PLAN.format(base=shards.preset, keys=keys, small=small, rows=rows))
    return path


@pytest.fixture
def plan(tiny_shards, tmp_path):
    """`plan(rows, keys)`"""
    return lambda *words: written(tiny_shards, tmp_path / "plan.toml", *words)


def folder(out, row, seed=0, updates=4):
    return out / "runs" / row / f"seed{seed}_updates{updates}"


def state(run):
    return load_checkpoint(resolve_checkpoint(run))


def test_a_plan_ends_in_a_table_and_a_page(family_shards, tmp_path, listener):
    out, path = tmp_path / "out", written(family_shards, tmp_path / "plan.toml")
    results = ablate(read_plan(path), family_shards.folder, out, listener)
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    assert results.complete and results.tried == 3
    # the same recipe is the same run, bit by bit, and so no difference
    assert_same_bits(state(folder(out, BASE, 1)), state(folder(out, "same", 1)))
    assert rows["same"]["equal_updates"]["difference"] == 0
    assert rows["muon"]["equal_updates"]["difference"] != 0 and rows["muon"]["equal_updates"]["seeds"] == 2
    assert rows["muon"]["time"] > 0 and rows["muon"]["verdict"]
    found = rows["muon"]["equal_updates"]
    for part in found["by_column"].values():
        assert part["interval"][0] <= part["difference"] <= part["interval"][1]
    for parts in (found["by_mode"], found["by_timestep"]) if found["by_mode"] else ():
        assert sum(part["difference"] for part in parts.values()) / len(parts) == pytest.approx(found["difference"])
    assert rows["broken"]["failed"] and rows["broken"]["equal_updates"] is None
    page = (out / "report.html").read_text()
    assert all(f">{mode}</th>" in page for mode in found["by_mode"])
    assert page.count("data:image/png") >= 2 + len(found["by_mode"])
    assert "muon" in page and "data:image/png" in page and not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.slow
def test_killed_on_the_way_the_same_call_ends_with_the_same_table(plan, tiny_shards, tmp_path, monkeypatch):
    rows = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'", "seeds = [0]\nequal_time = false"))
    ablate(rows, tiny_shards.folder, tmp_path / "straight")
    genuine, calls = runs.train, []

    def stopped(*arguments, **options):
        calls.append(options["resume"])
        if len(calls) == 2:
            raise Interrupted("stopped at step 1 of 4, state saved", "dit train --resume", 15)
        return genuine(*arguments, **options)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(Interrupted) as stop:
        ablate(rows, tiny_shards.folder, tmp_path / "killed")
    assert "same dit ablate command" in stop.value.hint
    so_far = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert not so_far["complete"] and so_far["runs_done"] == 1 and so_far["rows"][1]["verdict"] is None
    ablate(rows, tiny_shards.folder, tmp_path / "killed")
    assert len(calls) == 3, "the finished run is not made again"
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("straight", "killed"))
    assert one["rows"][1]["equal_updates"] == two["rows"][1]["equal_updates"]


@pytest.mark.slow
def test_a_signal_at_the_very_end_of_a_run_stops_the_plan(plan, tiny_shards, tmp_path, monkeypatch):
    rows, out = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'", "equal_time = false")), tmp_path / "out"
    genuine = loop._show

    def signalled(run, averaged, last, judges):
        genuine(run, averaged, last, judges)
        if last:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_show", signalled)
    with pytest.raises(Interrupted, match="stopped, runs saved") as stop:
        ablate(rows, tiny_shards.folder, out)
    assert stop.value.exit_code == 128 + signal.SIGTERM
    assert state(folder(out, BASE))["step"] == 4 and not folder(out, "muon").exists()
    monkeypatch.setattr(loop, "_show", genuine)
    assert ablate(rows, tiny_shards.folder, out).complete


@pytest.mark.slow
def test_killed_while_the_first_checkpoint_is_saved_the_run_begins_anew(plan, tiny_shards, tmp_path, monkeypatch):
    rows = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'", "equal_time = false"))
    straight, out, genuine = (
        ablate(rows, tiny_shards.folder, tmp_path / "straight"),
        tmp_path / "out",
        saving.save_checkpoint,
    )

    class Killed(BaseException):
        pass

    def killed(checkpoints, content, **options):
        path = genuine(checkpoints, content, **options)
        path.write_bytes(path.read_bytes()[:1000])
        raise Killed

    monkeypatch.setattr(saving, "save_checkpoint", killed)
    with pytest.raises(Killed):
        ablate(rows, tiny_shards.folder, out)
    assert list((folder(out, BASE) / "checkpoints").iterdir())
    monkeypatch.setattr(saving, "save_checkpoint", genuine)
    again = ablate(rows, tiny_shards.folder, out)
    assert again.complete and again.rows[1].equal_updates == straight.rows[1].equal_updates


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
            "OutOfMemoryError: CUDA out of memory.",
        ),
        (KeyError("x"), "KeyError: 'x'"),  # of a plugin
        (FileNotFoundError(2, "No such file", "table.csv"), "FileNotFoundError"),
        (BadDataError("shards: no patches are stored", "dit embed"), "shards: no patches are stored"),
        (NonFiniteError("step 2: loss is nan", "lower the rate"), "step 2: loss is nan"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.parametrize("place", ["cost", pytest.param("_measured", marks=pytest.mark.slow)])
def test_a_row_may_fail_in_any_way_and_is_tried_again(
    plan, tmp_path, dit, tiny_shards, monkeypatch, error, said, place
):
    path, out, faulty = plan(ROWS.partition("[variant.broken]")[0], "equal_time = false"), tmp_path / "out", True

    def fails(keys):
        if faulty and keys:
            raise error

    def measured(work, job):
        fails(place == "_measured" and job.run.row == "same")
        return Measured(["a", "b"], ["both 0.30"], np.array([[1.0], [2.0]]))

    def cost_of(base, variant, data):
        calls.append(1)
        fails(place == "cost" and len(calls) == 2)  # of the first row after the base
        return Cost(1.0, 1.0, 1.0)

    calls = []
    monkeypatch.setattr(runs.Work, "_measured", measured)
    monkeypatch.setattr(runs, "cost", cost_of)
    done = dit("ablate", path, "--data", tiny_shards.folder, "--out", out, "--json")
    _base, same, muon = json.loads(done.out)["rows"]
    assert done.code == 0 and same["failed"].startswith(said) and "\n" not in same["failed"]
    assert same["equal_updates"] is None and muon["equal_updates"]["difference"] == 0
    assert html.escape(same["failed"], quote=False).split("'")[0] in (out / "report.html").read_text()
    faulty = False
    again = json.loads(dit("ablate", path, "--data", tiny_shards.folder, "--out", out, "--json").out)
    assert again["rows"][1]["failed"] is None and again["rows"][1]["equal_updates"]["difference"] == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), StorageError("full", "free some")])
def test_a_full_disk_is_no_fault_of_a_row(plan, tiny_shards, tmp_path, monkeypatch, error):
    def full(work, job):
        raise error

    work = runs.Work(read_plan(plan()), tiny_shards.folder, tmp_path, SILENT)
    monkeypatch.setattr(runs.Work, "_measured", full)
    with pytest.raises(type(error)):
        work.do(runs.Job(runs.Run("muon", 0, 4), 4))
    assert not work.failed


@pytest.mark.slow
def test_the_best_row_is_run_again_on_seeds_that_no_choice_has_seen(plan, tiny_shards, tmp_path, monkeypatch):
    rows = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'", "confirm_seeds = [7]\nequal_time = false"))
    monkeypatch.setattr("dittool.ablate.results.Results.best", lambda self: self.rows[1])
    results = ablate(rows, tiny_shards.folder, tmp_path / "out")
    assert results.rows[1].confirmed is not None and results.rows[1].confirmed.difference.seeds == 1
    assert folder(tmp_path / "out", BASE, 7).is_dir() and folder(tmp_path / "out", "muon", 7).is_dir()


def test_a_folder_belongs_to_one_plan_and_takes_further_rows(plan, tiny_shards, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    runs.claim(out, read_plan(plan()), tiny_shards.folder)
    more = ROWS + "[variant.further]\n'train.init_draw' = 3\n"
    runs.claim(out, read_plan(plan(more)), tiny_shards.folder)
    with pytest.raises(UsageError, match=r"another plan.*muon"):
        runs.claim(out, read_plan(plan("[variant.muon]\n'train.lr' = 0.1")), tiny_shards.folder)


def test_runs_of_a_row_differ_from_the_base_by_its_keys_alone(plan):
    rows = read_plan(plan("[grid]\n'train.lr' = [0.001, 0.01]"))
    assert list(rows.changes) == [BASE, "lr=0.001", "lr=0.01"]
    base, row = rows.config(BASE, 3, 4), rows.config("lr=0.01", 3, 4)
    assert row.train.lr == 0.01 and row.train.model_copy(update={"lr": base.train.lr}) == base.train
    assert row.train.seed == 3 and row.train.steps == 4


def test_a_shorter_schedule_warms_up_in_the_same_share(plan):
    rows = read_plan(
        plan("[variant.a]\n'train.warmup_steps' = 2\n'train.schedule' = 'wsd'\n'train.cooldown_steps' = 2")
    )
    lengths = [(keys.warmup_steps, keys.cooldown_steps) for keys in (rows.config("a", 0, n).train for n in (4, 2))]
    assert lengths == [(2, 2), (1, 1)], "as written for the updates of the plan"
    assert [rows.config(BASE, 0, updates).train.warmup_steps for updates in (4, 2)] == [2, 1]


def test_a_key_may_be_written_without_quotes(plan):
    rows = read_plan(plan("[variant.a]\ntrain.lr = 0.5\ntrain.optimizer = 'muon'\n[grid]\nmodel.depth = [1, 2]"))
    assert rows.changes == {
        BASE: {},
        "a": {"train.lr": 0.5, "train.optimizer": "muon"},
        "depth=1": {"model.depth": 1},
        "depth=2": {"model.depth": 2},
    }


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ("", "", "no row"),
        ("[variant.base]\n'train.lr' = 1", "", "base"),
        ("[variant.'../x']\n'train.lr' = 1", "", "letters, digits"),
        ("[variant.a]\n'train.lrr' = 1", "", "row 'a'.*train.lrr"),
        ("[variant.a]\n'train.lr' = 1", "seeds = [1, 1]", "stands twice"),
        ("[variant.a]\n'train.lr' = 1", "confirm_seeds = [0]", "no choice may have seen"),
        ("[variant.a]", "", "a: changes nothing"),
        ("[grid]\n'train.lr' = [1, 1]", "", "a value stands twice"),
        ("[variant.a]\n'train.seed' = 1", "", r"train\.seed: the plan's own; write seeds = \[0, 1, 2\]"),
        ("[variant.a]\n'train.steps' = 9", "", r"train\.steps: the plan's own; write updates = 1100"),
        ("[variant.a]\ntrain.eval_every = 9", "", r"train\.eval_every: the plan's own; write looks = 3"),
        ("[grid]\n'checkpoint.every' = [9]", "", r"checkpoint\.every: the plan's own"),
        ("[variant.a]\n'data.flip' = 'prepared'", "", r"data\.flip: rows read the same shards"),
        ("[variant.a]\n'train.lr' = 1\n[grid]\n'train.lr' = [1]", "", "a and lr=1: change the same"),
        ("[variant.a]\n'train.lr' = 2026-01-01", "", "row 'a'.*train.lr"),
        ("[variant.a]\n'model.width' = 31", "", "row 'a'.*width 31 is not divisible by heads"),
        ("[variant.a]\n'train.lr' = 1", "seedz = [1]", r"seedz: unknown key, did you mean 'seeds'\? .*plan.toml:5"),
        ("[variants.a]\n'train.lr' = 1", "", "variants: unknown section, did you mean 'variant'"),
        ("[variant.a]\n'train.lr' = 1", "target = 0.75", "say how many with scenes"),
    ],
)
def test_mistakes_of_a_plan_are_said_before_the_first_hour(plan, rows, keys, said):
    with pytest.raises(UsageError, match=said):
        read_plan(plan(rows, keys))


def test_how_long_it_takes_is_said_and_nothing_is_written(plan, tiny_shards, dit, tmp_path):
    path = plan("[variant.muon]\n'train.optimizer' = 'muon'", "equal_time = false")
    count, seconds = duration(read_plan(path), tiny_shards.folder)
    assert count == 2 and seconds > 0
    shown = dit("ablate", path, "--data", tiny_shards.folder, "--out", tmp_path / "out", "--dry-run")
    assert shown.code == 0 and shown.out.startswith("2 runs") and not (tmp_path / "out").exists()


def test_without_held_out_samples_nothing_is_begun(plan, tiny_shards, tmp_path):
    shard(tiny_shards.store.folder, tmp_path / "shards", holdout=0)
    rows = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'"))
    with pytest.raises(BadDataError, match="nothing is held out"):
        ablate(rows, tmp_path / "shards", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_best_row_of_one_seed_is_said_to_decide_nothing(plan, tiny_shards, tmp_path, monkeypatch):
    rows = read_plan(plan("[variant.muon]\n'train.optimizer' = 'muon'", "equal_time = false"))
    results = ablate(rows, tiny_shards.folder, tmp_path / "out")
    better = replace(results.rows[1].equal_updates, difference=Difference(-1.0, -1.5, -0.5, 1, 3, 1.0))
    monkeypatch.setattr(results.rows[1], "equal_updates", better)
    assert summary(results) == "by the most: muon, better on one seed, 3 decide"


def test_a_missing_plan_or_set_is_2(plan, dit, tmp_path):
    assert dit("ablate", tmp_path / "no.toml").code == 2
    assert dit("ablate", plan(), "--data", tmp_path / "nowhere", "--out", tmp_path / "out").code in (2, 3)
    assert not (tmp_path / "out").exists()
