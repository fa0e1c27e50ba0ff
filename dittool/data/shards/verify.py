"""Reads every byte of a set of shards and says what is wrong: hashes, counts, tar structure, array headers, values,
statistics.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dittool.console import SILENT, Talk
from dittool.data.identity import identity_hash
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT
from dittool.data.shards.index import INDEX_NAME, SampleRef, members_path, scan_tar
from dittool.data.shards.read import ShardSet
from dittool.data.shards.statistics import ShardStatistics, differing_keys, summary, widths
from dittool.errors import DitError
from dittool.storage import file_sha256


@dataclass(frozen=True)
class Fault:
    """One thing that verification found wrong."""

    where: str
    what: str


def verify(folder: Path, talk: Talk = SILENT) -> list[Fault]:
    """What is wrong with a set; empty when every byte is as it should be. Raises `DitError` when the set cannot
    even be opened.
    """
    shards = ShardSet.open(folder)
    by_shard: dict[str, list[SampleRef]] = {}
    for ref in shards.samples:
        by_shard.setdefault(ref.shard, []).append(ref)
    rows = shards.index["shards"] if shards.index else [{"path": path} for path in by_shard]
    faults = [
        Fault(key, f"this sample stands in the set {count} times")
        for key, count in Counter(ref.id for ref in shards.samples).items()
        if count > 1
    ]
    statistics = []
    with talk.progress("verify", len(shards.samples), "sample") as task:
        for row in rows:
            refs, of_shard = by_shard.get(row["path"], []), ShardStatistics()
            faults += _verify_shard(shards, row, refs, of_shard)
            statistics.append(of_shard)
            task.advance(len(refs), faults=len(faults))
    if shards.index is not None and (found := identity_hash(shards.card)) != shards.identity_hash:
        faults.append(
            Fault(
                INDEX_NAME,
                f"the identity card in it hashes to {found[:12]}…, identity_hash is {shards.identity_hash[:12]}…",
            )
        )
    if shards.index is not None and not faults and (keys := differing_keys(shards.statistics, summary(statistics))):
        faults.append(Fault(INDEX_NAME, f"{', '.join(keys)} of the statistics are not those of the samples"))
    return faults


def _verify_shard(
    shards: ShardSet, row: dict[str, Any], refs: list[SampleRef], statistics: ShardStatistics
) -> list[Fault]:
    """What is wrong with one shard; what its samples hold is added to the statistics."""
    path = shards.folder / row["path"]
    try:
        if shards.index is not None and (faults := _hash_faults(path, row)):
            return faults
        in_tar = {
            key: {suffix: (m.offset, m.size) for suffix, m in members.items()}
            for key, members in scan_tar(path).items()
        }
    except (DitError, OSError) as error:
        return [Fault(row["path"], str(error))]
    if in_tar != {ref.id: ref.members for ref in refs}:
        return [
            Fault(
                row["path"],
                f"the tar's own headers ({len(in_tar)} samples) and its list of members ({len(refs)}) disagree",
            )
        ]
    return [fault for ref in refs for fault in _sample_faults(shards, ref, statistics)]


def _hash_faults(path: Path, row: dict[str, Any]) -> list[Fault]:
    faults = []
    for file, told in ((path, row["sha256"]), (members_path(path), row["members_sha256"])):
        if (found := file_sha256(file)) != told:
            faults.append(
                Fault(str(Path(row["path"]).with_name(file.name)), f"sha256 {found[:12]}…, the index says {told[:12]}…")
            )
    return faults


def _sample_faults(shards: ShardSet, ref: SampleRef, statistics: ShardStatistics) -> list[Fault]:
    where = f"{ref.shard}: {ref.id}"
    try:
        shards.read_record(ref)
        sample = shards.read(ref)
    except DitError as error:
        return [Fault(where, error.message)]
    arrays = {IMAGE_CLS: sample.cls, IMAGE_PATCHES: sample.patches, LATENT: sample.latent, TEXT: sample.text}
    if misshapen := [
        feature for feature, array in arrays.items() if array.ndim != len(feature.axes) or 0 in array.shape
    ]:
        return [
            Fault(where, f"{feature.name} has shape {arrays[feature].shape}, not ({', '.join(feature.axes)})")
            for feature in misshapen
        ]
    bad = [(feature.name, int((~np.isfinite(array)).sum())) for feature, array in arrays.items()]
    if faults := [Fault(where, f"{name} has {count} values that are not finite") for name, count in bad if count]:
        return faults
    expected = statistics.dims if shards.index is None else shards.dims
    if expected and (found := widths(arrays)) != expected:
        return [
            Fault(
                where,
                f"widths {found}, where {'the first sample has' if shards.index is None else 'the index says'}"
                f" {expected}",
            )
        ]
    statistics.add(arrays)
    return []
