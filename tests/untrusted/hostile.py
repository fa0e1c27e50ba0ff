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

from tests.untrusted.handmade import (
    CENTRAL,
    END,
    FOUR_FLOATS,
    LOCAL,
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


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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
NAMESPACE = b"cargparse\nNamespace\n)\x81"
FOREIGN = b"ctrainer.state\nState\n)\x81"
DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R(" + number(3) + text("<") + b"NNN" + number(-1) * 2
DTYPE += number(0) + b"tb"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85C\x01btR"


def _array(shape: bytes, data: bytes, dtype: bytes = DTYPE) -> bytes:
    return EMPTY_ARRAY + b"(" + number(1) + shape + dtype + b"\x89" + data + b"tb"


# Attacks that hide behind what training checkpoints may hold
HIDDEN = {
    "a Namespace with a call in it": (
        NAMESPACE + b"}" + text("x") + b"cos\nsystem\n" + text("id") + b"\x85Rsb",
        "os.system",
    ),
    "a Namespace made by a call": (b"cargparse\nNamespace\n)R", "global argparse.Namespace, called"),
    "a Namespace's own function": (b"cargparse\nopen\n" + text("id") + b"\x85R", "global argparse.open"),
    "a parser that opens files": (b"cargparse\nFileType\n)\x81", "global argparse.FileType"),
    "a function of another program": (b"ctrainer.hooks\nrun\n" + text("id") + b"\x85R", "trainer.hooks.run, called"),
    "a class of another program, called": (b"ctrainer\nState\n" + text("id -a") + b"\x85R", "trainer.State, called"),
    "… with two words": (b"cpexpect\nSpawn\n" + text("rm") + text("x") + b"\x86R", "pexpect.Spawn, called"),
    "… with a list": (b"ctrainer\nState\n](" + text("id") + b"e\x85R", "trainer.State, called"),
    "… with nothing": (b"ctrainer\nState\n)R", "trainer.State, called"),
    "an object that is called": (FOREIGN + text("id") + b"\x85R", "a call of something"),
    "a function in BUILD": (FOREIGN + b"cos\nsystem\nb", "global os.system"),
    "BUILD that changes the class": (
        FOREIGN + b"}" + text("__class__") + FOREIGN + b"sb",
        "gives an object another class",
    ),
    "BUILD of slots that changes the class": (
        FOREIGN + b"N}" + text("__class__") + FOREIGN + b"s\x86b",
        "gives an object another class",
    ),
    "BUILD on a class": (b"ctrainer\nState\n}" + text("run") + b"Nsb", "another value as a state dict"),
    "BUILD on a class of ours": (b"ccollections\nOrderedDict\n}b", "another value as a state dict"),
    "BUILD on a path": (b"cpathlib\nPosixPath\n" + text("a") + b"\x85R}b", "a state for pathlib.PosixPath"),
    "BUILD on a module's class": (b"crandom\nRandom\n)\x81}b", "global random.Random"),
    "BUILD of a partial": (b"cfunctools\npartial\n)\x81(cos\nsystem\n)}Ntb", "global functools.partial"),
    "NEWOBJ of map": (b"c__builtin__\nmap\ncos\nsystem\n](" + text("id") + b"e\x86\x81", "global __builtin__.map"),
    "NEWOBJ of bytes": (
        b"c__builtin__\nbytes\n" + number(2**40) + b"\x85\x81",
        "instruction NEWOBJ of __builtin__.bytes",
    ),
    "NEWOBJ of a Popen": (b"csubprocess\nPopen\n)\x81", "global subprocess.Popen"),
    "NEWOBJ of a text": (text("os.system") + b")\x81", "an object of something that is not a class"),
    "NEWOBJ of an object": (FOREIGN + b")\x81", "an object of something that is not a class"),
    "NEWOBJ of torch's": (b"ctorch.jit._script\nScriptModule\n)\x81", "global torch.jit._script.ScriptModule"),
    "NEWOBJ of a network's function": (b"ctorch.nn.functional\ngelu\n)\x81", "instruction NEWOBJ of torch.nn"),
    "NEWOBJ_EX": (b"ctrainer\nState\n)}\x92", "instruction NEWOBJ_EX"),
    "a call of a network's class": (b"ctorch.nn\nLinear\n" + number(2**30) + b"\x85R", "torch.nn.Linear, called"),
    "a call of an optimizer's": (b"ctorch.optim\nSGD\n" + text("x") + b"\x85R", "torch.optim.SGD, called"),
    "a name through modules": (b"ctrainer\nos.system\n" + text("id") + b"\x85R", "global trainer.os.system"),
    "a module with a path": (b"c../../trainer\nState\n", "global ../../trainer.State"),
    "a module with a colon": (b"cfile:/x\nState\n", "global file:/x.State"),
    "a name of another alphabet": (b"c\xd0\xbes\nsystem\n", "malformed pickle"),
    "a very long name": (b"c" + b"a" * 5000 + b"\nState\n", "global aaa"),
    "getattr of an object": (b"c__builtin__\ngetattr\n" + FOREIGN + text("run") + b"\x86R", "__builtin__.getattr"),
    "getattr for an enumeration": (
        b"c__builtin__\ngetattr\nctrainer\nMode\n" + text("a") + b"\x86R",
        "__builtin__.getattr",
    ),
    "bytes of another codec": (
        b"c_codecs\nencode\n" + text("id") + text("rot13") + b"\x86R",
        "a call of _codecs.encode",
    ),
    "bytes decoded": (b"c_codecs\ndecode\n" + text("id") + b"\x85R", "global _codecs.decode"),
    "a codec's search": (b"c_codecs\nregister\n" + b"cos\nsystem\n\x85R", "global _codecs.register"),
    "bytes of wide text": (b"c_codecs\nencode\n" + text("\u20ac") + text("latin1") + b"\x86R", "other characters"),
    "a default factory that runs": (
        b"ccollections\ndefaultdict\nctrainer\nrun\n\x85R",
        "a call of collections.defaultdict",
    ),
    "a default factory of the system": (b"ccollections\ndefaultdict\ncos\nsystem\n\x85R", "global os.system"),
    "a deque of a map": (b"ccollections\ndeque\n" + FOREIGN + b"\x85R", "a call of collections.deque"),
    "a set of an iterator": (b"c__builtin__\nset\n" + FOREIGN + b"\x85R", "a call of builtins.set"),
    "type with three arguments": (b"c__builtin__\ntype\n" + text("X") + b")}\x87R", "a call of builtins.type"),
    "getitem of an object": (b"c_operator\ngetitem\n" + FOREIGN + text("x") + b"\x86R", "a call of _operator.getitem"),
    "getitem of text to evaluate": (
        b"c_operator\ngetitem\nctyping\nOptional\n" + text("__import__('os')") + b"\x86R",
        "a call of _operator.getitem",
    ),
    "typing that evaluates": (
        b"ctyping\nget_type_hints\n" + FOREIGN + b"\x85R",
        "global typing.get_type_hints, called",
    ),
    "a path of objects": (b"cpathlib\nPosixPath\n" + FOREIGN + b"\x85R", "a call of pathlib.PosixPath"),
    "a date of objects": (b"cdatetime\ndatetime\n" + FOREIGN + b"\x85R", "a call of datetime.datetime"),
    "objects in numpy": (b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R", "a call of numpy.dtype"),
    "fields in numpy": (
        _array(number(1) + b"\x85", b"C\x041234", DTYPE.replace(b"NNN", b"N(" + text("a") + b"t}")),
        "a numpy array whose state",
    ),
    "a numpy array of objects": (_array(number(1) + b"\x85", b"](cos\nsystem\ne"), "global os.system"),
    "a numpy array of a list": (_array(number(1) + b"\x85", b"]Na"), "a numpy array whose state"),
    "a numpy array too large": (_array(number(2**40) + b"\x85", b"C\x041234"), "a numpy array whose state"),
    "a numpy array of a negative shape": (_array(number(-1) + b"\x85", b"C\x041234"), "a numpy array whose state"),
    "a numpy array filled twice": (
        _array(number(1) + b"\x85", b"C\x041234") + b"(" + number(1) + number(1) + b"\x85" + DTYPE + b"\x89C\x041234tb",
        "a numpy array whose state",
    ),
    "a numpy array of another class": (
        b"cnumpy.core.multiarray\n_reconstruct\n(ctrainer\nArray\n" + number(0) + b"\x85C\x01btR",
        "a call of numpy.core.multiarray._reconstruct",
    ),
    "a numpy scalar of objects": (
        b"cnumpy.core.multiarray\nscalar\n" + FOREIGN + b"C\x041234\x86R",
        "a call of numpy.core.multiarray.scalar",
    ),
    "a numpy scalar of other bytes": (
        b"cnumpy.core.multiarray\nscalar\n" + DTYPE + b"C\x011\x86R",
        "a call of numpy.core.multiarray.scalar",
    ),
    "numpy that loads": (b"cnumpy\nload\n" + text("x.npy") + b"\x85R", "global numpy.load"),
    "numpy that runs": (b"cnumpy.testing._private.utils\nrunstring\n" + text("id") + b"}\x86R", "global numpy.testing"),
    "a tensor of bytes that are loaded": (
        b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R",
        "torch.storage._load_from_bytes",
    ),
    "a tensor rebuilt by a stranger": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n" + text("id") + b"\x85Nt)R",
        "global os.system",
    ),
    "a tensor rebuilt by a foreign function": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctrainer\nrun\nctorch\nTensor\n" + text("id") + b"\x85NtR",
        "a call of torch._tensor._rebuild_from_type_v2",
    ),
    "a parameter of an object": (
        b"ctorch._utils\n_rebuild_parameter\n" + FOREIGN + b"\x88ccollections\nOrderedDict\n)R\x87R",
        "a call of torch._utils._rebuild_parameter",
    ),
    "a tensor of a bad storage": (tensor(FOREIGN), "a tensor with arguments"),
    "a tensor with hooks": (
        tensor(storage())[: -len(b"tR")] + text("x") + b"cos\nsystem\nstR",
        "global os.system",
    ),
    "a compiled graph": (b"ctorch.fx.graph_module\nreduce_graph_module\n}" + text("id") + b"\x86R", "torch.fx"),
    "a package of code": (
        b"ctorch.package.package_importer\nPackageImporter\n" + text("x") + b"\x85R",
        "torch.package",
    ),
    "code by value": (b"ccloudpickle.cloudpickle\n_make_function\n" + text("x") + b"\x85R", "_make_function, called"),
    "code by dill": (b"cdill._dill\n_create_function\n" + text("x") + b"\x85R", "_create_function, called"),
    "a lock that is taken": (b"cthreading\nLock\n)R", "global threading.Lock"),
    "a logger's file": (b"clogging\nFileHandler\n" + text("id") + b"\x85R", "global logging.FileHandler"),
    "pip": (b"cpip\nmain\n](" + text("install") + b"e\x85R", "global pip.main"),
    "a setter of attributes": (b"c__builtin__\nsetattr\n" + FOREIGN + text("x") + b"N\x87R", "__builtin__.setattr"),
    "an importer": (b"cimportlib\nimport_module\n" + text("os") + b"\x85R", "global importlib.import_module"),
    "old instances": (
        b"ccopy_reg\n_reconstructor\nctrainer\nState\nc__builtin__\nobject\nN\x87R",
        "copy_reg._reconstructor",
    ),
    "a memo bomb in an object": (
        FOREIGN + b"()q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"tb",
        "unfold to more than",
    ),
    "a deep value in an object": (FOREIGN + b"}" + text("x") + b"]" * 70 + b"a" * 69 + b"sb", "nested deeper than 64"),
    "a storage in an object": (FOREIGN + b"}" + text("x") + storage() + b"sb", "bare storage"),
    "a function of torch in an object": (
        FOREIGN + b"}" + text("x") + b"ctorch._utils\n_rebuild_tensor_v2\nsb",
        "a bare torch",
    ),
    "a tensor many times": (
        tensor(storage()) + b"q\x01](" + b"h\x01" * 90_000 + b"eq\x02](" + b"h\x02" * 99 + b"e\x87",
        "unfold to",
    ),
    "text of many bytes": (
        b"c_codecs\nencode\nq\0" + text("a" * (1 << 20)) + text("latin1") + b"\x86q\x01R" + b"h\0h\x01R" * 20 + b"t",
        "bytes written as text",
    ),
}


def _legacy_tensor(key: str = "0", count: int = 4, view: bytes = b"N") -> bytes:
    """As the legacy format refers to storages, with a sixth part."""
    return tensor(storage(key, count).removesuffix(b"tQ") + view + b"tQ")


LEGACY = program(b"}" + text("w") + _legacy_tensor() + b"s")
SPOILT_LEGACY = {
    "another magic number": lambda path: legacy(path, LEGACY, FOUR_FLOATS, magic=5),
    "another version": lambda path: legacy(path, LEGACY, FOUR_FLOATS, version=1000),
    "a big-endian machine": lambda path: legacy(path, LEGACY, FOUR_FLOATS, machine={"little_endian": False}),
    "a machine that runs": lambda path: legacy(path, LEGACY, FOUR_FLOATS, machine=Calls(os.system, "true")),
    "keys that run": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys=Calls(os.system, "true")),
    "keys of no tensor": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys=["0", "1"]),
    "a key twice": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys=["0", "0"]),
    "no keys": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys=[]),
    "keys that are no list": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys="0"),
    "objects as keys": lambda path: legacy(path, LEGACY, FOUR_FLOATS, keys=argparse.Namespace(a="0")),
    "a storage of another size": lambda path: legacy(path, LEGACY, {"0": bytes(8)}),
    "a storage larger than the file": lambda path: legacy(path, program(_legacy_tensor(count=2**40)), FOUR_FLOATS),
    "a storage of two sizes": lambda path: legacy(
        path, program(_legacy_tensor() + _legacy_tensor(count=2) + b"\x86"), FOUR_FLOATS
    ),
    "bytes behind the end": lambda path: path.write_bytes(legacy(path, LEGACY, FOUR_FLOATS).read_bytes() + b"x"),
    "a view of a storage": lambda path: legacy(
        path, program(_legacy_tensor(view=b"(" + text("1") + number(0) * 2 + b"t")), FOUR_FLOATS
    ),
    "a zip behind it": lambda path: path.write_bytes(
        legacy(path, LEGACY, FOUR_FLOATS).read_bytes() + archive(path, honest_members()).read_bytes()
    ),
    "a tar": lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(300)),
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
    for body, _ in (*HOSTILE.values(), *HIDDEN.values()):
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
    for spoil in SPOILT_LEGACY.values():
        spoil(new())
    _write_streams_and_polyglots(new, payload, honest)
    _write_bombs(new)
    for header, data, _ in UNSAFE_HEADERS.values():
        safetensors(new(".safetensors"), header, data)
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
