"""One source file that needs nothing of ours, made of the modules that need each other: what an export takes along.

Asked for a class, it follows names from statement to statement through the house's imports and writes each definition
that is reached once, as it stands in its file, with the comments above it; a definition before those that need it.
Where two files use one name for two things, the later one is called NAME_of_FILE.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path

from dittool.export.names import Use, bound_by, uses_in

_HOUSE = "dittool"
_ROOT = Path(__file__).resolve().parents[2]  # of the house
_WIDTH = 120
Symbol = tuple[str, str]  # module, name


def joined(roots: Sequence[Symbol], title: str, instead: Mapping[Symbol, Symbol] | None = None) -> str:
    """The source of a file that defines these symbols and all that they need.

    Args:
        title: its docstring.
        instead: what stands for a symbol that is not to be taken.

    Raises ValueError for what cannot be joined: one name for two imports, or a circle.
    """
    joiner = _Joiner(instead or {})
    for root in roots:
        joiner.take(root)
    sections = list(joiner.sections())
    text = "\n\n".join([_docstring(title), "from __future__ import annotations", *_imports(joiner.outside)])
    text = "\n\n\n".join([text, *sections]) + "\n"
    compile(text, "<joined>", "exec")
    return text


@dataclass(frozen=True)
class _Module:
    """A file of the house by its statements."""

    name: str

    @cached_property
    def lines(self) -> list[bytes]:
        path = _ROOT.joinpath(*self.name.split("."))
        return (path.with_suffix(".py") if not path.is_dir() else path / "__init__.py").read_bytes().splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(b"\n".join(self.lines))

    @cached_property
    def defined(self) -> dict[str, int]:
        """Names → the statement that defines them, by its place in the file."""
        found: dict[str, int] = {}
        for place, one in enumerate(self.tree.body):
            if not isinstance(one, (ast.Import, ast.ImportFrom, ast.Expr)) and not _is_for_types(one):
                found |= dict.fromkeys(bound_by(one), place)
        return found

    @cached_property
    def imported(self) -> dict[str, tuple[str, str | None]]:
        """Names → the module that they come from and what they are called there; None: the module itself."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in [inner for one in self.tree.body for inner in _imports_of(one)]:
            if isinstance(node, ast.Import):
                found |= {alias.asname or alias.name.partition(".")[0]: (alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        return found

    @cached_property
    def uses(self) -> list[list[Use]]:
        """Of each statement."""
        return [uses_in(node) for node in self.tree.body]

    def piece(self, place: int) -> tuple[int, int]:
        """The lines [first, end) of a statement, with its decorators and the comments right above, counted from 0."""
        node = self.tree.body[place]
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
        while first > 0 and self.lines[first - 1].startswith(b"#"):
            first -= 1
        assert node.end_lineno is not None
        return first, node.end_lineno


@cache
def _module(name: str) -> _Module:
    return _Module(name)


def _is_for_types(node: ast.stmt) -> bool:
    return bool(_imports_of(node)) and isinstance(node, ast.If)


def _imports_of(node: ast.stmt) -> list[ast.stmt]:
    """The statement itself, or of a block for type checkers what stands in it."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return node.body
    return [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []


@dataclass(frozen=True)
class _Found:
    """A use whose meaning is known: what it stands for, and whether it names that by way of its module."""

    use: Use
    symbol: Symbol
    by_module: bool


@dataclass
class _Joiner:
    instead: Mapping[Symbol, Symbol]
    taken: dict[str, dict[int, list[_Found]]] = field(default_factory=dict)  # module → place of a statement → its uses
    outside: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name → other package's module, its name

    def take(self, symbol: Symbol) -> None:
        """Takes the statement that defines a symbol, and all that it needs."""
        module = _module(symbol[0])
        place = module.defined[symbol[1]]
        if place in self.taken.setdefault(module.name, {}):
            return
        uses = self.taken[module.name][place] = []
        for use in module.uses[place]:
            if (found := self._found(module, use)) is not None:
                uses.append(found)
                self.take(found.symbol)

    def sections(self) -> Iterator[str]:
        """The text of each file's part, those that others need first."""
        needs = {
            name: list(
                dict.fromkeys(one.symbol[0] for uses in places.values() for one in uses if one.symbol[0] != name)
            )
            for name, places in self.taken.items()
        }
        order = list(TopologicalSorter(needs).static_order())
        called = self._called(order)
        for name in order:
            yield self._section(_module(name), called)

    def _found(self, module: _Module, use: Use) -> _Found | None:
        """What of the house a use is; None for what Python or another package has, which is imported."""
        if use.name not in module.defined and use.name in module.imported:
            origin, inner = module.imported[use.name]
            whole = origin if inner is None else f"{origin}.{inner}"
            if _is_of_house(origin) and _is_module(whole):
                if use.attribute is None:
                    raise ValueError(f"{module.name}: the module {whole} itself is used, and not a name in it")
                symbol = self._resolved(_module(whole), use.attribute)
                return None if symbol is None else _Found(use, symbol, by_module=True)
        symbol = self._resolved(module, use.name)
        return None if symbol is None else _Found(use, symbol, by_module=False)

    def _resolved(self, module: _Module, name: str) -> Symbol | None:
        symbol = (module.name, name)
        if symbol in self.instead:
            return self.instead[symbol]
        if name in module.defined:
            return symbol
        if name not in module.imported:
            return None
        origin, inner = module.imported[name]
        if _is_of_house(origin) and inner is not None:
            return self._resolved(_module(origin), inner)
        if self.outside.setdefault(name, (origin, inner)) != (origin, inner):
            raise ValueError(f"{name}: imported from {self.outside[name][0]} and from {origin}")
        return None

    def _called(self, order: Sequence[str]) -> dict[Symbol, str]:
        """What each definition is called, so that no two have one name."""
        known, called = set(self.outside), dict[Symbol, str]()
        for module in map(_module, order):
            for place in sorted(self.taken[module.name]):
                for name in sorted(name for name, at in module.defined.items() if at == place):
                    free = name if name not in known else f"{name}_of_{module.name.rpartition('.')[2]}"
                    called[module.name, name] = free
                    known.add(free)
        return called

    def _section(self, module: _Module, called: Mapping[Symbol, str]) -> str:
        places = sorted(self.taken[module.name])
        text, before = _headline(module, len(places)), -1
        for place in places:
            near = [module.tree.body[one] for one in (before, place) if one >= 0]
            follows = before >= 0 and module.piece(before)[1] == module.piece(place)[0]
            blocks = any(isinstance(one, (ast.ClassDef, ast.FunctionDef)) for one in near)
            text += ("\n\n" if blocks else "" if follows else "\n") + self._text(module, place, called) + "\n"
            before = place
        return text.rstrip("\n")

    def _text(self, module: _Module, place: int, called: Mapping[Symbol, str]) -> str:
        """A statement's source, under the names that things have here."""
        first, end = module.piece(place)
        lines = module.lines[first:end]
        edits = []
        for one in self.taken[module.name][place]:
            new, span = called[one.symbol], one.use.span
            if span is None:
                continue
            if one.by_module:
                edits.append((span.line, span.begin, span.end, new))
            elif new != one.use.name:
                edits.append((span.line, span.begin, span.begin + len(one.use.name.encode()), new))
        node = module.tree.body[place]
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (new := called[module.name, node.name]) != node.name:
            begin = module.lines[node.lineno - 1].index(node.name.encode())
            edits.append((node.lineno, begin, begin + len(node.name.encode()), new))
        for line, begin, stop, new in sorted(edits, reverse=True):
            row = lines[line - 1 - first]
            lines[line - 1 - first] = row[:begin] + new.encode() + row[stop:]
        return b"\n".join(lines).decode()


def _is_of_house(module: str) -> bool:
    return module.partition(".")[0] == _HOUSE


def _is_module(name: str) -> bool:
    path = _ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _headline(module: _Module, taken: int) -> str:
    """A line that names the file, and what it says of itself where half of it or more is here."""
    line = f"# {'—' * 8} {module.name.replace('.', '/')}.py ".ljust(_WIDTH, "—")
    said = ast.get_docstring(module.tree)
    return f"{line}\n{_docstring(said)}\n" if said and taken * 2 >= len(set(module.defined.values())) else f"{line}\n"


def _docstring(text: str) -> str:
    return '"""' + text.strip() + '\n"""' if "\n" in text.strip() else f'"""{text.strip()}"""'


def _imports(outside: Mapping[str, tuple[str, str | None]]) -> list[str]:
    """The lines that import other packages' names: Python's own first."""
    groups: dict[bool, list[str]] = {True: [], False: []}
    whole = sorted((origin, name) for name, (origin, inner) in outside.items() if inner is None)
    for origin, name in whole:
        called = "" if name == origin.partition(".")[0] else f" as {name}"
        groups[_is_pythons(origin)].append(f"import {origin}{called}")
    for origin in sorted({origin for origin, inner in outside.values() if inner is not None}):
        names = sorted((inner, name) for name, (where, inner) in outside.items() if where == origin and inner)
        parts = [inner if inner == name else f"{inner} as {name}" for inner, name in names]
        line = f"from {origin} import {', '.join(parts)}"
        if len(line) > _WIDTH:
            line = f"from {origin} import (\n" + "".join(f"    {part},\n" for part in parts) + ")"
        groups[_is_pythons(origin)].append(line)
    return ["\n".join(group) for group in groups.values() if group]


def _is_pythons(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
