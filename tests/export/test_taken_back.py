"""Commands take an export as they take a checkpoint, and never run what lies in it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dittool.export.export import ExportRequest, export


@pytest.fixture(scope="module")
def planted(exported, checkpoint, tmp_path_factory):
    """An export whose sources and other JSON leave a file behind when anything runs or trusts them."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    shutil.copytree(exported, folder)
    mark = folder.parent / "ran"
    for source in folder.rglob("*.py"):
        source.write_text(f"open({str(mark)!r}, 'w')\n" + source.read_text())
    (folder / "model_index.json").write_text("no JSON")
    yield folder
    assert not mark.exists(), "code of an export was run"


@pytest.fixture(scope="module")
def in_parts(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "model"
    return export(ExportRequest(checkpoint, out, "safetensors", largest_file=100_000)).folder


@pytest.fixture(params=["planted", "in_parts"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_sample_draws_what_the_checkpoint_draws(dit, folder, checkpoint, tmp_path):
    for name, path in (("export", folder), ("checkpoint", checkpoint)):
        drawn = ["--prompt", "a red circle", "--steps", "2", "--out", tmp_path / f"{name}.png"]
        assert dit("sample", "--checkpoint", path, *drawn).code == 0
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("export", "checkpoint"))
    assert np.array_equal(one, other)
    again = dit("sample", "--from", tmp_path / "export.png", "--out", tmp_path / "again.png", "--json")
    assert json.loads(again.out)["images"][0]["same_pixels"] is True


def test_validate_judges_it(dit, folder, tiny_shards, tmp_path):
    wanted = ["--tests", "reconstruction", "--limit", "1", "--out", tmp_path / "judged", "--json"]
    outcome = dit("validate", folder, "--data", tiny_shards.folder, *wanted)
    assert outcome.code in (0, 1) and json.loads(outcome.out)["step"] == 8


def test_training_begins_with_it(dit, folder, tiny_shards, tmp_path):
    keys = [word for key in tiny_shards.overrides for word in ("-s", key)]
    wanted = ["--data", tiny_shards.folder, "--out", tmp_path / "run", "--init", folder, "--no-audit"]
    outcome = dit("train", "--preset", "demo", *keys, "-s", "train.steps=3", *wanted)
    assert outcome.code == 0, outcome.err


def test_warmstart_carries_every_tensor_over(dit, folder, tiny_shards, tmp_path):
    keys = [word for key in tiny_shards.overrides for word in ("-s", key)]
    outcome = dit("warmstart", folder, "--preset", "demo", *keys, "--out", tmp_path / "w.safetensors", "--json")
    counts = json.loads(outcome.out)["counts"]
    assert outcome.code == 0 and counts["copied"] > 20 and sum(counts.values()) == counts["copied"]


def test_inspect_and_audit_know_what_it_is(dit, folder):
    found = json.loads(dit("inspect-ckpt", folder, "--json").out)
    assert found["step"] == 8 and found["config"]["model"]["depth"] == 2
    judged = json.loads(dit("audit", folder, "--json").out)
    of_architecture = next(one for one in judged["findings"] if one["name"] == "architecture")
    assert of_architecture["status"] == "pass"


def spoiled(folder, out, name, change):
    shutil.copytree(folder, out)
    path = out / name
    path.write_bytes(change(path.read_bytes()))
    return out


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("model.safetensors.index.json", lambda raw: raw.replace(b': "model-00001', b': "../model-00001', 1), 4),
        ("model.safetensors.index.json", lambda raw: b"[" * 100_000, 4),
        ("model.safetensors.index.json", lambda raw: b"{}", 3),
        ("model-00002-of-00003.safetensors", lambda raw: (1 << 60).to_bytes(8, "little") + raw[8:], 3),
        ("model-00002-of-00003.safetensors", lambda raw: raw[:-64], 3),
    ],
)
def test_hostile_and_damaged_files_are_refused(dit, in_parts, tmp_path, name, change, code):
    assert (in_parts / name).is_file(), sorted(path.name for path in in_parts.iterdir())
    folder = spoiled(in_parts, tmp_path / "spoiled", name, change)
    drawing = ["sample", "--prompt", "x", "--out", tmp_path / "drawn", "--checkpoint"]
    for command in (drawing, ["inspect-ckpt"], ["audit"]):
        outcome = dit(*command, folder)
        assert outcome.code == code, outcome.err
