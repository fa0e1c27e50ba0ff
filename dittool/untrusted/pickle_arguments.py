"""The arguments that each function of Python, torch and numpy is given where pickling writes a call of it, by its own
module: step 3 of `pickle_names`. A call with others is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dittool.untrusted.foreign_calls import is_bounded, is_factory, may_be_kept
from dittool.untrusted.foreign_values import ClassName
from dittool.untrusted.pickle_names import (
    BIT_GENERATORS,
    FACTORIES,
    GETATTR,
    HANDED_OVER,
    NUMPY_ARRAY,
    NUMPY_DTYPE,
    NUMPY_RANDOM,
    OBJECT_PREFIXES,
    OBJECTS,
    PARTIAL,
    PLAIN,
    REBUILT_BY_TORCH,
    SEED_SEQUENCE,
    UNION,
    VALUE_PREFIXES,
    VALUES,
    attribute,
    canonical,
    is_foreign,
    is_object,
    is_plain,
    may_stand_as_value,
)

_BIT_GENERATOR = f"{NUMPY_RANDOM}__bit_generator_ctor"
_MOST_TYPES = 16  # in the brackets of one
_LITERAL = re.compile(r"[\w+.-]{0,64}", re.ASCII)


def may_be_named(kind: ClassName) -> bool:
    """Whether a file may have this name at all, for whichever use."""
    if not is_plain(kind):
        return False
    full = canonical(kind)
    return is_foreign(kind) or full in _LISTED or full.startswith((*VALUE_PREFIXES, *OBJECT_PREFIXES))


def _plain(*values: object) -> bool:
    return all(value is None or type(value) in (bool, int, float, str, bytes) for value in values)


def _texts(*values: object) -> bool:
    return all(type(value) is str for value in values)


def _of_time(*values: object) -> bool:
    """Packed bytes or numbers, and maybe a time zone."""
    return all(_plain(value) or is_object(value, "datetime.") for value in values)


def _one_list(*values: object) -> bool:
    return len(values) == 1 and type(values[0]) is list


def _is_type(value: object) -> bool:
    """A type, the type of None, or one made of types: `Optional[int]`."""
    if type(value) is ClassName:
        return may_stand_as_value(value)
    return any(is_object(value, kind) for kind in ("_operator.getitem", "types.GenericAlias", "builtins.type", UNION))


def _of_typing(*values: object) -> bool:
    """`Optional` or `list` and the types in its brackets."""
    if len(values) != 2 or type(values[0]) is not ClassName:
        return False
    if values[0].module != "typing" and canonical(values[0]) not in FACTORIES:
        return False
    types = values[1] if type(values[1]) is tuple else values[1:]
    named = all(type(value) is str and bool(_LITERAL.fullmatch(value)) for value in types)
    if values[0] == ClassName("typing", "Literal") and named:
        return True
    inner = types[0] if types and type(types[0]) is list else ()  # of a Callable's arguments
    return len(types) + len(inner) <= _MOST_TYPES and all(map(_is_type, (*inner, *types[1 if inner else 0 :])))


def _union(*values: object) -> bool:
    """`int | None`: the operator, and the types in a tuple."""
    types = values[1] if len(values) == 2 and type(values[1]) is tuple else ()
    by_or = type(values[0]) is ClassName and canonical(values[0]) == "_operator.or_"
    return by_or and 0 < len(types) <= _MOST_TYPES and all(map(_is_type, types))


def _counts(*values: object) -> bool:
    return len(values) == 1 and isinstance(values[0], dict)


def _bounded(*values: object) -> bool:
    return not values or is_bounded(*values)


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
    known = type(values[0]) is ClassName and canonical(values[0]) in BIT_GENERATORS
    named = type(values[0]) is str and any(full.endswith(f".{values[0]}") for full in BIT_GENERATORS)
    made = is_object(values[0], _BIT_GENERATOR)
    return (known or named or made) and all(
        type(maker) is ClassName and canonical(maker) == _BIT_GENERATOR for maker in values[1:]
    )


def _seed_sequence(*values: object) -> bool:
    known = len(values) == 3 and type(values[0]) is ClassName and canonical(values[0]) == SEED_SEQUENCE
    return known and type(values[1]) is int and values[2] is None


def _of_a_device(*values: object) -> bool:
    return len(values) == 1 and is_object(values[0], "torch.device")


def _layout(*values: object) -> bool:
    return (
        len(values) == 1 and type(values[0]) is str and bool(re.fullmatch(r"torch\.[a-z_]{1,20}", values[0], re.ASCII))
    )


def _dtype(*values: object) -> bool:
    """A number, text, time, Python objects, or bytes with fields in them."""
    return (
        len(values) == 3
        and type(values[0]) is str
        and bool(re.fullmatch(r"[biufcSUMmVO?]\d{0,6}", values[0], re.ASCII))
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
    "collections.defaultdict": is_factory,
    "collections.Counter": _counts,
    "collections.deque": _bounded,
    "torch.device": _plain,
    "torch.serialization._get_layout": _layout,
    "torch._C.Generator": _of_a_device,
    PARTIAL: lambda *values: len(values) == 1 and may_be_kept(values[0]),
    GETATTR: lambda *values: len(values) == 2 and attribute(*values) is not None,
    UNION: _union,
    "logging.getLogger": _texts,
    "re._compile": _pattern,
    "random.Random": lambda *values: not values,
    "array.array": _array,
    "array._array_reconstructor": _array_of_bytes,
    **{f"{NUMPY_RANDOM}__{kind}_ctor": _bit_generator for kind in ("generator", "bit_generator", "randomstate")},
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _seed_sequence,
    NUMPY_DTYPE: _dtype,
    # what follows becomes a value: `pickle_calls`
    "builtins.bytes": lambda *values: not values,
    "builtins.bytearray": lambda *values: len(values) == 1 and type(values[0]) is bytes,
    "_codecs.encode": lambda *values: _texts(*values) and values[1:] == ("latin1",),
    "numpy.core.multiarray.scalar": lambda *values: len(values) == 2 and is_object(values[0], NUMPY_DTYPE),
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
_LISTED = PLAIN | REBUILT_BY_TORCH | VALUES | OBJECTS | HANDED_OVER | RECONSTRUCTORS.keys()
