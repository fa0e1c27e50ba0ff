"""Attacks that hide behind the calls of other programs' classes that a checkpoint may hold: words, empty calls,
dictionaries, classes in classes, kept calls, unions of types, tensors without plain values, arrays of objects. Each
with what its refusal must say.
"""

from __future__ import annotations

from tests.untrusted.disguised import FOREIGN, HOOKS, SYSTEM, called, kept, named, raw
from tests.untrusted.handmade import number, numbers, storage, tensor, text

# Words for a class that nothing says to be an enumeration

_WORDS = {
    "a program": text("reboot"),
    "a program with a word": text("bash -i"),
    "a program of another folder": text("bin/sh"),
    "a program of capital letters": text("Reboot"),
    "a program of Windows": text("calc.exe"),
    "a script": text("payload.py"),
    "a pickle": text("weights.pkl"),
    "a pickle in a folder": text("a/weights.pickle"),
    "a path": text("/tmp/x"),
    "a path above": text("../x"),
    "a path above, within": text("a/.."),
    "a path of three parts": text("a/b/c"),
    "a path of Windows": text("C:\\x"),
    "a hidden path": text(".ssh/id"),
    "an address": text("http://x"),
    "code": text("exit()"),
    "a command behind another": text("red; id"),
    "a command in another": text("$(id)"),
    "a line break": text("red\nid"),
    "an assignment": text("LD_PRELOAD=x"),
    "a long text": text("a" * 65),
    "bytes": raw(b"red"),
    "a list of words": b"](" + text("rm") + text("x") + b"e",
    "a dict": b"}" + text("a") + text("b") + b"s",
    "an object": FOREIGN,
    "a class": named("trainer.State"),
    "a function": named("trainer.run"),
    "a kept call": kept(named("trainer.warm_up")),
    "a large number and a word": number(2**40) + text("red") + b"\x86",
    "nine words": b"(" + text("a") * 9 + b"t",
}
WORDS = {
    f"a class given {name}": (called("trainer.Color", value), "trainer.Color, called") for name, value in _WORDS.items()
}
_ACTING = {
    **{"trainer.Popen": "red", "trainer.AsyncPopen": "red", "trainer.ShellTool": "red", "trainer.RunScript": "red"},
    **{"trainer.Outer.Popen": "red", "dill.Color": "red", "cloudpickle.Color": "red", "joblib.Memory": "red"},
    **{"six.moves.Color": "red", "jinja2.Template": "red", "sympy.Symbol": "red", "IPython.Shell": "red"},
    **{"pip._internal.Color": "red", "setuptools.Extension": "red", "yaml.Color": "red", "nltk.Color": "red"},
    **{"trainer.HTTPConnection": "host", "trainer.SSHSession": "host", "trainer.ModelLoader": "red"},
}
WORDS |= {
    f"{full}({word!r}) by its name": (called(full, text(word)), f"{full}, called") for full, word in _ACTING.items()
}
_OLD = ("httplib.HTTPConnection", "urllib2.Request", "commands.Color", "distutils.Color", "imp.Color", "pipes.Template")
WORDS |= {f"{full} of an older Python": (called(full, text("x")), f"global {full}") for full in _OLD}
EMPTY = {
    f"{full}() with nothing": (called(full), f"{full}, called")
    for full in ("docker.DockerClient", "selenium.webdriver.Chrome", "trainer.Shell", "trainer.run", "pexpect.Pty")
}
MAPPINGS = {
    "a dict for a class of commands": (called("trainer.CommandDict", b"}"), "trainer.CommandDict, called"),
    "a dict for another class": (called("trainer.State", b"}" + text("a") + text("b") + b"s"), "trainer.State, called"),
    "a dict that calls": (
        called("trainer.ConfigDict", b"}" + text("a") + SYSTEM + text("id") + b"\x85Rs"),
        "global os.system",
    ),
    "two dicts": (called("trainer.ConfigDict", b"}", b"}"), "trainer.ConfigDict, called"),
    "a dict for a function": (called("trainer.load_config", b"}"), "trainer.load_config, called"),
    "a dict that keeps a pickle": (
        called("trainer.ConfigDict", b"}" + text("a") + raw(b"\x80\x02cos\nsystem\nX\2\0\0\0id\x85R.") + b"s"),
        "a pickle inside the bytes",
    ),
}

# Classes in classes


def inside(owner: str, name: bytes) -> bytes:
    return called("builtins.getattr", named(owner), name)


_NOT_INSIDE = "a call of builtins.getattr"
INSIDE = {
    "a class's subclasses": (inside("trainer.Mode", text("__subclasses__")), _NOT_INSIDE),
    "a class's globals": (inside("trainer.Mode", text("__init__.__globals__")), _NOT_INSIDE),
    "a class's way to a module": (inside("trainer.Mode", text("os.system")), _NOT_INSIDE),
    "a module's function": (inside("trainer.os", text("system")), _NOT_INSIDE),
    "a module of Python's": (inside("shutil.os", text("system")), "global shutil.os"),
    "an attribute of a built-in type": (inside("builtins.object", text("__subclasses__")), _NOT_INSIDE),
    "an attribute of bytes": (inside("trainer.Mode", raw(b"a")), _NOT_INSIDE),
    "an attribute with another instead": (
        called("builtins.getattr", named("trainer.Mode"), text("a"), SYSTEM),
        "global os.system",
    ),
    "an attribute of a text": (called("builtins.getattr", text("x"), text("format")), _NOT_INSIDE),
    "an attribute of an attribute's class": (
        called("builtins.getattr", inside("trainer.Mode", text("A")), text("__class__")),
        _NOT_INSIDE,
    ),
    "a method, called": (inside("trainer.Mode", text("start")) + text("red") + b"\x85R", "trainer.Mode.start, called"),
    "a class of commands in a class": (
        inside("trainer.Mode", text("Popen")) + text("red") + b"\x85R",
        "trainer.Mode.Popen, called",
    ),
    "a function of torch's, called": (
        inside("torch._C._VariableFunctionsClass", text("from_file")) + text("x") + b"\x85R",
        "from_file, called",
    ),
    "torch's functions as a value": (named("torch._C._VariableFunctionsClass"), "a bare torch._C"),
    "getattr as a value": (named("builtins.getattr"), "a bare builtins.getattr"),
    "a way through classes to a module": (b"ctrainer\nMode.os.system\n", "global trainer.Mode.os.system"),
    "a way through a module to a class": (b"ctrainer\nos.Mode\n", "global trainer.os.Mode"),
    "a way to a class's class": (b"ctrainer\nMode.__class__\n", "global trainer.Mode.__class__"),
    "a way through six classes": (b"ctrainer\n" + b"A." * 6 + b"B\n", "global trainer.A.A"),
    "a class in a class of Python's": (b"csubprocess\nPopen.Mode\n", "global subprocess.Popen.Mode"),
    "a class in a class of torch's": (b"ctorch.jit\nScript.Mode\n", "global torch.jit.Script.Mode"),
    "a method that is made": (b"ctorch.nn.modules.module\nModule.load_state_dict\n)\x81", "NEWOBJ of torch.nn"),
}

# Calls that are kept for later, and who might make them

_KEPT = {
    **{"trainer.system": "partial", "trainer.eval": "partial", "trainer.check_output": "partial"},
    **{"dill.loads": "partial", "cloudpickle.loads": "partial", "six.moves.map": "partial", "joblib.load": "partial"},
    **{"builtins.exec": "global builtins.exec", "builtins.map": "global builtins.map"},
    **{"subprocess.run": "global subprocess.run", "runpy.run_path": "global runpy", "webbrowser.open": "global web"},
    **{"torch.hub.load": "global torch.hub", "torch.utils.cpp_extension.load": "global torch.utils"},
    **{"numpy.load": "global numpy.load", "numpy.mean": "partial", "pathlib.Path": "partial"},
}
KEPT_CALLS = {f"a kept call of {full}": (kept(named(full)), said) for full, said in _KEPT.items()} | {
    "values of a kept call of the system": (
        called("collections.defaultdict", kept(SYSTEM)),
        "global os.system",
    ),
    "values of a stranger's kept function": (
        called("collections.defaultdict", kept(named("trainer.warm_up"))),
        "a call of collections.defaultdict",
    ),
    "values of a stranger's function": (
        called("collections.defaultdict", named("trainer.warm_up")),
        "a call of collections.defaultdict",
    ),
    "values of a class of commands": (
        called("collections.defaultdict", named("trainer.Popen")),
        "a call of collections.defaultdict",
    ),
    "values of a stranger's kind of dict": (
        called("trainer.Default", named("trainer.Meter")),
        "trainer.Default, called",
    ),
    "a stranger's kept call that is called": (
        kept(named("trainer.warm_up")) + text("red") + b"\x85R",
        "a call of something",
    ),
    "a stranger's kept call in a map": (
        named("trainer.Map") + kept(named("trainer.warm_up")) + b"](" + number(1) + b"e\x86\x81",
        "made of a function or a class",
    ),
    "a kept call with a call in it": (
        kept(named("trainer.warm_up"), named("trainer.warm_up") + SYSTEM + text("id") + b"\x85R\x85}N"),
        "global os.system",
    ),
}

# Unions of types

_OR = named("operator.or_")
UNIONS = {
    "a union of a stranger's": (called("functools.reduce", named("trainer.f"), named("trainer.A") + b"\x85"), "reduce"),
    "a union of objects": (called("functools.reduce", _OR, FOREIGN + b"\x85"), "a call of _functools.reduce"),
    "a union of the system": (called("functools.reduce", _OR, SYSTEM + b"\x85"), "global os.system"),
    "a union of a list": (called("functools.reduce", _OR, b"]" + named("builtins.int") + b"a"), "_functools.reduce"),
    "a union of nothing": (called("functools.reduce", _OR, b")"), "a call of _functools.reduce"),
    "a union that begins with an object": (
        called("functools.reduce", _OR, named("builtins.int") + b"\x85", FOREIGN),
        "a call of _functools.reduce",
    ),
    "the operator as a value": (_OR, "a bare operator.or_"),
    "the operator, called": (_OR + FOREIGN * 2 + b"\x86R", "global operator.or_, called"),
    "the operator, kept": (kept(_OR), "a call of functools.partial"),
    "another operator": (called("functools.reduce", named("operator.call"), b")"), "global operator.call"),
    "a literal of code": (
        called("operator.getitem", named("typing.Literal"), text("__import__('os')")),
        "a call of _operator.getitem",
    ),
    "arguments of a callable that call": (
        called("operator.getitem", named("typing.Callable"), b"]" + FOREIGN + b"a" + named("builtins.int") + b"\x86"),
        "a call of _operator.getitem",
    ),
}

# Tensors without plain values


def _layout(name: str = "torch.sparse_coo") -> bytes:
    return called("torch.serialization._get_layout", text(name))


def rebuilt(kind: str, *arguments: bytes) -> bytes:
    return called(f"torch._utils._rebuild_{kind}", *arguments)


_T = tensor(storage())
_Q = (storage(count=16, kind="QInt8Storage"), number(0), numbers(4), numbers(1))
_SCHEME = named("torch.per_tensor_affine")
WITHOUT_VALUES = {
    "a sparse tensor of objects": (
        rebuilt("sparse_tensor", _layout(), b"(" + FOREIGN * 2 + numbers(3) + b"t"),
        "_rebuild_sparse_tensor with",
    ),
    "a sparse tensor of a shape that is none": (
        rebuilt("sparse_tensor", _layout(), b"(" + _T * 2 + text("9") + b"t"),
        "_rebuild_sparse_tensor with",
    ),
    "a sparse tensor of the system": (
        rebuilt("sparse_tensor", _layout(), b"(" + _T + SYSTEM + numbers(3) + b"t"),
        "global os.system",
    ),
    "a sparse tensor of text for a layout": (
        rebuilt("sparse_tensor", text("torch.sparse_coo"), b"(" + _T * 2 + numbers(3) + b"t"),
        "_rebuild_sparse_tensor with",
    ),
    "a sparse tensor of nothing": (rebuilt("sparse_tensor", _layout(), b")"), "_rebuild_sparse_tensor with"),
    "a sparse tensor far too large": (
        rebuilt("sparse_tensor", _layout(), b"(" + _T + tensor(storage(), shape=(2**40,)) + numbers(3) + b"t"),
        "a tensor of shape",
    ),
    "a tensor without values of a stranger's dtype": (
        rebuilt("meta_tensor_no_storage", named("trainer.float"), numbers(4), numbers(1), b"\x89"),
        "_rebuild_meta_tensor_no_storage with",
    ),
    "a tensor without values of an object": (
        rebuilt("meta_tensor_no_storage", named("torch.float32"), FOREIGN, numbers(1), b"\x89"),
        "_rebuild_meta_tensor_no_storage with",
    ),
    "a quantized tensor of an object": (
        rebuilt("qtensor", *_Q, _SCHEME + FOREIGN + number(0) + b"\x87", b"\x89", HOOKS),
        "_rebuild_qtensor with",
    ),
    "a quantized tensor of a stranger's scheme": (
        rebuilt("qtensor", *_Q, named("trainer.f") + number(1) + number(0) + b"\x87", b"\x89", HOOKS),
        "_rebuild_qtensor with",
    ),
    "a quantized tensor too large": (
        rebuilt(
            "qtensor",
            _Q[0],
            number(0),
            numbers(17),
            numbers(1),
            _SCHEME + number(1) + number(0) + b"\x87",
            b"\x89",
            HOOKS,
        ),
        "a tensor of shape (17,)",
    ),
    "a quantized tensor with hooks": (
        rebuilt("qtensor", *_Q, _SCHEME + number(1) + number(0) + b"\x87", b"\x89", FOREIGN),
        "a tensor with arguments",
    ),
    "a nested tensor of objects": (
        rebuilt("nested_tensor", _T, FOREIGN, _T, _T),
        "_rebuild_nested_tensor with",
    ),
    "a nested tensor of calls": (
        rebuilt("nested_tensor", _T, SYSTEM + text("id") + b"\x85R", _T, _T),
        "global os.system",
    ),
    "a tensor of a device, of an object": (
        rebuilt("device_tensor_from_cpu_tensor", FOREIGN, named("torch.float32"), text("xla"), b"\x89"),
        "_rebuild_device_tensor_from_cpu_tensor with",
    ),
    "a parameter of a made-up tensor": (b"ctorch\nsparse_tensor\n)\x81", "global torch.sparse_tensor"),
}

# Arrays of objects


def dtype(code: str, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R" + state


def _state(flags: int, fields: bytes = b"NNN", order: str = "|") -> bytes:
    return b"(" + number(3) + text(order) + fields + number(-1) * 2 + number(flags) + b"tb"


def array(kind: bytes, data: bytes, shape: bytes | None = None) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85C\x01btR"
    return made + b"(" + number(1) + (shape or number(1) + b"\x85") + kind + b"\x89" + data + b"tb"


_OBJECTS, _BYTES = dtype("O8", _state(63)), b"C\x0812345678"
_OF_OBJECTS = b"N" + text("a") + b"\x85}" + text("a") + _OBJECTS + number(0) + b"\x86s"
_FLAW = "a numpy array whose state"
ARRAYS = {
    "objects as bytes": (array(_OBJECTS, _BYTES), _FLAW),
    "too few objects": (array(_OBJECTS, b"]N\x61", numbers(9)), _FLAW),
    "objects that run": (array(_OBJECTS, b"]" + SYSTEM + text("id") + b"\x85Ra"), "global os.system"),
    "objects that are functions": (array(_OBJECTS, b"]" + named("torch.load") + b"a"), "global torch.load"),
    "pointers that are called numbers": (array(dtype("f8", _state(63, order="<")), _BYTES), _FLAW),
    "pointers in fields": (array(dtype("V8", _state(16, _OF_OBJECTS)), _BYTES), _FLAW),
    "pointers in bytes": (array(dtype("V8", _state(63)), _BYTES), _FLAW),
    "fields of fields": (
        array(
            dtype("V8", _state(16, b"N" + text("a") + b"\x85}" + text("a") + dtype("V8", b"") + number(0) + b"\x86s")),
            _BYTES,
        ),
        _FLAW,
    ),
    "fields that are themselves": (
        array(
            dtype("V8", b"q\7" + _state(16, b"N" + text("a") + b"\x85}" + text("a") + b"h\7" + number(0) + b"\x86s")),
            _BYTES,
        ),
        _FLAW,
    ),
    "a number of an object": (called("numpy.core.multiarray.scalar", _OBJECTS, _BYTES), "multiarray.scalar with"),
    "a number of a list": (called("numpy.core.multiarray.scalar", _OBJECTS, b"]Na"), "multiarray.scalar with"),
    "masked values": (called("numpy.ma.core._mareconstruct", named("trainer.A")), "global numpy.ma.core"),
}
# By names that newer versions of Python spell in another way
OLDER = {
    "eval of Python 2": (called("__builtin__.eval", text("1")), "global __builtin__.eval"),
    "execfile of Python 2": (called("__builtin__.execfile", text("x")), "global __builtin__.execfile"),
    "apply of Python 2": (called("__builtin__.apply", named("trainer.run")), "global __builtin__.apply"),
    "a command of Python 2": (called("commands.getoutput", text("id")), "global commands.getoutput"),
    "a module of source": (called("imp.load_source", text("a"), text("b.py")), "global imp.load_source"),
    "a pipe of Python 3.10": (called("pipes.Template"), "global pipes.Template"),
    "a program of distutils": (called("distutils.spawn.spawn", b"]" + text("id") + b"a"), "global distutils.spawn"),
    "an exception of Python 2": (called("exceptions.SystemExit", number(1)), "global exceptions.SystemExit"),
}

CALLED = {
    **{**WORDS, **EMPTY, **MAPPINGS, **INSIDE, **KEPT_CALLS},
    **{**UNIONS, **WITHOUT_VALUES, **ARRAYS, **OLDER},
}
