"""Attacks that hide behind what training checkpoints may hold: in objects of other programs, in the legacy format, in
indices of several files. Each with what its refusal must say.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

from tests.untrusted.handmade import (
    FOUR_FLOATS,
    Calls,
    archive,
    entry,
    honest_members,
    legacy,
    number,
    program,
    pt,
    safetensors,
    storage,
    tensor,
    text,
)

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
    "… with nothing": (b"ctrainer\nShell\n)R", "trainer.Shell, called"),
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
    "BUILD on a module's class": (b"crandom\nRandom\n)\x81}b", "NEWOBJ of random.Random"),
    "BUILD of a partial": (b"cfunctools\npartial\n)\x81(cos\nsystem\n)}Ntb", "NEWOBJ of functools.partial"),
    "NEWOBJ of map": (b"c__builtin__\nmap\ncos\nsystem\n](" + text("id") + b"e\x86\x81", "global __builtin__.map"),
    "NEWOBJ of another package's map": (
        b"csix.moves\nmap\nctrainer\nrun\n](" + text("id") + b"e\x86\x81",
        "an object of six.moves.map that is made of a function or a class",
    ),
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
    "getattr of an object": (b"c__builtin__\ngetattr\n" + FOREIGN + text("run") + b"\x86R", "builtins.getattr"),
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

# Indices of several files: the folder that each makes, with what its refusal must say

_RUNS = {protocol: pickle.dumps(Calls(os.system, "true"), protocol) for protocol in (2, 4)}
_PART = "m-00001-of-00001.safetensors"
_DEEP = b'{"weight_map":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"


def _index(folder: Path, content: object, part: str = _PART) -> Path:
    """An index beside an honest part with the tensor `w`."""
    folder.mkdir(parents=True)
    safetensors(folder / part, {"w": entry()}, bytes(8))
    path = folder / "m.safetensors.index.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps({"weight_map": content}).encode())
    return path


def _linked(folder: Path, target: str) -> Path:
    path = _index(folder, {"w": _PART})
    (folder / _PART).unlink()
    (folder / _PART).symlink_to(target)
    return path


def _with_part(folder: Path, content: object, name: str, part: Callable[[Path], object]) -> Path:
    path = _index(folder, content)
    part(folder / name)
    return path


def _chain(path: Path) -> None:
    """A link to a link that leads elsewhere."""
    path.with_name("inner.bin").symlink_to("/etc/hostname")
    path.symlink_to("inner.bin")


def _doubled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part in (1, 2):
        safetensors(folder / f"m-0000{part}-of-00002.safetensors", {"w": entry()}, bytes(8))
    return folder


INDICES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a part above the folder": (lambda f: _index(f, {"w": f"../{_PART}"}), "in the file '../m"),
    "a part at the root": (lambda f: _index(f, {"w": "/etc/passwd.bin"}), "in the file '/etc"),
    "a part in a folder": (lambda f: _index(f, {"w": f"x/{_PART}"}), "in the file 'x/m"),
    "a part of Windows": (lambda f: _index(f, {"w": "C:\\x.bin"}), "in the file 'C:"),
    "a part with a NUL": (lambda f: _index(f, {"w": "m\0.bin"}), "in the file"),
    "a part with a line": (lambda f: _index(f, {"w": "m.bin\n"}), "in the file"),
    "a hidden part": (lambda f: _index(f, {"w": ".m.bin"}), "in the file '.m"),
    "a part that is a pipe": (lambda f: _index(f, {"w": "pipe:cat /etc/passwd"}), "in the file 'pipe:"),
    "a part of a URL": (lambda f: _index(f, {"w": "https://x/m.bin"}), "in the file 'https:"),
    "a part that is a program": (lambda f: _index(f, {"w": "m.py"}), "in the file 'm.py'"),
    "a part that is an index": (lambda f: _index(f, {"w": "m.safetensors.index.json"}), "in the file"),
    "a part that is no text": (lambda f: _index(f, {"w": 1}), "in the file 1"),
    "a part that is an object": (lambda f: _index(f, {"w": {"file": _PART}}), "in the file {"),
    "a name twice": (lambda f: _index(f, f'{{"weight_map":{{"w":"{_PART}","w":"b.bin"}}}}'.encode()), "twice"),
    "a map twice": (lambda f: _index(f, f'{{"weight_map":{{}},"weight_map":{{"w":"{_PART}"}}}}'.encode()), "twice"),
    "50,000 levels": (lambda f: _index(f, _DEEP), "not JSON of a sane depth"),
    "megabytes": (lambda f: _index(f, b'{"weight_map":{}}' + b" " * (5 << 20)), "an index of more than"),
    "a link to a file elsewhere": (lambda f: _linked(f, "/etc/hostname"), "a link that leads out of its folder"),
    "a link to a device": (lambda f: _linked(f, "/dev/zero"), "a link that leads out of its folder"),
    "a link above": (lambda f: _linked(f, f"../{_PART}"), "a link that leads out of its folder"),
    "a link into another's cache": (lambda f: _linked(f, "/root/blobs/0"), "a link that leads out of its folder"),
    "a tensor in two parts": (
        lambda f: _with_part(
            f,
            {"w": _PART, "v": "n.safetensors"},
            "n.safetensors",
            lambda p: safetensors(p, {"v": entry(), "w": entry(8, 16)}, bytes(16)),
        ),
        "tensor 'w', which is in another part too",
    ),
    "a part of other letters": (lambda f: _index(f, {"w": "\uff4d.bin"}), "in the file"),
    "a part with a space behind it": (lambda f: _index(f, {"w": "m.bin "}), "in the file"),
    "a part above, behind a name": (lambda f: _index(f, {"w": "m/../../x.bin"}), "in the file"),
    "no part": (lambda f: _index(f, {"w": None}), "in the file None"),
    "parts in a list": (lambda f: _index(f, {"w": [_PART]}), "in the file ["),
    "a link to a link": (
        lambda f: _with_part(f, {"w": "n.bin"}, "n.bin", lambda p: (_chain(p), None)),
        "a link that leads out of its folder",
    ),
    "parts without an index, a tensor in two": (_doubled, "tensor 'w', which is in another part too"),
    "a part that is TorchScript": (
        lambda f: _with_part(
            f, {"w": "n.bin"}, "n.bin", lambda p: archive(p, honest_members() | {"a/constants.pkl": b"x"})
        ),
        "a TorchScript archive",
    ),
    "a part that runs": (
        lambda f: _with_part(f, {"w": _PART, "v": "n.bin"}, "n.bin", lambda p: pt(p, _RUNS[2])),
        "system",
    ),
    "a folder of parts, one of which runs": (
        lambda f: _with_part(f, {"w": "n.bin"}, "n.bin", lambda p: pt(p, _RUNS[4])),
        "system",
    ),
}
