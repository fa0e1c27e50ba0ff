"""Shards that tests may damage, and a set as older programs wrote them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dittool.data.shards.read import ShardSet

ROWS = 512


@pytest.fixture(scope="session")
def written(tiny_shards, tmp_path_factory):
    """The samples of `tiny_shards` as an older program would have written them: no index, 512 rows of text with a
    mask, fp32 patches. Read only.
    """
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    import webdataset

    folder, shards, writers = tmp_path_factory.mktemp("older"), ShardSet.open(tiny_shards.folder), {}
    for ref in shards.samples:
        if ref.bucket not in writers:
            (folder / f"bucket_{ref.bucket}").mkdir()
            writers[ref.bucket] = webdataset.TarWriter(str(folder / f"bucket_{ref.bucket}" / "shard-000000.tar"))
        sample = shards.read(ref)
        text, mask = np.zeros((ROWS, sample.text.shape[1]), np.float16), np.zeros(ROWS, bool)
        text[: len(sample.text)], mask[: len(sample.text)] = sample.text, True
        writers[ref.bucket].write(
            {
                "__key__": ref.id,
                "json": {"caption": shards.read_record(ref).caption},
                "dinov3.npy": sample.cls,
                "dinov3_patches.npy": sample.patches.astype(np.float32),
                "vae.npy": sample.latent,
                "t5h.npy": text,
                "t5m.npy": mask,
            }
        )
    for writer in writers.values():
        writer.close()
    return folder


@pytest.fixture
def copy(tiny_shards, tmp_path):
    """The shards, free to be damaged."""
    return shutil.copytree(tiny_shards.folder, tmp_path / "shards")
