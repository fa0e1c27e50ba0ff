"""The index of a set of shards: what stands in index.json and *.members.json, written and read with equal care.

    index.json                  identity card and its hash, statistics, widths, hold-out share, one row a shard
    NAME.members.json           beside NAME.tar: {ID: {MEMBER: [offset, size]}}, so that any sample is one read away

A row: path (relative to the set), bucket, split, count, bytes and sha256 of the tar, members_sha256 of its list of
members. An index may come from a stranger: a path in it that leaves the folder, and numbers that do not fit the files,
are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dittool.data.identity import require_card
from dittool.data.shards.statistics import wrong_summary
from dittool.errors import BadDataError, UnsafeFileError
from dittool.geometry import parse_size
from dittool.storage import file_sha256, read_json, write_atomic
from dittool.untrusted.tar import group_samples, tar_members

INDEX_VERSION = 1
INDEX_NAME = "index.json"
TRAIN, HOLDOUT = "train", "holdout"

_AGAIN = "copy the set again, or make it again with: dit shard"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # http: s3: pipe:


@dataclass(frozen=True)
class SampleRef:
    """Where one sample lies."""

    id: str
    bucket: str  # "WIDTHxHEIGHT"
    split: str  # train or holdout
    shard: str  # path of the tar, relative to the set
    members: dict[str, tuple[int, int]]  # suffix → (offset, size)


def require_local(text: str) -> None:
    """Raises `UnsafeFileError` for what is an address and not a path: `pipe:` would run a program, and nothing is
    fetched while training.
    """
    if _ADDRESS.match(text):
        raise UnsafeFileError(
            f"{text}: shards are read from a folder, not from an address",
            "copy the set to this machine and name its folder",
        )


def members_path(tar: Path) -> Path:
    """The list of members of a tar."""
    return tar.with_suffix(".members.json")


def index_shard(folder: Path, tar: Path, bucket: str, split: str, sha256: str | None = None) -> dict[str, Any]:
    """Reads a tar's headers, writes its list of members beside it, and returns its row.

    Args:
        sha256: of the tar, where it is known already.

    Raises `BadDataError` or `UnsafeFileError` for a tar that is damaged, unsafe or empty.
    """
    samples = scan_tar(tar)
    places = {
        key: {suffix: [member.offset, member.size] for suffix, member in members.items()}
        for key, members in samples.items()
    }
    write_atomic(members_path(tar), json.dumps(places).encode())
    return {
        "path": tar.relative_to(folder).as_posix(),
        "bucket": bucket,
        "split": split,
        "count": len(samples),
        "bytes": tar.stat().st_size,
        "sha256": sha256 or file_sha256(tar),
        "members_sha256": file_sha256(members_path(tar)),
    }


def scan_tar(tar: Path) -> dict[str, Any]:
    """Members by sample and suffix, from the tar's own headers. Raises `BadDataError` also for a tar without any
    sample.
    """
    samples = group_samples(tar, tar_members(tar))
    if not samples:
        raise BadDataError(f"{tar}: a tar without any sample", _AGAIN)
    return samples


def row_is_intact(folder: Path, row: dict[str, Any]) -> bool:
    """Whether the shard and its list of members hold exactly the bytes of the row: everything is read and hashed."""
    tar = folder / row["path"]
    if not tar.is_file() or not members_path(tar).is_file() or tar.stat().st_size != row["bytes"]:
        return False
    return file_sha256(members_path(tar)) == row["members_sha256"] and file_sha256(tar) == row["sha256"]


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a finished set. Raises `BadDataError` when it is of another version, unfinished or malformed."""
    path = folder / INDEX_NAME
    index = read_json(path)
    if not isinstance(index, dict) or index.get("version") != INDEX_VERSION:
        found = index.get("version") if isinstance(index, dict) else index
        raise BadDataError(
            f"{path}: index version {found!r}, this program reads {INDEX_VERSION}",
            "make the shards again with: dit shard",
        )
    if index.get("unfinished"):
        raise BadDataError(
            f"{folder}: dit shard was interrupted here and the set is unfinished",
            "run dit shard again: it goes on where it stopped",
        )
    kinds = {"identity": dict, "identity_hash": str, "statistics": dict, "dims": dict, "source": str, "shards": list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(index.get(key), kind)]:
        raise BadDataError(f"{path}: {', '.join(wrong)} missing or of the wrong kind", _AGAIN)
    if not index["shards"]:
        raise BadDataError(f"{path}: it lists no shard", _AGAIN)
    for row in index["shards"]:
        _check_row(path, row)
    _check_identity(path, index)
    classes = index.get("classes", [])  # older sets have none
    if not isinstance(classes, list) or not all(map(_is_text, classes)) or len(set(classes)) != len(classes):
        raise BadDataError(f"{path}: classes is no list of different names", _AGAIN)
    return index


def refs_of(folder: Path, index: dict[str, Any]) -> list[SampleRef]:
    """Every sample of the set, in the order of the rows. Raises `BadDataError` when a shard's size or list of
    members is not the index's.
    """
    refs = []
    for row in index["shards"]:
        tar = folder / row["path"]
        if not tar.is_file() or tar.stat().st_size != row["bytes"]:
            size = f"{tar.stat().st_size:,} bytes" if tar.is_file() else "missing"
            raise BadDataError(f"{tar}: {size}, the index says {row['bytes']:,} bytes", _AGAIN)
        members = read_json(members_path(tar))
        if not isinstance(members, dict) or len(members) != row["count"]:
            listed = (
                f"{len(members)} samples" if isinstance(members, dict) else f"no samples but {type(members).__name__}"
            )
            raise BadDataError(f"{members_path(tar)}: {listed} listed, the index says {row['count']}", _AGAIN)
        for key, places in members.items():
            refs.append(
                SampleRef(
                    key, row["bucket"], row["split"], row["path"], _checked_places(tar, key, places, row["bytes"])
                )
            )
    return refs


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
        f"{members_path(tar)}: sample '{key}' has members that do not lie in the {size:,} bytes of the tar", _AGAIN
    )


def _check_identity(path: Path, index: dict[str, Any]) -> None:
    """Card, widths and statistics: a model is built and normalised by them, so they must at least fit each other."""
    encoders = require_card(index["identity"], f"{path}: identity", complete=True)["encoders"]
    widths = {
        "text": encoders["text"]["width"],
        "image": encoders["image"]["width"],
        "latent_channels": encoders["vae"]["channels"],
    }
    if index["dims"] != widths:
        raise BadDataError(f"{path}: dims = {index['dims']}, by the identity card they are {widths}", _AGAIN)
    if wrong := wrong_summary(index["statistics"], widths):
        raise BadDataError(f"{path}: statistics: {'; '.join(wrong)}", _AGAIN)


def _check_row(source: Path, row: Any) -> None:
    if not isinstance(row, dict) or not all(fits(row.get(key)) for key, fits in _FITS.items()):
        wrong = (
            [f"{key} = {row.get(key)!r}" for key, fits in _FITS.items() if not fits(row.get(key))]
            if isinstance(row, dict)
            else [repr(row)]
        )
        raise BadDataError(
            f"{source}: a row of shards that cannot be: {'; '.join(wrong)}", "make the shards again with: dit shard"
        )
    require_local(row["path"])
    path = PurePosixPath(row["path"])
    if path.is_absolute() or ".." in path.parts or "\\" in row["path"]:
        raise UnsafeFileError(f"{source}: shard path {row['path']!r} leaves the folder", "do not use this set")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(value: Any) -> bool:
    try:
        return bool(parse_size(value))
    except (TypeError, ValueError):
        return False


_FITS: dict[str, Callable[[Any], bool]] = {
    "path": _is_text,
    "bucket": _is_size,
    "split": lambda value: value in (TRAIN, HOLDOUT),
    "count": _is_count,
    "bytes": _is_count,
    "sha256": _is_text,
    "members_sha256": _is_text,
}
