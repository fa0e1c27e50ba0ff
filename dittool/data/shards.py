"""Writes shards: WebDataset tars, one folder a bucket, with an index that knows every byte.

    index.json                          identity card, statistics, one row a shard (bucket, split, count, bytes, sha256)
    bucket_WxH/shard-000000.tar         samples of the training split; holdout-000000.tar: of the hold-out
    bucket_WxH/shard-000000.members.json  where each member of the tar begins and how long it is

Which images are held out is a function of their bytes, so equal images never stand on both sides. The index is written last;
until then it says that the set is unfinished.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dittool.config.load import load_config
from dittool.console import SILENT, Talk
from dittool.data.arrays import npy_bytes
from dittool.data.features import FeatureStore
from dittool.data.identity import identity_hash
from dittool.data.records import FEATURES, IMAGE_CLS, LATENT, RECORD_MEMBER, STAGES, TEXT, Record, record_to_bytes
from dittool.data.tar_members import group_samples, tar_members
from dittool.errors import BadDataError
from dittool.seeding import derive_seed, unit_interval
from dittool.storage import file_sha256, folder_lock, output_folder, read_json, require_free, sweep_temporaries, write_atomic, write_json

INDEX_VERSION = 1
TRAIN, HOLDOUT = "train", "holdout"
DEFAULT_SHARD_SIZE = 1000
_STEM = {TRAIN: "shard", HOLDOUT: "holdout"}


@dataclass(frozen=True)
class ShardSummary:
    """What was written."""

    folder: Path
    shards: list[dict[str, Any]]  # rows of index.json
    left_out: int  # used records beyond --limit


def shard(
    derived: Path, out: Path, shard_size: int = DEFAULT_SHARD_SIZE, limit: int | None = None, holdout: float | None = None, talk: Talk = SILENT
) -> ShardSummary:
    """Packs the derived features into shards.

    Args:
        holdout: share of images kept out of training; None takes `data.holdout` of the configuration that embedded them.

    Raises `BadDataError` when features are missing or stale, `StorageError` when the disk will not do.
    """
    store = FeatureStore(derived)
    records = [record for record in store.read_records() if record.used]
    card = store.card()
    _require_complete(store, records)
    records.sort(key=lambda record: derive_seed("shard order", record.id))  # readers that go through a tar in order see it shuffled
    chosen = records[:limit]
    share = holdout if holdout is not None else load_config(str(derived / "resolved.toml")).data.holdout
    held = _held_out(chosen, share)
    output_folder(out)
    require_free(out, _bytes_needed(store, chosen), "the shards")
    with folder_lock(out):
        sweep_temporaries(out)
        write_json(out / "index.json", {"version": INDEX_VERSION, "unfinished": True})
        statistics, rows = _Statistics(), []
        groups = _shard_groups(chosen, held, shard_size)
        with talk.progress("shard", len(chosen), "sample") as task:
            for bucket, split, number, members in groups:
                rows.append(_write_shard(store, out, bucket, split, number, members, statistics))
                task.advance(len(members))
        _remove_unlisted(out, rows)
        write_json(out / "index.json", {
            "version": INDEX_VERSION, "identity_hash": identity_hash(card), "identity": card, "holdout": share,
            "source": read_json(derived / "source.json")["folder"], "dims": statistics.dims, "statistics": statistics.summary(), "shards": rows,
        })  # fmt: skip
    return ShardSummary(out, rows, len(records) - len(chosen))


def _require_complete(store: FeatureStore, used: list[Record]) -> None:
    if not used:
        raise BadDataError(f"{store.folder}: no usable record", "embed some images first with: dit embed IMAGES")
    journal = store.read_journal()
    for stage in STAGES:
        if missing := store.missing(stage, used, journal):
            raise BadDataError(
                f"{store.folder}: {len(missing)} of {len(used)} used images have no current {stage} features, the first is '{missing[0].name}'",
                f"make them with: dit embed --pass {stage}, with the source and preset of before",
            )


def _held_out(records: list[Record], share: float) -> set[str]:
    """Ids of the hold-out: by the image's bytes; at least one image, and never all, when a share is asked for."""
    draws = {record.id: unit_interval("holdout", record.image_sha256) for record in records}
    held = {record_id for record_id, draw in draws.items() if draw < share}
    if share > 0 and not held and len(set(draws.values())) > 1:
        smallest = min(draws.values())
        held = {record_id for record_id, draw in draws.items() if draw == smallest}
    if len(held) == len(records):
        raise BadDataError(f"a hold-out share of {share:g} leaves none of {len(records)} images for training", "lower --holdout or add images")
    return held


def _shard_groups(records: list[Record], held: set[str], size: int) -> list[tuple[str, str, int, list[Record]]]:
    groups = []
    for bucket in sorted({record.bucket for record in records}):
        for split in (TRAIN, HOLDOUT):
            members = [record for record in records if record.bucket == bucket and (record.id in held) == (split == HOLDOUT)]
            groups += [(bucket, split, start // size, members[start : start + size]) for start in range(0, len(members), size)]
    return groups


def _bytes_needed(store: FeatureStore, records: list[Record]) -> int:
    return sum(store.path(feature, record.id).stat().st_size + 1024 for record in records for feature in FEATURES) + 2048 * len(records)


def _write_shard(
    store: FeatureStore, out: Path, bucket: str, split: str, number: int, records: list[Record], statistics: _Statistics
) -> dict[str, Any]:
    folder = out / f"bucket_{bucket}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{_STEM[split]}-{number:06d}.tar"

    def write_tar(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                arrays = {feature: store.read(feature, record.id) for feature in FEATURES}
                _require_finite(store, record, arrays)
                statistics.add(arrays, in_training=split == TRAIN)
                _add(tar, f"{record.id}.{RECORD_MEMBER}", record_to_bytes(record))
                for feature, array in arrays.items():
                    _add(tar, f"{record.id}.{feature.member}", npy_bytes(array))

    write_atomic(path, write_tar)
    samples = group_samples(path, tar_members(path))
    index = {key: {suffix: [member.offset, member.size] for suffix, member in members.items()} for key, members in samples.items()}
    write_json(path.with_suffix(".members.json"), index)
    return {
        "path": str(path.relative_to(out)), "bucket": bucket, "split": split, "count": len(records),
        "bytes": path.stat().st_size, "sha256": file_sha256(path),
    }  # fmt: skip


def _require_finite(store: FeatureStore, record: Record, arrays: dict[Any, np.ndarray]) -> None:
    for feature, array in arrays.items():
        if count := int((~np.isfinite(array)).sum()):
            raise BadDataError(
                f"{store.path(feature, record.id)}: {count} of {array.size} values are not finite ('{record.name}')",
                f"remove the file and make it again with: dit embed --pass {feature.stage}",
            )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, time and mode stay at fixed values: equal features give equal bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _remove_unlisted(out: Path, rows: list[dict[str, Any]]) -> None:
    """Shards of an earlier, larger set would be read as part of this one by anyone who goes by file names."""
    listed = {row["path"] for row in rows}
    for path in out.glob("bucket_*/*.tar"):
        if str(path.relative_to(out)) not in listed and path.stem.split("-")[0] in _STEM.values():
            path.unlink()
            path.with_suffix(".members.json").unlink(missing_ok=True)


class _Statistics:
    """Sums in float64 over the training split: float16 sums overflow."""

    def __init__(self) -> None:
        self.dims: dict[str, int] = {}
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._text_tokens: list[int] = []

    def add(self, arrays: dict[Any, np.ndarray], in_training: bool) -> None:
        self.dims = {
            "text": arrays[TEXT].shape[1],
            "image": arrays[IMAGE_CLS].shape[0],
            "latent_channels": arrays[LATENT].shape[0],
        }
        if not in_training:
            return
        latent = arrays[LATENT].astype(np.float64).reshape(len(arrays[LATENT]), -1)  # (C, h·w)
        self._count += latent.shape[1]
        self._sum = self._sum + latent.sum(axis=1)
        self._squares = self._squares + np.square(latent).sum(axis=1)
        self._text_tokens.append(arrays[TEXT].shape[0])

    def summary(self) -> dict[str, Any]:
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(self._squares / self._count - np.square(mean), 0))
        tokens = self._text_tokens
        return {
            "samples": len(tokens),
            "latent_mean": mean.tolist(),
            "latent_std": std.tolist(),
            "text_tokens": {"mean": sum(tokens) / len(tokens), "max": max(tokens)},
        }
