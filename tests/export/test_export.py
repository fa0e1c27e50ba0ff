"""What leaves: the weights that were asked for, whole under their name, where nothing of others is lost."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dittool import load
from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.safetensors_file import check_safetensors
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UsageError
from dittool.export.export import ExportRequest, export
from dittool.storage import TEMPORARY_PREFIX


def of(checkpoint, out, **wanted):
    return export(ExportRequest(checkpoint, out, "safetensors", **wanted))


@pytest.fixture(scope="module")
def averaged(checkpoint, tmp_path_factory):
    """A checkpoint in which averaged, raw and further averaged weights differ."""
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = {name: tensor + 1 for name, tensor in state["ema"].items()}
    widths = {"0.05": {name: tensor + 2 for name, tensor in state["ema"].items()}}
    state["snapshots"] = {"begun": 1, "weights": widths}
    return save_checkpoint(tmp_path_factory.mktemp("averaged"), state, final=True)


@pytest.mark.parametrize(("wanted", "more"), [("ema", 0), ("model", 1), ("0.05", 2)])
def test_the_weights_that_are_asked_for_are_exported(averaged, tmp_path, wanted, more):
    done = of(averaged, tmp_path / "out", weights=wanted)
    held = load_file(tmp_path / "out/model.safetensors")
    expected = load_weights(averaged, "ema")
    assert all(torch.equal(held[name], expected[name] + more) for name in expected) and held.keys() == expected.keys()
    assert done.weights == {"0.05": "average 0.05"}.get(wanted, wanted)


def test_weights_that_are_not_there_are_named_with_those_that_are(averaged, tmp_path):
    with pytest.raises(UsageError, match=r"--weights 0\.1") as raised:
        of(averaged, tmp_path / "out", weights="0.1")
    assert "ema, model, 0.05" in raised.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_precision_is_the_one_that_is_asked_for(checkpoint, tmp_path, dtype, kind):
    of(checkpoint, tmp_path / "out", dtype=dtype)
    held, whole = load_file(tmp_path / "out/model.safetensors"), load_weights(checkpoint, "ema")
    assert all(torch.equal(tensor, whole[name].to(kind)) for name, tensor in held.items())


def test_a_number_that_fp16_does_not_hold_is_an_error(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["ema"]["output.bias"][0] = 1e5
    large = save_checkpoint(tmp_path / "large", state, final=True)
    with pytest.raises(BadDataError, match=r"1 tensors overflow in fp16: output\.bias"):
        of(large, tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_above_a_size_there_are_several_files_which_draw_the_same(checkpoint, tmp_path):
    done = of(checkpoint, tmp_path / "out", largest_file=100_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    parts = {file.name for file in done.files} - {"model.safetensors.index.json", "README.md"}
    assert len(parts) > 2 and set(index["weight_map"].values()) == parts == set(index["metadata"]["sha256"])
    drawn, expected = (load(path)("a red circle", steps=1)[0] for path in (tmp_path / "out", checkpoint))
    assert np.array_equal(drawn, expected)


def test_an_export_is_exported_again_as_it_is(checkpoint, exported, tmp_path):
    of(checkpoint, tmp_path / "one")
    of(exported / "transformer/diffusion_pytorch_model.safetensors", tmp_path / "two")
    one, two = (check_safetensors(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.metadata == two.metadata and one.tensors == two.tensors
    held = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(tensor, held[1][name]) for name, tensor in held[0].items())


# Where it goes


def test_an_earlier_export_is_replaced_only_when_asked(checkpoint, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    with pytest.raises(UsageError, match="an export stands there already"):
        of(checkpoint, tmp_path / "out")
    of(checkpoint, tmp_path / "out", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.safetensors"]


@pytest.mark.parametrize("stranger", ["thesis.txt", ".git", "validation"])
def test_a_folder_with_anything_of_others_is_never_replaced(checkpoint, exported, tmp_path, stranger):
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / stranger).mkdir()
    with pytest.raises(UsageError, match=f"it holds {stranger}"):
        of(checkpoint, tmp_path / "out", force=True)
    assert (tmp_path / "out" / stranger).exists() and (tmp_path / "out/model_index.json").exists()


def test_a_run_is_no_place_for_an_export(checkpoint):
    with pytest.raises(UsageError, match="lies in it"):
        of(checkpoint, checkpoint.parent.parent, force=True)
    assert checkpoint.exists()


def test_what_fails_on_the_way_leaves_nothing_and_the_earlier_export(checkpoint, exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "out")
    before = (tmp_path / "out/model_index.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dittool.export.export.write_folder", full)
    with pytest.raises(OSError, match="No space left"):
        export(ExportRequest(checkpoint, tmp_path / "out", force=True))
    assert (tmp_path / "out/model_index.json").read_bytes() == before
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_the_command_says_what_it_wrote(dit, checkpoint, tmp_path):
    outcome = dit("export", checkpoint, "--out", tmp_path / "out", "--json")
    told = json.loads(outcome.out)
    assert outcome.code == 0 and told["weights"] == "ema" and told["format"] == "diffusers"
    assert {"model_index.json", "pipeline_flow.py", "transformer/transformer_flow.py"} <= set(told["files"])
    assert told["bytes"] == sum((tmp_path / "out" / file).stat().st_size for file in told["files"])
    again = dit("export", checkpoint, "--out", tmp_path / "out")
    assert again.code == 2 and "--force" in again.err


def test_what_draws_nothing_is_not_exported_for_diffusers(dit, tmp_path):
    outcome = dit("export", tmp_path / "no-run", "--out", tmp_path / "out")
    assert outcome.code == 2 and "no such file or folder" in outcome.err
