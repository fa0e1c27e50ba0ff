"""A project that was moved goes on: resume, validate and pictures find what they remember, or say what to give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_data import recorded_data
from dittool.errors import UsageError
from dittool.storage import read_json, write_json
from dittool.train.loop import train
from tests.run_states import same_tensors


@pytest.fixture
def moved(tiny_shards, tmp_path, monkeypatch) -> Path:
    """A project in which three steps were trained, moved since; the working folder is in it."""
    shutil.copytree(tiny_shards.folder, tmp_path / "old" / "data" / "shards")
    config = tiny_shards.config_with("train.steps=3", "train.warmup_steps=1")
    train(config, tmp_path / "old" / "data" / "shards", tmp_path / "old" / "runs" / "tiny")
    project = (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(project)
    return project


def with_absolute_paths(run: Path, old: Path) -> None:
    """As version 0.1 has written it."""
    write_json(run / "run.json", {**read_json(run / "run.json"), "data": str(old / "data" / "shards")})


@pytest.mark.parametrize("older", [False, True])
def test_a_run_in_a_moved_project_resumes_to_the_same_bits(moved, tmp_path, dit, older):
    run, ends = moved / "runs" / "tiny", []
    if older:
        with_absolute_paths(run, tmp_path / "old")
    shutil.copytree(run, moved / "runs" / "given")
    for name, options in (("tiny", []), ("given", ["--data", "data/shards"])):
        ended = dit("train", "--resume", "--out", f"runs/{name}", "-s", "train.steps=4", *options, "--quiet")
        assert ended.code == 0, ended.err
        ends.append(load_checkpoint(resolve_checkpoint(moved / "runs" / name)))
    assert ends[0]["step"] == 4
    assert all(same_tensors(ends[0][part], ends[1][part]) for part in ("model", "ema"))


def test_no_file_of_a_run_holds_the_place_of_its_project(moved, tmp_path):
    old = str(tmp_path / "old").encode()
    files = [
        path for path in (moved / "runs" / "tiny").rglob("*") if path.is_file() and "tensorboard" not in path.parts
    ]
    assert len(files) > 5 and [path.name for path in files if old in path.read_bytes()] == []
    assert read_json(moved / "runs" / "tiny" / "run.json")["data"] == "../../data/shards"


def test_a_checkpoint_that_left_its_run_tells_where_its_data_were(moved, tmp_path):
    alone = moved / "kept" / "best.pt"
    alone.parent.mkdir()
    shutil.copy(resolve_checkpoint(moved / "runs" / "tiny"), alone)
    assert load_checkpoint(alone)["data"]["folder"] == "../../../data/shards"
    assert str(recorded_data(alone.parent, "", alone)) == "data/shards"


def test_data_that_are_gone_are_named_with_file_key_and_what_to_give(moved, dit):
    (moved / "data").rename(moved / "hidden")
    for line, again in (
        (("train", "--resume", "--out", "runs/tiny"), "dit train --resume --out runs/tiny"),
        (("validate", "runs/tiny"), "dit validate runs/tiny"),
    ):
        ended = dit(*line)
        assert ended.code == 2
        message, advice = ended.err.rstrip("\n").split("\n")[-2:]
        assert "runs/tiny/run.json: data = '../../data/shards'" in message and "(data/shards)" in message
        assert advice == f"  next: nothing is lost: say where they are now: {again} --data FOLDER"
    assert not (moved / "runs" / "tiny" / "validation").exists()


def test_a_set_of_another_identity_beside_the_run_is_not_taken(moved, tmp_path):
    index = moved / "data" / "shards" / "index.json"
    run = moved / "runs" / "tiny"
    with_absolute_paths(run, tmp_path / "old")
    assert str(recorded_data(run, "")) == "data/shards"
    index.write_text(json.dumps({**json.loads(index.read_text()), "identity_hash": "0" * 64}))
    with pytest.raises(UsageError, match="no set of their identity"):
        recorded_data(run, "")


def test_a_picture_in_a_moved_project_is_drawn_again_and_holds_no_place(moved, tiny_shards, tmp_path, monkeypatch, dit):
    shutil.copy(next(tiny_shards.images.glob("*.png")), moved / "one.png")
    line = ("sample", "--ref", "one.png", "--checkpoint", "runs/tiny", "--out", "drawn/a.png", "--steps", 1, "--quiet")
    assert dit(*line).code == 0
    newest = moved.rename(tmp_path / "newest")
    monkeypatch.chdir(tmp_path)
    ended = dit("sample", "--from", newest / "drawn" / "a.png", "--out", "again.png", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"][0]["same_pixels"] is True
    assert str(tmp_path).encode() not in (newest / "drawn" / "a.png").read_bytes()
    (newest / "one.png").unlink()
    ended = dit("sample", "--from", newest / "drawn" / "a.png", "--out", "again2.png")
    assert ended.code == 2 and "newest/one.png, which is not there" in ended.err and "--ref PATH" in ended.err
