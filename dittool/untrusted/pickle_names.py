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
   module gives it. Every other call is refused, whatever it is called, with two exceptions, both of classes of other
   programs whose names are written as classes are (`Mode`, not `mode`):
4. A member of an enumeration, `Mode("bf16")`, has the form of a call that starts a program, `PopenSpawn("reboot")`: the
   bytes do not tell one from the other. What an attacker cannot choose is which classes there are where the file will
   be unpickled. So the argument may be small numbers, which carry no command, path, address or code; it may be words
   only where the class's name ends in a word for a choice (`CHOICES`), and never with signs that code is made of.
   Measured on 99 packages (torch, transformers, diffusers, sympy and what they bring; 39,000 classes): 455 classes
   have such a name and are no enumerations, 117 of them take one argument, and among these none was found that runs,
   opens or imports what a word says (sympy evaluates text, and needs brackets to call). Other enumerations are refused.
5. A kind of OrderedDict, defaultdict or deque, made empty and then filled: `Config()`. It brings nothing but what is
   put into it; one that stays empty is refused, as the bare call of a class is.

`functools.partial` keeps a call for later, and is judged as that call: of what torch.nn and torch.optim have.

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
_DTYPES_WITHOUT_NUMBERS_HERE = ("complex32", "quint8", "qint8", "qint32", "float8_e4m3fnuz", "float8_e5m2fnuz")
PARTIAL = "functools.partial"
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
# of a defaultdict's values
FACTORIES = {f"builtins.{name}" for name in _BUILT_IN} | {
    ORDERED_DICT,
    "torch.amp.grad_scaler._refresh_per_optimizer_state",
}
NUMPY_ARRAY, NUMPY_DTYPE = "numpy.ndarray", "numpy.dtype"
_NUMPY_SCALARS = {f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)}
_NUMPY_RANDOM = "numpy.random._pickle."
_BIT_GENERATOR = f"{_NUMPY_RANDOM}__bit_generator_ctor"
_BIT_GENERATORS = {
    *("numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM", "numpy.random._mt19937.MT19937"),
    *("numpy.random._philox.Philox", "numpy.random._sfc64.SFC64"),
}
_SEED_SEQUENCE = "numpy.random.bit_generator.SeedSequence"
VALUES = {
    *(*FACTORIES, *_NUMPY_SCALARS, *DTYPES, NUMPY_ARRAY, "numpy.bool_", "numpy.str_", "torch.Tensor"),
    *(*_BIT_GENERATORS, _SEED_SEQUENCE, *(f"torch.{name}" for name in _DTYPES_WITHOUT_NUMBERS_HERE)),
    *("torch._tensor.Tensor", "torch.nn.parameter.Parameter", "pathlib.Path", "pathlib.PosixPath"),
    *("argparse.Namespace", "builtins.NoneType", "builtins.Ellipsis", "builtins.NotImplemented"),
}
VALUE_PREFIXES = ("typing.", "torch.nn.", "torch._C._nn.", "torch.optim.")
OBJECTS = {
    *("argparse.Namespace", "uuid.UUID", "types.SimpleNamespace"),
    *("torch.amp.grad_scaler.GradScaler", "torch.cuda.amp.grad_scaler.GradScaler"),
}
# What is made by a call, and then given a state that its own module writes
FILLED_BY_STATE = {
    *(
        NUMPY_DTYPE,
        PARTIAL,
        "random.Random",
        "torch._C.Generator",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    ),
    *(f"{_NUMPY_RANDOM}__{kind}_ctor" for kind in ("generator", "bit_generator", "randomstate")),
}
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
# Last words of a class's name that say that its objects are choices of a few
CHOICES = (
    *("Type", "Mode", "Kind", "Format", "Strategy", "Policy", "Style", "Level", "Method", "Stage", "Split", "Phase"),
    *("Precision", "Dtype", "DType", "Variant", "Scheme", "Schedule", "Parameterization", "Objective", "Enum"),
    *("Choice", "Option", "Role", "Status", "Direction", "Flag", "Flags", "Names"),
)
_OF_CHOICES = re.compile(rf"_*([A-Z]\w*[a-z0-9_])?({'|'.join(CHOICES)})", re.ASCII)
_WORDS = re.compile(r"(?=.{1,64}$)[\w+.%-]+([ ,]{1,2}[\w+.%-]+)*", re.ASCII)
_SMALL = range(-(2**20), 2**20 + 1)  # numbers that are no size to exhaust a machine with
_MOST_CHOSEN = 8  # parts of a value that is a tuple
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
    """Whether a call is how members of an enumeration are written, and can do no more: way 4 above."""
    if len(arguments) != 1 or not is_foreign_class(kind):
        return False
    value = arguments[0]
    parts = value if type(value) is tuple and 0 < len(value) <= _MOST_CHOSEN else (value,)
    if all(map(_is_number, parts)):
        return True
    texts = bool(_OF_CHOICES.fullmatch(kind.name))
    return texts and all(_is_number(part) or (type(part) is str and bool(_WORDS.fullmatch(part))) for part in parts)


def is_empty_container(kind: ClassName, arguments: tuple[object, ...]) -> bool:
    """Whether a call may be how an empty kind of dict or deque is written, to be filled: way 5 above."""
    return is_foreign_class(kind) and (_bounded(*arguments) or (arguments != () and _factory(*arguments)))


def is_foreign_class(kind: ClassName) -> bool:
    return is_foreign(kind) and bool(_OF_A_CLASS.fullmatch(kind.name))


def is_callable(value: object) -> bool:
    """Whether a value may be one that can be called: a class, a function, a call that is kept for later."""
    return type(value) is ClassName or _is_object(value, PARTIAL)


def _is_number(value: object) -> bool:
    return value is None or type(value) in (bool, float) or (type(value) is int and value in _SMALL)


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
    """Nothing, or an empty tuple or list and the most that there may be."""
    lengths = all(value is None or type(value) is int for value in values[1:])
    return not values or (type(values[0]) in (tuple, list) and not values[0] and len(values) < 3 and lengths)


def _known_function(*values: object) -> bool:
    """Something of torch's that a call is kept of."""
    return len(values) == 1 and type(values[0]) is ClassName and canonical(values[0]).startswith(VALUE_PREFIXES[1:])


def _pattern(*values: object) -> bool:
    return len(values) == 2 and type(values[0]) in (str, bytes) and type(values[1]) is int


def _array(*values: object) -> bool:
    """A letter for the kind of number, and numbers in a list."""
    letter = len(values) == 2 and type(values[0]) is str and len(values[0]) == 1
    return letter and type(values[1]) is list and all(type(value) in (int, float, str) for value in values[1])


def _array_of_bytes(*values: object) -> bool:
    """The class, a letter for the kind of number, the form of its bytes, and these."""
    of_arrays = len(values) == 4 and type(values[0]) is ClassName and canonical(values[0]) == "array.array"
    return of_arrays and _plain(*values[1:]) and type(values[3]) is bytes


def _bit_generator(*values: object) -> bool:
    """One of numpy's, by its class or its name; `__bit_generator_ctor` behind it where a generator has one."""
    if not 1 <= len(values) <= 2:
        return False
    known = type(values[0]) is ClassName and canonical(values[0]) in _BIT_GENERATORS
    named = type(values[0]) is str and any(full.endswith(f".{values[0]}") for full in _BIT_GENERATORS)
    made = _is_object(values[0], _BIT_GENERATOR)
    return (known or named or made) and all(
        type(maker) is ClassName and canonical(maker) == _BIT_GENERATOR for maker in values[1:]
    )


def _seed_sequence(*values: object) -> bool:
    known = len(values) == 3 and type(values[0]) is ClassName and canonical(values[0]) == _SEED_SEQUENCE
    return known and type(values[1]) is int and values[2] is None


def _of_a_device(*values: object) -> bool:
    return len(values) == 1 and _is_object(values[0], "torch.device")


def _layout(*values: object) -> bool:
    return (
        len(values) == 1 and type(values[0]) is str and bool(re.fullmatch(r"torch\.[a-z_]{1,20}", values[0], re.ASCII))
    )


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
    "torch.serialization._get_layout": _layout,
    "torch._C.Generator": _of_a_device,
    PARTIAL: _known_function,
    "re._compile": _pattern,
    "random.Random": lambda *values: not values,
    "array.array": _array,
    "array._array_reconstructor": _array_of_bytes,
    **{f"{_NUMPY_RANDOM}__{kind}_ctor": _bit_generator for kind in ("generator", "bit_generator", "randomstate")},
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _seed_sequence,
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
