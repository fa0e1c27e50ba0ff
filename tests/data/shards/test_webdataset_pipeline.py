"""Shards through WebDataset, for other people's loops: the same samples as our own reader gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dittool.data.patch_storage import encode_patches
from dittool.data.records import IMAGE_PATCHES, record_from_json
from dittool.data.shards import as_webdataset
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, UnsafeFileError, UsageError
from dittool.geometry import Bucket, patch_grid
from dittool.storage import read_json, write_json
from dittool.untrusted.npy import npy_bytes

PAGE = Path(__file__).parents[3] / "docs" / "webdataset.md"


def assert_same_samples(folder: Path, split: str) -> int:
    """Sample by sample, in order; how many there are."""
    shards = ShardSet.open(folder)
    refs, theirs = shards.split(split), list(as_webdataset(folder, split))
    assert [sample["__key__"] for sample in theirs] == [ref.id for ref in refs]
    for ref, sample in zip(refs, theirs, strict=True):
        ours = shards.read(ref)
        for key, array in (("cls", ours.cls), ("patches", ours.patches), ("latent", ours.latent), ("text", ours.text)):
            assert sample[key].dtype == torch.from_numpy(array).dtype
            assert np.array_equal(sample[key].numpy(), array)
        assert sample["bucket"] == ref.bucket
    return len(refs)


def test_both_splits_are_what_our_reader_gives(tiny_shards, warnings_are_errors):
    train, held_out = (assert_same_samples(tiny_shards.folder, split) for split in ("train", "holdout"))
    assert held_out > 0 and train + held_out == 24


@pytest.mark.parametrize("storage", ["fp32", "int8", "pooled"])
def test_every_patch_storage_is_decoded(tiny_shards, older_derived, tmp_path, storage):
    write_json(older_derived / "identity.json", read_json(older_derived / "identity.json") | {"patch_storage": storage})
    for record in tiny_shards.store.read_records():
        bucket = Bucket.from_name(record.bucket)
        grid = patch_grid(bucket.width, bucket.height, patch_size=16)
        stored = encode_patches(tiny_shards.store.read(IMAGE_PATCHES, record.id), grid, storage)
        (older_derived / "dinov3_patches" / f"{record.id}.npy").write_bytes(npy_bytes(stored))
    shard(older_derived, tmp_path / "shards")
    assert assert_same_samples(tmp_path / "shards", "train") > 0


def test_padded_captions_of_older_sets_lose_their_padding(written):
    assert assert_same_samples(written, "train") == 24


def test_the_record_travels_along(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    ref, sample = shards.split("train")[0], next(iter(as_webdataset(tiny_shards.folder)))
    assert record_from_json(sample["record"], "sample") == shards.read_record(ref)


def test_one_bucket_stacks_into_batches_and_workers_share_the_shards(tiny_shards):
    bucket = ShardSet.open(tiny_shards.folder).split("train")[0].bucket
    dataset = as_webdataset(tiny_shards.folder, bucket=bucket)
    (batch,) = list(dataset.batched(99, collation_fn=list))
    assert torch.stack([sample["latent"] for sample in batch]).shape[0] == len(batch)
    whole = {sample["__key__"] for sample in as_webdataset(tiny_shards.folder)}
    seen = [sample["__key__"] for sample in DataLoader(as_webdataset(tiny_shards.folder), None, num_workers=2)]
    assert len(seen) == len(whole) and set(seen) == whole


def test_a_split_or_bucket_without_samples_is_named(tiny_shards, written):
    with pytest.raises(UsageError, match="no sample of train 64x4096") as refused:
        as_webdataset(tiny_shards.folder, bucket="64x4096")
    assert "holdout" in refused.value.hint
    with pytest.raises(UsageError, match="no sample of holdout"):
        as_webdataset(written, "holdout")


def test_a_damaged_member_is_an_error_that_names_it(copy):
    ref = ShardSet.open(copy).split("train")[0]
    with (copy / ref.shard).open("r+b") as file:
        file.seek(ref.members["vae.npy"][0])
        file.write(b"damage")
    with pytest.raises(BadDataError, match=f"{ref.id}.vae.npy"):
        list(as_webdataset(copy))


@pytest.mark.parametrize("address", ["pipe:touch {}", "http://localhost/{}", "file:{}"])
def test_addresses_are_never_opened(copy, tmp_path, address):
    flag = tmp_path / "touched"
    index = json.loads((copy / "index.json").read_text())
    index["shards"][0]["path"] = address.format(flag)
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError):
        as_webdataset(copy)
    assert not flag.exists()


def test_a_folder_that_is_called_like_an_address_is_a_folder(copy, monkeypatch):
    odd = copy.rename(copy.parent / "pipe:touch touched {a,b}")
    monkeypatch.chdir(odd.parent)
    assert len(list(as_webdataset(odd.name))) > 0
    assert not Path("touched").exists()


def test_the_loop_on_the_page_trains(tiny_shards, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 12
    bucket = ShardSet.open(tiny_shards.folder).split("train")[0].bucket
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(tiny_shards.folder)
    monkeypatch.chdir(tmp_path)
    spoken: dict[str, object] = {}
    exec(compile(block.replace("512x512", bucket), str(PAGE), "exec"), spoken)  # what the page tells people to run
    assert torch.isfinite(spoken["loss"])
