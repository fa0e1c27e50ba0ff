"""How large a pickle's content may be when shared values are counted as often as they are referred to, and that no
value in it is a tool of an attack.
"""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.pickle_in_bytes import holds_pickle
from dittool.untrusted.pickle_names import may_stand_as_value
from dittool.untrusted.refusal import unsafe
from dittool.untrusted.tensor_spec import TensorSpec
from dittool.untrusted.torch_values import Storage

# A value takes up to a few hundred bytes, a text four for each of its own.
LARGEST_PICKLE = 16 << 20  # bytes; ten thousand tensors take about one megabyte
MOST_VALUES = 400_000
_DEEPEST = 64
_MOST_COPIES = 64  # of the file's storages, that all its tensors together may stand for
_FREE_BYTES = 1 << 20  # of tensors, in any file
_LONGEST_NAMES = 64 << 20  # characters; ten thousand tensors of a trained network take about three million


class _Size(NamedTuple):
    """Of a value with everything in it, what is shared counted as often as it is referred to."""

    values: int = 1
    levels: int = 0  # below it
    bytes: int = 0  # of tensors
    names: int = 0  # characters of the dotted names of everything in it


def require_bounded(value: object, objects: list[ForeignObject], storage_bytes: int, path: Path) -> None:
    """Nothing but tensors, plain values and objects, no deeper and no larger than honest files, counted as often as it
    is referred to. An object is a leaf of what holds it, as objects may refer to each other in circles; what is in it
    is bounded by itself, and no bytes there may be a pickle.
    """
    most_bytes = _MOST_COPIES * (storage_bytes + _FREE_BYTES)
    harmless: set[int] = set()  # ids of bytes
    measured: dict[int, _Size] = {}  # by id of a container

    def measure(item: object, depth: int, in_object: bool) -> _Size:
        if depth > _DEEPEST:
            raise unsafe(path, f"values nested deeper than {_DEEPEST} levels")
        if type(item) is Storage:
            raise unsafe(path, "a bare storage as a value")
        if type(item) is ClassName and not may_stand_as_value(item):
            raise unsafe(path, f"a bare {item} as a value")
        if in_object and type(item) is bytes and id(item) not in harmless:
            if holds_pickle(item):
                raise unsafe(path, "a pickle inside the bytes of an object of another program")
            harmless.add(id(item))
        if type(item) is TensorSpec:
            return _Size(bytes=item.bytes)
        if not isinstance(item, (dict, list, tuple)):
            return _LEAF
        size = measured.get(id(item))
        if size is None:
            inner = [
                measure(child, depth + 1, in_object) for child in (item.values() if isinstance(item, dict) else item)
            ]
            keys = item if isinstance(item, dict) else repeat("", len(item))
            size = measured[id(item)] = _Size(
                1 + sum(one.values for one in inner),
                1 + max((one.levels for one in inner), default=0),
                sum(one.bytes for one in inner),
                sum(len(str(key)) * one.values + one.names for key, one in zip(keys, inner, strict=True)),
            )
        if size.values > MOST_VALUES or depth + size.levels > _DEEPEST + 1:
            raise unsafe(path, f"values that unfold to more than {MOST_VALUES:,} or {_DEEPEST} levels")
        if size.bytes > most_bytes:
            raise unsafe(path, f"tensors that unfold to {size.bytes:,} bytes, {_MOST_COPIES} times what the file holds")
        if size.names > _LONGEST_NAMES:
            raise unsafe(path, f"names that unfold to more than {_LONGEST_NAMES:,} characters")
        return size

    for one in objects:
        for part in (one.arguments, one.attributes, one.pairs, one.elements):
            if part:
                measure(part, 0, in_object=True)
    measure(value, 0, in_object=False)


_LEAF = _Size()
