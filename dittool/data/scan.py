"""From a source to records: each input judged once, used or refused with a reason, in an order that does not depend on the machine.

The scan reads every file (its hash is the record's identity) and its header; pixels are decoded later, by `load_pixels`, when an
encoder wants them. What only decoding can find, such as a cut-off body, is refused then.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dittool.console import SILENT, Talk
from dittool.data.buckets import Bucket, crop_box, nearest_bucket
from dittool.data.captions import CaptionRefused, check_caption, read_caption_file
from dittool.data.images import ImageRefused, decode_image, fit_to_bucket, read_header, read_image_file
from dittool.data.records import REFUSED, USED, Record, safe_key
from dittool.data.sources import SourceItem, list_source, source_root

DUPLICATE = "duplicate-of"  # the flag is DUPLICATE:ID


def scan(source: Path, buckets: Sequence[Bucket], talk: Talk = SILENT) -> list[Record]:
    """A record for every input of `source` (a folder or a manifest), used or refused, in the order of their names; ids are unique.

    Used records with the same bytes as an earlier one stay used and are flagged. Raises `BadDataError` when the source is missing,
    unreadable or without any image.
    """
    listed = list_source(source)
    if listed.ignored:
        talk.note(f"{source}: not looked at: " + ", ".join(f"{count} {kind}" for kind, count in sorted(listed.ignored.items())))
    if linked := listed.ignored.get("linked folder"):
        talk.warn(f"{source}: {linked} linked folders are not followed; give their images a real folder, or a manifest")
    records = []
    with talk.progress("scan", len(listed.items), "image") as task:
        for record in _in_threads(listed.items, listed.root, buckets):
            records.append(record)
            task.advance()
    return _with_duplicates_flagged(records)


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts: total = used + refused; refused by reason; used by bucket and by flag."""
    used = [record for record in records if record.used]
    reasons = Counter(record.reason for record in records if not record.used)
    flags = Counter(flag.partition(":")[0] for record in used for flag in record.flags)
    return {
        "total": len(records),
        "used": len(used),
        "refused": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "buckets": dict(sorted(Counter(record.bucket for record in used).items())),
        "flags": dict(sorted(flags.items())),
    }


def load_pixels(record: Record, source: Path) -> np.ndarray:
    """The bucketed image of a used record: (bucket height, bucket width, 3) uint8. `source` is what was scanned.

    Raises `ImageRefused`: with reason `changed` when the file is not the one that was scanned, else for what decoding found.
    """
    path = source_root(source) / record.image
    raw = read_image_file(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != record.image_sha256:
        raise ImageRefused("changed", f"its sha256 is {found[:12]}…, at the scan it was {record.image_sha256[:12]}…", str(path))
    try:
        opened = decode_image(raw)
    except ImageRefused as refused:
        raise ImageRefused(refused.reason, refused.detail, str(path)) from refused
    return fit_to_bucket(opened.pixels, Bucket.from_name(record.bucket))[0]


def _in_threads(items: list[SourceItem], root: Path, buckets: Sequence[Bucket]) -> Iterator[Record]:
    # Threads are enough: reading and hashing let go of the interpreter, and a header takes microseconds.
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        try:
            yield from pool.map(lambda item: _judge(item, root, buckets), items)
        except BaseException:  # an interrupt does not wait for the rest of the folder
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _judge(item: SourceItem, root: Path, buckets: Sequence[Bucket]) -> Record:
    record = Record(safe_key(item.name), item.name, item.image, REFUSED, item.reason, item.detail)
    if item.reason:
        return record
    try:
        raw = read_image_file(root / item.image)
        record = replace(record, image_sha256=hashlib.sha256(raw).hexdigest())
        header = read_header(raw)
        record = replace(record, width=header.width, height=header.height)
        caption = read_caption_file(item.caption) if isinstance(item.caption, Path) else check_caption(item.caption)
    except (ImageRefused, CaptionRefused) as refused:
        return replace(record, reason=refused.reason, detail=refused.detail)
    bucket, flags = _choose_bucket(item, header.width, header.height, buckets)
    crop = crop_box(header.width, header.height, bucket)
    if crop[2] - crop[0] < bucket.width:
        flags.append("upscaled")
    return replace(record, status=USED, caption=caption, bucket=bucket.name, crop=crop, flags=(*header.flags, *flags))


def _choose_bucket(item: SourceItem, width: int, height: int, buckets: Sequence[Bucket]) -> tuple[Bucket, list[str]]:
    """The nearest bucket, unless the manifest names another one that exists."""
    nearest = nearest_bucket(width, height, buckets)
    named = next((bucket for bucket in buckets if bucket.name == item.bucket_hint), None)
    if item.bucket_hint and named is None:
        return nearest, ["bucket-hint-unused"]
    return (nearest, []) if named in (None, nearest) else (named, ["bucket-from-manifest"])


def _with_duplicates_flagged(records: list[Record]) -> list[Record]:
    first: dict[str, str] = {}  # hash of the image → id of the first used record that has it
    flagged = []
    for record in records:
        if record.used and (original := first.setdefault(record.image_sha256, record.id)) != record.id:
            record = replace(record, flags=(*record.flags, f"{DUPLICATE}:{original}"))
        flagged.append(record)
    return flagged
