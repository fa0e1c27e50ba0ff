"""Reads and writes objects through fsspec: tried again where the connection fails, explained where it is of no use.

A library of its own serves each kind of address: s3fs, gcsfs, huggingface_hub, aiohttp. All errors leave here as a
`DitError` of two lines without a secret.
"""

from __future__ import annotations

import importlib.util
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dittool.address import Address, full_address, without_secrets
from dittool.errors import BadDataError, DitError, StorageError, UsageError, described

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TRIES = 6
BLOCK = 16 * 2**20  # bytes of one request: what a broken connection costs
_FIRST_WAIT = 0.25  # seconds, doubled from one try to the next
_CONNECT, _SILENCE = 10, 20  # seconds until a connection stands, and until something comes
LONGEST = TRIES * (_CONNECT + _SILENCE) + 2**TRIES * _FIRST_WAIT  # seconds of one request with all its tries
_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
_REFUSED = ("403", "401", "Forbidden", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentials")
T = TypeVar("T")


class _Short(OSError):
    """Fewer bytes came than were asked for."""


def read_object(address: Address) -> bytes:
    """All bytes of a small object. Raises `BadDataError` where there is none, `StorageError` where it cannot be had."""
    return _tried(address, lambda: _filesystem(address.scheme).cat_file(full_address(address)))


def read_range(address: Address, start: int, end: int) -> bytes:
    """The bytes [start, end) of an object. Raises as `read_object`, and `StorageError` for one that ends before."""

    def read() -> bytes:
        data = _filesystem(address.scheme).cat_file(full_address(address), start=start, end=end)
        if len(data) > end - start:
            raise StorageError(
                f"{address}: the server answers {end - start:,} bytes with {len(data):,}: it knows no ranges",
                "serve the shards with a server that answers Range requests, or copy them to this machine",
            )
        if len(data) < end - start:
            raise _Short(f"{len(data):,} of {end - start:,} bytes came")
        return data

    return _tried(address, read)


def download(address: Address, size: int, take: Callable[[bytes], object]) -> None:
    """Hands an object of `size` bytes over, block by block."""
    for start in range(0, size, BLOCK):
        take(read_range(address, start, min(start + BLOCK, size)))


def list_names(folder: Address) -> set[str]:
    """The names of the objects right below an address; none where nothing is there."""

    def names() -> set[str]:
        try:
            found = _filesystem(folder.scheme).ls(full_address(folder), detail=False)
        except FileNotFoundError:
            return set()
        return {str(path).rstrip("/").rpartition("/")[2] for path in found}

    return _tried(folder, names)


def write_object(address: Address, content: bytes) -> None:
    """Puts a small object there, in place of the one that was. Raises `StorageError`."""
    _tried(address, lambda: _filesystem(address.scheme).pipe_file(full_address(address), content))


def upload(path: Path, address: Address) -> None:
    """Copies a file there, in parts. Raises `StorageError`, also where other than its bytes arrived."""

    def put() -> None:
        store, name = _filesystem(address.scheme), full_address(address)
        store.put_file(str(path), name)
        if (arrived := store.info(name)["size"]) != (sent := path.stat().st_size):
            raise _Short(f"{arrived:,} of {sent:,} bytes arrived")

    _tried(address, put)


def remove_object(address: Address) -> None:
    """Where there is none, nothing is done."""

    def remove() -> None:
        with suppress(FileNotFoundError):
            _filesystem(address.scheme).rm_file(full_address(address))

    _tried(address, remove)


def require_library(address: Address) -> None:
    """Raises `UsageError` naming what to install."""
    library = _LIBRARIES[address.scheme]
    missing = [name for name in ("fsspec", library) if importlib.util.find_spec(name) is None]
    if missing:
        extra = "pip install 'dit[remote]'" if library != "gcsfs" else "pip install 'dit[remote]' gcsfs"
        raise UsageError(f"{address}: {address.scheme}:// needs {' and '.join(missing)}, not installed here", extra)


def _tried(address: Address, request: Callable[[], T]) -> T:
    for number in range(TRIES):
        try:
            return request()
        except DitError:
            raise
        except FileNotFoundError:
            raise BadDataError(
                f"{address}: no such object",
                "check the address: a set has its index.json, a bucket is made before",
            ) from None
        except Exception as error:  # each library has its own
            reason = without_secrets(described(error))
            if isinstance(error, PermissionError) or any(word in reason for word in _REFUSED):
                raise StorageError(
                    f"{address}: access refused: {reason}",
                    "give the store's keys as its library reads them (for s3:// AWS_ACCESS_KEY_ID and"
                    " AWS_SECRET_ACCESS_KEY), or a signed address that is still valid",
                ) from None
            if number + 1 == TRIES:
                raise StorageError(
                    f"{address}: not to be had in {TRIES} tries: {reason}",
                    "check network and store, then run the same command again: what was fetched is kept",
                ) from None
        time.sleep(_FIRST_WAIT * 2**number * random.Random().uniform(0.5, 1))
    raise AssertionError("unreachable")


def _filesystem(scheme: str) -> AbstractFileSystem:
    """Of this process: connections do not outlive a fork."""
    return _opened(scheme, os.getpid())


@lru_cache(maxsize=8)
def _opened(scheme: str, _process: int) -> AbstractFileSystem:
    import fsspec

    options: dict[str, object] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        times = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        options["client_kwargs"] = {"timeout": times}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT,
            "read_timeout": _SILENCE,
            "retries": {"max_attempts": 1},
        }
    return fsspec.filesystem(scheme, **options)
