"""The index of a set of shards: what stands in index.json and *.members.json, written and read with equal care.

    index.json                  identity card and its hash, statistics, widths, hold-out share, one row a shard
    NAME.members.json           beside NAME.tar: {ID: {MEMBER: [offset, size]}}, so that any sample is one read away

A row: path (relative to the set), bucket, split, count, bytes and sha256 of the tar, members_sha256 of its list of
members. An index may come from a stranger: a path in it that leaves the folder, and numbers that do not fit the files,
are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dittool.data.identity import IdentityCard
from dittool.data.shards.columns import FORMAT, Columns, Members, Samples
from dittool.data.shards.shared_files import shared_file
from dittool.data.shards.statistics import SetStatistics
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError, UnsafeFileError
from dittool.geometry import parse_size
from dittool.storage import file_sha256, read_json, write_atomic, write_json
from dittool.untrusted.tar import Member, group_samples, tar_members

INDEX_VERSION, SEVERAL_VERSION = 1, 2  # of a set that keeps one caption of an image, or several
INDEX_NAME = "index.json"
TRAIN, HOLDOUT = "train", "holdout"
STEMS = {TRAIN: "shard", HOLDOUT: "holdout"}  # of the names of tars: holdout-000000.tar

AGAIN = "copy the set again; one that was made here is made again with: dit shard"
_SHARED_FROM = 20_000  # samples: fewer are listed anew by each process, in a fraction of a second
_MOST_COLUMNS = 16 * 2**30  # bytes of columns in the cache folder
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # http: s3: pipe:


@dataclass(frozen=True)
class ShardRow:
    """One shard of the set."""

    path: str  # of the tar, relative to the set
    bucket: str  # "WIDTHxHEIGHT"
    split: str  # train or holdout
    count: int  # samples
    bytes: int  # of the tar
    sha256: str
    members_sha256: str  # of its list of members

    @staticmethod
    def from_json(value: object, source: str) -> ShardRow:
        """Raises `BadDataError`, and `UnsafeFileError` for a path that leaves the folder."""
        if not isinstance(value, dict) or not all(fits(value.get(key)) for key, fits in _FITS.items()):
            wrong = (
                [f"{key} = {value.get(key)!r}" for key, fits in _FITS.items() if not fits(value.get(key))]
                if isinstance(value, dict)
                else [repr(value)]
            )
            raise BadDataError(f"{source}: a row of shards that cannot be: {'; '.join(wrong)}", AGAIN)
        require_local(value["path"])
        path = PurePosixPath(value["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in value["path"]:
            raise UnsafeFileError(f"{source}: shard path {value['path']!r} leaves the folder", "do not use this set")
        return ShardRow(**{key: value[key] for key in _FITS})

    def is_intact(self, folder: Path) -> bool:
        """Whether the shard and its list of members hold exactly the row's bytes: everything is read and hashed."""
        tar = folder / self.path
        if not tar.is_file() or not members_path(tar).is_file() or tar.stat().st_size != self.bytes:
            return False
        return file_sha256(members_path(tar)) == self.members_sha256 and file_sha256(tar) == self.sha256


@dataclass(frozen=True)
class ShardIndex:
    """index.json of a finished set."""

    identity: IdentityCard
    identity_hash: str  # of the card, when the set was made
    source: str  # folder or list of images that was embedded
    widths: FeatureWidths  # what the model takes from the data
    statistics: SetStatistics
    shards: tuple[ShardRow, ...]
    classes: tuple[str, ...] | None = None  # None: of a set that another program made
    holdout: float = 0.0  # share that was kept out of training
    seed: int | None = None  # of the order of samples in the shards

    @staticmethod
    def from_json(index: object, path: Path) -> ShardIndex:
        """The index in the value of a file that may come from anywhere. Raises `BadDataError` when it is of another
        version, unfinished or malformed.
        """
        if not isinstance(index, dict) or index.get("version") not in (INDEX_VERSION, SEVERAL_VERSION):
            found = index.get("version") if isinstance(index, dict) else index
            raise BadDataError(
                f"{path}: index version {found!r}, this program reads {INDEX_VERSION} and {SEVERAL_VERSION}",
                "read it with the dit that wrote it, or make it again from the features with this one: dit shard",
            )
        if index.get("unfinished"):
            raise BadDataError(
                f"{path.parent}: dit shard was interrupted here and the set is unfinished",
                "run dit shard again: it goes on where it stopped",
            )
        if wrong := [key for key, kind in _KINDS.items() if not isinstance(index.get(key), kind)]:
            raise BadDataError(f"{path}: {', '.join(wrong)} missing or of the wrong kind", AGAIN)
        if not index["shards"]:
            raise BadDataError(f"{path}: it lists no shard", AGAIN)
        rows = tuple(ShardRow.from_json(row, str(path)) for row in index["shards"])
        card = IdentityCard.from_json(index["identity"], f"{path}: identity", complete=True)
        if (index["version"] == SEVERAL_VERSION) != bool(card.captions):
            raise BadDataError(f"{path}: an index of version {index['version']} with another kind of card", AGAIN)
        widths = FeatureWidths(card.text.width, card.image.width, card.vae.channels)
        # a model is built and normalised by card, widths and statistics, so they must at least fit each other
        if index["dims"] != widths.to_json():
            raise BadDataError(
                f"{path}: dims = {index['dims']}, by the identity card they are {widths.to_json()}", AGAIN
            )
        statistics = SetStatistics.from_json(index["statistics"], widths, f"{path}: statistics")
        classes = index.get("classes", [])  # older sets have none
        if not isinstance(classes, list) or not all(map(_is_text, classes)) or len(set(classes)) != len(classes):
            raise BadDataError(f"{path}: classes is no list of different names", AGAIN)
        return ShardIndex(
            card,
            index["identity_hash"],
            index["source"],
            widths,
            statistics,
            rows,
            tuple(classes),
            index["holdout"],
            index.get("seed"),
        )

    def to_json(self) -> dict[str, object]:
        return {
            "version": SEVERAL_VERSION if self.identity.captions else INDEX_VERSION,
            "identity_hash": self.identity_hash,
            "identity": self.identity.to_json(),
            "holdout": self.holdout,
            **({} if self.seed is None else {"seed": self.seed}),
            "source": self.source,
            "dims": self.widths.to_json(),
            "statistics": self.statistics.to_json(),
            "shards": [asdict(row) for row in self.shards],
            **({} if self.classes is None else {"classes": list(self.classes)}),
        }


def require_local(text: str) -> None:
    """Raises `UnsafeFileError` for what is an address and not a path: `pipe:` would run a program, and nothing is
    fetched while training.
    """
    if _ADDRESS.match(text):
        raise UnsafeFileError(
            f"{text}: shards are read from a folder, not from an address",
            "copy the set to this machine and name its folder; dit train, validate and audit also read s3://, gs://,"
            " hf:// and https://",
        )


def split_by_name(tar: str) -> str:
    """The split that the name of a tar says: `bucket_128x128/holdout-000000.tar` → holdout."""
    return HOLDOUT if PurePosixPath(tar).stem.startswith(f"{STEMS[HOLDOUT]}-") else TRAIN


def members_path(tar: Path) -> Path:
    """The list of members of a tar."""
    return tar.with_suffix(".members.json")


def index_shard(
    folder: Path, tar: Path, bucket: str, split: str, sha256: str | None = None, writer: str = ""
) -> ShardRow:
    """Reads a tar's headers, writes its list of members beside it, and returns its row.

    Args:
        sha256: of the tar, where it is known already.
        writer: as `write_atomic` takes it.

    Raises `BadDataError` or `UnsafeFileError` for a tar that is damaged, unsafe or empty.
    """
    samples = scan_tar(tar)
    places = {
        key: {suffix: [member.offset, member.size] for suffix, member in members.items()}
        for key, members in samples.items()
    }
    write_atomic(members_path(tar), json.dumps(places).encode(), writer=writer)
    return ShardRow(
        tar.relative_to(folder).as_posix(),
        bucket,
        split,
        len(samples),
        tar.stat().st_size,
        sha256 or file_sha256(tar),
        file_sha256(members_path(tar)),
    )


def scan_tar(tar: Path) -> dict[str, dict[str, Member]]:
    """Members by sample and suffix, from the tar's own headers. Raises `BadDataError` also for a tar without any
    sample.
    """
    samples = group_samples(tar, tar_members(tar))
    if not samples:
        raise BadDataError(f"{tar}: a tar without any sample", AGAIN)
    return samples


def read_index(folder: Path) -> ShardIndex:
    """The index of a finished set. Raises `BadDataError` when it is of another version, unfinished or malformed."""
    return ShardIndex.from_json(read_json(folder / INDEX_NAME), folder / INDEX_NAME)


def samples_of_lists(index: ShardIndex, lists: Callable[[], Sequence[Path]]) -> Samples:
    """Every sample of a set whose tars are elsewhere, by lists of members that were compared with the index. `lists`
    are not asked for where the columns of a large set are here already.
    """

    def listed() -> Columns:
        return Columns.build(_listed(Path(), index, lists()))

    key = hashlib.sha256(json.dumps([FORMAT, "elsewhere", *(asdict(row) for row in index.shards)]).encode()).hexdigest()
    columns = None
    if sum(row.count for row in index.shards) >= _SHARED_FROM:
        columns = _shared_columns(key, listed)
    columns = columns or listed()
    return Samples(columns, columns.shards)


def write_index(folder: Path, index: ShardIndex) -> None:
    write_json(folder / INDEX_NAME, index.to_json())


def samples_of(folder: Path, index: ShardIndex) -> Samples:
    """Every sample of the set, in the order of the rows; of a large set from columns that were made when it was first
    opened. Raises `BadDataError` when a shard's size or list of members is not the index's.
    """
    key = hashlib.sha256(FORMAT.encode())
    for row in index.shards:
        tar = folder / row.path
        if not tar.is_file() or (size := tar.stat().st_size) != row.bytes:
            found = f"{size:,} bytes" if tar.is_file() else "missing"
            raise BadDataError(f"{tar}: {found}, the index says {row.bytes:,} bytes", AGAIN)
        # a list that was edited or damaged has another size or time than the one that was read
        stat = members_path(tar).stat()
        key.update(json.dumps([*asdict(row).values(), stat.st_size, stat.st_mtime_ns]).encode())
    columns = None
    if sum(row.count for row in index.shards) >= _SHARED_FROM:
        columns = _shared_columns(key.hexdigest(), lambda: Columns.build(_listed(folder, index)))
    columns = columns or Columns.build(_listed(folder, index))
    return Samples(columns, columns.shards)


def _shared_columns(key: str, build: Callable[[], Columns]) -> Columns | None:
    """Columns that all processes of this machine map; None where no cache folder takes them."""
    path = shared_file(f"{key}.columns", lambda file: build().write(file), _MOST_COLUMNS)
    return None if path is None else Columns.mapped(path)


def _listed(
    folder: Path, index: ShardIndex, lists: Sequence[Path] = ()
) -> Iterator[tuple[str, str, str, list[tuple[str, Members]]]]:
    """Path, bucket, split and samples of each shard, by its list of members: beside the tar, or in `lists`."""
    for number, row in enumerate(index.shards):
        tar = folder / row.path
        members = read_json(lists[number] if lists else members_path(tar))
        if not isinstance(members, dict) or len(members) != row.count:
            listed = (
                f"{len(members)} samples" if isinstance(members, dict) else f"no samples but {type(members).__name__}"
            )
            raise BadDataError(f"{members_path(tar)}: {listed} listed, the index says {row.count}", AGAIN)
        checked: list[tuple[str, Members]] = [
            (key, _checked_places(tar, key, places, row.bytes)) for key, places in members.items()
        ]
        yield row.path, row.bucket, row.split, checked


def _checked_places(tar: Path, key: str, places: Any, size: int) -> dict[str, tuple[int, int]]:
    try:
        checked = {suffix: (offset, length) for suffix, (offset, length) in places.items()}
        if all(
            type(offset) is int and type(length) is int and 0 <= offset <= offset + length <= size
            for offset, length in checked.values()
        ):
            return checked
    except (AttributeError, TypeError, ValueError):
        pass
    raise BadDataError(
        f"{members_path(tar)}: sample '{key}' has members that do not lie in the {size:,} bytes of the tar", AGAIN
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_size(value))
    except ValueError:
        return False


_KINDS: dict[str, type | tuple[type, ...]] = {
    "identity": dict,
    "identity_hash": str,
    "statistics": dict,
    "dims": dict,
    "source": str,
    "shards": list,
    "holdout": (int, float),
}
_FITS: dict[str, Callable[[object], bool]] = {
    "path": _is_text,
    "bucket": _is_size,
    "split": lambda value: value in (TRAIN, HOLDOUT),
    "count": _is_count,
    "bytes": _is_count,
    "sha256": _is_text,
    "members_sha256": _is_text,
}
