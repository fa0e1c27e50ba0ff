"""Writing shards, beside `tar cf` of the same feature files. Run: python -m tests.bench.bench_shards

    tar       `tar cf` of the derived files, and a sync of the result: copies bytes, and nothing else
    tar+sha   the same and `sha256sum` of it: the least that a verifiable set needs
    shard     dit's own: checks each array and its values, sums statistics in float64, hashes, syncs, writes index and
              lists of members

Medians over rounds in which they take turns; only the ratios mean anything. The features lie in the page cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from dittool.config.load import config_to_toml, load_config
from dittool.data.features.store import FeatureStore
from dittool.data.identity import IdentityCard
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, STAGES, TEXT, USED, Record
from dittool.data.shards.write import shard
from dittool.storage import write_atomic, write_json
from dittool.untrusted.npy import npy_bytes
from tests.bench.bench_reading import medians


def make_features(folder: Path, count: int) -> None:
    """A derived folder with features of the sizes of the nano-patches preset at 512²."""
    chance, records = np.random.default_rng(0), []
    pool = chance.standard_normal((1088, 1024), dtype=np.float32).astype(np.float16)
    for feature in FEATURES:
        (folder / feature.name).mkdir(parents=True)
    store = FeatureStore(folder)
    for number in range(count):
        name, shift = f"image-{number:05d}", int(chance.integers(64))
        records.append(
            Record(
                name, name, f"{name}.png", USED, caption="a picture", image_sha256=f"{number:064x}", bucket="512x512"
            )
        )
        arrays = {
            IMAGE_CLS: pool[shift],
            IMAGE_PATCHES: pool[shift : shift + 1024],
            LATENT: pool[:64].reshape(16, 64, 64),
            TEXT: pool[: 20 + shift],
        }
        for feature, array in arrays.items():
            store.path(feature, name).write_bytes(npy_bytes(array))
    store.write_records(records)
    for stage in STAGES:
        store.append_journal(stage, records)
    write_json(folder / "identity.json", IdentityCard(("512x512",), "fp16").to_json())
    write_json(folder / "source.json", {"folder": str(folder)})
    write_atomic(folder / "resolved.toml", config_to_toml(load_config("nano-patches")).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        derived, out, tar = Path(scratch) / "derived", Path(scratch) / "shards", Path(scratch) / "all.tar"
        make_features(derived, options.samples)
        size = sum(path.stat().st_size for path in derived.rglob("*.npy"))

        def plain_tar(hashed: bool) -> None:
            tar.unlink(missing_ok=True)
            subprocess.run(["tar", "cf", tar, "-C", derived, *(feature.name for feature in FEATURES)], check=True)
            subprocess.run(["sync", tar], check=True)
            if hashed:
                subprocess.run(["sha256sum", tar], check=True, stdout=subprocess.DEVNULL)

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            shard(derived, out, shard_size=64)

        took = medians(
            {"tar": lambda: plain_tar(False), "tar+sha": lambda: plain_tar(True), "shard": ours}, options.rounds
        )
    print(f"{options.samples} samples, {size / 1e6:.0f} MB; medians of {options.rounds} rounds")
    for name, seconds in took.items():
        print(f"  {name:<8}{seconds:8.3f} s {size / seconds / 1e9:7.2f} GB/s")
    print(f"shard against tar:                {took['tar'] / took['shard']:.2f} of its speed")
    print(f"shard against tar and sha256sum:  {took['tar+sha'] / took['shard']:.2f} of its speed")


if __name__ == "__main__":
    main()
