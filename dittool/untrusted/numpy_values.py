"""Numbers and arrays of numpy in a pickle: a scalar becomes a plain value, an array its shape. Never of objects."""

from __future__ import annotations

import math

import numpy as np

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.tensor_spec import DTYPE_BYTES, TensorSpec, is_shape

_ARRAY = ClassName("numpy", "ndarray")
_WITH_A_VALUE = "biufcSU"  # kinds whose scalars are plain values; the others are times


def scalar(arguments: tuple[object, ...]) -> object | None:
    """The number, text or bytes that `numpy.core.multiarray.scalar(dtype, bytes)` gives; None for what it is never
    given. A time stays an object.
    """
    kind, data = arguments
    dtype = _dtype(kind)
    if dtype is None or type(data) is not bytes or len(data) != dtype.itemsize:
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
    array.attributes = None if made is None else made.attributes
    return made is not None


def array_of(data: object, kind: object, shape: object) -> ForeignObject | None:
    """An array of these bytes, as a `TensorSpec` where torch has its dtype; None where they do not fit the shape."""
    dtype = _dtype(kind)
    if dtype is None or not is_shape(shape) or type(data) is not bytes:
        return None
    if math.prod(shape) * dtype.itemsize != len(data):
        return None
    name = dtype.name if dtype.name in DTYPE_BYTES else ""
    return ForeignObject(
        _ARRAY, (), TensorSpec(name, tuple(shape)) if name else {"dtype": dtype.str, "shape": tuple(shape)}
    )


def _dtype(value: object) -> np.dtype | None:
    """The dtype that an object from the file describes; None for one of objects or of fields, or no dtype at all."""
    if type(value) is not ForeignObject or str(value.kind) != "numpy.dtype" or type(value.attributes) is not tuple:
        return None
    state = value.attributes
    order, fields = (state[1], state[2:5]) if len(state) in (8, 9) else (None, ())
    if order not in ("<", ">", "|", "=") or fields != (None, None, None):
        return None
    code = str(value.arguments[0])
    try:
        return np.dtype((order if order != "|" else "") + code)
    except TypeError:  # of a size that numpy has not
        return None
