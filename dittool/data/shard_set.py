"""Reads shards: a set of samples with exact random access to each, and the verification of every byte.

Sets with an index are opened from it. Older sets of the same member names without an index are scanned, and have no identity.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dittool.console import SILENT, Talk
from dittool.data.arrays import parse_npy
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, RECORD_MEMBER, TEXT, TEXT_MASK_MEMBER, Record, record_from_json
from dittool.data.shards import HOLDOUT, INDEX_VERSION, TRAIN
from dittool.data.tar_members import group_samples, tar_members
from dittool.errors import BadDataError, DitError
from dittool.storage import file_sha256, read_json


@dataclass(frozen=True)
class SampleRef:
    """Where one sample lies."""

    id: str
    bucket: str  # "WIDTHxHEIGHT"
    split: str  # train or holdout
    shard: str  # path of the tar, relative to the set
    members: dict[str, tuple[int, int]]  # suffix → (offset, size)


@dataclass(frozen=True)
class Sample:
    """The features of one sample, as stored."""

    ref: SampleRef
    cls: np.ndarray  # (C,)
    patches: np.ndarray | None  # (N, C); None: not asked for
    latent: np.ndarray  # (channels, h, w), unscaled
    text: np.ndarray  # (L, D), L = true length


@dataclass
class ShardSet:
    """An opened shards folder."""

    folder: Path
    samples: list[SampleRef]
    index: dict[str, Any] | None  # None: a set without index.json
    _files: dict[tuple[int, str], int] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(folder: Path) -> ShardSet:
        """Raises `BadDataError` when the folder is no finished set of shards."""
        if not folder.is_dir():
            raise BadDataError(f"{folder}: no such folder of shards", "make one with: dit embed IMAGES, then dit shard")
        index_path = folder / "index.json"
        if not index_path.is_file():
            return ShardSet(folder, _scan(folder), None)
        index = read_json(index_path)
        if not isinstance(index, dict) or index.get("version") != INDEX_VERSION:
            found = index.get("version") if isinstance(index, dict) else index
            raise BadDataError(f"{index_path}: index version {found!r}, this program reads {INDEX_VERSION}", "make the shards again with: dit shard")
        if index.get("unfinished"):
            raise BadDataError(f"{folder}: dit shard was interrupted here and the set is unfinished", "run dit shard again")
        return ShardSet(folder, _from_index(folder, index), index)

    def split(self, name: str) -> list[SampleRef]:
        return [ref for ref in self.samples if ref.split == name]

    @property
    def card(self) -> dict[str, Any]:
        """The identity card. Raises `BadDataError` for a set without an index."""
        return self._require_index()["identity"]

    @property
    def identity_hash(self) -> str:
        return self._require_index()["identity_hash"]

    @property
    def statistics(self) -> dict[str, Any]:
        return self._require_index()["statistics"]

    @property
    def dims(self) -> dict[str, int]:
        """Widths that the model takes from the data: text, image, latent_channels."""
        return self._require_index()["dims"]

    @property
    def source(self) -> Path:
        """The folder of images that were embedded; it may be gone or on another machine."""
        return Path(self._require_index()["source"])

    def read(self, ref: SampleRef, patches: bool = True) -> Sample:
        """The features of a sample. Raises `BadDataError` naming the member that is missing or damaged."""
        arrays = {feature: self.read_array(ref, feature.member) for feature in FEATURES if patches or feature is not IMAGE_PATCHES}
        text = arrays[TEXT]
        if TEXT_MASK_MEMBER in ref.members:
            text = text[: int(self.read_array(ref, TEXT_MASK_MEMBER).astype(bool).sum())]
        return Sample(ref, arrays[IMAGE_CLS], arrays.get(IMAGE_PATCHES), arrays[LATENT], text)

    def read_array(self, ref: SampleRef, member: str) -> np.ndarray:
        return parse_npy(self.read_member(ref, member), f"{self.folder / ref.shard}: {ref.id}.{member}")

    def read_record(self, ref: SampleRef) -> Record:
        source = f"{self.folder / ref.shard}: {ref.id}.{RECORD_MEMBER}"
        try:
            value = json.loads(self.read_member(ref, RECORD_MEMBER))
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{source}: not valid JSON: {error}", "make the shards again with: dit shard") from error
        if self.index is None and isinstance(value, dict):  # older sets call it differently
            value = {"name": ref.id, "image": "", "status": "used", **value, "id": ref.id}
        return record_from_json(value, source)

    def read_member(self, ref: SampleRef, member: str) -> bytes:
        """The bytes of one member, by position: nothing before it is read."""
        if member not in ref.members:
            raise BadDataError(f"{self.folder / ref.shard}: sample '{ref.id}' has no {member}", "make the shards again with: dit shard")
        offset, size = ref.members[member]
        data = os.pread(self._file(ref.shard), size, offset)
        if len(data) != size:
            raise BadDataError(
                f"{self.folder / ref.shard}: {ref.id}.{member} has {len(data):,} of {size:,} bytes", "the shard was cut: make it again"
            )
        return data

    def _file(self, shard: str) -> int:
        key = (os.getpid(), shard)  # each worker process opens its own
        if key not in self._files:
            self._files[key] = os.open(self.folder / shard, os.O_RDONLY)
        return self._files[key]

    def _require_index(self) -> dict[str, Any]:
        if self.index is None:
            raise BadDataError(
                f"{self.folder}: no index.json, so the identity of these shards is unknown", "audit them with: dit audit, or make them with dit shard"
            )
        return self.index


@dataclass(frozen=True)
class Fault:
    """One thing that verification found wrong."""

    where: str
    what: str


def verify(folder: Path, talk: Talk = SILENT) -> list[Fault]:
    """Reads every byte of a set: hashes, counts, tar structure, array headers, finite values. Returns what is wrong."""
    shards = ShardSet.open(folder)
    faults = []
    by_shard: dict[str, list[SampleRef]] = {}
    for ref in shards.samples:
        by_shard.setdefault(ref.shard, []).append(ref)
    rows = shards.index["shards"] if shards.index else [{"path": path} for path in by_shard]
    with talk.progress("verify", len(shards.samples), "sample") as task:
        for row in rows:
            faults += _verify_shard(shards, row, by_shard.get(row["path"], []))
            task.advance(len(by_shard.get(row["path"], [])))
    return faults


def _verify_shard(shards: ShardSet, row: dict[str, Any], refs: list[SampleRef]) -> list[Fault]:
    path = shards.folder / row["path"]
    try:
        if "sha256" in row and (found := file_sha256(path)) != row["sha256"]:
            return [Fault(row["path"], f"sha256 {found[:12]}…, the index says {row['sha256'][:12]}…")]
        present = len(group_samples(path, tar_members(path)))
        if present != row.get("count", present) or present != len(refs):
            return [Fault(row["path"], f"{present} samples in the tar, {row.get('count', present)} in the index, {len(refs)} in its member list")]
    except (DitError, OSError) as error:
        return [Fault(row["path"], str(error))]
    faults = []
    for ref in refs:
        try:
            shards.read_record(ref)
            sample = shards.read(ref)
        except DitError as error:
            faults.append(Fault(f"{row['path']}: {ref.id}", error.message))
            continue
        for name, array in (("cls", sample.cls), ("patches", sample.patches), ("latent", sample.latent), ("text", sample.text)):
            if array is not None and not np.isfinite(array).all():
                faults.append(Fault(f"{row['path']}: {ref.id}", f"{name} has {int((~np.isfinite(array)).sum())} values that are not finite"))
    return faults


def _from_index(folder: Path, index: dict[str, Any]) -> list[SampleRef]:
    refs = []
    for row in index["shards"]:
        if row["split"] not in (TRAIN, HOLDOUT):
            raise BadDataError(
                f"{folder / 'index.json'}: split {row['split']!r} of {row['path']} is unknown", "make the shards again with: dit shard"
            )
        path = folder / row["path"]
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            size = f"{path.stat().st_size:,} bytes" if path.is_file() else "missing"
            raise BadDataError(f"{path}: {size}, the index says {row['bytes']:,} bytes", "copy the set again, or make it again with: dit shard")
        members = read_json(path.with_suffix(".members.json"))
        if len(members) != row["count"]:
            raise BadDataError(f"{path}: {len(members)} samples listed, the index says {row['count']}", "make the shards again with: dit shard")
        for key, places in members.items():
            refs.append(SampleRef(key, row["bucket"], row["split"], row["path"], {suffix: tuple(place) for suffix, place in places.items()}))
    return refs


def _scan(folder: Path) -> list[SampleRef]:
    paths = sorted(folder.glob("**/*.tar"))
    if not paths:
        raise BadDataError(f"{folder}: neither index.json nor any .tar in it", "make shards with: dit embed IMAGES, then dit shard")
    refs = []
    for path in paths:
        bucket = path.parent.name.removeprefix("bucket_")
        for key, members in group_samples(path, tar_members(path)).items():
            places = {suffix: (member.offset, member.size) for suffix, member in members.items()}
            refs.append(SampleRef(key, bucket, TRAIN, str(path.relative_to(folder)), places))
    return refs
