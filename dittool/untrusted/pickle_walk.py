"""The pickle inside a `.pt` file, read without executing it.

Unpickling is running a program. Here the program is only followed on paper: each instruction must be one of those that
pickling data writes, each name is used only as `pickle_names` allows, and each tensor must fit into a storage that is
really in the file. What comes out is the file's content with a `TensorSpec` in place of every tensor and a
`ForeignObject` in place of every object of another program; nothing was imported, called or allocated. From
`pickletools` come the table of instructions and the readers of their numbers and texts; its `genops` is not used,
because it decodes the arguments of every instruction, also of those that are refused, and resolves escapes in the names
of globals.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool.untrusted import pickle_names as names
from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.pickle_arguments import may_be_named
from dittool.untrusted.pickle_bounds import LARGEST_PICKLE, MOST_VALUES, require_bounded
from dittool.untrusted.pickle_calls import Calls
from dittool.untrusted.refusal import cut_short, unsafe, unsafe_global
from dittool.untrusted.tensor_spec import TensorSpec
from dittool.untrusted.torch_values import OrderedDictOfFile, Storage, TorchValues

# Together with those of `pickle_bounds` they keep what following any file takes below 256 MB.
_MOST_INSTRUCTIONS = 2_000_000  # about thirty for a tensor
_MOST_CONTAINERS = 500_000  # about six for a tensor
_MOST_WAITING = 100_000  # values on the stack; torch.save collects a thousand at a time
_KEY_RANGE = range(-(2**31), 2**31)  # far larger keys can be chosen to collide in a dict
_LONGEST_KEY, _LONGEST_PART = 16, 200  # values of a tuple that is a key, characters of each
_LONGEST_NAME = 300  # characters of a global's module or name; what is longer is cut, and too long for `pickle_names`

OWN_PROTOCOL = 2  # torch.save's, where its caller does not choose another
_IN_A_KEY = {type(None), bool, int, float, str, bytes, ClassName, ForeignObject}
_PROTOCOLS = range(OWN_PROTOCOL, 6)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "SHORT_BINSTRING", "BINSTRING"}
_EMPTY_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}  # a set is read as its elements
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


@dataclass(frozen=True)
class PickleContent:
    """The file's value with a `TensorSpec` for each tensor, the storages by key, the names of what is neither a tensor
    nor a plain value, and calls of classes that nothing says to be enumerations, as text.
    """

    value: Any
    storages: dict[str, Storage]
    foreign: tuple[str, ...]
    unknown_calls: tuple[str, ...]
    protocol: int
    end: int  # bytes of the pickle


def read_pickle(
    data: bytes, storage_bytes: Mapping[str, int] | None, path: Path, largest: int = 0, alone: bool = True
) -> PickleContent:
    """Follows the pickle `data`. `storage_bytes` holds the size of each storage in the archive by its key; None where
    the storages lie behind the pickle, in a file of `largest` bytes. `alone`: nothing may follow the pickle.

    Raises `UnsafeFileError` naming the instruction, the global or the tensor that is not allowed.
    """
    return _Reader(data, storage_bytes, path, largest, alone).run()


class _Reader:
    def __init__(
        self, data: bytes, storage_bytes: Mapping[str, int] | None, path: Path, largest: int, alone: bool
    ) -> None:
        self._data, self._storage_bytes, self._path, self._alone = data, storage_bytes, path, alone
        self._torch = TorchValues(storage_bytes, largest, path)
        self._calls = Calls(self._torch, path)
        self._stack: list[object] = []
        self._outer_stacks: list[list[object]] = []  # one for each open MARK
        self._memo: dict[int, object] = {}
        self._containers = 0
        self._held = 0  # values put into dicts and lists
        self._names: dict[str, ClassName] = {}
        self._attributes: list[object] = []  # _metadata of state dicts: checked with the rest, then left out
        self._protocol = self._end = 0

    def run(self) -> PickleContent:
        if self._alone and len(self._data) > LARGEST_PICKLE:
            raise self._refuse(f"a pickle of {len(self._data):,} bytes, the limit is {LARGEST_PICKLE:,}")
        for name, argument in self._instructions():
            self._step(name, argument)
            if len(self._stack) + len(self._outer_stacks) > _MOST_WAITING:
                raise self._refuse(f"more than {_MOST_WAITING:,} values on the pickle's stack")
        value = self._pop()
        if self._stack or self._outer_stacks:
            raise self._refuse("a pickle that leaves values on its stack")
        storages = self._torch.storages
        held = sum(storage.bytes for storage in storages.values())
        require_bounded([value, self._attributes], self._calls.objects, held, self._path)
        if unused := (self._storage_bytes or {}).keys() - storages.keys():
            raise self._refuse(f"storage {min(unused)!r} that no tensor uses")
        foreign = sorted(name for name, kind in self._names.items() if names.canonical(kind) not in names.PLAIN)
        unknown = tuple(sorted({repr(one) for one in self._calls.unknown}))
        return PickleContent(value, dict(storages), tuple(foreign), unknown, self._protocol, self._end)

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        """Names and arguments from behind PROTO to before STOP; the argument of an instruction that is not allowed
        is never read.
        """
        stream = io.BytesIO(self._data)
        for count in range(_MOST_INSTRUCTIONS):
            offset = stream.tell()
            opcode = _INSTRUCTIONS.get(stream.read(1))
            if opcode is None:
                raise self._malformed(offset, stream, "")
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
                raise self._malformed(offset, stream, f", in {opcode.name}") from error
            if count == 0:
                if opcode.name != "PROTO" or not isinstance(argument, int) or argument not in _PROTOCOLS:
                    raise self._refuse("a pickle that is not of protocol 2 to 5")
                self._protocol = argument
            elif opcode.name == "STOP":
                self._end = stream.tell()
                if self._alone and (surplus := len(self._data) - self._end):
                    raise self._refuse(f"{surplus:,} bytes behind the pickle's end")
                return
            elif opcode.name != "FRAME":  # how much to read ahead
                yield opcode.name, argument
        raise self._refuse(f"a pickle of more than {_MOST_INSTRUCTIONS:,} instructions")

    def _malformed(self, offset: int, stream: io.BytesIO, where: str) -> Exception:
        """Said of a pickle that ends in the middle, too, unless the end is that of a file that was cut."""
        ended = stream.tell() >= len(self._data)
        if ended and not self._alone and len(self._data) < LARGEST_PICKLE:
            return cut_short(self._path, f"it ends at byte {offset:,} of its pickle{where}")
        return self._refuse(f"a malformed pickle at byte {offset:,}{where}")

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name == "BYTEARRAY8":
            self._stack.append(bytes(argument))
        elif name in _EMPTY_CONTAINERS:
            self._count_container()
            self._stack.append(_EMPTY_CONTAINERS[name]())
        elif name in _SHORT_TUPLES:
            self._count_container()
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
        """The value that an instruction fills: of these kinds, or an object."""
        if not self._stack or type(self._stack[-1]) not in (*kinds, ForeignObject):
            raise self._refuse(f"a pickle that treats another value as a {what}")
        return self._stack[-1]

    def _mark(self, _: None) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _tuple(self, _: None) -> None:
        self._count_container()
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def _frozen_set(self, _: None) -> None:
        self._count_container()
        items = self._pop_to_mark()
        self._stack.append(items)

    def _put(self, index: int) -> None:
        if index > len(self._data):
            raise self._refuse(f"memo index {index:,} in a pickle of {len(self._data):,} bytes")
        value = self._pop()
        self._memo[index] = value
        self._stack.append(value)

    def _memoize(self, _: None) -> None:
        self._put(len(self._memo))

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
        target = self._top((list,), "list")
        if type(target) is ForeignObject:
            target.elements = target.elements or []
            target = target.elements
        target.extend(items)
        self._count(items)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._update_dict([key, value])

    def _set_items(self, _: None) -> None:
        self._update_dict(self._pop_to_mark())

    def _update_dict(self, items: list[object]) -> None:
        target = self._top((dict, OrderedDictOfFile), "dict")
        if type(target) is ForeignObject:
            target.pairs = target.pairs or {}
            target = target.pairs
        if len(items) % 2:
            raise self._refuse("a dict key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._key(key)] = value
        self._count(items)

    def _key(self, key: object) -> str | int:
        """A key as text or a small number: what else may be one is spelled out, as dicts of chosen keys are slow."""
        if type(key) is str or (type(key) is int and key in _KEY_RANGE):
            return key
        if type(key) is TensorSpec and key.place is not None:  # a parameter that an optimizer has a state for
            return f"the tensor at {key.place.offset} of storage {key.place.storage}"
        parts: tuple[object, ...] = key if isinstance(key, tuple) else (key,)
        long = any(isinstance(part, (str, bytes)) and len(part) > _LONGEST_PART for part in parts)
        if long or len(parts) > _LONGEST_KEY or not all(type(part) in _IN_A_KEY for part in parts):
            raise self._refuse(f"a dict key that is neither text nor a number ({type(key).__name__})")
        return f"{key!r:.100}"

    def _count_container(self) -> None:
        self._containers += 1
        if self._containers > _MOST_CONTAINERS:
            raise self._refuse(f"more than {_MOST_CONTAINERS:,} dicts, lists and tuples")

    def _count(self, items: list[object]) -> None:
        self._held += len(items)
        if self._held > 2 * MOST_VALUES:  # keys and values
            raise self._refuse(f"more than {2 * MOST_VALUES:,} values in dicts and lists")

    # What would import or call something

    def _global(self, module_and_name: tuple[str, str]) -> None:
        kind = ClassName(*module_and_name)
        if not may_be_named(kind):
            raise unsafe_global(self._path, kind.module, kind.name)
        self._stack.append(self._names.setdefault(str(kind), kind))

    def _stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        if type(module) is not str or type(name) is not str:
            raise self._refuse("a global whose name is not text")
        self._global((_printable(module[:_LONGEST_NAME]), _printable(name[:_LONGEST_NAME])))

    def _persistent_id(self, _: None) -> None:
        pid = self._pop()
        kind = self._torch.class_of_a_module(pid)
        self._stack.append(self._torch.storage(pid) if kind is None else kind)

    def _new_object(self, _: None) -> None:
        arguments, kind = self._pop(), self._pop()
        self._stack.append(self._calls.made(kind, arguments))

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._calls.result(function, arguments))

    def _build(self, _: None) -> None:
        state = self._pop()
        target = self._top((OrderedDictOfFile,), "state dict")
        if type(target) is not OrderedDictOfFile:
            self._count(self._calls.set_state(target, state))
        elif type(state) is dict and not state.keys() - {"_metadata"}:
            self._attributes.append(state)
        else:
            raise self._refuse("a pickle that sets other attributes than a state dict's _metadata")

    def _refuse(self, thing: str) -> Exception:
        return unsafe(self._path, thing)


_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader._mark,
    "TUPLE": _Reader._tuple,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "ADDITEMS": _Reader._appends,
    "FROZENSET": _Reader._frozen_set,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "BINPUT": _Reader._put,
    "LONG_BINPUT": _Reader._put,
    "MEMOIZE": _Reader._memoize,
    "BINGET": _Reader._get,
    "LONG_BINGET": _Reader._get,
    "GLOBAL": _Reader._global,
    "STACK_GLOBAL": _Reader._stack_global,
    "BINPERSID": _Reader._persistent_id,
    "NEWOBJ": _Reader._new_object,
    "REDUCE": _Reader._reduce,
    "BUILD": _Reader._build,
}
_ALLOWED = {
    "PROTO",
    "FRAME",
    "STOP",
    "BYTEARRAY8",
    *_CONSTANTS,
    *_LITERALS,
    *_EMPTY_CONTAINERS,
    *_SHORT_TUPLES,
    *_ACTIONS,
}


def _global_name(stream: io.BytesIO) -> tuple[str, str]:
    """The two lines behind GLOBAL, byte by byte as unpicklers take them. Raises ValueError."""
    module, name = stream.readline(), stream.readline()
    if not name.endswith(b"\n"):
        raise ValueError("cut short")
    return _printable(module[:-1].decode("ascii")), _printable(name[:-1].decode("ascii"))


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
