"""Addresses of sets of shards, and what of them may be shown: never a key, a token or a signed query.

    s3://bucket/set      gs://bucket/set      hf://datasets/owner/name/set      https://host/set?SIGNATURE

An `Address` is a path whose text is the address without its secrets, so that it goes wherever a folder of shards goes:
`address / "index.json"` is an address as well. What was left out stays in the memory of this process alone, and is put
back where a request is made.
"""

from __future__ import annotations

import re
from pathlib import Path, PosixPath
from urllib.parse import SplitResult, urlsplit

from dittool.errors import UsageError

SCHEMES = ("s3", "gs", "hf", "https", "http")
_WEB = ("https", "http")
_AS_PATH = re.compile(rf"({'|'.join(SCHEMES)}):/+")
_IN_TEXT = re.compile(r"(https?://)([^\s'\"<>/@]+@)?([^\s'\"<>?#]+)(\?[^\s'\"<>]*)?")
_KEYS_IN_TEXT = re.compile(
    r"(?i)(\b[\w-]*(?:signature|token|secret|credential|accesskeyid|authorization)\w*[=:]\s*)[^\s&,;'\"<>)]+"
)

_secrets: dict[str, tuple[str, str]] = {}  # of an address: user and password, and query


class Address(PosixPath):
    """A path whose text keeps the two slashes of its scheme. On this machine there is nothing at it."""

    def __str__(self) -> str:
        return _AS_PATH.sub(r"\1://", super().__str__(), count=1)

    def resolve(self, strict: bool = False) -> Address:
        return self

    def absolute(self) -> Address:
        return self

    @property
    def scheme(self) -> str:
        return str(self).partition(":")[0]


def place_of(text: str) -> Path:
    """The folder or the address that a person, or a file of ours, names. Raises `UsageError` for an address with a
    secret where a store takes none.
    """
    if not _AS_PATH.match(text):
        return Path(text)
    parts = urlsplit(_AS_PATH.sub(r"\1://", text, count=1))
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    user = parts.netloc.rpartition("@")[0]
    if (user or parts.query) and parts.scheme not in _WEB:
        raise UsageError(
            f"{bare}: a key or a query in an address of {parts.scheme}://",
            f"leave it out: the keys of {parts.scheme}:// are taken from its own environment variables or files",
        )
    address = Address(bare)
    if user or parts.query:
        _secrets[str(address)] = (user, parts.query)
    return address


def full_address(address: Path) -> str:
    """With the secrets of the set that it lies in: for requests only."""
    text = str(address)
    known = next((set_ for set_ in (text, *map(str, address.parents)) if set_ in _secrets), None)
    if known is None:
        return text
    user, query = _secrets[known]
    parts: SplitResult = urlsplit(text)
    return f"{parts.scheme}://{user + '@' if user else ''}{parts.netloc}{parts.path}{'?' + query if query else ''}"


def without_secrets(text: object) -> str:
    """What a library says, in one line, without signed queries, passwords and keys."""
    line = _IN_TEXT.sub(lambda m: f"{m[1]}{m[3]}{'?…' if m[4] else ''}", " ".join(str(text).split()))
    return _KEYS_IN_TEXT.sub(r"\1…", line)
