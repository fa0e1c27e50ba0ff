"""The journal of a derived folder: what each feature was made from, and a digest of its file, as columns of numbers.

    journal.rows            rows of 60 bytes, only added to; of a part of the work journal-0of4.rows

        key       16 bytes  BLAKE2 of the record's id
        source    16 bytes  SHA-256, its beginning, of what the features were made from (`source_of`)
        digests   2 × 8     of the files of the stage's features, in the order of `FEATURES`; 0: not known
        time      4 bytes   seconds: of two rows for one record and stage the later one counts
        stage     1 byte    its place in `STAGES`; 3 bytes unused
        mark      4 bytes   by which a row that was torn is known, and does not count

A row is a promise that the files are on disk: it is written after them. Several hosts add side by side, each part to
its own file; a run without parts takes their rows over, and those of a `journal.jsonl` of before 0.2. To find a row 16
bytes of each are held, the rows themselves are mapped. Call what writes with the folder's shared files held.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dittool.data.embed_again import embed_again
from dittool.data.features.parts import Part
from dittool.data.records import FEATURES, STAGES, Record
from dittool.data.source.colours import CONVERTED
from dittool.errors import BadDataError
from dittool.storage import append_rows, mapped_rows, read_json_lines, write_atomic

Digests = Mapping[str, Mapping[str, str]]  # record id → feature's name → digest of its file
ROW = np.dtype(
    [
        ("key", "<u8", (2,)),
        ("source", "<u8", (2,)),
        ("digests", "<u8", (2,)),
        ("time", "<u4"),
        ("stage", "u1", (4,)),
        ("mark", "<u4"),
    ],
    align=False,
)
_DIGEST_LETTERS = 16  # of a SHA-256: enough to see damage
_MARK = 0x64697401
_CHUNK = 1 << 16  # rows at a time
_OLDER = "journal.jsonl"
_FEATURES = {stage: [feature.name for feature in FEATURES if feature.stage == stage] for stage in STAGES}


@dataclass(frozen=True)
class Made:
    """What the journal says about the features of one record and stage."""

    source: str  # `fingerprint` of what they were made from
    # feature's name → digest of its file; older journals have none
    digests: Mapping[str, str] = field(default_factory=dict)


def source_of(stage: str, record: Record) -> str:
    """What a stage's features are made from: the image's bytes, bucket, side and colours, or the captions."""
    if stage == "t5":
        said = json.dumps(record.captions) if record.captions else record.caption
        return hashlib.sha256(said.encode()).hexdigest()
    # Features that a version before 0.2 made of an image with a colour profile were made of its numbers as they stand.
    marks = " flipped" * record.flipped + " sRGB" * (CONVERTED in record.flags)
    return f"{record.image_sha256} {record.bucket}{marks}"


def fingerprint(source: str) -> str:
    """What the journal keeps of `source_of`."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def digest_of(content: bytes) -> str:
    """What the journal remembers of a feature's file."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LETTERS]


def joined_digest(digests: Sequence[str]) -> str:
    """Of one feature that is several files, as the captions of an image may be; of a single file its own."""
    return digests[0] if len(digests) == 1 else digest_of(" ".join(digests).encode())


class Journal:
    """The rows of a derived folder. Looks rows up; nothing of it changes."""

    def __init__(self, folder: Path) -> None:
        """Raises `BadDataError` for a journal that is not one."""
        self._files = [_rows_in(path) for path in journals_in(folder)]
        self._files.append(_older_rows(folder / _OLDER))
        self._found: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # stage → (sorted beginnings of keys, row numbers)
        self._ends = np.cumsum([len(rows) for rows in self._files])

    def made(self, record_id: str, stage: str) -> Made | None:
        """What the features of this record were made from; None where they do not count."""
        row = self._row(_keys([record_id]), stage)
        if row is None:
            return None
        source = "".join(f"{int(word):016x}" for word in row["source"])
        digests = zip(_FEATURES[stage], (f"{int(word):016x}" for word in row["digests"]), strict=False)
        return Made(source, {name: digest for name, digest in digests if int(digest, 16)})

    def current(self, stage: str, records: Sequence[Record]) -> np.ndarray:
        """(records,) bool: whose features of this stage count."""
        found = np.zeros(len(records), bool)
        for start in range(0, len(records), _CHUNK):
            some = records[start : start + _CHUNK]
            rows, known = self._rows(_keys([record.id for record in some]), stage)
            wanted = _sources([source_of(stage, record) for record in some])
            found[start : start + _CHUNK] = known & (rows["source"] == wanted).all(axis=1)
        return found

    def knows(self, stage: str, records: Sequence[Record]) -> np.ndarray:
        """(records,) bool: of which there are features of this stage, whatever they were made from."""
        return self._rows(_keys([record.id for record in records]), stage)[1]

    def __len__(self) -> int:
        """Features of a record and stage that count."""
        return sum(len(self._index(stage)[0]) for stage in STAGES)

    def _rows(self, keys: np.ndarray, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, whether there is one) for each of the keys (n, 2)."""
        begins, numbers = self._index(stage)
        rows, known = np.zeros(len(keys), ROW), np.zeros(len(keys), bool)
        if len(begins):
            places = np.minimum(np.searchsorted(begins, keys[:, 0]), len(begins) - 1)
            known = begins[places] == keys[:, 0]
            rows[known] = self._taken(numbers[places[known]])
            known &= rows["key"][:, 1] == keys[:, 1]
        return rows, known

    def _row(self, key: np.ndarray, stage: str) -> np.void | None:
        rows, known = self._rows(key, stage)
        return rows[0] if known[0] else None

    def _taken(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers, counted through all files."""
        taken, which = np.empty(len(numbers), ROW), np.searchsorted(self._ends, numbers, side="right")
        for place, rows in enumerate(self._files):
            here = which == place
            taken[here] = rows[numbers[here] - (self._ends[place] - len(rows))]
        return taken

    def _index(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """(beginnings of the keys, sorted, each once; number of the row that counts)."""
        if stage not in self._found:
            begins, times, numbers = [], [], []
            for place, rows in enumerate(self._files):
                for start, some in _chunks(rows):
                    here = np.flatnonzero((some["stage"][:, 0] == STAGES.index(stage)) & _whole(some))
                    begins.append(some["key"][here, 0])
                    times.append(some["time"][here])
                    numbers.append(here + start + self._ends[place] - len(rows))
            key, when, number = (np.concatenate([np.empty(0, "<u8"), *some]) for some in (begins, times, numbers))
            order = np.argsort(key, kind="stable")
            if (key[order[1:]] == key[order[:-1]]).any():
                order = np.lexsort((number, when, key))  # slower
            key, number = key[order], number[order].astype(np.int64)
            last = np.append(key[1:] != key[:-1], True)[: len(key)]  # of equal ones the latest
            self._found[stage] = key[last], number[last]
        return self._found[stage]


def append_journal(folder: Path, part: Part, stage: str, records: Sequence[Record], digests: Digests) -> None:
    """Enters a batch. Raises `StorageError` when the disk is full, with the journal as it was."""
    sources = [source_of(stage, record) for record in records]
    made = [[digests.get(record.id, {}).get(name, "0") for name in _FEATURES[stage]] for record in records]
    rows = _made_rows(stage, [record.id for record in records], sources, made, int(time.time()))
    append_rows(journal_path(folder, part), rows)


def prune_journal(folder: Path, part: Part, used: Iterable[Record]) -> None:
    """Drops stale rows. A plain run also takes over the rows of parts and of an older journal, and drops those of
    images that are gone.
    """
    used = list(used)
    keys = _keys([record.id for record in used])
    order = np.argsort(keys[:, 0], kind="stable")
    begins = keys[order, 0]
    sources = {stage: _sources([source_of(stage, record) for record in used])[order] for stage in STAGES}

    def keep(rows: np.ndarray) -> np.ndarray:
        if not len(begins):
            return np.full(len(rows), not part.is_everything)
        places = np.minimum(np.searchsorted(begins, rows["key"][:, 0]), len(begins) - 1)
        known = begins[places] == rows["key"][:, 0]
        expected = np.zeros((len(rows), 2), "<u8")
        for number, stage in enumerate(STAGES):
            here = rows["stage"][:, 0] == number
            expected[here] = sources[stage][places[here]]
        current = known & (rows["source"] == expected).all(axis=1)
        return current if part.is_everything else current | ~known

    _rewrite(folder, keep, merge=part.is_everything)


def forget_stages(folder: Path, stages: Iterable[str]) -> None:
    """Leaves out all rows of these stages."""
    numbers = [STAGES.index(stage) for stage in stages]
    _rewrite(folder, lambda rows: ~np.isin(rows["stage"][:, 0], numbers), merge=True)


def journal_path(folder: Path, part: Part) -> Path:
    return folder / ("journal.rows" if part.is_everything else f"journal-{part.name}.rows")


def journals_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal*.rows"))


def _rewrite(folder: Path, keep: Callable[[np.ndarray], np.ndarray], merge: bool) -> None:
    """Leaves out rows that are not to be kept. With `merge` all go into one file; an older journal does in any case."""
    whole, older = journal_path(folder, Part()), folder / _OLDER
    files = {path: _rows_in(path) for path in journals_in(folder)}
    joining = [(path, files[path]) for path in files if merge and path != whole]
    joining += [(older, _older_rows(older))] if older.exists() else []
    for path in files.keys() - {path for path, _ in joining}:
        if not all(keep(some).all() for _, some in _chunks(files[path])):
            _write(path, _kept(files[path], keep))
    for path, rows in joining:
        for some in _kept(rows, keep):
            append_rows(whole, some)
        path.unlink()


def _write(path: Path, chunks: Iterable[np.ndarray]) -> None:
    def write(file: BinaryIO) -> None:
        for rows in chunks:
            file.write(rows.tobytes())

    write_atomic(path, write)


def _kept(rows: np.ndarray, keep: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    for _, some in _chunks(rows):
        whole = some[_whole(some)]
        yield whole[keep(whole)]


def _chunks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row, rows), so many at a time."""
    return ((start, np.asarray(rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK))


def _rows_in(path: Path) -> np.ndarray:
    """(N,) of type `ROW`, mapped and not read. Raises `BadDataError` for a file that holds other things."""
    rows = mapped_rows(path, ROW)
    if len(rows) and not (some := _whole(np.asarray(rows[:_CHUNK]))).any():
        raise BadDataError(
            f"{path}: none of its first {len(some):,} rows is of a journal",
            f"remove it, then run again: {embed_again(path.parent)} (its features are made anew)",
        )
    return rows


def _whole(rows: np.ndarray) -> np.ndarray:
    """(N,) bool: rows that are not torn."""
    return (rows["mark"] ^ (rows["key"][:, 0] & np.uint64(0xFFFFFFFF)).astype("<u4")) == _MARK


def _made_rows(
    stage: str, ids: Sequence[str], sources: Sequence[str], digests: Sequence[Sequence[str]], seconds: int
) -> np.ndarray:
    rows = np.zeros(len(ids), ROW)
    rows["key"], rows["source"] = _keys(ids), _sources(sources)
    for row, some in zip(rows["digests"], digests, strict=True):
        row[: len(some)] = [int(digest, 16) for digest in some]
    rows["time"], rows["stage"][:, 0] = seconds, STAGES.index(stage)
    rows["mark"] = (rows["key"][:, 0] & np.uint64(0xFFFFFFFF)).astype("<u4") ^ np.uint32(_MARK)
    return rows


def _keys(ids: Sequence[str]) -> np.ndarray:
    """(n, 2) of records."""
    data = b"".join(hashlib.blake2b(record_id.encode(), digest_size=16).digest() for record_id in ids)
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def _sources(sources: Sequence[str]) -> np.ndarray:
    """(n, 2) of what features were made from."""
    data = b"".join(hashlib.sha256(source.encode()).digest()[:16] for source in sources)
    return np.frombuffer(data, ">u8").reshape(-1, 2).astype("<u8")


def _older_rows(path: Path) -> np.ndarray:
    """The rows of a journal in JSON lines, as versions before 0.2 and its first ones wrote it."""
    if not path.exists():
        return np.empty(0, ROW)
    found: list[np.ndarray] = [np.empty(0, ROW)]
    for number, line in enumerate(read_json_lines(path), start=1):
        try:
            stage = line["stage"]
            # a line of version 0.1 holds one record
            made = line["made"] if "made" in line else {line["id"]: {"source": line["source"]}}
            files = [[item.get("files", {}).get(name, "0") for name in _FEATURES[stage]] for item in made.values()]
            found.append(_made_rows(stage, list(made), [item["source"] for item in made.values()], files, 0))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise BadDataError(
                f"{path}: value {number} is no journal line ({error!r})",
                f"remove that line, then run again: {embed_again(path.parent)} (only its features are made anew)",
            ) from error
    return np.concatenate(found)
