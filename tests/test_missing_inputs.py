"""A file or folder that is named on the command line and is not there: two lines, exit code 2, and nothing is made."""

from __future__ import annotations

import pytest

from dittool.cli import BUILT_IN
from tests.quick import every_third

GONE, PT, TOML = "gone", "gone/checkpoint_final.pt", "gone/mine.toml"
PLACE = "{place}"  # of a missing input in a command line
# command → its lines, each with the missing inputs that may stand in its place
LINES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "demo": [],  # makes its own images
    "presets": [(PLACE, (TOML, "gone"))],
    "embed": [
        (PLACE, (GONE, "gone.jsonl", "gone.tar", "gone-{000..003}.tar", "gone/images")),
        ("images --preset {place}", (TOML,)),
        ("{place} --estimate", (GONE,)),
        ("{place} --preview sheet.png", (GONE, "gone.csv")),
        ("--verify --out {place}", (GONE,)),
        ("{place} --part 0/2", (GONE,)),
        ("{place} --rebuild --pass vae", (GONE,)),
    ],
    "shard": [
        (PLACE, (GONE,)),
        ("{place} --out set --holdout 0.1 --limit 3", (GONE,)),
        ("--verify --out {place}", (GONE,)),
        ("--index {place} --preset demo", (GONE,)),
    ],
    "audit": [
        (PLACE, (PT, "gone.pt", "gone.safetensors", TOML, "gone/run", "gone/", "./gone", "gone.py:Model")),
        ("{place} demo", (PT,)),
        ("{place} --preset demo", (PT, "gone/shards")),
        ("{place} --spec drifting", (PT,)),
        ("dittool.models.toy_generator:ToyGenerator --example {place}", ("gone.py:inputs",)),
        ("demo --preset {place}", (TOML,)),
    ],
    "train": [
        ("--preset demo --data {place}", (GONE,)),
        ("--preset demo --data {place} --no-audit", (GONE,)),
        ("--preset demo --data {place} --out run --dry-run", (GONE,)),
        ("--preset {place}", (TOML,)),
        ("--preset drift-toy --init {place}", (PT, "gone.safetensors")),
        ("--preset demo --init {place}", ("gone.safetensors",)),
        ("--preset drift-demo --data {place}", (GONE,)),
        ("--resume --out {place}", (GONE,)),
        ("--resume --preset demo --out {place}", (GONE,)),
        ("--resume-from {place}", (PT, GONE)),
        ("--resume-from {place} --out run --preset drift-toy", (PT,)),
        ("--continue --preset demo --data {place}", (GONE,)),
    ],
    "validate": [
        (PLACE, (PT, GONE)),
        ("{place} --out report", (PT,)),
        ("{place} --data images", (PT,)),
        ("--compare {place} gone-too", (GONE,)),
    ],
    "sample": [
        ("--prompt red --checkpoint {place}", (PT, GONE)),
        ("--ref {place}", ("gone.png",)),
        ("--prompt red --ref {place} --out pictures", ("gone.png",)),
        ("--prompt red --init {place}", ("gone.png",)),
        ("--prompts {place}", ("gone.txt", "gone.jsonl")),
        ("--from {place}", ("gone.png",)),
        ("--class 1 --checkpoint {place}", (PT,)),
        ("--class 1 --from {place}", ("gone.png",)),
    ],
    "inspect-ckpt": [
        (PLACE, (PT, GONE, "gone.safetensors")),
        ("{place} --export weights.safetensors", (PT,)),
        ("{place} --tree", (PT,)),
    ],
    "average": [("{place} --width 0.1", (GONE,))],
    "runs": [(PLACE, (GONE,)), ("{place} --page", (GONE,))],
    "warmstart": [
        ("{place} --preset demo --out init.safetensors", (PT, GONE)),
        ("{place} --preset demo --out new/init.safetensors", (PT,)),
        ("old.pt --preset {place} --out init.safetensors", (TOML,)),
    ],
    "export": [("{place} --out exported", (PT, GONE)), ("{place} --out new/exported", (GONE,))],
    "ablate": [(PLACE, (TOML,)), ("{place} --dry-run", (TOML,))],
    "bench": [("--preset {place}", (TOML,))],
    "doctor": [("--preset {place}", (TOML,))],
}


def test_every_command_is_tried():
    assert set(LINES) == set(BUILT_IN)


@pytest.mark.parametrize(
    "line",
    every_third(
        f"{command} {line}".replace(PLACE, missing)
        for command, lines in LINES.items()
        for line, places in lines
        for missing in places
    ),
)
def test_a_missing_input_is_code_2_in_two_lines_and_leaves_nothing_behind(line, tmp_path, monkeypatch, dit):
    monkeypatch.chdir(tmp_path)
    ended = dit(*line.split())
    assert (ended.code, ended.out) == (2, ""), ended.err
    message, advice = ended.err.rstrip("\n").split("\n")
    assert "gone" in message and advice
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("optional", [True, False])
def test_only_what_may_be_left_out_is_advised_to_be(optional, dit, tmp_path):
    """`dit validate` without a run takes the newest; `dit inspect-ckpt` needs its file."""
    gone = tmp_path / "gone.pt"
    outcome = dit("validate", gone) if optional else dit("inspect-ckpt", gone)
    assert outcome.code == 2 and ("leave it out" in outcome.err) == optional
