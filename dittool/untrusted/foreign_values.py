"""What a pickle's reader puts where the file has something that is neither a tensor nor a plain value.

Nothing of it is ever imported: a class is its name, an object its class's name with what the file says is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from dittool.untrusted.tensor_spec import TensorSpec

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

    @property
    def entries(self) -> dict[Any, Any]:
        """What it holds by name: its pairs, else its attributes, else nothing."""
        return self.pairs or (self.attributes if isinstance(self.attributes, dict) else {})

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
