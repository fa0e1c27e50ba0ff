"""Storages and tensors of a pickle: each tensor must fit into a storage that is really in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.pickle_names import (
    DTYPES,
    DTYPES_WITHOUT_NUMBERS_HERE,
    FROM_A_DEVICE,
    META,
    NESTED,
    PARAMETER,
    PARAMETER_WITH_STATE,
    QUANTIZED,
    SPARSE,
    STORAGES,
    TENSOR,
    TENSOR_OF_A_KIND,
    TENSOR_OLDEST,
    TENSOR_WITH_DTYPE,
    TENSORS,
    WITHOUT_PLAIN_VALUES,
    canonical,
    is_foreign,
    is_object,
    may_stand_as_value,
)
from dittool.untrusted.refusal import unsafe
from dittool.untrusted.tensor_spec import DTYPE_BYTES, Place, TensorSpec, is_shape


class OrderedDictOfFile(dict):
    """Stands for collections.OrderedDict."""


def is_tensor(value: object) -> TypeGuard[TensorSpec | ForeignObject]:
    """Whether it stands for a tensor, also for one without plain values."""
    without = type(value) is ForeignObject and str(value.kind) in _WITHOUT_PLAIN_VALUES
    return without or type(value) is TensorSpec


_WITHOUT_PLAIN_VALUES = {f"torch.{kind}_tensor" for kind in WITHOUT_PLAIN_VALUES.values()}


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: str
    bytes: int


class TorchValues:
    """`storage_bytes` holds the size of each storage in the file by its key; None while sizes are not known, as in the
    legacy format, which has its storages behind the pickle.
    """

    def __init__(self, storage_bytes: Mapping[str, int] | None, most_bytes: int, path: Path) -> None:
        self._storage_bytes, self._most_bytes, self._path = storage_bytes, most_bytes, path
        self.storages: dict[str, Storage] = {}

    def storage(self, pid: object) -> Storage:
        """What a persistent id stands for."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or type(pid[1]) is not ClassName:
            raise self._refuse("a persistent id that is not a storage")
        _, kind, key, location, count, *view = pid
        if canonical(kind) not in STORAGES:
            raise self._refuse("a persistent id that is not a storage")
        if view and (view != [None] or self._storage_bytes is not None):
            raise self._refuse("a storage that is a part of another, as PyTorch wrote before 0.4")
        if type(key) is not str or not re.fullmatch(r"[0-9]{1,20}", key, re.ASCII):
            raise self._refuse(f"a storage with the key {key!r:.100}")
        if type(location) is not str or not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,4})?", location, re.ASCII):
            raise self._refuse(f"a storage on the device {location!r:.100}")
        dtype = STORAGES[canonical(kind)]
        present = self._bytes_of(key, dtype, count)
        if type(count) is not int or count < 0 or count * DTYPE_BYTES[dtype] != present:
            raise self._refuse(
                f"storage {key!r} of {count!r:.40} {dtype} values, of which the archive holds {present:,} bytes"
            )
        storage = Storage(key, dtype, present)
        if self.storages.setdefault(key, storage) != storage:
            raise self._refuse(f"storage {key!r} with two dtypes or sizes")
        return storage

    def class_of_a_module(self, pid: object) -> ClassName | None:
        """The class that a persistent id of the legacy format names beside its source code, which nobody runs."""
        if self._storage_bytes is None and type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1] if type(pid[1]) is ClassName else None
        return None

    def _bytes_of(self, key: str, dtype: str, count: object) -> int:
        if self._storage_bytes is not None:
            if key not in self._storage_bytes:
                raise self._refuse(f"storage {key!r}, which is not in the archive")
            return self._storage_bytes[key]
        claimed = count * DTYPE_BYTES[dtype] if type(count) is int else -1
        return claimed if 0 <= claimed <= self._most_bytes else self._most_bytes

    def rebuilt(self, name: str, arguments: tuple[object, ...]) -> TensorSpec | ForeignObject:
        """The tensor or parameter that a call of one of torch's rebuilding functions gives; an object for one whose
        values are not plain numbers.
        """
        if name in WITHOUT_PLAIN_VALUES and (described := self._described(name, arguments)) is not None:
            return ForeignObject(ClassName("torch", f"{WITHOUT_PLAIN_VALUES[name]}_tensor"), (), described)
        if name == FROM_A_DEVICE and len(arguments) == 4 and type(arguments[0]) is TensorSpec:
            return arguments[0]
        if name == TENSOR_OLDEST and len(arguments) == 4:
            return self._tensor((*arguments, False, OrderedDictOfFile()), None)
        if name == TENSOR and len(arguments) == 6:
            return self._tensor(arguments, None)
        if name == TENSOR_WITH_DTYPE and len(arguments) == 7:
            dtype = arguments[6]
            if type(dtype) is ClassName and canonical(dtype) in DTYPES:
                return self._tensor(arguments[:6], DTYPES[canonical(dtype)])
        if name in (PARAMETER, PARAMETER_WITH_STATE) and len(arguments) == (3 if name == PARAMETER else 4):
            tensor, hooks = arguments[0], arguments[2]
            without_hooks = type(hooks) is OrderedDictOfFile and not hooks
            if without_hooks and is_tensor(tensor):
                return tensor
        if name == TENSOR_OF_A_KIND and len(arguments) == 4:  # a tensor with attributes, or of a class of its own
            function, kind, inner, _ = arguments
            ordinary = type(kind) is ClassName and (is_foreign(kind) or may_stand_as_value(kind))
            if ordinary and type(function) is ClassName and canonical(function) in TENSORS and type(inner) is tuple:
                return self.rebuilt(canonical(function), inner)
        raise self._refuse(f"a call of {name} with arguments that torch.save never gives it")

    def _described(self, name: str, arguments: tuple[object, ...]) -> dict[str, object] | None:
        """What a tensor without plain values consists of; None for arguments that torch never gives."""
        if name == SPARSE and len(arguments) == 2 and type(arguments[1]) is tuple:
            layout, parts = arguments[0], [one for one in arguments[1] if type(one) is not bool]
            *numbers, size = parts if len(parts) in (3, 4) else (None,)
            known = is_object(layout, "torch.serialization._get_layout")
            if known and all(type(one) is TensorSpec for one in numbers) and is_shape(size):
                return {"values": numbers[-1], "indices": numbers[:-1], "shape": tuple(size)}
        if name == META and len(arguments) == 4 and type(arguments[0]) is ClassName and is_shape(arguments[1]):
            dtype = canonical(arguments[0])
            if (dtype in DTYPES or dtype in DTYPES_WITHOUT_NUMBERS_HERE) and is_shape(arguments[2]):
                return {"dtype": dtype, "shape": tuple(arguments[1])}
        if name == QUANTIZED and len(arguments) == 7 and type(arguments[4]) is tuple and len(arguments[4]) in (3, 4):
            scheme, *parameters = arguments[4]
            integers = self._tensor((*arguments[:4], *arguments[5:]), None)
            by_scale = type(scheme) is ClassName and canonical(scheme).startswith("torch.per_")
            if by_scale and all(type(one) in (int, float, TensorSpec) for one in parameters):
                return {"integers": integers, "shape": integers.shape, "scale": parameters}
        if name == NESTED and len(arguments) == 4 and all(type(one) is TensorSpec for one in arguments):
            return {"values": arguments[0], "shapes": arguments[1]}
        return None

    def _tensor(self, arguments: tuple[object, ...], dtype: str | None) -> TensorSpec:
        storage, offset, shape, stride, requires_grad, hooks = arguments
        if (
            type(storage) is not Storage
            or type(offset) is not int
            or offset < 0
            or not is_shape(shape)
            or not is_shape(stride)
            or len(shape) != len(stride)
            or type(requires_grad) is not bool
            or type(hooks) is not OrderedDictOfFile
            or hooks
        ):
            raise self._refuse("a tensor with arguments that torch.save never gives it")
        spec = TensorSpec(dtype or storage.dtype, tuple(shape), Place(storage.key, offset, tuple(stride)))
        held = storage.bytes // DTYPE_BYTES[spec.dtype]
        needed = (
            offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) + 1
            if spec.elements
            else offset
        )
        # More elements than the storage holds: a stride of 0 takes no memory on loading, and terabytes in the first
        # operation.
        if max(needed, spec.elements) > held:
            raise self._refuse(
                f"a tensor of shape {spec.shape} at {offset} in storage {storage.key!r}, which holds {held:,}"
                f" {spec.dtype} values"
            )
        return spec

    def _refuse(self, thing: str) -> Exception:
        return unsafe(self._path, thing)
