"""Looking into checkpoints: what is said about one is what is in it, and two are told apart by what differs."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open

from dittool.ckpt.difference import diff
from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.inspect import export_safetensors, inspect, tree
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError


@pytest.fixture
def checkpoint(tmp_path, state):
    return save_checkpoint(tmp_path / "checkpoints", state(3))


def test_our_checkpoint_is_described_completely(checkpoint):
    found = inspect(checkpoint)
    assert found.kind == "dit checkpoint"
    assert (found.format_version, found.step, found.samples_seen, found.data_identity) == (1, 3, 24, "abc")
    assert found.weights == ("ema", "model")
    assert (found.parameters, found.dtypes) == (4 * 8 + 8 + 8 * 2 + 2, {"float32": 58})
    assert found.config["train"]["steps"] == 10
    assert (found.sidecar, found.non_finite, found.bytes) == ("verified", (), checkpoint.stat().st_size)
    assert found.tensors["model.0.weight"].shape == (8, 4) and "optimizer.state.0.exp_avg" in found.tensors
    json.dumps(found.as_dict(), allow_nan=False)


def test_parameters_are_counted_in_the_dtype_that_they_are_stored_in(tmp_path):
    torch.save({"a": torch.zeros(3).bfloat16(), "b": torch.zeros(2, 2), "step": torch.tensor(1)}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert (found.kind, found.parameters, found.dtypes) == ("state dict", 8, {"bfloat16": 3, "float32": 4, "int64": 1})


def test_a_foreign_checkpoint_is_called_foreign_and_its_weights_are_found(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(5)}, "optimizer": {"m": torch.ones(7)}, "epoch": 3}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert (found.kind, found.weights, found.parameters, found.config, found.sidecar) == (
        "foreign checkpoint",
        ("state_dict",),
        5,
        None,
        "none",
    )


def test_a_sidecar_that_disagrees_is_reported(checkpoint):
    sidecar = checkpoint.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"bytes": ', '"bytes": 1'))
    assert "its sidecar says" in inspect(checkpoint).sidecar


@pytest.mark.row(59)
def test_every_tensor_with_nan_is_named(tmp_path, state):
    spoilt = state(1)
    spoilt["model"]["0.bias"][2] = float("nan")
    spoilt["optimizer"]["state"][1]["exp_avg"][0] = float("inf")
    torch.save(spoilt, tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt").non_finite == ("model.0.bias", "optimizer.state.1.exp_avg")


# The tree


def test_the_tree_shows_every_key_with_counts_and_shapes(checkpoint):
    lines = tree(inspect(checkpoint).content).splitlines()
    assert "model  [4 tensors, 58 elements]" in lines
    position = lines.index("  0  [2 tensors, 40 elements]")
    assert lines[position + 1 : position + 3] == ["    weight  float32 8×4", "    bias  float32 8"]
    assert "step  3" in lines and "    text  4" in lines


def test_the_tree_shows_blocks_that_are_alike_once_whatever_their_order(tmp_path):
    weights = {f"blocks.{index}.w": torch.zeros(2) for index in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)}
    torch.save({**weights, "blocks.12.w": torch.zeros(3)}, tmp_path / "a.pt")
    assert tree(inspect(tmp_path / "a.pt").content).splitlines() == [
        "blocks  [13 tensors, 27 elements]",
        "  0 … 11 (12 alike, each)  [1 tensor, 2 elements]",
        "    w  float32 2",
        "  12  [1 tensor, 3 elements]",
        "    w  float32 3",
    ]


def test_the_tree_loses_no_tensor_whose_name_is_also_a_folder(tmp_path):
    for order in (("a", "a.b"), ("a.b", "a")):
        torch.save({name: torch.zeros(2) for name in order}, tmp_path / "a.pt")
        assert tree(inspect(tmp_path / "a.pt").content).count("float32 2") == 2


# Differences


def test_a_checkpoint_does_not_differ_from_itself(checkpoint):
    change = diff(checkpoint, checkpoint)
    assert (change.missing, change.unexpected, change.reshaped, change.changed, change.config) == ((), (), {}, (), {})
    assert change.equal == 4


def test_a_difference_names_what_is_missing_new_reshaped_and_changed_and_by_how_much(tmp_path):
    old = {
        "same": torch.ones(2),
        "gone": torch.ones(2),
        "grown": torch.ones(2),
        "moved": torch.tensor([3.0, 4.0]),
        "far": torch.tensor([1.0]),
    }
    new = {
        "same": torch.ones(2),
        "added": torch.ones(2),
        "grown": torch.ones(3),
        "moved": torch.tensor([3.0, 4.5]),
        "far": torch.tensor([-1.0]),
    }
    torch.save(
        {"format_version": 1, "model": old, "ema": old, "config": {"train": {"lr": 1e-3, "steps": 5}}},
        tmp_path / "old.pt",
    )
    torch.save(
        {"format_version": 1, "model": new, "ema": new, "config": {"train": {"lr": 2e-3, "steps": 5}, "x": 1}},
        tmp_path / "new.pt",
    )
    change = diff(tmp_path / "old.pt", tmp_path / "new.pt")
    assert (change.missing, change.unexpected, change.reshaped, change.equal) == (
        ("gone",),
        ("added",),
        {"grown": ((2,), (3,))},
        1,
    )
    assert [(moved.name, moved.largest) for moved in change.changed] == [("far", 2.0), ("moved", 0.5)]
    assert change.changed[0].relative == 2.0
    assert change.changed[1].relative == pytest.approx(0.5 / (3**2 + 4.5**2) ** 0.5)
    assert change.config == {"train.lr": (1e-3, 2e-3), "x": (None, 1)}


def test_weights_that_became_nan_are_a_difference(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt")
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "new.pt")
    assert [moved.name for moved in diff(tmp_path / "old.pt", tmp_path / "new.pt").changed] == ["w"]


# Export


def test_exported_weights_are_the_averaged_ones_with_step_and_configuration_beside_them(checkpoint, tmp_path, state):
    out = tmp_path / "new" / "weights.safetensors"
    export_safetensors(checkpoint, out)
    assert torch.equal(load_weights(out)["0.weight"], state(3)["ema"]["0.weight"])
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "format_version": "1",
        "step": "3",
        "weights": "ema",
        "config": json.dumps(state(3)["config"]),
        "data": json.dumps(state(3)["data"]),
    }
    assert (inspect(out).step, inspect(out).config) == (3, state(3)["config"])
    assert diff(checkpoint, out).config == {}


def test_the_raw_weights_can_be_exported_too_and_unknown_ones_cannot(checkpoint, tmp_path, state):
    export_safetensors(checkpoint, tmp_path / "raw.safetensors", "model")
    assert torch.equal(load_weights(tmp_path / "raw.safetensors")["0.weight"], state(3)["model"]["0.weight"])
    with pytest.raises(BadDataError, match="no weights under 'best'"):
        export_safetensors(checkpoint, tmp_path / "x.safetensors", "best")


def test_an_exported_file_has_ordinary_permissions_and_is_durable(checkpoint, tmp_path, monkeypatch):
    synced = []
    genuine = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or genuine(descriptor))
    umask = os.umask(0o022)
    try:
        export_safetensors(checkpoint, tmp_path / "a.safetensors")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644
    assert len(synced) >= 2


def test_tied_and_strided_weights_are_exported_whole(tmp_path, state):
    tied = torch.randn(3, 4)
    ours = state(1)
    ours["ema"] = {"a": tied, "b": tied, "c": tied.T}
    save_checkpoint(tmp_path, ours)
    export_safetensors(tmp_path / "checkpoint_step0000001.pt", tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    assert torch.equal(loaded["a"], tied) and torch.equal(loaded["b"], tied) and torch.equal(loaded["c"], tied.T)


# The command


def test_the_command_shows_a_run_and_writes_one_json_object(dit, checkpoint):
    shown = dit("inspect-ckpt", checkpoint.parent.parent, "--tree")
    assert shown.code == 0 and "✔ verified" in shown.out and "model  [4 tensors, 58 elements]" in shown.out
    answer = json.loads(dit("inspect-ckpt", checkpoint, "--json", "--diff", checkpoint).out)
    assert (answer["step"], answer["diff"]["equal"], answer["sidecar"]) == (3, 4, "verified")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("a.pt", b"\xff\xd8\xff\xe0 picture", 3), ("a.pt", b"\x80\x04N.", 4), ("missing", None, 2)],
)
def test_the_command_refuses_with_the_right_exit_code_and_two_lines(dit, tmp_path, name, content, code):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ended = dit("inspect-ckpt", tmp_path / name)
    assert ended.code == code and ended.out == ""
    assert [line.split(":")[0].strip() for line in ended.err.strip().splitlines()] == ["error", "next"]


def test_the_command_exports_only_under_the_right_name(dit, checkpoint, tmp_path):
    assert dit("inspect-ckpt", checkpoint, "--export", tmp_path / "a.bin").code == 2
    assert dit("inspect-ckpt", checkpoint, "--export", tmp_path / "a.safetensors").code == 0
    assert (tmp_path / "a.safetensors").is_file()
