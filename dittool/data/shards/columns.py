"""The samples of a set as columns of numbers: about 120 bytes a sample, mapped from one file by all processes.

n samples, m members of all samples, in the order of the shards:

    text_ends    (n,)   int64    where a sample's text ends in `texts`
    texts        bytes           "ID BUCKET\n" of every sample, which is also what the hash of the order is taken of
    first_places (n,)   int64    a sample's first row in `places`
    layouts      (n,)   uint32   which members it has, in which order
    places       (m,)   int64 offset and uint32 size of each member in its tar

Split, bucket and tar are those of the sample's shard. A `SampleRef` is made where somebody asks for one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

import numpy as np

from dittool.errors import BadDataError, StorageError

FORMAT = "dittool columns 1"
_PLACE = np.dtype([("offset", "<i8"), ("size", "<u4")])  # packed: 12 bytes
_DTYPES: dict[str, np.dtype] = {
    "text_ends": np.dtype("<i8"),
    "first_places": np.dtype("<i8"),
    "layouts": np.dtype("<u4"),
    "places": _PLACE,
    "texts": np.dtype("u1"),
}
_HEADER = 16  # bytes: where the JSON that follows ends, as digits
_ALIGNED = 64
_LARGEST_MEMBER = 2**32 - 1

Members = Mapping[str, tuple[int, int]]  # suffix → (offset, size)


@dataclass(frozen=True)
class SampleRef:
    """Where one sample lies."""

    id: str
    bucket: str  # "WIDTHxHEIGHT"
    split: str  # train or holdout
    shard: str  # path of the tar, relative to the set
    members: Members


class ShardPlace(NamedTuple):
    """A shard's samples are the rows [first, end)."""

    path: str
    bucket: str
    split: str
    first: int
    end: int


class Columns:
    """All samples of a set."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], shards: Sequence[ShardPlace], layouts: Sequence[tuple[str, ...]]
    ) -> None:
        self._arrays, self.shards, self._layouts = arrays, shards, layouts
        self._file: Path | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """A process that is started anew maps the file; nothing is copied to it."""
        if self._file is None:
            return Columns, (dict(self._arrays), self.shards, self._layouts)
        return Columns.mapped, (self._file,)

    @staticmethod
    def build(shards: Iterable[tuple[str, str, str, Iterable[tuple[str, Members]]]]) -> Columns:
        """From path, bucket, split and samples of each shard."""
        places: list[ShardPlace] = []
        layouts: dict[tuple[str, ...], int] = {}
        chunks: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}
        text_end = place_end = row = 0
        for path, bucket, split, samples in shards:
            texts, firsts, kinds = [], [], []
            members: list[tuple[int, int]] = []
            for key, found in samples:
                texts.append(f"{key} {bucket}\n".encode("utf-8", "surrogatepass"))
                firsts.append(place_end + len(members))
                kinds.append(layouts.setdefault(tuple(found), len(layouts)))
                members.extend(found.values())
            if any(size > _LARGEST_MEMBER for _, size in members):
                raise BadDataError(f"{path}: a member of more than 4 GiB", "leave this shard out")
            sizes = [len(text) for text in texts]
            rows = {
                "text_ends": text_end + np.cumsum(sizes, dtype="<i8"),
                "first_places": firsts,
                "layouts": kinds,
                "places": members,
                "texts": np.frombuffer(b"".join(texts), "u1"),
            }
            for name, values in rows.items():
                chunks[name].append(np.array(values, dtype=_DTYPES[name]))
            text_end, place_end = text_end + sum(sizes), place_end + len(members)
            places.append(ShardPlace(path, bucket, split, row, row + len(texts)))
            row += len(texts)
        arrays = {name: np.concatenate([np.empty(0, _DTYPES[name]), *some]) for name, some in chunks.items()}
        return Columns(arrays, places, list(layouts))

    def write(self, file: BinaryIO) -> None:
        """Header and arrays, each at a multiple of 64 bytes."""
        counts = {name: len(self._arrays[name]) for name in _DTYPES}
        header = {"format": FORMAT, "counts": counts, "shards": self.shards, "layouts": self._layouts}
        text = json.dumps(header).encode()
        file.write(f"{_HEADER + len(text):{_HEADER}d}".encode() + text)
        written = _HEADER + len(text)
        for name in _DTYPES:
            data = self._arrays[name]
            file.write(bytes(-written % _ALIGNED))
            file.write(np.ascontiguousarray(data).data)
            written += -written % _ALIGNED + data.nbytes

    @staticmethod
    def mapped(path: Path) -> Columns:
        """The columns of a file that `write` wrote. Raises `StorageError` where it is gone or damaged."""
        try:
            data = np.asarray(np.memmap(path, np.uint8, mode="r"))
            position = int(bytes(data[:_HEADER]))
            header = json.loads(bytes(data[_HEADER:position]))
            arrays = {}
            for name, dtype in _DTYPES.items():
                position += -position % _ALIGNED
                end = position + header["counts"][name] * dtype.itemsize
                arrays[name] = data[position:end].view(dtype)
                position = end
            if position != len(data) or header["format"] != FORMAT:
                raise ValueError(f"{len(data):,} bytes, its header says {position:,}")
            shards = [ShardPlace(*shard) for shard in header["shards"]]
            columns = Columns(arrays, shards, [tuple(layout) for layout in header["layouts"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path}: no list of samples: {error}", f"remove it, it is made again: rm {path}"
            ) from error
        columns._file = path
        return columns

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def ref(self, row: int, shard: ShardPlace) -> SampleRef:
        """The sample of a row that lies in the shard."""
        ends, first = self._arrays["text_ends"], int(self._arrays["first_places"][row])
        start, end = int(ends[row - 1]) if row else 0, int(ends[row]) - len(shard.bucket) - 2
        layout = self._layouts[int(self._arrays["layouts"][row])]
        places = self._arrays["places"][first : first + len(layout)].tolist()
        key = self._arrays["texts"][start:end].tobytes().decode("utf-8", "surrogatepass")
        return SampleRef(key, shard.bucket, shard.split, shard.path, dict(zip(layout, places, strict=True)))

    def texts(self, shard: ShardPlace) -> bytes:
        r"""`ID BUCKET\n` of each of its samples."""
        ends = self._arrays["text_ends"]
        return self._arrays["texts"][
            int(ends[shard.first - 1]) if shard.first else 0 : int(ends[shard.end - 1])
        ].tobytes()

    @property
    def suffixes(self) -> list[str]:
        """Of all members that samples have."""
        return list(dict.fromkeys(suffix for layout in self._layouts for suffix in layout))

    def member_sizes(self, shard: ShardPlace, suffix: str) -> np.ndarray:
        """(samples of the shard,) bytes of this member; 0 where a sample has none."""
        rows = slice(shard.first, shard.end)
        positions = np.array([layout.index(suffix) if suffix in layout else -1 for layout in self._layouts])
        position = positions[self._arrays["layouts"][rows]]
        places = self._arrays["first_places"][rows] + np.maximum(position, 0)
        return np.where(position < 0, 0, self._arrays["places"]["size"][np.where(position < 0, 0, places)])


class Samples(Sequence[SampleRef]):
    """Samples of some shards of a set, in the set's order. Holds a few numbers a shard; each `SampleRef` is made on
    access.
    """

    def __init__(self, columns: Columns, shards: Sequence[ShardPlace]) -> None:
        self.columns, self.shards = columns, [shard for shard in shards if shard.end > shard.first]
        self._ends = list(itertools.accumulate(shard.end - shard.first for shard in self.shards))

    @staticmethod
    def of(refs: Sequence[SampleRef]) -> Samples:
        """Any samples in this order."""
        if isinstance(refs, Samples):
            return refs
        groups = itertools.groupby(refs, key=lambda ref: (ref.shard, ref.bucket, ref.split))
        columns = Columns.build((*key, [(ref.id, ref.members) for ref in some]) for key, some in groups)
        return Samples(columns, columns.shards)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, position: int) -> SampleRef: ...
    @overload
    def __getitem__(self, position: slice) -> list[SampleRef]: ...
    def __getitem__(self, position: int | slice) -> SampleRef | list[SampleRef]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        place = range(len(self))[position]  # raises IndexError as a list does
        which = bisect_right(self._ends, place)
        shard = self.shards[which]
        return self.columns.ref(shard.end - (self._ends[which] - place), shard)

    def __iter__(self) -> Iterator[SampleRef]:
        return (self.columns.ref(row, shard) for shard in self.shards for row in range(shard.first, shard.end))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(SampleRef.__eq__, self, other))

    def of_split(self, split: str) -> Samples:
        return Samples(self.columns, [shard for shard in self.shards if shard.split == split])

    def bucket_runs(self) -> Iterator[tuple[str, int]]:
        """Bucket and number of samples, shard after shard."""
        return ((shard.bucket, shard.end - shard.first) for shard in self.shards)

    def ids(self) -> Iterator[tuple[str, str]]:
        """Id and bucket of each sample, in order."""
        for shard in self.shards:
            for line in self.columns.texts(shard).decode("utf-8", "surrogatepass").split("\n")[:-1]:
                yield line[: -len(shard.bucket) - 1], shard.bucket

    def bucket_counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for bucket, count in self.bucket_runs():
            counts[bucket] += count
        return counts

    def order_sha256(self) -> str:
        r"""Of "ID BUCKET" of each sample, joined with "\n"."""
        digest = hashlib.sha256()
        for number, shard in enumerate(self.shards, 1):
            texts = self.columns.texts(shard)
            digest.update(texts[:-1] if number == len(self.shards) else texts)
        return digest.hexdigest()

    def largest(self, *suffixes: str) -> dict[str, SampleRef]:
        """By bucket the first of the samples whose member of one of these suffixes is the largest."""
        found: dict[str, tuple[int, int, ShardPlace]] = {}  # bytes, row
        for shard in self.shards:
            sizes = np.max([self.columns.member_sizes(shard, suffix) for suffix in suffixes], axis=0)
            place = int(sizes.argmax())
            if shard.bucket not in found or sizes[place] > found[shard.bucket][0]:
                found[shard.bucket] = int(sizes[place]), shard.first + place, shard
        return {bucket: self.columns.ref(row, shard) for bucket, (_, row, shard) in found.items()}
