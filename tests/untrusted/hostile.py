"""Hostile checkpoints: the tables that single tests go through, and the whole corpus as files, each of which that can
run code makes a canary.

The techniques are those of public scanners' corpora: calls by every kind of instruction, calls that look harmless,
memory bombs, archives that two readers read in two ways, polyglots, streams behind the end, storages that overlap or
lie, strides out of all bounds.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import logging
import lzma
import os
import pathlib
import pickle
import runpy
import shutil
import sqlite3
import struct
import subprocess
import tarfile
import time
import timeit
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.untrusted.disguised import DISGUISED
from tests.untrusted.disguised_calls import CALLED
from tests.untrusted.disguised_files import FILES
from tests.untrusted.disguised_tensors import STORAGES
from tests.untrusted.handmade import (
    CENTRAL,
    END,
    FOUR_FLOATS,
    LOCAL,
    Calls,
    archive,
    entry,
    honest_members,
    legacy,
    number,
    program,
    pt,
    rewritten,
    safetensors,
    storage,
    tensor,
    text,
)
from tests.untrusted.hidden import HIDDEN, INDICES, SPOILT_LEGACY

# Single files, with what their refusal must say

CALLS = {
    "os.system": Calls(os.system, "touch owned"),
    "eval": Calls(eval, "1"),
    "getattr": Calls(getattr, "text", "upper"),
    "import": Calls(__import__, "os"),
    "a nested call": {"model": {"w": [Calls(print, "x")]}},
    "torch.load": Calls(torch.load, "other.pt"),
}
CALLING = {
    f"{name}, protocol {protocol}": pickle.dumps(call, protocol)
    for name, call in CALLS.items()
    for protocol in range(6)
}

OTHER_CLASS = b"(" + text("storage") + b"ctorch\nSize\n" + text("0") + text("cpu") + number(4) + b"tQ"
OTHER_KIND = b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"
HOSTILE = {
    "a name built at run time": (text("os") + text("system") + b"\x93" + text("id") + b"\x85R", "global os.system"),
    "a name that is no text": (number(1) + text("system") + b"\x93", "a global whose name is not text"),
    "INST": (b"(" + text("id") + b"ios\nsystem\n", "instruction INST"),
    "OBJ": (b"(cos\nsystem\n" + text("id") + b"o", "global os.system"),
    "OBJ of an allowed global": (b"(ccollections\nOrderedDict\no", "instruction OBJ"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
    "EXT1": (b"\x82\x01", "instruction EXT1"),
    "EXT4": (b"\x84\x01\0\0\0", "instruction EXT4"),
    "text persistent id": (b"Pcmd\n", "instruction PERSID"),
    "persistent id of another kind": (OTHER_KIND, "persistent id"),
    "persistent id that is a number": (number(0) + b"Q", "persistent id"),
    "persistent id with another class": (OTHER_CLASS, "persistent id"),
    "REDUCE of a result": (b"ccollections\nOrderedDict\n)R)R", "call of something that is not a known function"),
    "REDUCE of text": (text("os.system") + text("id") + b"\x85R", "call of something that is not a known function"),
    "REDUCE with surplus arguments": (
        b"ccollections\nOrderedDict\n" + text("x") + b"\x85R",
        "collections.OrderedDict with arguments",
    ),
    "BUILD on a dict": (b"}}" + text("__class__") + number(1) + b"sb", "treats another value as a state dict"),
    "BUILD of another attribute": (
        b"ccollections\nOrderedDict\n)R}" + text("items") + number(1) + b"sb",
        "other attributes",
    ),
    "a function as a value": (b"ctorch._utils\n_rebuild_tensor_v2\n", "bare torch._utils._rebuild_tensor_v2"),
    "a storage as a value": (storage(), "bare storage"),
    "a module as prefix": (b"ctorch.serialization\nos.system\n", "global torch.serialization.os.system"),
    "a space in the module": (b"ccollections x\nOrderedDict\n", "global collections x.OrderedDict"),
    "an unknown instruction": (b"\xff", "malformed pickle"),
    "escapes in a global": (b"ccollection\\x73\nOrderedDict\n", "global collection\\x73.OrderedDict"),
    "a global cut short": (b"ccollections", "malformed pickle"),
    "an argument cut short": (b"X\xff\xff\xff\x7fab", "malformed pickle"),
    "text that is not UTF-8": (b"X\x01\0\0\0\xff", "malformed pickle"),
    "POP": (b"NN0", "instruction POP"),
    "DUP": (b"N2\x86", "instruction DUP"),
    "old text number": (b"I1\n", "instruction INT"),
    "an empty stack": (b"R", "takes more from its stack"),
    "values left over": (b"NN", "leaves values on its stack"),
    "an open mark": (b"(N", "leaves values on its stack"),
    "a mark never set": (b"t", "mark that was never set"),
    "a memo never set": (b"h\x05", "memo index 5, which was never set"),
    "a huge memo index": (b"Nr\xff\xff\xff\xff", "memo index 4,294,967,295"),
    "a key without value": (b"}(" + text("x") + b"u", "key without a value"),
    "APPEND to a dict": (b"}Na", "treats another value as a list"),
    "deep nesting": (b"]" * 70 + b"a" * 69, "nested deeper than 64"),
    "a list inside itself": (b"]q\0h\0a", "nested deeper than 64"),
    "a memo bomb": (
        b"()q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"t",
        "unfold to more than",
    ),
    "memory by a constructor": (
        b"c__builtin__\nbytearray\n" + number(2**40) + b"\x85R",
        "call of builtins.bytearray",
    ),
    "memory by a tensor class": (b"ctorch\nFloatTensor\n" + number(2**40) + b"\x85R", "global torch.FloatTensor"),
    "a wide memo bomb": (b"]q\0(" + b"N" * 2000 + b"e](" + b"h\0" * 2000 + b"e\x86", "unfold to more than"),
    "PROTO again": (b"\x80\x02N", "instruction PROTO"),
}
OVERSIZED = {
    "a storage larger than its file": (
        tensor(storage(count=2**40), shape=(2**40,)),
        "storage '0' of 1099511627776 float32 values",
    ),
    "a storage smaller than its file": (tensor(storage(count=2), shape=(2,)), "storage '0' of 2 float32 values"),
    "a storage of negative size": (tensor(storage(count=-1)), "storage '0' of -1"),
    "a storage that is not there": (tensor(storage("1")), "storage '1', which is not in the archive"),
    "a shape beyond the storage": (tensor(storage(), shape=(2**28,)), "tensor of shape (268435456,)"),
    "a stride beyond the storage": (tensor(storage(), shape=(2, 2), stride=(2**40, 1)), "tensor of shape (2, 2)"),
    "an offset beyond the storage": (tensor(storage(), offset=1), "tensor of shape (4,) at 1"),
    "an empty tensor beyond the storage": (tensor(storage(), offset=2**40, shape=(0,)), "at 1099511627776"),
    "one value repeated": (tensor(storage(), shape=(2**40,), stride=(0,)), "tensor of shape (1099511627776,)"),
    "a negative offset": (tensor(storage(), offset=-1), "arguments that torch.save never gives it"),
    "a negative length": (tensor(storage(), shape=(-1,)), "arguments that torch.save never gives it"),
    "a negative stride": (tensor(storage(), stride=(-1,)), "arguments that torch.save never gives it"),
    "strides of another rank": (tensor(storage(), shape=(2, 2)), "arguments that torch.save never gives it"),
    "a length of 600 digits": (tensor(storage(), shape=(2**2000,)), "arguments that torch.save never gives it"),
    "65 dimensions": (tensor(storage(), shape=(1,) * 65, stride=(1,) * 65), "arguments that torch.save never gives it"),
    "a key with a path": (tensor(storage("../0")), "storage with the key '../0'"),
    "an odd device": (tensor(storage(location="cpu;id")), "on the device 'cpu;id'"),
    "two dtypes of one storage": (
        b"(" + tensor(storage()) + tensor(storage(count=2, kind="LongStorage"), shape=(2,)) + b"t",
        "with two dtypes",
    ),
}

SPOILT_ARCHIVES = {
    "compressed": (lambda raw: rewritten(raw, CENTRAL, 10, "<H", 8), "is compressed"),
    "compressed by its own header only": (lambda raw: rewritten(raw, LOCAL, 8, "<H", 8), "contradict each other"),
    "encrypted": (lambda raw: rewritten(rewritten(raw, CENTRAL, 8, "<H", 1), LOCAL, 6, "<H", 1), "is encrypted"),
    "odd flags": (
        lambda raw: rewritten(rewritten(raw, CENTRAL, 8, "<H", 0x20), LOCAL, 6, "<H", 0x20),
        "flags that torch.save never sets",
    ),
    "sizes that differ": (lambda raw: rewritten(raw, LOCAL, 22, "<I", 7), "contradict each other"),
    "a name that differs": (lambda raw: raw.replace(b"a/data.pkl", b"a/dota.pkl", 1), "contradict each other"),
    "two members at one place": (lambda raw: rewritten(raw, CENTRAL, 42, "<I", 0, which=1), "overlaps another"),
    "a count that is wrong": (
        lambda raw: rewritten(rewritten(raw, END, 8, "<H", 2), END, 10, "<H", 2),
        "its end record says 2",
    ),
    "a directory elsewhere": (lambda raw: rewritten(raw, END, 16, "<I", 5), "does not describe this file"),
    "a directory of other things": (lambda raw: raw.replace(CENTRAL, b"PK\x01\x03", 1), "directory is malformed"),
    "a member beyond the end": (lambda raw: rewritten(raw, CENTRAL, 42, "<I", 2**31, which=2), "leaves a gap"),
    "a 64-bit size that is missing": (lambda raw: rewritten(raw, CENTRAL, 24, "<I", 0xFFFFFFFF), "lacks a 64-bit size"),
}

OTHER_MEMBERS = [
    ({"b/data.pkl": b"x"}, "two root folders, 'a' and 'b'"),
    ({"a/DATA.PKL": b"x"}, "holds 'DATA.PKL' twice"),
    ({"a/../data.pkl": b"x"}, "member with the name"),
    ({"/etc/x": b"x"}, "member with the name"),
    ({"data.pkl": b"x"}, "member with the name"),
    ({"a/x\\y": b"x"}, "member with the name"),
    ({"a/é": b"x"}, "member with the name"),
    ({"a/code/model.py": b"import os"}, "TorchScript"),
    ({"a/constants.pkl": b"x"}, "TorchScript"),
    ({"a/readme": b"x"}, "member 'readme'"),
]

DUPLICATE = (
    b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
)
UNSAFE_HEADERS = {
    "a name twice": (DUPLICATE, bytes(8), "the name 'w' twice"),
    "a key of a tensor twice": (
        b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
        "the name 'dtype' twice",
    ),
    "leading spaces": (b"  " + json.dumps({"w": entry()}).encode(), bytes(8), "does not begin with '{'"),
    "a name with a path": ({"../../etc/x": entry()}, bytes(8), "the name '../../etc/x'"),
    "an absolute name": ({"/etc/x": entry()}, bytes(8), "the name '/etc/x'"),
    "no name": ({"": entry()}, bytes(8), "the name ''"),
    "a name with a NUL": ({"a\0b": entry()}, bytes(8), "the name"),
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b' begins at byte 4"),
    "a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), "'b' begins at byte 12"),
    "a late start": ({"a": entry(4, 12)}, bytes(12), "'a' begins at byte 4"),
    "trailing bytes": ({"a": entry()}, bytes(9), "1 bytes behind the last tensor"),
    "bytes that do not fit the shape": ({"a": entry(0, 4)}, bytes(4), "needs 8 bytes and is given 4"),
    "begin after end": ({"a": entry(8, 0)}, bytes(8), "is given -8"),
    "negative": ({"a": entry(shape=(-1,))}, bytes(8), "with the shape"),
    "overflowing": ({"a": entry(shape=(2**62, 2**62))}, bytes(8), "is given 8"),
    "a shape of text": ({"a": {**entry(), "shape": "2"}}, bytes(8), "with the shape"),
    "a shape of truths": ({"a": {**entry(0, 4), "shape": [True]}}, bytes(4), "with the shape"),
    "a surplus key": ({"a": {**entry(), "x": 1}}, bytes(8), "is not described by"),
    "not an object": (b"[]", b"", "does not begin"),
    "not JSON": (b"{nope}", b"", "not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not JSON"),
    "5,000 levels": (b'{"a":' * 5000 + b"1" + b"}" * 5000, b"", "not JSON|is not described by"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b"", "metadata"),
    "bools of 2": ({"a": entry(0, 2, "BOOL")}, b"\x02\x01", "bytes other than 0 and 1"),
}


# The corpus


def techniques(canary: Path) -> dict[str, Calls]:
    """Objects whose unpickling makes the file `canary`, each in its own way."""
    name, python = str(canary), f"open({str(canary)!r}, 'w')"
    script = canary.with_name("canary.py")
    script.write_text(python)
    inner = pickle.dumps(Calls(open, name, "w"), 2)
    return {
        "os.system": Calls(os.system, f"touch {name}"),
        "os.popen": Calls(os.popen, f"touch {name}"),
        "os.open": Calls(os.open, name, os.O_CREAT),
        "os.mkdir": Calls(os.mkdir, name),
        "os.mkfifo": Calls(os.mkfifo, name),
        "os.symlink": Calls(os.symlink, "/", name),
        "os.link": Calls(os.link, str(script), name),
        "os.rename": Calls(os.rename, str(script), name),
        "os.mknod": Calls(os.mknod, name),
        "eval": Calls(eval, python),
        "exec": Calls(exec, python),
        "open": Calls(open, name, "w"),
        "io.FileIO": Calls(io.FileIO, name, "w"),
        "timeit": Calls(timeit.timeit, python, "pass", time.perf_counter, 1),
        "runpy": Calls(runpy.run_path, str(script)),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", name]),
        "subprocess.call": Calls(subprocess.call, ["touch", name]),
        "subprocess.run": Calls(subprocess.run, ["touch", name]),
        "subprocess.getoutput": Calls(subprocess.getoutput, f"touch {name}"),
        "shutil.copy": Calls(shutil.copy, str(script), name),
        "Path.touch": Calls(pathlib.Path.touch, Path(name)),
        "sqlite3": Calls(sqlite3.connect, name),
        "tarfile": Calls(tarfile.TarFile, name, "w"),
        "zipfile": Calls(zipfile.ZipFile, name, "w"),
        "gzip": Calls(gzip.GzipFile, name, "w"),
        "bz2": Calls(bz2.BZ2File, name, "w"),
        "lzma": Calls(lzma.LZMAFile, name, "w"),
        "logging": Calls(logging.FileHandler, name),
        "numpy": Calls(np.memmap, name, "uint8", "w+", 0, 1),
        "torch.save": Calls(torch.save, 1, name),
        "a pickle in the pickle": Calls(pickle.loads, inner),
        "a call in a call": Calls(next, Calls(map, os.mkdir, [name])),
    }


PROTOCOLS = (0, 2, 4)


def write_corpus(folder: Path, canary: Path) -> list[Path]:
    """Writes every hostile file into an empty folder."""
    files: list[Path] = []

    def new(suffix: str = ".pt") -> Path:
        files.append(folder / f"{len(files):03d}{suffix}")
        return files[-1]

    payload = b"cposix\nsystem\n" + text(f"touch {canary}") + b"\x85R"
    honest = {**honest_members(), "a/data.pkl": program(payload)}
    for call in techniques(canary).values():
        for protocol in PROTOCOLS:
            pt(new(), pickle.dumps({"model": {"w": call}}, protocol))
        legacy(new(), pickle.dumps({"model": {"w": call}, "args": argparse.Namespace(lr=1e-4)}, 2))
    for body, _ in (*HOSTILE.values(), *HIDDEN.values(), *DISGUISED.values(), *CALLED.values(), *STORAGES.values()):
        pt(new(), program(body.replace(text("id"), text(f"touch {canary}"))), FOUR_FLOATS)
    for body, _ in OVERSIZED.values():
        pt(new(), program(b"}" + text("w") + body + b"s" + text("x") + payload + b"s"), FOUR_FLOATS)
    for spoil, _ in SPOILT_ARCHIVES.values():
        path = archive(new(), honest)
        path.write_bytes(spoil(path.read_bytes()))
    for members, _ in OTHER_MEMBERS:
        with warnings.catch_warnings(action="ignore"):
            archive(new(), {**honest, **members})
    # data.pkl twice, the honest one first
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(new(), "w") as file:
        for member, data in [*honest_members().items(), ("a/data.pkl", honest["a/data.pkl"])]:
            file.writestr(member, data)
    with warnings.catch_warnings(action="ignore"):
        for spoil in (*SPOILT_LEGACY.values(), *FILES.values()):
            spoil(new())
    _write_streams_and_polyglots(new, payload, honest)
    _write_bombs(new)
    for header, data, _ in UNSAFE_HEADERS.values():
        safetensors(new(".safetensors"), header, data)
    for place, (make, _) in enumerate(INDICES.values()):
        files.append(make(folder / f"index {place:02d}"))
    return files


def _write_streams_and_polyglots(new: Callable[..., Path], payload: bytes, honest: dict[str, bytes]) -> None:
    clean = program(b"}" + text("w") + tensor(storage()) + b"s")
    pt(new(), clean + program(payload), FOUR_FLOATS)
    pt(new(), clean + payload + b".", FOUR_FLOATS)
    new().write_bytes(program(payload))
    new().write_bytes(pickle.dumps(Calls(os.system, "true"), 4))
    raw = archive(new(), honest).read_bytes()
    for before in (
        b"#!/bin/sh\n",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"\xff\xd8\xff" + bytes(64),
        b"GIF89a" + bytes(64),
        program(payload),
        b"<html>",
    ):
        new().write_bytes(before + raw)
    for behind in (b"x", program(payload), raw):
        new().write_bytes(raw + behind)
    new(".safetensors").write_bytes(safetensors(new(".safetensors"), {"a": entry(0, 4)}, bytes(8)).read_bytes() + raw)


def _write_bombs(new: Callable[..., Path]) -> None:
    """Small files, or files of holes, that want gigabytes or hours of who reads them."""
    archive(new(), {**honest_members(), "a/data/1": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    for body in (
        b"}" * 1_900_000,
        b"(" * 1_900_000,
        b"ctorch\nSize\n" * 1_000_000,
        b"](" + b"}" * 1_900_000 + b"e",
        text("ab") * 1_000_000,
    ):
        pt(new(), program(body))
    pt(new(), program(b"]" + (b"(" + b"}" * 90_000 + b"e") * 12))
    pt(new(), program((b"(" + b"}" * 90_000 + b"t") * 20))
    pt(new(), program(text("a" * (32 << 20) + "\U0001f600")))
    for header in (
        b'{"a":[' + b"[]," * 2_700_000 + b"1]}",
        b"{" + b",".join(b'"%x":1' % i for i in range(700_000)) + b',"aa":1,"aa":1}',
    ):
        safetensors(new(".safetensors"), header)
    with new(".safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{")
        file.truncate(100_000_000)
