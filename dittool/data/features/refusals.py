"""Images that only the work itself shows to be unusable: they are refused with a reason, remembered, and stop nothing.

A refusal holds as long as the image's bytes and the caption are the same; one by an encoder ends when its stage is
rebuilt. A file that changed since the scan, or could not be read, is refused for this run only: the next one looks
again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dittool.data.records import REFUSED, Record

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


def with_earlier_refusals(records: list[Record], earlier: Iterable[Record], forget: Iterable[str] = ()) -> list[Record]:
    """The records of a scan, those refused that an earlier run found unusable at work, unless by a stage in
    `forget`.
    """
    not_kept = tuple(f"{_DECODE}{reason}" for reason in _THIS_RUN_ONLY) + tuple(
        f"{_ENCODE}{stage}:" for stage in forget
    )
    failed = {
        _key(record): record for record in earlier if found_at_work(record) and not record.reason.startswith(not_kept)
    }

    def judged(record: Record) -> Record:
        known = failed.get(_key(record)) if record.used else None
        return record if known is None else replace(record, status=REFUSED, reason=known.reason, detail=known.detail)

    return [judged(record) for record in records]


def _key(record: Record) -> tuple[str, str, str, bool]:
    return record.id, record.image_sha256, record.caption, record.flipped
