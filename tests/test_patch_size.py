"""A patch size that cuts a bucket's latent is refused before anything is computed, wherever it is first seen."""

from __future__ import annotations

import shutil

import pytest

CUT = ("-s", "model.patch_size=3")  # no bucket of the demo has sides of a multiple of 24


@pytest.mark.parametrize(
    "command",
    ["embed", "audit", "shard --index", "train", "train --dry-run", "bench", "warmstart"],
    ids=lambda name: name,
)
def test_a_patch_size_that_cuts_a_bucket_is_code_2_and_names_bucket_and_multiple(
    command, dit, tiny_shards, tiny_run, tmp_path
):
    preset, out = ("--preset", "demo", *CUT), ("--out", tmp_path / "out")
    small = [part for override in tiny_shards.overrides for part in ("-s", override)]
    if command == "embed":
        ended = dit("embed", tiny_shards.images, *out, *preset)
        assert not (tmp_path / "out").exists()
    elif command == "audit":
        ended = dit("audit", "demo", *CUT)
    elif command == "shard --index":
        older = shutil.copytree(tiny_shards.folder, tmp_path / "older")
        (older / "index.json").unlink()
        ended = dit("shard", "--index", older, *preset)
    elif command == "bench":
        ended = dit("bench", *preset, *small)
    elif command == "warmstart":
        init = tmp_path / "init.safetensors"
        ended = dit("warmstart", tiny_run, "--out", init, "--data", tiny_shards.folder, *preset, *small)
        assert not init.exists()
    else:
        ended = dit(*command.split(), "--data", tiny_shards.folder, *out, *preset, *small)
        assert not list(tmp_path.rglob("*.pt"))
    assert ended.code == 2
    assert "model.patch_size = 3" in ended.err and "128x128" in ended.err and "multiples of 24" in ended.err
