"""How large a pickle's content may be when shared values are counted as often as they are referred to."""

from __future__ import annotations

from pathlib import Path

from dittool.untrusted.foreign_values import ClassName, ForeignObject
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


def require_bounded(value: object, objects: list[ForeignObject], storage_bytes: int, path: Path) -> None:
    """Nothing but tensors, plain values and objects, no deeper and no larger than honest files, counted as often as it
    is referred to. An object is a leaf of what holds it, as objects may refer to each other in circles; what is in it
    is bounded by itself.
    """
    most_bytes = _MOST_COPIES * (storage_bytes + _FREE_BYTES)
    measured: dict[int, tuple[int, int, int]] = {}  # id of a container → values in it, levels below it, tensors' bytes

    def measure(item: object, depth: int) -> tuple[int, int, int]:
        if depth > _DEEPEST:
            raise unsafe(path, f"values nested deeper than {_DEEPEST} levels")
        if type(item) is Storage:
            raise unsafe(path, "a bare storage as a value")
        if type(item) is ClassName and not may_stand_as_value(item):
            raise unsafe(path, f"a bare {item} as a value")
        if not isinstance(item, (dict, list, tuple)):
            return 1, 0, item.bytes if type(item) is TensorSpec else 0
        if id(item) not in measured:
            inner = [measure(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]
            measured[id(item)] = (
                1 + sum(count for count, _, _ in inner),
                1 + max((levels for _, levels, _ in inner), default=0),
                sum(size for _, _, size in inner),
            )
        count, levels, size = measured[id(item)]
        if count > MOST_VALUES or depth + levels > _DEEPEST + 1:
            raise unsafe(path, f"values that unfold to more than {MOST_VALUES:,} or {_DEEPEST} levels")
        if size > most_bytes:
            raise unsafe(path, f"tensors that unfold to {size:,} bytes, {_MOST_COPIES} times what the file holds")
        return count, levels, size

    measure(value, 0)
    for one in objects:
        for part in (one.arguments, one.attributes, one.pairs, one.elements):
            if part:
                measure(part, 0)
