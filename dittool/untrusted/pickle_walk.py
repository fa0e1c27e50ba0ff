"""The pickle inside a `.pt` file, read without executing it.

Unpickling is running a program. Here the program is only followed on paper: each instruction must be one of the two
dozen that torch.save writes for tensors and plain values, each global one of the few below, and each tensor must fit
into a storage that is really in the archive. What comes out is the file's content with a `TensorSpec` in place of every
tensor; nothing was imported, called or allocated. From `pickletools` come the table of instructions and the readers of
their numbers and texts; its `genops` is not used, because it decodes the arguments of every instruction, also of those
that are refused, and resolves escapes in the names of globals.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool.untrusted.refusal import unsafe, unsafe_global
from dittool.untrusted.tensor_spec import DTYPE_BYTES, TensorSpec, is_shape

# Together they keep what following any file takes below 256 MB; a value takes up to a few hundred bytes, a text four
# for each of its own.
LARGEST_PICKLE = 16 << 20  # bytes; ten thousand tensors take about one megabyte
_MOST_INSTRUCTIONS = 2_000_000  # about thirty for a tensor
# put into dicts and lists, or in all when a shared value is counted as often as it is referred to
_MOST_VALUES = 400_000
_MOST_WAITING = 100_000  # values on the stack; torch.save collects a thousand at a time
_DEEPEST = 64
_KEY_RANGE = range(-(2**31), 2**31)  # far larger keys can be chosen to collide in a dict

_STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch ComplexFloatStorage": "complex64",
    "torch ComplexDoubleStorage": "complex128",
    "torch.storage UntypedStorage": "uint8",
}
_DTYPES = {f"torch {name}": name for name in DTYPE_BYTES}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR, _TENSOR_WITH_DTYPE = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
_PARAMETER, _SIZE = "torch._utils _rebuild_parameter", "torch Size"
_GLOBALS = {_ORDERED_DICT, _TENSOR, _TENSOR_WITH_DTYPE, _PARAMETER, _SIZE, *_STORAGES, *_DTYPES}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
_EMPTY_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


@dataclass(frozen=True)
class _Global:
    name: str  # "module name", as pickletools gives it


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    bytes: int


class _OrderedDict(dict):
    """Stands for collections.OrderedDict."""


@dataclass(frozen=True)
class PickleContent:
    """The file's value with a `TensorSpec` for each tensor, and the storages by key, with the dtype that they are
    read in.
    """

    value: Any
    storages: dict[str, str]


def read_pickle(data: bytes, storage_bytes: Mapping[str, int], path: Path) -> PickleContent:
    """Follows the pickle `data`. `storage_bytes` holds the size of each storage in the archive by its key.

    Raises `UnsafeFileError` naming the instruction, the global or the tensor that is not allowed.
    """
    return _Reader(data, storage_bytes, path).run()


class _Reader:
    def __init__(self, data: bytes, storage_bytes: Mapping[str, int], path: Path) -> None:
        self._data, self._storage_bytes, self._path = data, storage_bytes, path
        self._stack: list[object] = []
        self._outer_stacks: list[list[object]] = []  # one for each open MARK
        self._memo: dict[int, object] = {}
        self._held = 0  # values put into dicts and lists
        self._globals: dict[str, _Global] = {}
        self._storages: dict[str, _Storage] = {}
        self._attributes: list[object] = []  # _metadata of state dicts: checked with the rest, then left out

    def run(self) -> PickleContent:
        if len(self._data) > LARGEST_PICKLE:
            raise self._refuse(f"a pickle of {len(self._data):,} bytes, the limit is {LARGEST_PICKLE:,}")
        for name, argument in self._instructions():
            self._step(name, argument)
            if len(self._stack) + len(self._outer_stacks) > _MOST_WAITING:
                raise self._refuse(f"more than {_MOST_WAITING:,} values on the pickle's stack")
        value = self._pop()
        if self._stack or self._outer_stacks:
            raise self._refuse("a pickle that leaves values on its stack")
        self._check_value(value)
        if unused := self._storage_bytes.keys() - self._storages.keys():
            raise self._refuse(f"storage {min(unused)!r} that no tensor uses")
        return PickleContent(value, {key: storage.dtype for key, storage in self._storages.items()})

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        """Names and arguments from behind PROTO to before STOP; the argument of an instruction that is not allowed
        is never read.
        """
        stream = io.BytesIO(self._data)
        for count in range(_MOST_INSTRUCTIONS):
            offset = stream.tell()
            opcode = _INSTRUCTIONS.get(stream.read(1))
            if opcode is None:
                raise self._refuse(f"a malformed pickle at byte {offset:,}")
            if opcode.name not in _ALLOWED or (opcode.name == "PROTO" and count > 0):
                raise self._refuse(f"pickle instruction {opcode.name}")
            try:
                argument = (
                    _global_name(stream)
                    if opcode.name == "GLOBAL"
                    else opcode.arg.reader(stream)
                    if opcode.arg
                    else None
                )
            except ValueError as error:  # cut short, or text that is not UTF-8
                raise self._refuse(f"a malformed pickle at byte {offset:,}, in {opcode.name}") from error
            if count == 0 and (opcode.name, argument) != ("PROTO", 2):
                raise self._refuse("a pickle that is not of protocol 2, which torch.save writes")
            if opcode.name == "STOP":
                if surplus := len(self._data) - stream.tell():
                    raise self._refuse(f"{surplus:,} bytes behind the pickle's end")
                return
            if count > 0:
                yield opcode.name, argument
        raise self._refuse(f"a pickle of more than {_MOST_INSTRUCTIONS:,} instructions")

    def _step(self, name: str, argument: object) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _EMPTY_CONTAINERS:
            self._stack.append(_EMPTY_CONTAINERS[name]())
        elif name in _SHORT_TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_SHORT_TUPLES[name])][::-1]))
        else:
            _ACTIONS[name](self, argument)

    # Stack and memo

    def _pop(self) -> object:
        if not self._stack:
            raise self._refuse("a pickle that takes more from its stack than is there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        if not self._outer_stacks:
            raise self._refuse("a pickle that refers to a mark that was never set")
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def _top(self, kinds: tuple[type, ...], what: str) -> Any:
        if not self._stack or type(self._stack[-1]) not in kinds:
            raise self._refuse(f"a pickle that treats another value as a {what}")
        return self._stack[-1]

    def _mark(self, _: None) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _tuple(self, _: None) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def _put(self, index: int) -> None:
        if index > len(self._data):
            raise self._refuse(f"memo index {index:,} in a pickle of {len(self._data):,} bytes")
        value = self._pop()
        self._memo[index] = value
        self._stack.append(value)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._refuse(f"memo index {index:,}, which was never set")
        self._stack.append(self._memo[index])

    # Containers

    def _append(self, _: None) -> None:
        self._extend_list([self._pop()])

    def _appends(self, _: None) -> None:
        self._extend_list(self._pop_to_mark())

    def _extend_list(self, items: list[object]) -> None:
        self._top((list,), "list").extend(items)
        self._count(items)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._update_dict([key, value])

    def _set_items(self, _: None) -> None:
        self._update_dict(self._pop_to_mark())

    def _update_dict(self, items: list[object]) -> None:
        target = self._top((dict, _OrderedDict), "dict")
        if len(items) % 2:
            raise self._refuse("a dict key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and key in _KEY_RANGE):
                raise self._refuse(f"a dict key that is neither text nor a small number ({type(key).__name__})")
            target[key] = value
        self._count(items)

    def _count(self, items: list[object]) -> None:
        self._held += len(items)
        if self._held > 2 * _MOST_VALUES:  # keys and values
            raise self._refuse(f"more than {2 * _MOST_VALUES:,} values in dicts and lists")

    # What would import or call something

    def _global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise unsafe_global(self._path, *name.split(" ", 1))
        self._stack.append(self._globals.setdefault(name, _Global(name)))

    def _persistent_id(self, _: None) -> None:
        pid = self._pop()
        if (
            type(pid) is not tuple
            or len(pid) != 5
            or pid[0] != "storage"
            or type(pid[1]) is not _Global
            or pid[1].name not in _STORAGES
        ):
            raise self._refuse("a persistent id that is not a storage")
        _, kind, key, location, count = pid
        if type(key) is not str or not re.fullmatch(r"[0-9]{1,20}", key, re.ASCII):
            raise self._refuse(f"a storage with the key {key!r:.100}")
        if type(location) is not str or not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,4})?", location, re.ASCII):
            raise self._refuse(f"a storage on the device {location!r:.100}")
        if key not in self._storage_bytes:
            raise self._refuse(f"storage {key!r}, which is not in the archive")
        dtype, present = _STORAGES[kind.name], self._storage_bytes[key]
        if type(count) is not int or count < 0 or count * DTYPE_BYTES[dtype] != present:
            raise self._refuse(
                f"storage {key!r} of {count!r:.40} {dtype} values, of which the archive holds {present:,} bytes"
            )
        storage = _Storage(key, dtype, present)
        if self._storages.setdefault(key, storage) != storage:
            raise self._refuse(f"storage {key!r} with two dtypes")
        self._stack.append(storage)

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if type(function) is _Global else None
        if type(arguments) is not tuple or name is None:
            raise self._refuse("a call of something that is not a known function")
        if name == _ORDERED_DICT and arguments == ():
            self._stack.append(_OrderedDict())
        elif name == _TENSOR and len(arguments) == 6:
            self._stack.append(self._tensor(arguments, None))
        elif (
            name == _TENSOR_WITH_DTYPE
            and len(arguments) == 7
            and type(arguments[6]) is _Global
            and arguments[6].name in _DTYPES
        ):
            self._stack.append(self._tensor(arguments[:6], _DTYPES[arguments[6].name]))
        elif (
            name == _PARAMETER
            and len(arguments) == 3
            and type(arguments[0]) is TensorSpec
            and type(arguments[2]) is _OrderedDict
        ):
            self._stack.append(arguments[0])
        elif name == _SIZE and len(arguments) == 1 and is_shape(arguments[0]):
            self._stack.append(tuple(arguments[0]))
        else:
            raise self._refuse(f"a call of {name.replace(' ', '.')} with arguments that torch.save never gives it")

    def _tensor(self, arguments: tuple[object, ...], dtype: str | None) -> TensorSpec:
        storage, offset, shape, stride, requires_grad, hooks = arguments
        if (
            type(storage) is not _Storage
            or type(offset) is not int
            or offset < 0
            or not is_shape(shape)
            or not is_shape(stride)
            or len(shape) != len(stride)
            or type(requires_grad) is not bool
            or type(hooks) is not _OrderedDict
            or hooks
        ):
            raise self._refuse("a tensor with arguments that torch.save never gives it")
        spec = TensorSpec(dtype or storage.dtype, tuple(shape))
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

    def _build(self, _: None) -> None:
        state = self._pop()
        self._top((_OrderedDict,), "state dict")
        if type(state) is not dict or state.keys() - {"_metadata"}:
            raise self._refuse("a pickle that sets other attributes than a state dict's _metadata")
        self._attributes.append(state)

    # The result

    def _check_value(self, value: object) -> None:
        """Nothing but tensors and plain values, no deeper and no larger than honest files, counted as often as it
        is referred to.
        """
        measured: dict[int, tuple[int, int]] = {}  # id of a container → values in it, levels below it

        def measure(item: object, depth: int) -> tuple[int, int]:
            if depth > _DEEPEST:
                raise self._refuse(f"values nested deeper than {_DEEPEST} levels")
            if type(item) is _Storage:
                raise self._refuse("a bare storage as a value")
            if type(item) is _Global and item.name not in _DTYPES:
                raise self._refuse(f"a bare {item.name.replace(' ', '.')} as a value")
            if not isinstance(item, (dict, list, tuple)):
                return 1, 0
            if id(item) not in measured:
                inner = [measure(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]
                measured[id(item)] = (
                    1 + sum(count for count, _ in inner),
                    1 + max((levels for _, levels in inner), default=0),
                )
            count, levels = measured[id(item)]
            if count > _MOST_VALUES or depth + levels > _DEEPEST + 1:
                raise self._refuse(f"values that unfold to more than {_MOST_VALUES:,} or {_DEEPEST} levels")
            return count, levels

        measure([value, self._attributes], 0)

    def _refuse(self, thing: str) -> Exception:
        return unsafe(self._path, thing)


_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader._mark,
    "TUPLE": _Reader._tuple,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "BINPUT": _Reader._put,
    "LONG_BINPUT": _Reader._put,
    "BINGET": _Reader._get,
    "LONG_BINGET": _Reader._get,
    "GLOBAL": _Reader._global,
    "BINPERSID": _Reader._persistent_id,
    "REDUCE": _Reader._reduce,
    "BUILD": _Reader._build,
}
_ALLOWED = {"PROTO", "STOP", *_CONSTANTS, *_LITERALS, *_EMPTY_CONTAINERS, *_SHORT_TUPLES, *_ACTIONS}


def _global_name(stream: io.BytesIO) -> str:
    """The two lines behind GLOBAL as "module name", byte by byte as unpicklers take them. Raises ValueError."""
    module, name = stream.readline(), stream.readline()
    if not name.endswith(b"\n"):
        raise ValueError("cut short")
    text = f"{module[:-1].decode('ascii')} {name[:-1].decode('ascii')}"
    return text if text.isprintable() else ascii(text)
