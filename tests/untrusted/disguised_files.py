"""Whole files that look like what trainers write: archives that two readers read in two ways, legacy files with mixed
beginnings.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.untrusted.handmade import (
    CENTRAL,
    END,
    FOUR_FLOATS,
    LOCAL,
    Calls,
    archive,
    honest_members,
    legacy,
    program,
    rewritten,
    storage,
    tensor,
    text,
)


def _of(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """An honest archive that was changed."""
    path.write_bytes(change(archive(path, honest_members()).read_bytes()))
    return path


def _twice(path: Path, first: bytes, second: bytes) -> Path:
    """An archive with data.pkl twice."""
    members = [*honest_members().items(), ("a/data.pkl", second)]
    members[0] = ("a/data.pkl", first)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members:
            file.writestr(name, data)
    return path


_RUNS, _CLEAN = program(b"cposix\nsystem\n" + text("id") + b"\x85R"), honest_members()["a/data.pkl"]
_LEGACY = program(b"}" + text("w") + tensor(storage().removesuffix(b"tQ") + b"NtQ") + b"s")
FILES: dict[str, Callable[[Path], object]] = {
    "data.pkl twice, the honest one first": lambda path: _twice(path, _CLEAN, _RUNS),
    "data.pkl twice, the honest one last": lambda path: _twice(path, _RUNS, _CLEAN),
    "data.pkl twice, both honest": lambda path: _twice(path, _CLEAN, _CLEAN),
    "numbers of a big-endian machine": lambda path: archive(path, honest_members() | {"a/byteorder": b"big"}),
    "numbers of no order": lambda path: archive(path, honest_members() | {"a/byteorder": b""}),
    "an order of megabytes": lambda path: archive(path, honest_members() | {"a/byteorder": bytes(2 << 20)}),
    "a pickle in another folder": lambda path: archive(path, honest_members() | {"a/b/data.pkl": _RUNS}),
    "a pickle beside it": lambda path: archive(path, honest_members() | {"a/model.pkl": _RUNS}),
    "a storage of a path": lambda path: archive(path, honest_members() | {"a/data/0/1": b"x"}),
    "a storage with a space": lambda path: archive(path, honest_members() | {"a/data/0 ": b"x"}),
    "a library": lambda path: archive(path, honest_members() | {"a/extra/x.so": b"\x7fELF"}),
    "a debug table": lambda path: archive(path, honest_members() | {"a/.data/x": b"x"}),
    "a directory's length that is too small": lambda path: _of(path, lambda raw: rewritten(raw, END, 12, "<I", 46)),
    "a directory's length that is too large": lambda path: _of(path, lambda raw: rewritten(raw, END, 12, "<I", 2**31)),
    "a directory on another disk": lambda path: _of(path, lambda raw: rewritten(raw, END, 6, "<H", 1)),
    "a comment that is not there": lambda path: _of(path, lambda raw: rewritten(raw, END, 20, "<H", 5)),
    "a second end record": lambda path: _of(path, lambda raw: raw + raw[-22:]),
    "a member of another size here": lambda path: _of(path, lambda raw: rewritten(raw, CENTRAL, 24, "<I", 1)),
    "a member of another size there": lambda path: _of(path, lambda raw: rewritten(raw, LOCAL, 18, "<I", 1)),
    "a name's length that is larger": lambda path: _of(path, lambda raw: rewritten(raw, LOCAL, 26, "<H", 200)),
    "an extra field beyond the end": lambda path: _of(path, lambda raw: rewritten(raw, LOCAL, 28, "<H", 0xFFFF)),
    "a comment of a member": lambda path: _of(path, lambda raw: rewritten(raw, CENTRAL, 32, "<H", 1)),
    "a member at a negative place": lambda path: _of(path, lambda raw: rewritten(raw, CENTRAL, 42, "<I", 2**32 - 1)),
    "a program inside the archive": lambda path: _of(path, lambda raw: raw.replace(b"a/version", b"a/code/x_")),
    "legacy: a magic number as text": lambda path: legacy(path, _LEGACY, FOUR_FLOATS, magic="x"),
    "legacy: the magic number in a list": lambda path: legacy(
        path, _LEGACY, FOUR_FLOATS, magic=[0x1950A86A20F9469CFC6C]
    ),
    "legacy: no magic number": lambda path: path.write_bytes(_LEGACY + pickle.dumps(["0"], 2) + bytes(24)),
    "legacy: the magic number twice": lambda path: path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + legacy(path, _LEGACY, FOUR_FLOATS).read_bytes()
    ),
    "legacy: a version that runs": lambda path: legacy(path, _LEGACY, FOUR_FLOATS, version=Calls(os.system, "true")),
    "legacy: a content that runs": lambda path: legacy(path, _RUNS),
    "legacy: a magic number that runs": lambda path: legacy(path, _LEGACY, FOUR_FLOATS, magic=Calls(eval, "1")),
    "legacy: a content of protocol 0": lambda path: legacy(path, pickle.dumps({"a": 1}, 0)),
    "legacy: a storage without a tensor": lambda path: legacy(path, program(b"}"), FOUR_FLOATS),
    "legacy: a negative storage": lambda path: legacy(
        path, program(tensor(storage(count=-4).removesuffix(b"tQ") + b"NtQ")), FOUR_FLOATS
    ),
    "legacy: a module that is no class": lambda path: legacy(
        path, program(b"(" + text("module") + text("os") + text("x") + text("y") + b"tQ")
    ),
    "legacy: a module of the system": lambda path: legacy(
        path, program(b"(" + text("module") + b"cos\nsystem\n" + text("x") + text("y") + b"tQ")
    ),
    "legacy: a module that is called": lambda path: legacy(
        path,
        program(b"(" + text("module") + b"ctrainer\nrun\n" + text("x") + text("y") + b"tQ" + text("id") + b"\x85R"),
    ),
    "legacy: a zip's beginning behind it": lambda path: path.write_bytes(
        legacy(path, _LEGACY, FOUR_FLOATS).read_bytes() + b"PK\x03\x04"
    ),
    "legacy: sizes that differ from the pickle": lambda path: legacy(path, _LEGACY, {"0": bytes(12)}),
}
