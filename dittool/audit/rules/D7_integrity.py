"""Every shard and every feature is whole: shards are the index's, byte by byte, and each sample has all its members and
stands there once.

## What it checks
The set opens; sizes, hashes and counts are the index's; each tar is read header by header to its two closing blocks;
every array's header describes its bytes; no sample's key stands in two shards; no tar lies beside the listed ones. Of a
derived folder: every used record has current features, and each file has the digest, type and shape that it was made
with. More than 4 GB are not hashed here: `dit shard --verify` and `dit embed --verify` do that.

## Why it matters
A tar that was cut between two members reads without an error in most programs and silently loses samples; a key that is
there twice gives two halves.

## Example
A copy that broke off fails: "65,536 bytes, the index says 1,126,400".

## Fix
Copy the set again, or make it again with `dit shard`; features of a derived folder with `dit embed --pass … --rebuild`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dittool.address import Address
from dittool.audit.data_view import DataView
from dittool.audit.rule import Finding, failed, passed, warned
from dittool.audit.subject import DERIVED, Data
from dittool.data.features.store import FeatureStore
from dittool.data.features.verify import verify as verify_features
from dittool.data.records import RECORD_MEMBER, STAGES, TEXT, text_members
from dittool.data.shards.verify import verify
from dittool.storage import bytes_text
from dittool.untrusted.tar import group_samples, tar_members

CODE, NAME, SEVERITY, SCOPE, SINCE = "D7", "integrity", "error", ("data",), "0.1"

_MOST_BYTES = 4 * 10**9  # that an audit hashes
_FIX = "copy the set again, or make it again with: dit shard"


def check(subject: Data) -> list[Finding]:
    data = subject.data
    if data.problem:
        return failed(data.problem, _FIX)
    return _check_derived(data) if subject.kind == DERIVED else _check_shards(data)


def _check_derived(data: DataView) -> list[Finding]:
    store = FeatureStore(data.folder)
    used, journal = [record for record in store.read_records() if record.used], store.read_journal()
    missing = {stage: store.missing(stage, used, journal) for stage in STAGES}
    if faults := [
        f"{len(records)} have no current {stage} features, first '{records[0].name}'"
        for stage, records in missing.items()
        if records
    ]:
        return failed(
            f"of {len(used)} used records {'; '.join(faults)}",
            "finish with dit embed, with the source and preset of before",
        )
    current = f"all {len(used)} used records have current features of {', '.join(STAGES)}"
    total = sum(store.bytes_present(stage, used) for stage in STAGES)
    if total > _MOST_BYTES:
        return passed(f"{current}; {bytes_text(total)} are too many to read here: dit embed --verify")
    found = verify_features(data.folder)
    if found.faults:
        shown = "; ".join(f"{fault.where}: {fault.what}" for fault in found.faults[:3])
        stages = " ".join(f"--pass {stage}" for stage in dict.fromkeys(fault.stage for fault in found.faults))
        return failed(
            f"{len(found.faults)} of {found.features} files are damaged: {shown}",
            f"make them again: dit embed {stages} --rebuild",
        )
    return passed(f"{current}; {found.features} files, {bytes_text(found.bytes)}: every byte read")


def _check_shards(data: DataView) -> list[Finding]:
    paths = [data.folder / shard for shard in dict.fromkeys(ref.shard for ref in data.refs)]
    is_elsewhere = isinstance(data.folder, Address)  # with the sizes of its index, without which it is not opened
    total = (
        sum(row.bytes for row in data.index.shards)
        if is_elsewhere and data.index
        else sum(path.stat().st_size for path in paths)
    )
    faults = [
        f"sample '{key}' stands in {count} shards"
        for key, count in Counter(ref.id for ref in data.refs).items()
        if count > 1
    ]
    wanted = {RECORD_MEMBER, *(feature.member for feature in data.features)}
    of_kinds = data.card is not None and bool(data.card.captions)
    for ref in data.refs:
        there = {*ref.members, *([TEXT.member] if of_kinds and text_members(ref.members) else [])}
        if lacking := sorted(wanted - there):
            faults.append(f"sample '{ref.id}' lacks {', '.join(lacking)}")
    if total <= _MOST_BYTES:
        faults += [f"{fault.where}: {fault.what}" for fault in verify(data.folder)]
        read = "every byte read" + (
            " and as the index says" if data.index is not None else "; no index to compare with"
        )
    elif is_elsewhere:
        read = f"lists of members read; {bytes_text(total)} are too many to fetch here: each shard is hashed when it is"
    else:
        for path in paths:
            group_samples(path, tar_members(path))  # raises for a damaged tar
        read = f"tar headers read; {bytes_text(total)} are too many to hash here: dit shard --verify"
    if faults:
        return failed(f"{len(faults)} faults in {len(paths)} shards: {'; '.join(faults[:3])}", _FIX)
    if strays := _strays(data, paths):
        return warned(
            f"{len(strays)} tars that the index does not list, first {strays[0]}",
            "remove them, or make the set again with: dit shard",
        )
    return passed(f"{len(data.refs)} samples in {len(paths)} shards, {bytes_text(total)}: {read}")


def _strays(data: DataView, listed: list[Path]) -> list[str]:
    if data.index is None:
        return []
    return sorted(str(path.relative_to(data.folder)) for path in set(data.folder.glob("**/*.tar")) - set(listed))
