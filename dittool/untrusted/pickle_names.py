"""Which names a pickle may use, and for what: the policy of `pickle_walk`, as tables to read.

Our reader calls nothing, so nothing that a file names can harm it. But its answer "this can be looked at" is taken for
"this can be loaded", so whatever would run code in a program that unpickles the file is refused. A name can be used in
four ways, from harmless to dangerous:

1. It stands as a value (a class in a configuration). Unpickling imports its module, no more. Of Python's own modules,
   torch and numpy only `VALUES` and what lies below `VALUE_PREFIXES` may; of other programs any.
2. An object of it is made empty and given its state (NEWOBJ, BUILD), as unpickling makes objects of ordinary classes.
   Only the class's own `__new__` and `__setstate__` could run. Of Python's own modules, torch and numpy only `OBJECTS`
   and what lies below `OBJECT_PREFIXES` may, of other programs any class: `ForeignObject` stands for it.
   Never with a function or a class as an argument of its making.
3. It is called with arguments (REDUCE). Only what `RECONSTRUCTORS` names may, each with the arguments that its own
   module gives it. Every other call is refused, whatever it is called, with one exception:
4. A class of another program with a single small number or a single word, which is how members of an enumeration are
   written: `Mode("bf16")`. Its name must be written as classes are (`Mode`, not `mode`).

Names with dots in them reach through modules to what those import (`torch.serialization` `os.system`); none may.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.refusal import OF_PYTHON
from dittool.untrusted.tensor_spec import DTYPE_BYTES

STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}
DTYPES = {f"torch.{name}": name for name in DTYPE_BYTES}
ORDERED_DICT, SIZE = "collections.OrderedDict", "torch.Size"
TENSOR_OLDEST, TENSOR = "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"
TENSOR_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"
PARAMETER, PARAMETER_WITH_STATE = "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"
TENSOR_OF_A_KIND = "torch._tensor._rebuild_from_type_v2"
TENSORS = {TENSOR_OLDEST, TENSOR, TENSOR_WITH_DTYPE}
REBUILT_BY_TORCH = {*TENSORS, PARAMETER, PARAMETER_WITH_STATE, TENSOR_OF_A_KIND}
# What `torch.save` writes for tensors and plain values. A file with other names is no checkpoint of ours.
PLAIN = {ORDERED_DICT, SIZE, TENSOR, TENSOR_WITH_DTYPE, PARAMETER, *STORAGES, *DTYPES}

_BUILT_IN = ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple")
FACTORIES = {f"builtins.{name}" for name in _BUILT_IN} | {ORDERED_DICT}  # of a defaultdict's values
NUMPY_ARRAY, NUMPY_DTYPE = "numpy.ndarray", "numpy.dtype"
_NUMPY_SCALARS = {f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)}
VALUES = {
    *(*FACTORIES, *_NUMPY_SCALARS, *DTYPES, NUMPY_ARRAY, "numpy.bool_", "numpy.str_", "torch.Tensor"),
    *("torch._tensor.Tensor", "torch.nn.parameter.Parameter", "pathlib.Path", "pathlib.PosixPath"),
    *("argparse.Namespace", "builtins.NoneType", "builtins.Ellipsis", "builtins.NotImplemented"),
}
VALUE_PREFIXES = ("typing.", "torch.nn.", "torch._C._nn.", "torch.optim.")
OBJECTS = {"argparse.Namespace", "uuid.UUID", "types.SimpleNamespace"}
OBJECT_PREFIXES = ("torch.nn.modules.", "torch.optim.")
_GUARDED = OF_PYTHON | {"torch", "numpy"}  # packages of which only the tables' names may be used
_RENAMED = (
    ("__builtin__.", "builtins."),
    ("builtins.xrange", "builtins.range"),
    ("builtins.long", "builtins.int"),
    ("builtins.unicode", "builtins.str"),
    ("copy_reg.", "copyreg."),
    ("numpy._core.", "numpy.core."),
    ("operator.", "_operator."),
    ("pathlib._local.", "pathlib."),
)

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OF_A_CLASS = re.compile(r"_*[A-Z]\w*", re.ASCII)
_WORD = re.compile(r"[\w.+-]{1,64}", re.ASCII)
_SMALL = range(-(2**31), 2**31)
_LONGEST = 200  # characters of a name
_MOST_TYPES = 16  # in the brackets of one


def canonical(kind: ClassName) -> str:
    """Module and name by one spelling, whichever version of Python or numpy wrote it."""
    full = str(kind)
    for old, new in _RENAMED:
        if full.startswith(old):
            full = new + full.removeprefix(old)
    return full


def is_plain(kind: ClassName) -> bool:
    """Whether it is written as a module and a name in it are, without a way through other modules."""
    short = len(kind.module) <= _LONGEST and len(kind.name) <= _LONGEST
    return short and bool(_MODULE.fullmatch(kind.module) and _NAME.fullmatch(kind.name))


def is_foreign(kind: ClassName) -> bool:
    """Whether another program than Python, torch and numpy defines it."""
    return kind.module.split(".")[0] not in _GUARDED


def may_be_named(kind: ClassName) -> bool:
    """Whether a file may have this name at all, for whichever use."""
    if not is_plain(kind):
        return False
    full = canonical(kind)
    return is_foreign(kind) or full in _LISTED or full.startswith((*VALUE_PREFIXES, *OBJECT_PREFIXES))


def may_stand_as_value(kind: ClassName) -> bool:
    return canonical(kind) in VALUES or is_foreign(kind) or canonical(kind).startswith(VALUE_PREFIXES)


def may_be_made(kind: ClassName) -> bool:
    """Whether an object of it may be made empty and given a state."""
    return canonical(kind) in OBJECTS or is_foreign(kind) or canonical(kind).startswith(OBJECT_PREFIXES)


def is_enumeration(kind: ClassName, arguments: tuple[object, ...]) -> bool:
    """Whether a call is how members of an enumeration are written: way 4 above."""
    if len(arguments) != 1 or not (is_foreign(kind) and _OF_A_CLASS.fullmatch(kind.name)):
        return False
    (value,) = arguments
    return (type(value) is int and value in _SMALL) or (type(value) is str and bool(_WORD.fullmatch(value)))


# The arguments that each reconstructor is given by its own module


def _plain(*values: object) -> bool:
    return all(value is None or type(value) in (bool, int, float, str, bytes) for value in values)


def _texts(*values: object) -> bool:
    return all(type(value) is str for value in values)


def _of_time(*values: object) -> bool:
    """Packed bytes or numbers, and maybe a time zone."""
    return all(_plain(value) or _is_object(value, "datetime.") for value in values)


def _one_list(*values: object) -> bool:
    return len(values) == 1 and type(values[0]) is list


def _is_object(value: object, prefix: str) -> bool:
    return type(value) is ForeignObject and canonical(value.kind).startswith(prefix)


def _is_type(value: object) -> bool:
    """A type, the type of None, or one made of types: `Optional[int]`."""
    if type(value) is ClassName:
        return may_stand_as_value(value)
    return any(_is_object(value, kind) for kind in ("_operator.getitem", "types.GenericAlias", "builtins.type"))


def _of_typing(*values: object) -> bool:
    """`Optional` or `list` and the types in its brackets."""
    if len(values) != 2 or type(values[0]) is not ClassName:
        return False
    if values[0].module != "typing" and canonical(values[0]) not in FACTORIES:
        return False
    types = values[1] if type(values[1]) is tuple else values[1:]
    return len(types) <= _MOST_TYPES and all(map(_is_type, types))


def _factory(*values: object) -> bool:
    return len(values) < 2 and all(
        value is None or (type(value) is ClassName and canonical(value) in FACTORIES) for value in values
    )


def _counts(*values: object) -> bool:
    return len(values) == 1 and isinstance(values[0], dict)


def _bounded(*values: object) -> bool:
    return not values or (values[0] in ((), []) and len(values) < 3 and _plain(*values[1:]))


def _dtype(*values: object) -> bool:
    """A number, text or time; never "O", Python objects."""
    return (
        len(values) == 3 and type(values[0]) is str and bool(re.fullmatch(r"[biufcSUMm?]\d{0,6}", values[0], re.ASCII))
    )


RECONSTRUCTORS: dict[str, Callable[..., bool]] = {
    **{f"pathlib.{pure}{kind}Path": _texts for pure in ("", "Pure") for kind in ("", "Posix", "Windows")},
    **{f"datetime.{kind}": _of_time for kind in ("datetime", "date", "time", "timedelta", "timezone")},
    "decimal.Decimal": _texts,
    "fractions.Fraction": _plain,
    "builtins.complex": _plain,
    "builtins.slice": _plain,
    "builtins.range": _plain,
    "builtins.set": _one_list,
    "builtins.frozenset": _one_list,
    "builtins.type": lambda *values: values == (None,),
    "_operator.getitem": _of_typing,
    "types.GenericAlias": _of_typing,
    "types.SimpleNamespace": lambda *values: not values,
    "collections.defaultdict": _factory,
    "collections.Counter": _counts,
    "collections.deque": _bounded,
    "torch.device": _plain,
    NUMPY_DTYPE: _dtype,
    # what follows becomes a value: `pickle_calls`
    "builtins.bytes": lambda *values: not values,
    "builtins.bytearray": lambda *values: len(values) == 1 and type(values[0]) is bytes,
    "_codecs.encode": lambda *values: _texts(*values) and values[1:] == ("latin1",),
    "numpy.core.multiarray.scalar": lambda *values: len(values) == 2 and _is_object(values[0], NUMPY_DTYPE),
    "numpy.core.multiarray._reconstruct": lambda *values: (
        len(values) == 3 and type(values[0]) is ClassName and canonical(values[0]) == NUMPY_ARRAY
    ),
    "numpy.core.numeric._frombuffer": lambda *values: len(values) == 4,
}
UNCHANGED = {
    "builtins.bytes",
    "builtins.bytearray",
    "builtins.set",
    "builtins.frozenset",
}  # read as what they are given
_LISTED = PLAIN | REBUILT_BY_TORCH | VALUES | OBJECTS | RECONSTRUCTORS.keys()
