"""A path with a slip of the finger is answered with the name that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from dittool.nearest import did_you_mean


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("data/shards", "data/derived", "my runs/nano/checkpoints", "images"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("my runs/nano/checkpoints/checkpoint_final.pt", "mine.toml", "prompts.txt", "image.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("data/shard", "did you mean data/shards?"),
        ("dta/shards", "did you mean data/shards?"),
        ("Data/shards", "did you mean data/shards?"),
        ("Mine.TOML", "did you mean mine.toml?"),
        ("my-runs/nano/checkpoints/checkpoint_final.pt", "my runs/nano/checkpoints/checkpoint_final.pt"),
        (
            "my runs/nano/checkpoints/checkpoint_finale.pt",
            "did you mean 'my runs/nano/checkpoints/checkpoint_final.pt'?",
        ),
        ("imags", "did you mean images?"),
        ("nothing-like-it", "otherwise"),
        ("dta/nothing", "otherwise"),
    ],
)
def test_the_name_that_was_meant(folder, typed, hint):
    assert hint in did_you_mean(Path(typed), "otherwise")
    assert did_you_mean(folder / typed, "otherwise").startswith("did you mean" if hint != "otherwise" else "otherwise")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train --preset demo --data data/shrads", "data/shards"),
        ("train --preset min.toml", "mine.toml"),
        ("train --resume --out my-runs/nano", "'my runs/nano'"),
        ("embed image", "images"),
        ("shard data/derivd", "data/derived"),
        ("audit data/shrads", "data/shards"),
        ("sample --prompts prompt.txt", "prompts.txt"),
        ("sample --from imag.png", "image.png"),
        ("sample --prompt red --ref imag.png", "image.png"),
        ("inspect-ckpt my-runs/nano/checkpoints/checkpoint_final.pt", "'my runs/nano/checkpoints/checkpoint_final.pt'"),
        ("validate my-runs/nano", "'my runs/nano'"),
        ("validate --compare my-runs/nano images", "'my runs/nano'"),
    ],
)
def test_every_command_says_it(folder, dit, line, meant):
    outcome = dit(*line.split())
    assert outcome.code == 2
    assert "did you mean" in outcome.err.splitlines()[-1] and meant in outcome.err.splitlines()[-1], outcome.err
