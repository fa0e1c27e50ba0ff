"""What kind of file somebody names as a checkpoint, by its first bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.untrusted.refusal import unsafe

_BLOCK = 1 << 20


def open_regular(path: Path) -> BinaryIO:
    """The open file. A folder, a pipe or a device is refused before it can block or never end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", did_you_mean(path, "check the path")) from error
    if stat.S_ISDIR(mode):
        raise BadDataError(f"{path}: a folder, not a checkpoint file", "name the file inside it")
    if not stat.S_ISREG(mode):
        raise BadDataError(f"{path}: not a regular file", "name a file on disk")
    return open(path, "rb")


def other_kind(head: bytes) -> str:
    """What a file is by its first bytes, "" when it could be what was asked for."""
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer instead of the file (fetch it with: git lfs pull)"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page, probably the answer of a failed download"
    if head.startswith(b"\xff\xd8\xff"):
        return "a JPEG picture"
    if head.startswith(b"\x89PNG"):
        return "a PNG picture"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "a GIF picture"
    return ""


def require_bools(file: BinaryIO, offset: int, size: int, what: str, path: Path) -> None:
    """A bool that is neither 0 nor 1 makes two tests of one value disagree."""
    file.seek(offset)
    while size > 0:
        block = file.read(min(size, _BLOCK))
        if not block or block.strip(b"\0\1"):
            # strip only trims the ends; any other byte keeps the block from becoming empty
            raise unsafe(path, f"{what} of bools with bytes other than 0 and 1")
        size -= len(block)
