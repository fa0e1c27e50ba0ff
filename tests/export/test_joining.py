"""Several modules become one file that does what they did."""

from __future__ import annotations

import ast

import pytest

from dittool.export import joining
from dittool.export.joining import joined
from dittool.export.names import uses_in

MODULES = {
    "shapes": '''
"""Areas."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# a circle's constant
_FACTOR = math.pi
UNUSED = 7


class Shape:
    unit = "m"

    def area(self) -> float:
        return _FACTOR


def total(shapes: Sequence[Shape]) -> float:
    return sum(_FACTOR for _FACTOR in [shape.area() for shape in shapes])
''',
    "units": """
_FACTOR = 100  # centimetres


def centimetres(metres: float) -> float:
    return _FACTOR * metres


def kilometres(metres: float) -> float:
    return metres / 1000
""",
    "report": """
from dittool import units
from dittool.shapes import Shape, total
from dittool.units import centimetres


def report(shapes: list[Shape]) -> str:
    def line(value):
        _FACTOR = "="
        return f"{_FACTOR}{value:.0f}"

    return line(centimetres(total(shapes))) + line(units.kilometres(5000))
""",
}


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    (tmp_path / "dittool").mkdir()
    for name, text in MODULES.items():
        (tmp_path / f"dittool/{name}.py").write_text(text.lstrip())
    monkeypatch.setattr(joining, "_ROOT", tmp_path)
    joining._module.cache_clear()
    yield tmp_path / "dittool"
    joining._module.cache_clear()


def run(source):
    names = {}
    exec(compile(source, "joined", "exec"), names)
    return names


def test_a_file_of_several_does_what_they_did():
    names = run(joined([("dittool.report", "report")], "One file."))
    assert names["report"]([names["Shape"](), names["Shape"]()]) == "=628=5"
    assert names["__doc__"] == "One file."


def test_what_is_not_reached_is_left_out():
    source = joined([("dittool.report", "report")], "One file.")
    assert "UNUSED" not in source and "dittool import" not in source
    assert "# a circle's constant\n_FACTOR" in source and "from collections.abc import Sequence" in source


def test_two_things_of_one_name_stay_two_and_local_names_stay_what_they_are():
    source = joined([("dittool.report", "report")], "One file.")
    assert "_FACTOR_of_units = 100  # centimetres" in source or "_FACTOR_of_shapes = math.pi" in source
    assert '        _FACTOR = "="' in source and "for _FACTOR in [" in source


def test_a_stand_in_takes_the_place_of_a_symbol(house):
    (house / "stand_ins.py").write_text("def centimetres(metres):\n    return 1\n")
    instead = {("dittool.units", "centimetres"): ("dittool.stand_ins", "centimetres")}
    source = joined([("dittool.report", "report")], "One file.", instead)
    assert run(source)["report"]([]) == "=1=5" and "_FACTOR_of" not in source


def test_one_name_for_two_imports_is_refused(house):
    (house / "units.py").write_text("from cmath import pi as math\n\n\ndef centimetres(metres):\n    return math\n")
    (house / "report.py").write_text(MODULES["report"].replace(" + line(units.kilometres(5000))", "").lstrip())
    with pytest.raises(ValueError, match="math: imported from"):
        joined([("dittool.report", "report")], "One file.")


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("def f(a, *b, c=D, **e) -> G:\n    h = a\n    return h, b, c, e, i", {"D", "G", "i"}),
        ("def f():\n    global a\n    a = b", {"a", "b"}),
        ("def f():\n    def g():\n        nonlocal a\n        a = b\n    a = 1", {"b"}),
        ("class A(B):\n    c = 1\n    d = c\n    def e(self):\n        return c", {"B", "c"}),
        ("class A:\n    @property\n    def a(self): ...\n    @a.setter\n    def a(self, b): ...", {"property"}),
        ("a = [b for b in c if b]", {"a", "c"}),
        ("a = lambda b, c=d: b + c + e", {"a", "d", "e"}),
        ("def f(a):\n    try:\n        b(a)\n    except C as d:\n        return d", {"b", "C"}),
        ("def f(a):\n    match a:\n        case [b, *c]:\n            return b, c, d", {"d"}),
        ("def f(a):\n    with a as b, c as (d, e):\n        return (g := b), d, e, g", {"c"}),
        ("a: B = cast('list[C]', d)", {"a", "B", "C", "cast", "d", "list"}),
    ],
)
def test_the_names_of_a_statement_that_mean_something_outside_of_it(text, used):
    (statement,) = ast.parse(text).body
    assert {use.name for use in uses_in(statement)} == used
