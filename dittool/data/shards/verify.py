"""Reads every byte of a set of shards and says what is wrong: hashes, counts, tar structure, array headers, values,
statistics.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dittool.console import SILENT, Talk
from dittool.data.records import text_features, text_members
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import INDEX_NAME, ShardRow, members_path, scan_tar
from dittool.data.shards.read import ShardSet
from dittool.data.shards.statistics import SetStatistics, ShardStatistics, widths_of
from dittool.encoders.cards import FeatureWidths
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
    rows: list[tuple[str, ShardRow | None]] = (
        [(row.path, row) for row in shards.index.shards] if shards.index else [(path, None) for path in by_shard]
    )
    faults = [
        Fault(key, f"this sample stands in the set {count} times")
        for key, count in Counter(ref.id for ref in shards.samples).items()
        if count > 1
    ]
    statistics = []
    with talk.progress("verify", len(shards.samples), "sample") as task:
        for path, row in rows:
            refs, of_shard = by_shard.get(path, []), ShardStatistics()
            faults += _verify_shard(shards, path, row, refs, of_shard)
            statistics.append(of_shard)
            task.advance(len(refs), faults=len(faults))
    if shards.index is not None and (found := shards.card.sha256) != shards.identity_hash:
        faults.append(
            Fault(
                INDEX_NAME,
                f"the identity card in it hashes to {found[:12]}…, identity_hash is {shards.identity_hash[:12]}…",
            )
        )
    if (
        shards.index is not None
        and not faults
        and (keys := shards.statistics.differing_keys(SetStatistics.joined(statistics)))
    ):
        faults.append(Fault(INDEX_NAME, f"{', '.join(keys)} of the statistics are not those of the samples"))
    return faults


def _verify_shard(
    shards: ShardSet, shard: str, row: ShardRow | None, refs: list[SampleRef], statistics: ShardStatistics
) -> list[Fault]:
    """What is wrong with one shard; what its samples hold is added to the statistics."""
    try:
        path = shards.tar(shard)  # of a set that is elsewhere compared with the index when it is fetched
        if row is not None and shards.remote is None and (faults := _hash_faults(path, row)):
            return faults
        in_tar = {
            key: {suffix: (m.offset, m.size) for suffix, m in members.items()}
            for key, members in scan_tar(path).items()
        }
    except (DitError, OSError) as error:
        return [Fault(shard, str(error))]
    if in_tar != {ref.id: ref.members for ref in refs}:
        return [
            Fault(
                shard,
                f"the tar's own headers ({len(in_tar)} samples) and its list of members ({len(refs)}) disagree",
            )
        ]
    return [fault for ref in refs for fault in _sample_faults(shards, ref, statistics)]


def _hash_faults(path: Path, row: ShardRow) -> list[Fault]:
    faults = []
    for file, expected in ((path, row.sha256), (members_path(path), row.members_sha256)):
        if (found := file_sha256(file)) != expected:
            faults.append(
                Fault(
                    str(Path(row.path).with_name(file.name)), f"sha256 {found[:12]}…, the index says {expected[:12]}…"
                )
            )
    return faults


def _sample_faults(shards: ShardSet, ref: SampleRef, statistics: ShardStatistics) -> list[Fault]:
    where = f"{ref.shard}: {ref.id}"
    try:
        record, arrays = shards.read_record(ref), shards.read_arrays(ref)
    except DitError as error:
        return [Fault(where, error.message)]
    told = [feature.member for feature in text_features(record)]
    if record.captions and told != list(text_members(ref.members)):
        return [Fault(where, f"its record has captions for {', '.join(told)}, and its members are others")]
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
    expected = statistics.widths if shards.index is None else shards.widths
    if expected != FeatureWidths() and (found := widths_of(arrays)) != expected:
        return [
            Fault(
                where,
                f"widths {found}, where {'the first sample has' if shards.index is None else 'the index says'}"
                f" {expected}",
            )
        ]
    statistics.add(arrays)
    return []
