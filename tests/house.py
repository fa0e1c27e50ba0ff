"""The source read as a house: its files, who imports whom, circles, forks on an architecture's name, statements.

For tests/test_architecture.py, which holds the directions, and tests/bench/size_of_house.py, which prints the figures.
Nothing is imported or run; a tree of any age can be read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TOPS = ("dittool", "commands", "presets")  # the folders of the source; the latter two ship as dittool.commands, …
FAMILY_ROOMS = ("dittool.families", "dittool.config")  # where the name of an architecture may be asked for
CONFIGURATIONS = {"Config", "FlowConfig", "DriftConfig", "ToyConfig"}  # one class a family


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported_by(tree: ast.AST, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports, dotted; `from a import b` counts as `a.b`.

    What is imported for type checkers only is left out, and with `top_level_only` what functions import when called.
    """
    found: set[str] = set()
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        runs_later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        elif not (top_level_only and runs_later):
            nodes += ast.iter_child_nodes(node)
    return found


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node, and nodes that point at themselves (Tarjan 1972)."""
    order: dict[str, int] = {}  # node → when it was reached
    lowest: dict[str, int] = {}  # node → the earliest node on the stack that it leads back to
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in arrows.get(node, ()):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in arrows.get(node, ()):
                found.append(sorted(component))

    for node in arrows:
        if node not in order:
            visit(node)
    return sorted(found)


def statements(tree: ast.AST) -> int:
    """How many statements, docstrings not counted: growth that no formatter makes or hides."""
    return sum(
        isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.walk(tree)
    )


def uses_of_any(tree: ast.AST) -> int:
    """How often `Any` stands in annotations, its import not counted."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def forks(tree: ast.AST) -> list[str]:
    """Every place that asks which architecture a configuration has: `….arch` compared or looked up, a configuration's
    class tested.
    """

    def asks(node: ast.AST) -> bool:
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            return any(isinstance(part, ast.Attribute) and part.attr == "arch" for part in parts)
        if isinstance(node, ast.Match):
            return isinstance(node.subject, ast.Attribute) and node.subject.attr == "arch"
        if not isinstance(node, ast.Call):
            return False
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            return any(isinstance(part, ast.Attribute) and part.attr == "arch" for part in node.args)
        named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return isinstance(node.func, ast.Name) and node.func.id == "isinstance" and bool(named & CONFIGURATIONS)

    return [ast.unparse(node).splitlines()[0] for node in ast.walk(tree) if asks(node)]


@dataclass(frozen=True)
class House:
    """The source below one root folder."""

    root: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """`commands.train` → the file; packages by the name of their folder."""
        paths = sorted(path for top in TOPS for path in (self.root / top).rglob("*.py"))
        return {self.name_of(path): path for path in paths}

    def name_of(self, path: Path) -> str:
        """`commands/train.py` → `commands.train`, `dittool/models/__init__.py` → `dittool.models`."""
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """File → the files of this house that it imports, also inside functions."""
        return {
            name: {target for module in imported_by(tree) if (target := self._file_of(module))} - {name}
            for name, tree in self.trees.items()
        }

    def _file_of(self, module: str) -> str:
        """`dittool.models.dit.DiT` → `dittool.models.dit`; "" for a module of others."""
        for top in ("commands", "presets"):
            if within(module, f"dittool.{top}"):
                module = module.removeprefix("dittool.")
        while module and module not in self.files:
            module = module.rpartition(".")[0]
        return module

    def room_of(self, name: str) -> str:
        """`dittool.data.shards.read` → `data`, `dittool.errors` → `errors`, `commands.train` → `commands`."""
        top, *rest = name.split(".")
        return top if top != "dittool" else (rest[0] if rest else "dittool")

    @cached_property
    def room_arrows(self) -> dict[str, dict[str, list[str]]]:
        """Room → other rooms that it imports → the arrows, `file → file`.

        The package's own file is no room: it holds the version below all others, and the public doors above them.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for name, targets in self.arrows.items():
            for target in sorted(targets):
                source_room, target_room = self.room_of(name), self.room_of(target)
                if source_room != target_room and "dittool" not in (source_room, target_room):
                    found.setdefault(source_room, {}).setdefault(target_room, []).append(f"{name} → {target}")
        return found

    def forks_outside_families(self) -> dict[str, list[str]]:
        """File → where it forks on an architecture's name, outside of families/ and config/."""
        outside = {
            name: forks(tree)
            for name, tree in self.trees.items()
            if not any(within(name, room) for room in FAMILY_ROOMS)
        }
        return {name: found for name, found in outside.items() if found}
