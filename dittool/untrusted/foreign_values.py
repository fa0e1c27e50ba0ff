"""What a pickle's reader puts where the file has something that is neither a tensor nor a plain value.

Nothing of it is ever imported: a class is its name, an object its class's name with what the file says is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from dittool.untrusted.tensor_spec import TensorSpec

_LONGEST_PART, _LONGEST_PREFIX = 100, 1_000  # characters of a module's name, alone and with those it lies in
_MOST_PARTS = 400_000  # of a network
_SHOWN = 8  # parts of an object in a line of text
_DEEPEST_SETTINGS, _MOST_SETTINGS, _LONGEST_TEXT = 16, 10_000, 4_000


@dataclass(frozen=True)
class ClassName:
    """A class or function that the file names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    __repr__ = __str__


@dataclass(eq=False, slots=True)
class ForeignObject:
    """An object of another program: its class, and what unpickling would have given it. Everything in it has been
    checked as the rest of the file has.
    """

    kind: ClassName
    arguments: tuple[Any, ...] = ()  # of its making
    attributes: Any = None  # its state: nearly always a dict by name
    pairs: dict[Any, Any] | None = None  # of a kind of dict
    elements: list[Any] | None = None  # of a kind of list
    _state: dict[str, TensorSpec] | None = None

    @property
    def entries(self) -> dict[Any, Any]:
        """What it holds by name: its pairs, else its attributes, else nothing."""
        return self.pairs or (self.attributes if isinstance(self.attributes, dict) else {})

    @property
    def is_network(self) -> bool:
        """Whether it is a torch.nn.Module that was pickled whole."""
        return {"_parameters", "_buffers", "_modules"} <= self.entries.keys()

    def state_dict(self) -> dict[str, TensorSpec]:
        """Parameters and buffers of a network by the names of its state dict. Modules may refer to each other in
        circles: each is entered once, and not those whose names or number no network has.
        """
        if self._state is None:
            self._state, left, seen, waiting = {}, _MOST_PARTS, {id(self)}, [("", self)]
            while waiting and left > 0:
                prefix, module = waiting.pop()
                tensors = {**_dict(module.entries["_parameters"]), **_dict(module.entries["_buffers"])}
                modules = _dict(module.entries["_modules"])
                left -= 1 + len(tensors) + len(modules)
                names = {f"{prefix}{name!s:.{_LONGEST_PART}}": one for name, one in tensors.items()}
                self._state |= {name: one for name, one in names.items() if isinstance(one, TensorSpec)}
                for name, inner in reversed(modules.items()):
                    longer = f"{prefix}{name!s:.{_LONGEST_PART}}."
                    entered = id(inner) in seen or len(longer) > _LONGEST_PREFIX
                    if isinstance(inner, ForeignObject) and inner.is_network and not entered:
                        seen.add(id(inner))
                        waiting.append((longer, inner))
        return self._state

    def __repr__(self) -> str:
        entries = self.entries
        if entries:
            parts = [f"{key!s:.40}={short(value)}" for key, value in islice(entries.items(), _SHOWN)]
        elif isinstance(self.attributes, TensorSpec):
            parts = [short(self.attributes)]
        else:
            parts = [short(part) for part in islice(self.elements or self.arguments, _SHOWN)]
        hidden = max(len(entries) or len(self.elements or self.arguments), len(parts)) - len(parts)
        return f"{self.kind}({', '.join(parts)}{f', … {hidden:,} more' if hidden else ''})"


def _dict(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def short(value: object) -> str:
    """One part, without what is in it, so that the text stays short however parts refer to each other."""
    if isinstance(value, (str, bytes)):
        return repr(value[:40])
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value):,}"
    return f"{value.kind}(…)" if isinstance(value, ForeignObject) else repr(value)


def plain_values(value: object) -> Any:
    """Settings as plain values: an object by its entries, an OmegaConf node by its content, what is not plain as text.

    Objects may refer to each other in circles: what lies deeper than some levels, or beyond some thousand values, is
    text too.
    """
    left = [_MOST_SETTINGS]

    def plain(item: object, depth: int) -> Any:
        left[0] -= 1
        if item is None or isinstance(item, (bool, int, float, str)):
            return item[:_LONGEST_TEXT] if isinstance(item, str) else item
        entries = item.entries if isinstance(item, ForeignObject) else item
        if depth > _DEEPEST_SETTINGS or left[0] < 0 or isinstance(item, (bytes, TensorSpec, ClassName)):
            return repr(item) if isinstance(item, (ForeignObject, ClassName, TensorSpec)) else short(item)
        if isinstance(entries, dict) and entries:
            if isinstance(item, ForeignObject) and "_content" in entries and "_metadata" in entries:
                return plain(entries["_content"], depth + 1)
            shown = islice(entries.items(), max(left[0], 0))
            return {str(key): plain(inner, depth + 1) for key, inner in shown}
        if isinstance(item, (list, tuple)):
            return [plain(inner, depth + 1) for inner in islice(item, max(left[0], 0))]
        return item if item == {} else repr(item)

    return plain(value, 0)
