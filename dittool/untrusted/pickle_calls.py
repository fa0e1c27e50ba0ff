"""What a pickle's calls and new objects give, without any being called or made: the tables of `pickle_names`, applied.

One instance serves one pickle: what all its calls together may take is counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dittool.untrusted import pickle_names as names
from dittool.untrusted.foreign_calls import is_of_unknown_words, may_be_called
from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.numpy_values import array_of, scalar, set_array
from dittool.untrusted.pickle_arguments import RECONSTRUCTORS, UNCHANGED
from dittool.untrusted.pickle_bounds import LARGEST_PICKLE
from dittool.untrusted.refusal import unsafe, unsafe_global
from dittool.untrusted.tensor_spec import is_shape
from dittool.untrusted.torch_values import OrderedDictOfFile, TorchValues

_MOST_OBJECTS = 100_000
_MOST_ARGUMENTS = 64


class Calls:
    def __init__(self, torch_values: TorchValues, path: Path) -> None:
        self._torch, self._path = torch_values, path
        self._decoded = 0  # bytes that were written as text
        self.objects: list[ForeignObject] = []
        self.unknown: list[ForeignObject] = []  # classes that are called with words, and may be no enumerations

    def made(self, kind: object, arguments: object) -> ForeignObject:
        """An object of a class, empty as yet: NEWOBJ."""
        if type(kind) is not ClassName or type(arguments) is not tuple:
            raise self._refuse("an object of something that is not a class")
        if not names.may_be_made(kind):
            raise self._refuse(f"instruction NEWOBJ of {kind}")
        if any(map(names.is_callable, arguments)):
            # another package's alias of `map` would hold the function, and the next one call it
            raise self._refuse(f"an object of {kind} that is made of a function or a class")
        return self._object(kind, arguments)

    def result(self, function: object, arguments: object) -> object:
        """What a call gives: REDUCE."""
        if type(arguments) is not tuple or type(function) is not ClassName:
            raise self._refuse("a call of something that is not a known function")
        name = names.canonical(function)
        if name == names.ORDERED_DICT and arguments == ():
            return OrderedDictOfFile()
        if name == names.SIZE and len(arguments) == 1 and is_shape(arguments[0]):
            return tuple(arguments[0])
        if name in names.REBUILT_BY_TORCH:
            rebuilt = self._torch.rebuilt(name, arguments)
            return self._counted(rebuilt) if isinstance(rebuilt, ForeignObject) else rebuilt
        if name in RECONSTRUCTORS:
            return self._reconstructed(name, function, arguments)
        if may_be_called(function, arguments):
            return self._called(function, arguments)
        if name in names.PLAIN:
            raise self._refuse(f"a call of {name} with arguments that torch.save never gives it")
        raise unsafe_global(self._path, function.module, function.name, called=True)

    def set_state(self, target: ForeignObject, state: object) -> list[object]:
        """Gives an object its attributes: BUILD. Returns what was copied for it."""
        name = names.canonical(target.kind)
        if name == names.NUMPY_ARRAY:
            if not set_array(target, state):
                raise self._refuse("a numpy array whose state does not fit it")
            return []
        if name == names.PARTIAL:
            return self._set_kept_call(target, state)
        if name not in names.FILLED_BY_STATE and not names.may_be_made(target.kind):
            raise self._refuse(f"a state for {target.kind}, which has none")
        slots = type(state) is tuple and len(state) == 2 and all(part is None or type(part) is dict for part in state)
        parts: list[Any] = [part for part in state if part] if isinstance(state, tuple) and slots else [state]
        if any(isinstance(part, dict) and "__class__" in part for part in parts):
            raise self._refuse("a pickle that gives an object another class")
        target.attributes = {**parts[0], **parts[1]} if len(parts) == 2 else parts[0] if parts else {}
        return list(target.attributes) if len(parts) == 2 else []

    def _set_kept_call(self, target: ForeignObject, state: object) -> list[object]:
        """The arguments of a functools.partial: (function, positional, by name, attributes or None)."""
        function, values, by_name, others = state if type(state) is tuple and len(state) == 4 else (None,) * 4
        same = target.attributes is None and function is target.arguments[0] and others in (None, {})
        if not same or type(values) is not tuple or type(by_name) is not dict:
            raise self._refuse("a functools.partial whose state does not fit it")
        target.arguments, target.attributes = (function, *values), by_name
        return list(values)

    def _called(self, kind: ClassName, arguments: tuple[Any, ...]) -> ForeignObject:
        """What a call of another program's class stands for."""
        made = self._object(kind, arguments)
        if len(arguments) == 1 and isinstance(arguments[0], dict):
            made.arguments, made.pairs = (), arguments[0]
        if is_of_unknown_words(kind, arguments):
            self.unknown.append(made)
        return made

    def _object(self, kind: ClassName, arguments: tuple[object, ...] = ()) -> ForeignObject:
        return self._counted(ForeignObject(kind, arguments))

    def _counted(self, made: ForeignObject) -> ForeignObject:
        if len(self.objects) >= _MOST_OBJECTS:
            raise self._refuse(f"more than {_MOST_OBJECTS:,} objects of other programs")
        self.objects.append(made)
        return made

    def _reconstructed(self, name: str, function: ClassName, arguments: tuple[Any, ...]) -> object:
        fits = len(arguments) <= _MOST_ARGUMENTS and RECONSTRUCTORS[name](*arguments)
        made: object = None
        if fits and name == "_codecs.encode":
            made = self._decode(arguments[0])
        elif fits and name in UNCHANGED:
            made = arguments[0] if arguments else b""
        elif fits and name == names.GETATTR:
            made = names.attribute(*arguments)
        elif fits and name == "numpy.core.multiarray.scalar":
            made = scalar(arguments)
        elif fits and name == "numpy.core.numeric._frombuffer":
            made = array_of(arguments[0], arguments[1], arguments[2])
        elif fits and name == "numpy.core.multiarray._reconstruct":
            made = self._object(arguments[0])
        elif fits:  # without what each call of its kind is given alike
            shown = (one for one in arguments if type(one) is not ClassName or names.may_stand_as_value(one))
            made = self._object(function, tuple(shown))
            if name == "collections.Counter":
                made.pairs = arguments[0]
        if made is None:
            raise self._refuse(f"a call of {name} with arguments that its own module never gives it")
        return made

    def _decode(self, text: str) -> bytes:
        """Bytes as protocol 2 writes them; a text can be referred to many times, so they are counted."""
        self._decoded += len(text)
        if self._decoded > LARGEST_PICKLE:
            raise self._refuse(f"more than {LARGEST_PICKLE:,} bytes written as text")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError as error:
            raise self._refuse("bytes written as text of other characters") from error

    def _refuse(self, thing: str) -> Exception:
        return unsafe(self._path, thing)
