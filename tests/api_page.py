"""Writes what the package promises to Python, from its docstrings: python -m tests.api_page > docs/api.md"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

import dittool

BEGINNING = """# Python: what the package promises

Made by `python -m tests.api_page > docs/api.md` from the docstrings. What is not on this page may change without a line
in the changelog. `import dittool` imports no torch: a name's module is imported when the name is first used.

```python run
from dittool import load

pipe = load("runs/demo")
images = pipe(prompt="a black dog", reference="path/to/images/one.png")
```
"""


def signature(name: str, thing: Callable[..., object]) -> str:
    """As one writes it, the first argument of methods left out."""
    found = inspect.signature(thing)
    given: list[str] = []
    for one in found.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in given:
            given.append("*")
        if one.name not in ("self", "cls"):
            given.append(argument(one))
    return f"{name}({', '.join(given)}) -> {found.return_annotation}"


def argument(one: inspect.Parameter) -> str:
    if one.default is one.empty:
        return f"{one.name}: {one.annotation}"
    plain = isinstance(one.default, (str, int, float, tuple, type(None)))
    return f"{one.name}: {one.annotation} = {one.default!r}" if plain else f"{one.name}: {one.annotation} = …"


def text_of(thing: object) -> str:
    """The docstring; its list of arguments as a list."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"^Args:\n((?:    .+(?:\n|$))+)", lambda found: arguments(found[1]), text, flags=re.MULTILINE)


def arguments(text: str) -> str:
    joined = re.sub(r"\n(?!\w+: )\s*", " ", textwrap.dedent(text).strip())
    return re.sub(r"^(\w+):", r"- `\1`:", joined, flags=re.MULTILINE) + "\n"


def members(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods of a class that say what they are, in the order of its source."""
    for name, member in vars(kind).items():
        inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(inner) and inspect.getdoc(inner) and (name == "__call__" or not name.startswith("_")):
            yield name, inner


def page() -> str:
    parts = [BEGINNING]
    for name in sorted(dittool.__all__, key=str.lower):
        thing = getattr(dittool, name)
        if isinstance(thing, str):
            parts.append(f"## {name}\n\nThe version, `dittool.{name}`.\n")
        elif inspect.isclass(thing):
            parts.append(f"## {name}\n\n{text_of(thing)}\n")
            parts += [
                f"### {name}.{method}\n\n```python\n{signature(method, inner)}\n```\n\n{text_of(inner)}\n"
                for method, inner in members(thing)
            ]
        else:
            parts.append(f"## {name}\n\n```python\n{signature(name, thing)}\n```\n\n{text_of(thing)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
