"""Copies of a run in an object store: made by a thread while training goes on, brought back where the run goes on.

    s3://bucket/run/checkpoints/checkpoint_step0001000.pt      or a folder of parts; then its .json
    s3://bucket/run/log.jsonl

A store has no rename and no locks. So a checkpoint's sidecar is taken away before the checkpoint is written, and put
there behind it: one whose sidecar is there is complete, as on a disk. What the run no longer keeps is taken away. A
copy that fails is a warning, and is tried again with the next checkpoint; it never ends a run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from pathlib import Path
from typing import BinaryIO

from dittool.address import Address
from dittool.ckpt.files import (
    CheckpointFile,
    Sidecar,
    discard,
    is_checkpoint_name,
    is_one_file,
    list_checkpoints,
    sidecar_of,
    sidecar_path,
    step_name,
)
from dittool.ckpt.save_sharded import place_of_parts, take_place
from dittool.ckpt.sharded import INDEX_NAME, parts_of
from dittool.console import Talk
from dittool.data.remote.requests import (
    download,
    list_names,
    read_object,
    remove_object,
    require_library,
    upload,
    write_object,
)
from dittool.errors import BadDataError, DitError, UsageError, described
from dittool.storage import bytes_text, output_folder, require_free, write_atomic

STORES = ("s3", "gs")
_LOG = "log.jsonl"


def copies_place(place: Path | None) -> Address | None:
    """Raises `UsageError` for what is no address of a store that can be written to, or whose library is not there."""
    if place is None:
        return None
    if not isinstance(place, Address) or place.scheme not in STORES:
        raise UsageError(
            f"--copies {place}: copies of checkpoints go into a store",
            "name one like s3://bucket/run or gs://bucket/run",
        )
    require_library(place)
    return place


class Copies:
    """The thread that copies a run's checkpoints."""

    def __init__(self, run: Path, place: Address, talk: Talk) -> None:
        self._run, self._place, self._talk = run, place, talk
        self._copied: dict[str, str] = {}  # sha256 by name, of what this process has put there; "": not to its end
        self._failures: list[str] = []
        self._wanted, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="copies of checkpoints", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Begins to copy what is new, and says what has failed since."""
        self._say()
        self._wanted.set()

    def close(self) -> None:
        """Waits until everything is copied, or has failed."""
        self._talk.note(f"copying what is left of {self._run} to {self._place}")
        self._closing = True
        self._wanted.set()
        self._thread.join()
        self._say()

    def _work(self) -> None:
        closing = False
        while not closing:
            self._wanted.wait()
            self._wanted.clear()
            closing = self._closing
            try:
                self._copy()
            except DitError as error:
                self._failures.append(f"{error.message}; {error.hint}")
            except OSError as error:
                self._failures.append(described(error))

    def _copy(self) -> None:
        """The newest first: where copying is slower than training, the others may be gone before their turn."""
        files = [file for file in reversed(list_checkpoints(self._run / "checkpoints")) if file.sidecar is not None]
        for file in files:
            if file.sidecar and self._copied.get(file.path.name) != file.sidecar.sha256:
                self._put(file, file.sidecar.sha256)
        for name in self._copied.keys() - {file.path.name for file in list_checkpoints(self._run / "checkpoints")}:
            remove_object(self._at(sidecar_path(Path(name))))
            if is_one_file(name):
                remove_object(self._at(Path(name)))
            for part in () if is_one_file(name) else list_names(self._at(Path(name))):
                remove_object(self._at(Path(name)) / part)
            del self._copied[name]
        if (log := self._run / _LOG).is_file():
            write_object(self._place / _LOG, log.read_bytes())

    def _put(self, file: CheckpointFile, digest: str) -> None:
        beside = sidecar_path(file.path)
        self._copied[file.path.name] = ""
        try:
            said = beside.read_bytes()
            remove_object(self._at(beside))
            if is_one_file(file.path.name):
                upload(file.path, self._at(file.path))
            else:
                for name in (INDEX_NAME, *(part.file for part in parts_of(file.path))):
                    upload(file.path / name, self._at(file.path) / name)
            write_object(self._at(beside), said)
        except (DitError, OSError):
            if not file.path.exists():
                return  # it made way for newer ones meanwhile
            raise
        self._copied[file.path.name] = digest

    def _at(self, path: Path) -> Address:
        return self._place / "checkpoints" / path.name

    def _say(self) -> None:
        failures, self._failures = self._failures, []
        for failure in failures:
            self._talk.warn(f"a copy of a checkpoint failed and is tried again with the next one: {failure}")


def bring_back(run: Path, place: Address, talk: Talk) -> None:
    """Fetches the newest complete copy where it is further on than the run's folder, and the log where there is none.
    Of several processes of a machine the first one fetches, the others wait and find it there.

    Raises `StorageError` where the store cannot be read or the disk is full.
    """
    copies = place / "checkpoints"
    names = list_names(copies)
    found = [_copied_sidecar(copies, name) for name in names if is_checkpoint_name(name)]
    complete = sorted((one for one in found if one is not None), key=lambda one: one.step, reverse=True)
    if not complete:
        return
    checkpoints = output_folder(run / "checkpoints")
    with open(checkpoints / ".fetched", "a", encoding="utf-8") as moment:
        fcntl.flock(moment, fcntl.LOCK_EX)
        here = max((file.step for file in list_checkpoints(checkpoints) if file.step and file.sidecar), default=-1)
        for sidecar in complete:
            if sidecar.step <= here:
                return
            try:
                _fetch(sidecar, copies, checkpoints, talk)
            except BadDataError as error:
                talk.warn(f"{error.message}: skipped, looking for an older copy")
                continue
            if not (run / _LOG).exists() and _LOG in list_names(place):
                write_atomic(run / _LOG, read_object(place / _LOG))
            return


def _copied_sidecar(copies: Address, name: str) -> Sidecar | None:
    """What the store says of a checkpoint; None where it is not complete."""
    try:
        said = sidecar_of(json.loads(read_object(copies / sidecar_path(Path(name)).name)))
    except (BadDataError, ValueError):
        return None
    return said if said is not None and said.file == name else None


def _fetch(sidecar: Sidecar, copies: Address, checkpoints: Path, talk: Talk) -> None:
    """Raises `BadDataError` for a copy that is not what its sidecar says."""
    address = copies / sidecar.file
    talk.note(f"fetching {address}, {bytes_text(sidecar.bytes)}")
    require_free(checkpoints, sidecar.bytes, f"the copy of step {sidecar.step}")
    path = checkpoints / sidecar.file
    if path.exists():  # a final one of an earlier end
        path = (checkpoints / step_name(sidecar.step)).with_suffix(path.suffix)
    if is_one_file(sidecar.file):
        _fetch_file(address, sidecar.bytes, sidecar.sha256, path)
    else:
        _fetch_parts(address, sidecar.sha256, path)
    said = {"file": path.name, "bytes": sidecar.bytes, "sha256": sidecar.sha256, "step": sidecar.step}
    write_atomic(sidecar_path(path), json.dumps(said | {"summary": sidecar.summary}).encode())


def _fetch_parts(address: Address, sha256: str, path: Path) -> None:
    """A folder of parts, whose index is known to have this hash."""
    place = place_of_parts(path)
    discard(place)
    place.mkdir()
    index = read_object(address / INDEX_NAME)
    if hashlib.sha256(index).hexdigest() != sha256:
        raise _differs(address / INDEX_NAME)
    write_atomic(place / INDEX_NAME, index)
    for part in parts_of(place):
        _fetch_file(address / part.file, part.bytes, part.sha256, place / part.file)
    take_place(place, path)


def _fetch_file(address: Address, size: int, sha256: str, path: Path) -> None:
    digest = hashlib.sha256()

    def content(file: BinaryIO) -> None:
        def take(block: bytes) -> None:
            digest.update(block)
            file.write(block)

        download(address, size, take)
        if digest.hexdigest() != sha256:
            raise _differs(address)

    write_atomic(path, content)


def _differs(address: Address) -> BadDataError:
    return BadDataError(f"{address}: sha256 differs from its sidecar's", "look for an older copy")
