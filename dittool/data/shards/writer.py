"""Writes shards one after the other, each once, remembers those that are whole, and makes their index.

    shards.jsonl            one line for each shard that is whole; of a part of the work shards-0of4.jsonl

What the samples of a shard are, and where their features come from, the caller says: a derived folder (write.py) or the
encoders (from_encoders.py). Every part plans all shards alike and writes its share of them; whichever ends last merges
the lines of all into index.json. From the first shard whose bytes are not those of an earlier set until then the index
says that the set is unfinished. A shard with a line is kept when what it is made from is what the line says, and its
files have the sizes and times of then, or the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dittool.data.features.parts import Part, shared_files
from dittool.data.identity import IdentityCard
from dittool.data.records import RECORD_MEMBER, Feature, Record, record_from_json, record_to_bytes, record_to_json
from dittool.data.shards.earlier import JOURNALS, digests_of_finished_set
from dittool.data.shards.index import (
    INDEX_NAME,
    INDEX_VERSION,
    STEMS,
    ShardIndex,
    ShardRow,
    index_shard,
    members_path,
    write_index,
)
from dittool.data.shards.split import SetPlan, ShardPlan
from dittool.data.shards.statistics import SetStatistics, ShardStatistics
from dittool.errors import BadDataError
from dittool.storage import append_durably, read_json, read_json_lines, write_atomic, write_json

_BLOCK = 512  # of a tar


@dataclass(frozen=True)
class StoredSample:
    """One sample as it goes into a shard."""

    record: Record
    files: Mapping[Feature, bytes]  # .npy files, in the order of their members
    arrays: dict[Feature, np.ndarray]  # as a model gets them, for the statistics


@dataclass(frozen=True)
class FinishedShard:
    """A line of shards.jsonl: a shard that is whole."""

    planned: str  # hash of the identity and of the records that are to be in it
    made_from: str  # hash of all that decided its bytes
    path: str
    row: ShardRow | None  # None: none of its images could be encoded
    statistics: ShardStatistics
    times: tuple[int, int]  # of the tar and of its list of members, in nanoseconds
    identity: str  # hash of the card
    found: tuple[Record, ...] = ()  # what encoding found out: images refused, captions with unknown words

    @staticmethod
    def from_json(value: dict[str, Any], source: str) -> FinishedShard:
        """Raises `BadDataError` for a line that this program did not write."""
        try:
            return FinishedShard(
                value["planned"],
                value["made_from"],
                value["path"],
                None if value["row"] is None else ShardRow.from_json(value["row"], source),
                ShardStatistics.from_json(value["statistics"]),
                (int(value["times"][0]), int(value["times"][1])),
                value["identity"],
                tuple(record_from_json(record, source) for record in value["found"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadDataError(
                f"{source}: a line that is no finished shard ({error!r})",
                "remove the file and run the same command again: the shards are written anew",
            ) from error

    def to_json(self) -> dict[str, object]:
        return {
            "planned": self.planned,
            "made_from": self.made_from,
            "path": self.path,
            "row": None if self.row is None else asdict(self.row),
            "statistics": self.statistics.to_json(),
            "times": self.times,
            "identity": self.identity,
            "found": [record_to_json(record) for record in self.found],
        }

    def is_there(self, folder: Path) -> bool:
        """Whether its files are those of then: by size and time, or where these differ by their bytes."""
        if self.row is None:
            return True
        tar = folder / self.path
        if not tar.is_file() or not members_path(tar).is_file():
            return False
        if tar.stat().st_size == self.row.bytes and _times(tar) == self.times:
            return True
        return self.row.is_intact(folder)


class ShardWriter:
    """Writes one shard after the other and keeps the journal of those that are whole."""

    def __init__(self, out: Path, card: IdentityCard, part: Part | None = None, journals: Path | None = None) -> None:
        """`journals`: the folder of shards.jsonl, where it is not `out`."""
        self.card, self.part = card, part or Part()
        self.count_kept = 0
        self.out, self._journals = out, journals or out
        self._journal = self._journals / journal_name(self.part)
        self.finished = self._lines()
        if self.part.is_everything:  # all lines in one file, without a torn last one
            write_atomic(self._journal, b"".join(_line(entry.to_json()) for entry in self.finished.values()))
            for path in set(_journals_in(self._journals)) - {self._journal}:
                path.unlink()
        elif not self._journal.exists():
            write_atomic(self._journal, b"", writer=f"{self.part.name}-")
        self.earlier = digests_of_finished_set(out)

    def mark_unfinished(self) -> None:
        """Before the first change to the tars that the index lists, which until then are a good set."""
        write_json(self.out / INDEX_NAME, {"version": INDEX_VERSION, "unfinished": True})
        self.earlier = {}

    def planned(self, plan: ShardPlan) -> str:
        """Hash of the identity and of the records that are to be in a shard."""
        digest = hashlib.sha256(self.card.sha256.encode())
        for record in plan.records:
            digest.update(record_to_bytes(record))
        return digest.hexdigest()

    def kept(self, plan: ShardPlan, made_from: str) -> FinishedShard | None:
        """A shard that an earlier call finished; None when it has to be written."""
        entry = self.finished.get(plan.path)
        if entry is None or entry.made_from != made_from or not entry.is_there(self.out):
            return None
        self.count_kept += 1
        return entry

    def write(
        self, plan: ShardPlan, made_from: str, samples: Iterator[StoredSample], found: Sequence[Record] = ()
    ) -> FinishedShard:
        """Writes the shard and its line. `found` is read when all samples were taken."""
        statistics, path, row = ShardStatistics(), self.out / plan.path, None
        digest = hashlib.sha256()

        def write_tar(file: BinaryIO) -> None:
            for block in _blocks(itertools.chain(first, samples), statistics):
                file.write(block)
                digest.update(block)
            if self.earlier and self.earlier.get(plan.path) != digest.hexdigest():
                self.mark_unfinished()

        if first := list(itertools.islice(samples, 1)):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, write_tar, writer=self._writer)
            row = index_shard(self.out, path, plan.bucket, plan.split, digest.hexdigest(), self._writer)
        times = (0, 0) if row is None else _times(path)
        entry = FinishedShard(
            self.planned(plan), made_from, plan.path, row, statistics, times, self.card.sha256, tuple(found)
        )
        append_durably(self._journal, _line(entry.to_json()))
        return entry

    def merge(self, planned: SetPlan, source: str) -> list[FinishedShard] | None:
        """Makes the index of the shards of all parts, and removes shards that it does not list. Returns them in the
        order of the plan; None while other parts have some to write.

        Raises `BadDataError` where parts do not belong together: made by other encoders, or with a sample in two
        shards.
        """
        with shared_files(self.out):
            entries = self._lines()
            self._require_one_identity(entries.values())
            finished = [entry for plan in planned.shards if (entry := self._whole(plan, entries.get(plan.path)))]
            if len(finished) < len(planned.shards):
                return None
            written = [entry for entry in finished if entry.row is not None]
            if not self.part.is_everything:
                _require_unique_samples(self.out, written)
            index = self._index(planned, written, source)
            if not self.earlier or json.loads(json.dumps(index.to_json())) != read_json(self.out / INDEX_NAME):
                self.mark_unfinished()
                write_index(self.out, index)
            _remove_unlisted(self.out, {entry.path for entry in written})
        return finished

    def forget(self) -> None:
        """Removes the journal, where what the shards are made of can be looked at again."""
        for path in _journals_in(self._journals):
            path.unlink(missing_ok=True)

    def _index(self, planned: SetPlan, written: Sequence[FinishedShard], source: str) -> ShardIndex:
        """Raises `BadDataError` where no image of all could be encoded."""
        if not written:
            raise BadDataError(f"{self.out}: none of its images could be encoded", "look at records.jsonl for reasons")
        statistics = [entry.statistics for entry in written]
        return ShardIndex(
            self.card,
            self.card.sha256,
            source,
            statistics[0].widths,
            SetStatistics.joined(statistics),
            tuple(entry.row for entry in written if entry.row),
            planned.classes,
            planned.holdout,
            planned.seed,
        )

    @property
    def _writer(self) -> str:
        """Begins the names of temporary files, so that each part sweeps its own."""
        return "" if self.part.is_everything else f"{self.part.name}-"

    def _lines(self) -> dict[str, FinishedShard]:
        """The last line of each shard, whichever part wrote it."""
        entries: dict[str, FinishedShard] = {}
        for journal in _journals_in(self._journals):
            # a line of before 0.2 does not say what was planned: its shard is written anew
            lines = [line for line in read_json_lines(journal) if not isinstance(line, dict) or "planned" in line]
            entries |= {(entry := FinishedShard.from_json(line, str(journal))).path: entry for line in lines}
        return entries

    def _whole(self, plan: ShardPlan, entry: FinishedShard | None) -> FinishedShard | None:
        if entry is None or entry.planned != self.planned(plan):
            return None
        return entry if entry.is_there(self.out) else None

    def _require_one_identity(self, entries: Iterable[FinishedShard]) -> None:
        if other := next((entry for entry in entries if entry.identity != self.card.sha256), None):
            raise BadDataError(
                f"{self.out / other.path}: another part made it with identity {other.identity[:12]}…, this one has"
                f" {self.card.sha256[:12]}…",
                "encode all parts with the same encoders, buckets and storage; make those of the other identity again",
            )


def tar_member(name: str, data: bytes) -> Iterator[bytes]:
    """The blocks of one member: header, content, and zeros to the end of the last block."""
    info = tarfile.TarInfo(name)  # owner, time and mode stay at fixed values: equal features give equal bytes
    info.size = len(data)
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % _BLOCK)


def journal_name(part: Part) -> str:
    """`shards.jsonl`, of a part `shards-0of4.jsonl`."""
    return "shards.jsonl" if part.is_everything else f"shards-{part.name}.jsonl"


def _journals_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(JOURNALS))


def _blocks(samples: Iterable[StoredSample], statistics: ShardStatistics) -> Iterator[bytes]:
    """The bytes of the tar."""
    for sample in samples:
        statistics.add(sample.arrays)
        yield from tar_member(f"{sample.record.id}.{RECORD_MEMBER}", record_to_bytes(sample.record))
        for feature, data in sample.files.items():
            yield from tar_member(f"{sample.record.id}.{feature.member}", data)
    yield bytes(2 * _BLOCK)


def _times(tar: Path) -> tuple[int, int]:
    return tar.stat().st_mtime_ns, members_path(tar).stat().st_mtime_ns


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _require_unique_samples(out: Path, written: Sequence[FinishedShard]) -> None:
    """Raises `BadDataError` for an id that stands in two shards. Holds eight bytes a sample."""
    hashes = [
        np.array([_key_hash(key) for key in read_json(members_path(out / entry.path))], np.uint64) for entry in written
    ]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if not (twice := values[counts > 1].tolist()):
        return
    places: dict[str, str] = {}
    for entry, some in zip(written, hashes, strict=True):
        if not np.isin(some, twice).any():
            continue
        for key in read_json(members_path(out / entry.path)):
            if places.setdefault(key, entry.path) != entry.path:
                raise BadDataError(
                    f"{out}: sample '{key}' stands in {places[key]} and in {entry.path}",
                    "parts were made of different lists of images: run each of them again with the same ones",
                )


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _remove_unlisted(out: Path, listed: set[str]) -> None:
    """Shards of an earlier, larger set would be read as part of this one by anyone who goes by file names."""
    for path in out.glob("bucket_*/*.tar"):
        if path.relative_to(out).as_posix() not in listed and path.stem.split("-")[0] in STEMS.values():
            members_path(path).unlink(missing_ok=True)  # first: without its tar nobody would find it again
            path.unlink()
