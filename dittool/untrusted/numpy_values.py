"""Numbers and arrays of numpy in a pickle: a scalar becomes a plain value, an array its shape; one of Python's objects
keeps these, which have been checked as the rest of the file has.
"""

from __future__ import annotations

import math

import numpy as np

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.tensor_spec import DTYPE_BYTES, TensorSpec, is_shape

_ARRAY = ClassName("numpy", "ndarray")
_POINTERS = 0b111  # of a dtype's flags: its values are Python's objects
_WITH_A_VALUE = "biufcSU"  # kinds whose scalars are plain values; the others are times


def scalar(arguments: tuple[object, ...]) -> object | None:
    """The number, text or bytes that `numpy.core.multiarray.scalar(dtype, bytes)` gives; None for what it is never
    given. A time stays an object.
    """
    kind, data = arguments
    dtype = _dtype(kind)
    if dtype is None or dtype.hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
        return None
    if dtype.kind not in _WITH_A_VALUE:
        return ForeignObject(ClassName("numpy", dtype.name), (data,))
    try:
        return np.frombuffer(data, dtype)[0].item() if data else ""
    except ValueError:  # characters that no text has
        return None


def set_array(array: ForeignObject, state: object) -> bool:
    """Gives an array its state `(version, shape, dtype, in Fortran's order, bytes)`; False for another one."""
    if type(state) is not tuple or len(state) != 5 or array.attributes is not None:
        return False
    version, shape, dtype, order, data = state
    made = array_of(data, dtype, shape) if type(version) is int and type(order) is bool else None
    if made is not None:
        array.attributes, array.elements = made.attributes, made.elements
    return made is not None


def array_of(data: object, kind: object, shape: object) -> ForeignObject | None:
    """An array of these bytes, as a `TensorSpec` where torch has its dtype; None where they do not fit the shape."""
    dtype = _dtype(kind)
    if dtype is None or not is_shape(shape):
        return None
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != math.prod(shape):
            return None
        return ForeignObject(_ARRAY, (), {"dtype": "object", "shape": tuple(shape)}, elements=data)
    if type(data) is not bytes or math.prod(shape) * dtype.itemsize != len(data):
        return None
    name = dtype.name if dtype.name in DTYPE_BYTES else ""
    return ForeignObject(
        _ARRAY, (), TensorSpec(name, tuple(shape)) if name else {"dtype": dtype.str, "shape": tuple(shape)}
    )


def _are_plain(fields: tuple[object, ...]) -> bool:
    """Whether a dtype has no fields, or fields of numbers and text: (nothing, names, dtype and offset by name)."""
    if fields == (None, None, None):
        return True
    of_fields = fields[2].values() if isinstance(fields[2], dict) else ()
    kinds = [_dtype(one[0], in_fields=True) if type(one) is tuple and one else None for one in of_fields]
    return bool(kinds) and fields[0] is None and all(kind is not None and not kind.hasobject for kind in kinds)


def _dtype(value: object, in_fields: bool = False) -> np.dtype | None:
    """The dtype that an object from the file describes, without the fields in its bytes; None for no dtype at all."""
    if type(value) is not ForeignObject or str(value.kind) != "numpy.dtype" or type(value.attributes) is not tuple:
        return None
    state = value.attributes
    order, fields, flags = (state[1], state[2:5], state[7]) if len(state) in (8, 9) else (None, (), None)
    code = str(value.arguments[0])
    if in_fields and code.startswith("V"):
        return None
    if order not in ("<", ">", "|", "=") or type(flags) is not int:
        return None
    # what is not said to be objects must not be read as pointers to them
    if not code.startswith("O") and (flags & _POINTERS or not _are_plain(fields)):
        return None
    try:
        return np.dtype((order if order != "|" else "") + code)
    except TypeError:  # of a size that numpy has not
        return None
