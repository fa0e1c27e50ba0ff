"""Weights in several files and in folders, as other programs leave them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dittool.ckpt.folders import weights_in
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UnsafeFileError
from tests.untrusted.hidden import INDICES

WEIGHTS = {f"blocks.{index}.weight": torch.full((2, 2), float(index)) for index in range(4)}


def write(path: Path, weights: dict[str, torch.Tensor] = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def sharded(folder: Path, suffix: str = ".safetensors", name: str = "model", index: bool = True) -> Path:
    """The weights in two files with an index."""
    names = list(WEIGHTS)
    parts = {f"{name}-0000{part + 1}-of-00002{suffix}": names[2 * part : 2 * part + 2] for part in range(2)}
    for file, held in parts.items():
        write(folder / file, {key: WEIGHTS[key] for key in held})
    written = {
        "metadata": {"total_size": 64},
        "weight_map": {key: file for file, held in parts.items() for key in held},
    }
    path = folder / f"{name}{suffix}.index.json"
    if index:
        path.write_text(json.dumps(written))
    return path


def same(path: Path, weights: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    loaded = load_weights(path)
    return loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_model_in_several_files_is_one(tmp_path, suffix, index):
    path = sharded(tmp_path / "a", suffix, index=index)
    assert same(path.parent)
    assert not index or same(path)


@pytest.mark.parametrize(
    "files",
    [
        [
            "model_index.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ],
        ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
        ["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"],
        ["transformer_ema/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"],
        ["ema.safetensors", "model.safetensors"],
        ["checkpoints/0100000.pt", "checkpoints/0200000.pt", "log.txt"],
        ["global_step10/mp_rank_00_model_states.pt"],
        ["pytorch_model.bin", "training_args.bin"],
    ],
    ids=lambda files: files[0],
)
def test_the_network_of_a_folder_is_found(tmp_path, files):
    other = {"w": torch.zeros(1)}
    wanted = next(file for file in files if "json" not in file and "0100000" not in file)
    for file in files:
        if file.endswith(".json"):
            (tmp_path / file).write_text("{}")
        elif Path(file).suffix in (".safetensors", ".pt", ".bin"):
            write(tmp_path / file, WEIGHTS if file == wanted else other)
    place = tmp_path / "global_step10" if "global" in wanted else tmp_path
    assert weights_in(place).path == tmp_path / wanted and same(place)


def test_files_with_equal_claims_are_named(tmp_path):
    for name in ("one.pt", "two.pt"):
        write(tmp_path / name)
    with pytest.raises(BadDataError, match=r"2 files of weights with equal claims: one\.pt, two\.pt"):
        load_weights(tmp_path)
    with pytest.raises(BadDataError, match="no weights in this folder"):
        load_weights(write(tmp_path / "deep" / "x" / "note.txt").parent)


def test_a_part_that_is_missing_is_named(tmp_path):
    path = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadDataError, match=r"its part model-00002-of-00002\.safetensors is not there"):
        load_weights(path)
    path.unlink()
    with pytest.raises(BadDataError, match=r"1 of 2 parts of model\.safetensors"):
        load_weights(tmp_path)


def test_a_tensor_that_no_part_has_is_named(tmp_path):
    path = sharded(tmp_path)
    index = json.loads(path.read_text())
    index["weight_map"]["lost.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(BadDataError, match=r"1 tensors are in none of its parts, first 'lost\.weight'"):
        load_weights(path)


def test_the_links_of_the_hubs_cache_are_followed_and_no_others(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0a", tmp_path / "blobs"
    path = sharded(snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.glob("*.safetensors"))):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    with pytest.raises(BadDataError):
        load_weights(blobs / "0")  # no suffix tells what it is
    assert same(path) and same(snapshot)
    outside = write(tmp_path / "elsewhere" / "x.safetensors")
    link = next(iter(sorted(snapshot.glob("*.safetensors"))))
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="a link that leads out of its folder"):
        load_weights(path)
    with pytest.raises(UnsafeFileError, match="a link that leads out of its folder"):
        load_weights(snapshot)


def test_a_pipe_among_the_parts_does_not_block(tmp_path):
    path = sharded(tmp_path)
    part = tmp_path / "model-00001-of-00002.safetensors"
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(BadDataError, match="not a regular file"):
        load_weights(path)


def test_a_folder_of_distributed_checkpoints_is_refused_with_what_converts_it(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(UnsafeFileError, match=r"torch\.distributed\.checkpoint") as caught:
        load_weights(tmp_path)
    assert "dcp_to_torch" in caught.value.hint


def test_the_commands_take_them(dit, tmp_path):
    index, pipeline = sharded(tmp_path / "a"), sharded(tmp_path / "b" / "transformer").parent.parent
    (pipeline / "model_index.json").write_text("{}")
    write(pipeline / "vae" / "model.safetensors")
    for target in (index, index.parent, pipeline):
        shown = dit("inspect-ckpt", target, "--tree")
        assert shown.code == 0 and "weights in several files" in shown.out
        assert dit("audit", target, "--select", "K1,K2").code == 0
    assert "vae" in dit("inspect-ckpt", pipeline).out
    same_weights = dit("inspect-ckpt", index, "--diff", pipeline)
    assert same_weights.code == 0 and "4 tensors equal, 0 changed" in same_weights.out


@pytest.mark.row(57)
@pytest.mark.parametrize("name", INDICES)
def test_a_hostile_index_is_refused_by_name(tmp_path, tripwire, name):
    make, said = INDICES[name]
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        load_weights(make(tmp_path / "made"))
