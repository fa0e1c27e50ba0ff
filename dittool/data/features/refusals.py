"""What only the work itself shows of an image or caption: that it is unusable, or that the tokenizer lacks its words.
It is remembered, and stops nothing.

A refusal holds as long as the image's bytes and the caption are the same; one by an encoder ends when its stage is
rebuilt. A file that changed since the scan, or could not be read, is refused for this run only: the next one looks
again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dittool.data.records import REFUSED, UNKNOWN_WORDS, USED, Record

_DECODE, _ENCODE = "decode:", "encode:"
# reasons of load_pixels that say nothing about the bytes of the scan
_THIS_RUN_ONLY = ("changed", "unreadable", "no-image")


def refused_while_decoding(record: Record, reason: str, detail: str) -> Record:
    return replace(record, status=REFUSED, reason=_DECODE + reason, detail=detail)


def refused_while_encoding(record: Record, stage: str, reason: str, detail: str) -> Record:
    return replace(record, status=REFUSED, reason=f"{_ENCODE}{stage}:{reason}", detail=detail)


def found_at_work(record: Record) -> bool:
    """Whether the scan took the record and the work refused it."""
    return not record.used and record.reason.startswith((_DECODE, _ENCODE))


def as_scanned(record: Record) -> Record:
    """The record without what the work found out about it."""
    flags = tuple(flag for flag in record.flags if not flag.startswith(f"{UNKNOWN_WORDS}:"))
    record = replace(record, flags=flags)
    return replace(record, status=USED, reason="", detail="") if found_at_work(record) else record


def with_unknown_words(record: Record, count: int) -> Record:
    """The record with the flag of so many words that the tokenizer lacks."""
    others = tuple(flag for flag in record.flags if not flag.startswith(f"{UNKNOWN_WORDS}:"))
    return replace(record, flags=(*others, f"{UNKNOWN_WORDS}:{count}"))


def with_earlier_findings(records: list[Record], earlier: Iterable[Record], forget: Iterable[str] = ()) -> list[Record]:
    """The records of a scan with what an earlier run found out at work, unless by a stage in `forget`: refused, or with
    the flag of unknown words.
    """
    forget, earlier = set(forget), list(earlier)
    not_kept = tuple(f"{_DECODE}{reason}" for reason in _THIS_RUN_ONLY) + tuple(
        f"{_ENCODE}{stage}:" for stage in forget
    )
    failed = {
        _key(record): record for record in earlier if found_at_work(record) and not record.reason.startswith(not_kept)
    }

    unknown_words = {
        _key(record): int(flag.partition(":")[2])
        for record in earlier
        for flag in record.flags
        if flag.startswith(f"{UNKNOWN_WORDS}:") and flag.partition(":")[2].isdigit() and "t5" not in forget
    }

    def judged(record: Record) -> Record:
        if not record.used:
            return record
        if known := failed.get(_key(record)):
            return replace(record, status=REFUSED, reason=known.reason, detail=known.detail)
        found_before = unknown_words.get(_key(record), 0)
        found_now = any(flag.startswith(f"{UNKNOWN_WORDS}:") for flag in record.flags)
        return with_unknown_words(record, found_before) if found_before and not found_now else record

    return [judged(record) for record in records]


def _key(record: Record) -> tuple[str, str, tuple[str, ...], bool]:
    return record.id, record.image_sha256, record.texts, record.flipped
