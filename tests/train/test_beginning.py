"""Where a run begins: anew, from a checkpoint, from other weights; and the words that say so."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from dittool.ckpt.files import list_checkpoints, newest_checkpoint, step_name
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.config.load import load_config
from dittool.errors import BadDataError, UsageError
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state, stopped_at


@pytest.fixture
def dit_train(dit, family_shards, tmp_path):
    """`dit_train("--continue")`: of this family, in the folder `run`."""

    def call(*options: object, out=tmp_path / "run", preset: str | None = family_shards.preset, overrides=()):
        words = [word for override in (*family_shards.overrides, *overrides) for word in ("-s", override)]
        named = ["--preset", preset] if preset else []
        places = ["--data", family_shards.folder] + (["--out", out] if out else [])
        return dit("train", "--no-audit", *named, *places, *(words if preset else []), *options)

    return call


def test_one_line_begins_goes_on_and_ends_a_restart_loop(family_run, dit_train, tmp_path):
    stopped_at(family_run, 3, tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "run")
    assert dit_train("--continue").code == 0
    assert_same_bits(final_state(family_run), final_state(tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = dit_train("--continue")
    assert (again.code, "finished at step 8 of 8" in again.out) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_the_line_begins_where_there_is_nothing(tiny_run, tiny_shards, dit, tmp_path):
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    out = tmp_path / "run"
    line = ("train", "--no-audit", "--continue", "--preset", "demo", "--data", tiny_shards.folder, "--out", out)
    assert dit(*line, *words).code == 0
    assert_same_bits(final_state(tiny_run), final_state(out))


def test_a_run_whose_checkpoints_are_gone_begins_anew_and_keeps_their_log(tiny_run, tiny_shards, dit, tmp_path):
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    out = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    line = ("train", "--no-audit", "--continue", "--preset", "demo", "--data", tiny_shards.folder, "--out", out)
    told = dit(*line, *words)
    assert told.code == 0 and "an earlier run reaches step 8" in " ".join(told.err.split())
    aside = out / "set_aside" / "step0000008_1"
    assert (aside / "log.jsonl").read_bytes() == (tiny_run / "log.jsonl").read_bytes()
    assert (aside / "resolved.toml").is_file() and str(aside) in " ".join(told.err.split())
    assert_same_bits(final_state(tiny_run), final_state(out))


def test_a_chosen_checkpoint_is_gone_on_from_and_the_newer_ones_are_kept(family_run, dit_train, tmp_path):
    run = stopped_at(family_run, 8, tmp_path / "run")
    chosen = run / "checkpoints" / step_name(3)
    assert dit_train("--resume-from", chosen, out=None, preset=None).code == 0
    assert_same_bits(final_state(family_run), final_state(run))
    aside = run / "set_aside" / "step0000003_1"
    assert [file.step for file in list_checkpoints(aside)] == [6, 8]
    assert all(file.verify() is None for file in list_checkpoints(aside)) and (aside / "log.jsonl").is_file()
    assert [row["step"] for row in read_log(run)] == [row["step"] for row in read_log(family_run)]


def test_a_run_branches_from_a_chosen_checkpoint_of_another(tiny_run, tiny_shards, tmp_path):
    chosen = tiny_run / "checkpoints" / step_name(3)
    train(tiny_shards.config_with(), tiny_shards.folder, tmp_path / "run", resume_from=chosen)
    assert_same_bits(final_state(tiny_run), final_state(tmp_path / "run"))
    with pytest.raises(UsageError, match="holds checkpoints of its own"):
        train(tiny_shards.config_with(), tiny_shards.folder, tmp_path / "run", resume_from=chosen)


def test_a_checkpoint_that_left_its_run_knows_its_data(tiny_run, tiny_shards, dit, tmp_path):
    alone = tiny_run.with_name(f"{tmp_path.name}-alone") / "checkpoints"
    alone.mkdir(parents=True)
    for path in (tiny_run / "checkpoints").glob(f"{Path(step_name(6)).stem}.*"):
        shutil.copy(path, alone)
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    chosen = ("--resume-from", alone / step_name(6), "--preset", tiny_shards.preset, *words)
    assert dit("train", "--no-audit", *chosen, "--out", tmp_path / "run").code == 0
    assert_same_bits(final_state(tiny_run), final_state(tmp_path / "run"))


def test_what_is_no_checkpoint_cannot_be_chosen(tiny_run, tiny_shards, dit, tmp_path):
    run = stopped_at(tiny_run, 8, tmp_path / "run")
    damaged = run / "checkpoints" / step_name(3)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for path, code in ((run / "nothing.pt", 2), (run / "resolved.toml", 2), (damaged, 3)):
        assert dit("train", "--resume-from", path, "--out", run, "--data", tiny_shards.folder).code == code
    assert newest_checkpoint(run / "checkpoints").step == 8


BEGINNINGS = {"--resume": (), "--continue": (), "--resume-from": ("x.pt",), "--init": ("w.pt",)}


@pytest.mark.parametrize("pair", list(itertools.combinations(BEGINNINGS, 2)), ids=" ".join)
def test_two_beginnings_are_refused_but_for_a_line_that_does_what_is_due(dit, tmp_path, pair):
    words = [word for name in pair for word in (name, *BEGINNINGS[name])]
    outcome = dit("train", "--preset", "demo", "--out", tmp_path / "run", "--data", tmp_path, *words)
    assert outcome.code == 2 and not (tmp_path / "run").exists()
    allowed = pair == ("--continue", "--init")
    assert ("exclude each other" in outcome.err) != allowed


@pytest.mark.parametrize("min_lr", ["1e-5", "2e-3"])
def test_other_weights_halve_the_rate_once_and_say_so(family_run, family_shards, tmp_path, listener, min_lr):
    """Also where the rate is constant, as in the presets of one-step generators: what is saved can be read again."""
    config = family_shards.config_with("train.lr=2e-3", f"train.min_lr={min_lr}", "train.seed=5")
    train(config, family_shards.folder, tmp_path / "run", init=family_run, talk=listener)
    assert any("train.lr 0.002 becomes 0.001" in note for note in listener.notes)
    state, resolved = final_state(tmp_path / "run"), load_config(str(tmp_path / "run" / "resolved.toml"))
    assert state["config"]["train"]["lr"] == resolved.train.lr == 1e-3 and resolved.train.lr_halved
    assert resolved.train.min_lr == min(float(min_lr), 1e-3)
    assert any("init" in row for row in read_log(tmp_path / "run"))
    train(resolved, family_shards.folder, tmp_path / "again", init=family_run)
    assert_same_bits(state, final_state(tmp_path / "again"))
    out = stopped_at(tmp_path / "run", 3, tmp_path / "stopped")
    train(resolved, family_shards.folder, out, resume=True)
    assert_same_bits(state, final_state(out))


def test_the_line_for_a_queue_halves_no_rate_twice(tiny_run, tiny_shards, dit, tmp_path):
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    line = ("train", "--no-audit", "--continue", "--preset", "demo", "--data", tiny_shards.folder, *words)
    line = (*line, "--init", tiny_run, "--out", tmp_path / "run")
    assert dit(*line).code == 0
    whole = final_state(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    stopped_at(tmp_path / "whole", 3, tmp_path / "run")
    assert dit(*line).code == 0
    assert_same_bits(whole, final_state(tmp_path / "run"))


@pytest.mark.parametrize("averages", ["[]", "[0.05, 0.1, 0.2]"])
def test_a_run_says_whether_its_checkpoints_fit(tiny_shards, tmp_path, listener, averages):
    config = tiny_shards.config_with("train.steps=3", f"ema.averages={averages}")
    train(config, tiny_shards.folder, tmp_path / "run", talk=listener)
    said = next(note for note in listener.notes if "checkpoints of" in note)
    size = (tmp_path / "run" / "checkpoints" / "checkpoint_final.pt").stat().st_size
    assert said.startswith("2 checkpoints of") and said.endswith("free")
    kilobytes = float(said.split()[3]) * {"kB": 1, "MB": 1000}[said.split()[4]]
    assert kilobytes * 1000 == pytest.approx(size, rel=0.2)


def test_init_of_nothing_is_refused_before_anything_is_made(tiny_shards, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", init=tmp_path / "w.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_kind_of_model_is_refused(class_run, tiny_shards, tmp_path):
    from dittool.errors import BadDataError

    with pytest.raises(BadDataError):
        train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", init=class_run)
    assert load_checkpoint(newest_checkpoint(class_run / "checkpoints").path)["step"] == 6


@pytest.mark.parametrize("form", ["run", "checkpoint", "export"])
def test_weights_of_other_heads_or_patches_are_not_loaded_in_silence(form, tiny_run, tiny_shards, dit, tmp_path):
    """Every shape fits: attention has as many numbers with 4 heads as with 2."""
    init = tiny_run if form == "run" else newest_checkpoint(tiny_run / "checkpoints").path
    if form == "export":
        assert dit("inspect-ckpt", tiny_run, "--export", tmp_path / "w.safetensors").code == 0
        init = tmp_path / "w.safetensors"
    words = [word for key in (*tiny_shards.overrides, "model.heads=4") for word in ("-s", key)]
    line = ("train", "--no-audit", "--preset", "demo", "--data", tiny_shards.folder, "--init", init)
    outcome = dit(*line, *words, "--out", tmp_path / "run")
    assert outcome.code == 2 and not (tmp_path / "run").exists()
    assert "model.heads: 2 before, 4 now" in outcome.err and f"dit warmstart {init} --preset P" in outcome.err


def test_what_else_of_a_model_has_changed_is_said(tiny_run, tiny_shards, dit, tmp_path):
    words = [word for key in (*tiny_shards.overrides, "model.patch_positions=false") for word in ("-s", key)]
    line = ("train", "--no-audit", "--preset", "demo", "--data", tiny_shards.folder, "--init", tiny_run)
    outcome = dit(*line, *words, "-s", "train.steps=1", "-s", "train.warmup_steps=0", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "warning: --init" in outcome.err and "model.patch_positions: False here, True there" in outcome.err


def test_latents_that_are_scaled_otherwise_are_named_by_their_key(tiny_run, dit, tmp_path):
    run = stopped_at(tiny_run, 3, tmp_path / "run")
    outcome = dit("train", "--resume", "--out", run, "-s", "data.latent_scaling=card")
    assert outcome.code == 2 and "data.latent_scaling: 'card' here, 'measured' there" in outcome.err
    assert "images were added" not in outcome.err


def test_going_on_without_a_run_and_a_preset_names_the_folder(dit, tmp_path):
    outcome = dit("train", "--continue", "--out", tmp_path / "nowhere")
    assert outcome.code == 2 and "--preset P" in outcome.err and "no such file" not in outcome.err
    assert not (tmp_path / "nowhere").exists()


def _claimed_again(family_shards, folder, dit):
    """The shards with their index lost, and made again from the tars alone."""
    shutil.copytree(family_shards.folder, folder)
    for path in [folder / "index.json", *folder.rglob("*.members.json")]:
        path.unlink()
    words = [word for override in family_shards.overrides for word in ("-s", override)]
    made = dit("shard", "--index", folder, "--preset", family_shards.preset, *words)
    assert made.code == 0, made.err
    return folder


def test_a_run_goes_on_where_its_index_was_made_again_as_a_claim(family_run, family_shards, dit, tmp_path):
    run, shards = stopped_at(family_run, 3, tmp_path / "run"), _claimed_again(family_shards, tmp_path / "shards", dit)
    resumed = dit("train", "--resume", "--out", run, "--data", shards)
    assert resumed.code == 0 and "a claim" in resumed.err, resumed.err
    assert_same_bits(final_state(family_run), final_state(run))


def test_other_samples_under_a_claimed_index_are_refused(family_run, family_shards, dit, tmp_path):
    run, shards = stopped_at(family_run, 3, tmp_path / "run"), _claimed_again(family_shards, tmp_path / "shards", dit)
    for path in [shards / "index.json", *shards.rglob("*.members.json")]:
        path.unlink()
    next(shards.rglob("bucket_*/shard-*.tar")).unlink()
    words = [word for override in family_shards.overrides for word in ("-s", override)]
    assert dit("shard", "--index", shards, "--preset", family_shards.preset, *words).code == 0
    resumed = dit("train", "--resume", "--out", run, "--data", shards)
    assert resumed.code in (2, 3) and resumed.err.count("error: ") == 1, resumed.err


def test_processes_that_would_go_on_from_different_steps_are_refused(tiny_shards, tmp_path, monkeypatch):
    """As on nodes that do not share the run's folder; with parts of a model in each, it would be two models in one."""
    train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", until=4)
    monkeypatch.setattr(Ranks, "gather", lambda ranks, values: torch.cat([values, values - 3]))
    with pytest.raises(BadDataError, match="different steps: process 0 at 4, process 1 at 1"):
        train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", resume=True)
