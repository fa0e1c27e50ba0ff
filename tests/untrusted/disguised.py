"""Attacks that look like what training checkpoints hold: enumerations, kinds of dicts, calls that are kept for later,
states of random generators, bytes that are pickles themselves, storages and tensors inside objects. Each with what its
refusal must say.
"""

from __future__ import annotations

import os
import pickle
import struct

from tests.untrusted.handmade import (
    Calls,
    number,
    storage,
    tensor,
    text,
)

FOREIGN = b"ctrainer.state\nState\n)\x81"
NAMESPACE = b"cargparse\nNamespace\n)\x81"
HOOKS = b"ccollections\nOrderedDict\n)R"
SYSTEM = b"cos\nsystem\n"


def named(full: str) -> bytes:
    """A class or function by its dotted name."""
    module, _, name = full.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def called(full: str, *arguments: bytes) -> bytes:
    return named(full) + b"(" + b"".join(arguments) + b"tR"


def raw(data: bytes) -> bytes:
    """Bytes as protocol 3 writes them."""
    return b"B" + struct.pack("<I", len(data)) + data


def within(body: bytes, holder: bytes = FOREIGN) -> bytes:
    """As an attribute of an object."""
    return holder + b"}" + text("x") + body + b"sb"


# Classes that run the word that they are given, in the form of an enumeration's member

_RUNNERS = {
    **{"pexpect.popen_spawn.PopenSpawn": "reboot", "psutil.Popen": "x", "trainer.System": "x", "sh.Command": "ls"},
    **{"paramiko.proxy.ProxyCommand": "reboot", "pexpect.pty_spawn.Spawn": "bash", "fabric.Connection": "host"},
    **{"invoke.Context": "x", "delegator.Command": "ls", "trainer.Shell": "ls", "trainer.Runner": "id"},
    **{"plumbum.SshMachine": "host", "docker.DockerClient": "host", "trainer.Process": "ls", "trainer.Task": "reboot"},
    **{"selenium.webdriver.Chrome": "x", "git.Repo": "x", "keyring.Backend": "x", "trainer.Exec": "id"},
    **{"__main__.Popen": "reboot", "trainer.utils.Popen": "reboot", "trainer._Popen": "reboot"},
}
RUNNERS = {f"{full}({word!r})": (called(full, text(word)), f"{full}, called") for full, word in _RUNNERS.items()}

# What a class with the name of an enumeration is not given

_NO_CHOICES = {
    "code": text("__import__('os').system('id')"),
    "brackets": text("exit()"),
    "a command behind another": text("bf16; id"),
    "a command in another": text("$(id)"),
    "a command in back quotes": text("`id`"),
    "a pipe": text("x|sh"),
    "a path": text("/etc/passwd"),
    "a path of a home": text("~.ssh"),
    "a URL": text("https://x"),
    "a line break": text("bf16\nid"),
    "an assignment": text("LD_PRELOAD=x"),
    "words of another alphabet": text("ｂｆ16"),
    "a long text": text("a" * 65),
    "bytes": raw(b"bf16"),
    "a list": b"]" + text("bf16") + b"a",
    "a dict": b"}" + text("a") + text("b") + b"s",
    "an object": FOREIGN,
    "a class": named("trainer.State"),
    "a function": named("trainer.run"),
    "a large number": number(2**40),
    "a tuple in a tuple": text("a") + b"\x85\x85",
    "many values": b"(" + text("a") * 9 + b"t",
    "a tuple with code": text("a") + text("exit()") + b"\x86",
    "a tuple with an object": text("a") + FOREIGN + b"\x86",
}
CHOICES = {
    f"an enumeration of {name}": (called("trainer.Precision", value), "trainer.Precision, called")
    for name, value in _NO_CHOICES.items()
}
CHOICES |= {
    "an enumeration's function": (called("trainer.run_mode", text("a")), "trainer.run_mode, called"),
    "a number for a function": (called("trainer.run", number(1)), "trainer.run, called"),
    "an enumeration of Python's": (called("signal.Signals", number(9)), "global signal.Signals"),
    "a type of argparse's": (called("argparse.FileType", text("w")), "global argparse.FileType"),
    "a mode of torch's": (called("torch.utils.FlopCounterMode", number(1)), "global torch.utils.FlopCounterMode"),
    "an enumeration through a module": (b"ctrainer\nos.Mode\n" + text("a") + b"\x85R", "global trainer.os.Mode"),
    "an enumeration with a mark": (called("trainer.Mode!", text("a")), "global trainer.Mode!"),
    "a member that is called": (called("trainer.Mode", text("a")) + b")R", "a call of something"),
    "a member that is made": (called("trainer.Mode", text("a")) + b")\x81", "an object of something"),
    "a member by its table": (called("operator.getitem", named("trainer.Mode"), text("a")), "a call of _operator"),
}

# Kinds of dicts, lists, deques

CONTAINERS = {
    "a kind of dict of a function of a stranger": (
        called("trainer.Config", named("trainer.run")),
        "trainer.Config, called",
    ),
    "… of a function of the system": (called("trainer.Config", SYSTEM), "global os.system"),
    "… of texts": (called("trainer.Config", b")", text("id")), "trainer.Config, called"),
    "… of a list": (called("trainer.Config", b"]" + text("id") + b"a"), "trainer.Config, called"),
    "… by a function, filled": (called("trainer.config") + text("a") + b"Ns", "trainer.config, called"),
    "… of Python's, filled": (called("shelve.Shelf") + text("a") + b"Ns", "global shelve.Shelf"),
    "a set of commands": (called("trainer.Values", b"](" + text("rm") + text("x") + b"e"), "trainer.Values, called"),
    "a chain of maps": (called("collections.ChainMap", b"}"), "global collections.ChainMap"),
    "a deque of texts": (called("collections.deque", b"]" + text("id") + b"a"), "a call of collections.deque"),
    "a deque with a length of text": (called("collections.deque", b")", text("9")), "a call of collections.deque"),
    "a factory that is kept": (
        called("collections.defaultdict", called("functools.partial", named("torch.optim.SGD"))),
        "a call of collections.defaultdict",
    ),
    "a dict that changes its class": (
        called("trainer.Config") + text("a") + b"Ns}" + text("__class__") + FOREIGN + b"sb",
        "gives an object another class",
    ),
}

# Calls that are kept for later


def kept(function: bytes, state: bytes | None = None) -> bytes:
    return called("functools.partial", function) + (b"(" + (state or function + b")}N") + b"tb")


KEPT = {
    "a kept call of the system's": (kept(SYSTEM), "global os.system"),
    "a kept call of eval": (kept(named("builtins.eval")), "global builtins.eval"),
    "a kept call of getattr": (kept(named("builtins.getattr")), "a call of functools.partial"),
    "a kept call of print": (kept(named("builtins.print")), "global builtins.print"),
    "a kept call of a stranger's function": (kept(named("trainer.run")), "a call of functools.partial"),
    "a kept call of a stranger's class": (kept(named("trainer.Popen")), "a call of functools.partial"),
    "a kept call of an object": (kept(FOREIGN), "a call of functools.partial"),
    "a kept call of torch.load": (kept(named("torch.load")), "global torch.load"),
    "a kept call of torch.hub": (kept(named("torch.hub.load")), "global torch.hub.load"),
    "a kept call of a kept one": (kept(kept(named("torch.optim.SGD"))), "a call of functools.partial"),
    "a kept call that changes": (kept(named("torch.nn.Linear"), SYSTEM + b")}N"), "global os.system"),
    "… to a stranger's": (
        kept(named("torch.nn.Linear"), named("trainer.run") + b")}N"),
        "a functools.partial whose state",
    ),
    "… twice": (
        kept(named("torch.nn.Linear")) + b"(" + named("torch.nn.Linear") + b")}Ntb",
        "a functools.partial whose state",
    ),
    "… with attributes": (
        kept(named("torch.nn.Linear"), named("torch.nn.Linear") + b")}}" + text("a") + b"Ns"),
        "a functools.partial whose state",
    ),
    "… with a list": (kept(named("torch.nn.Linear"), named("torch.nn.Linear") + b"]}N"), "a functools.partial whose"),
    "a kept call with arguments": (
        called("functools.partial", named("torch.nn.Linear"), text("x")),
        "functools.partial",
    ),
    "a kept call that is made": (
        b"cfunctools\npartial\n" + named("torch.nn.Linear") + b"\x85\x81",
        "NEWOBJ of functools",
    ),
    "a kept call that is called": (kept(named("torch.nn.Linear")) + number(2**30) + b"\x85R", "a call of something"),
    "a kept call in a map": (
        named("six.moves.map") + kept(named("torch.nn.init.zeros_")) + b"](" + number(1) + b"e\x86\x81",
        "made of a function or a class",
    ),
    "a kept method": (kept(named("functools.partialmethod")), "global functools.partialmethod"),
    "a reduction": (called("functools.reduce", named("trainer.run"), b"]"), "a call of _functools.reduce"),
}

# Bytes that are pickles themselves, for classes that unpickle their state

_INNER = [pickle.dumps(Calls(os.system, "true"), protocol) for protocol in (0, 2, 4)]
_ENDLESS = b"\x80\x02" + b"N0" * 100_000
_INSIDE = "a pickle inside the bytes"
INNER = {
    **{f"a state of a pickle, {place}": (FOREIGN + raw(inner) + b"b", _INSIDE) for place, inner in enumerate(_INNER)},
    "a pickle by name": (within(raw(_INNER[1])), _INSIDE),
    "a pickle in a list": (within(b"]" + raw(_INNER[1]) + b"a"), _INSIDE),
    "a pickle in an object in an object": (within(within(raw(_INNER[2]))), _INSIDE),
    "a pickle in a Namespace": (within(raw(_INNER[0]), NAMESPACE), _INSIDE),
    "a pickle in slots": (FOREIGN + b"N}" + text("x") + raw(_INNER[1]) + b"s\x86b", _INSIDE),
    "a pickle at the making": (named("trainer.State") + raw(_INNER[1]) + b"\x85\x81", _INSIDE),
    "a pickle in a kind of dict": (FOREIGN + text("x") + raw(_INNER[1]) + b"s", _INSIDE),
    "a pickle in a kind of list": (FOREIGN + raw(_INNER[1]) + b"a", _INSIDE),
    "a pickle as text": (
        within(called("_codecs.encode", text(_INNER[1].decode("latin1")), text("latin1"))),
        _INSIDE,
    ),
    "a pickle in an array of bytes": (within(called("builtins.bytearray", raw(_INNER[1]))), _INSIDE),
    "a pickle for a wrapper": (
        b"cstable_baselines3.common.vec_env.base_vec_env\nCloudpickleWrapper\n)\x81" + raw(_INNER[2]) + b"b",
        _INSIDE,
    ),
    "a pickle without an end": (within(raw(_ENDLESS)), _INSIDE),
    "a pickle that is shared with plain values": (
        b"(" + raw(_INNER[1]) + b"q\1" + within(b"h\1") + b"t",
        _INSIDE,
    ),
}

# What reconstructs values of known modules, given something else

_PCG64, _MAKER = named("numpy.random._pcg64.PCG64"), named("numpy.random._pickle.__bit_generator_ctor")
_RANDOM = "numpy.random._pickle.__"
RECONSTRUCTED = {
    "a generator of the system": (called(f"{_RANDOM}generator_ctor", SYSTEM), "global os.system"),
    "a generator of a stranger": (called(f"{_RANDOM}generator_ctor", named("trainer.Bits")), "generator_ctor with"),
    "a generator of an object": (called(f"{_RANDOM}generator_ctor", FOREIGN), "generator_ctor with"),
    "a generator by a stranger": (
        called(f"{_RANDOM}generator_ctor", _PCG64, named("trainer.run")),
        "generator_ctor with",
    ),
    "a generator by name": (called(f"{_RANDOM}bit_generator_ctor", text("os.system")), "generator_ctor with"),
    "an old generator by the system": (called(f"{_RANDOM}randomstate_ctor", _PCG64, SYSTEM), "global os.system"),
    "a maker as a value": (_MAKER, "a bare numpy.random._pickle.__bit_generator_ctor"),
    "a seed of a stranger": (
        called("numpy.random.bit_generator.__pyx_unpickle_SeedSequence", named("trainer.S"), number(1), b"N"),
        "__pyx_unpickle_SeedSequence with",
    ),
    "another function of Cython's": (called("trainer.__pyx_unpickle_X", number(1)), "trainer.__pyx_unpickle_X, called"),
    "numpy's other functions": (called("numpy.random._pickle.BitGenerators", number(1)), "global numpy.random._pickle"),
    "numpy's tests": (
        called("numpy.random.bit_generator.randbits", number(2**40)),
        "global numpy.random.bit_generator",
    ),
    "a pattern of an object": (called("re._compile", FOREIGN, number(0)), "a call of re._compile"),
    "a pattern that replaces": (called("re.sub", text("a"), named("trainer.run"), text("a")), "global re.sub"),
    "a scanner": (called("re.Scanner", b"]"), "global re.Scanner"),
    "a random number's seed": (called("random.Random", FOREIGN), "a call of random.Random"),
    "random numbers of the system": (called("random.SystemRandom"), "global random.SystemRandom"),
    "a numeric array of objects": (called("array.array", text("d"), b"]" + FOREIGN + b"a"), "a call of array.array"),
    "a numeric array of a file": (called("array.array", text("d"), FOREIGN), "a call of array.array"),
    "a numeric array of a stranger": (
        called("array._array_reconstructor", named("trainer.State"), text("d"), number(16), raw(bytes(8))),
        "a call of array._array_reconstructor",
    ),
    "a generator of torch's on text": (called("torch._C.Generator", text("cpu")), "a call of torch._C.Generator"),
    "a generator of torch's on a device of text": (
        called("torch._C.Generator", called("torch.device", FOREIGN)),
        "a call of torch.device",
    ),
    "a layout of another module": (called("torch.serialization._get_layout", text("os.system")), "_get_layout with"),
    "a function of torch.serialization": (called("torch.serialization._load", text("x")), "torch.serialization._load"),
    "a scaler that is called": (called("torch.amp.grad_scaler.GradScaler", text("cpu")), "GradScaler, called"),
    "a C function": (called("torch._C._jit_get_operation", text("x")), "global torch._C._jit_get_operation"),
    "an operator": (called("torch.ops.load_library", text("x.so")), "global torch.ops.load_library"),
    "a process": (called("torch.multiprocessing.spawn", named("trainer.run")), "global torch.multiprocessing.spawn"),
    "an extension": (called("torch.utils.cpp_extension.load_inline", text("x")), "global torch.utils.cpp_extension"),
    "a fraction of an object": (called("fractions.Fraction", FOREIGN), "a call of fractions.Fraction"),
    "a range of an object": (called("builtins.range", FOREIGN), "a call of builtins.range"),
    "a time zone's file": (called("zoneinfo.ZoneInfo", text("../../etc/passwd")), "global zoneinfo.ZoneInfo"),
    "an address": (called("ipaddress.ip_address", text("x")), "global ipaddress.ip_address"),
    "memory of a constructor": (called("builtins.range", b"](" + b"N" * 99 + b"e"), "a call of builtins.range"),
    "a table of weak references": (b"cweakref\nWeakValueDictionary\n)\x81", "global weakref.WeakValueDictionary"),
    "a module": (called("types.ModuleType", text("os")), "global types.ModuleType"),
    "a code object": (called("types.CodeType", number(0)), "global types.CodeType"),
    "a function object": (called("types.FunctionType", FOREIGN), "global types.FunctionType"),
    "a data class at run time": (called("dataclasses.make_dataclass", text("X"), b"]"), "global dataclasses"),
    "an enumeration at run time": (called("enum.Enum", text("X"), text("a")), "global enum.Enum"),
    "a named tuple at run time": (
        called("collections.namedtuple", text("X"), text("a")),
        "global collections.namedtuple",
    ),
}

# Instructions, names and memo

INSTRUCTIONS = {
    "EXT2": (b"\x83\x01\x00", "instruction EXT2"),
    "INST of a stranger": (b"(" + text("id") + b"itrainer\nState\n", "instruction INST"),
    "OBJ of a stranger": (b"(ctrainer\nState\n" + text("id") + b"o", "instruction OBJ"),
    "a name of None": (text("os") + b"N\x93", "a global whose name is not text"),
    "a name of bytes": (raw(b"os") + raw(b"system") + b"\x93", "a global whose name is not text"),
    "a name of an object": (text("os") + FOREIGN + b"\x93", "a global whose name is not text"),
    "a name in a tuple": (text("os") + text("system") + b"\x85\x93", "a global whose name is not text"),
    "a name of a class": (named("trainer.State") + text("system") + b"\x93", "a global whose name is not text"),
    "a name of one value": (text("system") + b"\x93", "takes more from its stack"),
    "a name with spaces": (text(" os") + text("system") + b"\x93", "global  os.system"),
    "a name with a NUL": (text("os\0") + text("system") + b"\x93", "global 'os\\x00'"),
    "no name": (text("") + text("") + b"\x93", "global ."),
    "a module of dots": (text("..os") + text("system") + b"\x93", "global ..os.system"),
    "a name of millions": (text("a" * 2_000_000) + text("b") + b"\x93", "global aaa"),
    "LONG4 of gigabytes": (b"\x8b\xff\xff\xff\x7f", "instruction LONG4"),
    "LONG4 of a negative length": (b"\x8b\xff\xff\xff\xff", "instruction LONG4"),
    "LONG1 cut short": (b"\x8a\xff\x01", "a malformed pickle"),
    "BINBYTES8 of exabytes": (b"\x8e" + struct.pack("<Q", 2**62), "instruction BINBYTES8"),
    "BINUNICODE8 of exabytes": (b"\x8d" + struct.pack("<Q", 2**62), "instruction BINUNICODE8"),
    "BYTEARRAY8 of exabytes": (b"\x96" + struct.pack("<Q", 2**62), "a malformed pickle"),
    "BINBYTES of gigabytes": (b"B\xff\xff\xff\xff", "a malformed pickle"),
    "BINSTRING of a negative length": (b"T\xff\xff\xff\xff", "a malformed pickle"),
    "a buffer from outside": (b"\x97", "instruction NEXT_BUFFER"),
    "a buffer that is read only": (text("x") + b"\x98", "instruction READONLY_BUFFER"),
    "POP_MARK": (b"(N1", "instruction POP_MARK"),
    "a text of protocol 0": (b"S'id'\n", "instruction STRING"),
    "a wide text of protocol 0": (b"Vid\n", "instruction UNICODE"),
    "a float of protocol 0": (b"F1e999\n", "instruction FLOAT"),
    "a number of protocol 0": (b"L" + b"9" * 9999 + b"L\n", "instruction LONG"),
    "a memo of protocol 0": (b"Np0\n", "instruction PUT"),
    "a dict of protocol 0": (b"(d", "instruction DICT"),
    "a list of protocol 0": (b"(l", "instruction LIST"),
    "a function from the memo": (
        b"}q\0" + text("f") + named("trainer.run") + b"q\1s0h\1" + text("id") + b"\x85R",
        "instruction POP",
    ),
    "a function from a dict": (
        b"(" + named("trainer.run") + b"q\1h\1" + text("id") + b"\x85Rt",
        "trainer.run, called",
    ),
    "a memo that is filled twice": (
        b"(" + named("torch.Size") + b"q\0" + named("trainer.run") + b"q\0h\0" + text("id") + b"\x85Rt",
        "trainer.run, called",
    ),
    "a memo of another number": (
        b"(" + named("torch.Size") + b"q\5" + named("trainer.run") + b"\x94h\1)Rt",
        "trainer.run, called",
    ),
    "a mark in the memo": (b"(q\0t", "takes more from its stack"),
    "a key that is a list": (b"}]Ns", "a dict key that is neither"),
    "a key that is a dict": (b"}}Ns", "a dict key that is neither"),
    "a key of many values": (b"}(" + b"N" * 20 + b"tNs", "a dict key that is neither"),
    "a key of a long text": (b"}" + raw(b"a" * 300) + b"Ns", "a dict key that is neither"),
    "a key of a tensor in a tuple": (b"}" + tensor(storage()) + b"\x85Ns", "a dict key that is neither"),
    "objects in depth": (within(b"(" * 500), "takes more from its stack"),
    "tuples in depth": (b")" + b"\x85" * 200, "nested deeper than 64"),
    "dicts in depth": (b"".join(b"}" + text("a") for _ in range(200)) + b"N" + b"s" * 200, "nested deeper than 64"),
    "objects made of objects in depth": (
        b")" + b"\x85" * 100 + b"q\0" + named("trainer.State") + b"h\0\x81" + b"\x86",
        "nested deeper than 64",
    ),
    "a tensor's state": (tensor(storage()) + b"}" + text("x") + b"Nsb", "another value as a state dict"),
    "a number's state": (number(1) + b"}b", "another value as a state dict"),
    "a kind of dict with a state of a function": (FOREIGN + named("torch.load") + b"b", "global torch.load"),
    "a state with a way to the class": (
        FOREIGN + b"}(" + text("a") + b"N" + text("__class__") + named("trainer.Popen") + b"ub",
        "gives an object another class",
    ),
    "a Namespace's class": (NAMESPACE + b"}" + text("__class__") + named("trainer.P") + b"sb", "another class"),
}

DISGUISED = {**RUNNERS, **CHOICES, **CONTAINERS, **KEPT, **INNER, **RECONSTRUCTED, **INSTRUCTIONS}
