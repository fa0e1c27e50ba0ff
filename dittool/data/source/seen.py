"""What an earlier scan saw of each input, so that the next one reads only the files that changed since.

    scanned.rows    24 bytes an input, the beginnings of hashes: of its name; of its files' sizes and times with all
                    else that decides its record; of the record that they gave

A file is taken for the same at its size, times and inode, as git does; one that was changed in the last two seconds
before it was looked at is not remembered. The record itself stands in records.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dittool.data.records import UNKNOWN_WORDS, Record, record_from_json, record_to_json
from dittool.data.source.archive import ArchiveMember
from dittool.data.source.captions import KindedTexts
from dittool.data.source.containers import container_of
from dittool.data.source.filters import as_unfiltered
from dittool.data.source.item import AUTO, Pairing, SourceItem
from dittool.errors import BadDataError
from dittool.geometry import Bucket
from dittool.storage import mapped_rows, read_json_lines, write_atomic

ROW = np.dtype([("name", "<u8"), ("files", "<u8"), ("record", "<u8")])
LATER_FLAGS = ("duplicate-of", "near-copy-of", "not-flipped", UNKNOWN_WORDS)  # that the look at one input does not give
_RULES = 1  # of the scan: another number, and everything is read again
_UNSETTLED = 2 * 10**9  # nanoseconds


class Seen:
    """Records of an earlier scan, and the rows of this one."""

    def __init__(
        self, path: Path, records: Iterable[Record], buckets: Sequence[Bucket], pairing: Pairing = AUTO
    ) -> None:
        """`path`: of scanned.rows; `records`: those that records.jsonl holds, as the scan left them."""
        self._path, self._decides = path, [_RULES, [bucket.name for bucket in buckets]]
        if pairing.keeps_several:
            self._decides.append([pairing.several, *pairing.caption_columns])
        rows = mapped_rows(path, ROW)
        known = {name: (files, record) for name, files, record in rows.tolist()}
        self._known = {
            record.name: (known[name][0], record)
            for record in records
            if (name := _number(record.name)) in known and not record.flipped and known[name][1] == _of_record(record)
        }
        self._judged: dict[str, tuple[int, Record]] = {}  # by this scan
        self.kept = 0  # inputs that were not read again

    def files(self, item: SourceItem, root: Path) -> int:
        """What decides the record of an input, as a number; 0 where that cannot be told, or may still change."""
        places = [root / item.image]
        said: object = item.caption
        if isinstance(item.caption, Path):
            places.append(item.caption)
        elif isinstance(item.caption, ArchiveMember):
            places.append(item.caption.archive)
        if isinstance(item.caption, (Path, ArchiveMember, KindedTexts)):
            said = repr(item.caption)
        looked = []
        try:
            for place in places:
                status = os.stat(container_of(place) or place)
                if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _UNSETTLED:
                    return 0
                looked.append([status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
            facts = [*self._decides, item.name, item.image, item.bucket_hint, item.cls, item.reason, said, looked]
            return _number(json.dumps(facts))
        except (OSError, ValueError, TypeError):
            return 0

    def judged(self, item: SourceItem) -> Record | None:
        """The record of an input that this run has read already, in its own stretch of the listing."""
        return self._judged[item.name][1] if item.name in self._judged else None

    def record(self, item: SourceItem, files: int) -> Record | None:
        """The record of before; None where the input is to be read."""
        found = self._known.get(item.name)
        if found is None or not files or found[0] != files:
            return None
        self.kept += 1
        return found[1]

    def add(self, record: Record, files: int) -> None:
        """A record that was judged now, or is still good."""
        self._judged[record.name] = files, record

    def write(self) -> None:
        """When records.jsonl is written."""
        settled = ((name, files, record) for name, (files, record) in self._judged.items() if files)
        rows = [(_number(name), files, _of_record(record)) for name, files, record in settled]
        write_atomic(self._path, np.array(rows, ROW).tobytes())

    def publish(self, path: Path) -> None:
        """For other parts: what was judged so far."""
        settled = ((files, record) for files, record in self._judged.values() if files)
        lines = (json.dumps({"files": files} | record_to_json(record)) for files, record in settled)
        write_atomic(path, b"".join(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines))

    def learn(self, path: Path) -> None:
        """What another part has published. A damaged file teaches nothing."""
        try:
            found = [(line["files"], record_from_json(line, str(path))) for line in read_json_lines(path)]
        except (BadDataError, OSError, KeyError, TypeError):
            return
        self._known |= {record.name: (files, record) for files, record in found}


def as_judged(record: Record) -> Record:
    """A record without what is found out later than by a look at the input alone."""
    flags = tuple(flag for flag in record.flags if flag.partition(":")[0] not in LATER_FLAGS)
    return replace(as_unfiltered(record), flags=flags, sides_with=())


def _of_record(record: Record) -> int:
    return _number(json.dumps(record_to_json(record)))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
