"""Commands of third parties: found by metadata, loaded when called, and harmless when broken."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with entry points in the group dit.commands: `installed("dit-draw", {"draw":
    "dit_draw:main"}, source)`.
    """

    def install(package: str, commands: dict[str, str], source: str = "", version: str = "1.2") -> None:
        module = package.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)  # an earlier test's
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [f"{name} = {value}" for name, value in commands.items()]
        (info / "entry_points.txt").write_text("\n".join(["[dit.commands]", *lines, ""]))

    monkeypatch.syspath_prepend(tmp_path)
    return install


DRAW = '''
import typer

def main(what: str, colour: str = "red"):
    """Draw something."""
    print("drawing", what, "in", colour)
'''

TREE = '''
import typer
app = typer.Typer()

@app.command()
def grow(name: str):
    """Grow a tree."""
    print("growing", name)

@app.command()
def fell():
    """Fell it."""
'''


def test_a_plugin_is_listed_with_its_package_and_not_imported_for_it(dit, installed):
    installed("dit-broken", {"broken": "dit_broken:main"}, "raise RuntimeError('imported')")
    shown = dit("--help")
    assert (shown.code, shown.err) == (0, "")
    assert "broken" in shown.out and "plugin 'broken' of dit-broken 1.2" in shown.out


def test_a_plugin_may_be_a_function(dit, installed):
    installed("dit-draw", {"draw": "dit_draw:main"}, DRAW)
    assert dit("draw", "--colour", "blue", "a circle").out == "drawing a circle in blue\n"
    assert dit("draw", "--help").out.startswith("Usage: dit draw [OPTIONS] {what}\n\n  Draw something.")


def test_a_plugin_may_be_a_typer_app_with_commands_of_its_own(dit, installed):
    installed("dit-tree", {"tree": "dit_tree:app"}, TREE)
    assert dit("tree", "grow", "an oak").out == "growing an oak\n"
    assert "Grow a tree." in dit("tree", "--help").out
    told = dit("tree", "fel")
    assert told.code == 2 and "Did you mean 'fell'?" in told.err and "see dit tree --help" in told.err


def test_a_plugin_gets_every_argument_as_it_was_typed(dit, installed):
    source = "import typer\ndef main(words: list[str], loud: bool = False):\n    print(words, loud)"
    installed("dit-say", {"say": "dit_say:main"}, source)
    assert dit("say", "--loud", "--", "--help", "-x", "--").out == "['--help', '-x', '--'] True\n"


def test_a_plugin_ends_with_its_own_errors_and_exit_codes(dit, installed):
    source = (
        "import typer\nfrom dittool.errors import BadDataError\ndef bad(): raise BadDataError('torn', 'mend it')\ndef"
        " no(): raise typer.Exit(1)"
    )
    installed("dit-ends", {"bad": "dit_ends:bad", "no": "dit_ends:no"}, source)
    assert (dit("bad").code, dit("no").code) == (3, 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("def main(:", "SyntaxError: "),
        ("raise SystemExit('goodbye')", "SystemExit: goodbye"),
        ("main = 5", "TypeError: dit_broken:main is a int, not a function and not a Typer app"),
        ("", "AttributeError: "),
        ("def main(x: int | str): ...", "AssertionError: "),
    ],
)
def test_a_broken_plugin_is_named_with_its_package_and_harms_nothing_else(dit, installed, source, reason):
    installed("dit-broken", {"broken": "dit_broken:main"}, source)
    told = dit("broken", "--some-option")
    assert (told.code, told.out) == (2, "")
    first, second = told.err.splitlines()
    assert first.startswith(f"error: plugin 'broken' of dit-broken 1.2 cannot be loaded: {reason}")
    assert second.startswith("  next: update or uninstall that package")
    assert dit("presets").code == 0


def test_a_plugin_that_crashes_is_blamed_by_name(dit, installed):
    installed("dit-crash", {"crash": "dit_crash:main"}, "def main(): raise ValueError('too small')")
    told = dit("crash")
    assert told.code == 70
    assert told.err.splitlines()[0] == "error: plugin 'crash' of dit-crash 1.2 failed: ValueError: too small"


def test_a_plugin_cannot_take_the_place_of_a_built_in_command(dit, installed):
    installed("dit-draw", {"presets": "dit_draw:main"}, DRAW)
    shown = dit("presets", "nano", "--quiet")
    assert shown.code == 0 and 'description = "' in shown.out
    assert shown.err == "warning: plugin 'presets' of dit-draw 1.2 is not used: a command of that name exists already\n"


def test_of_two_plugins_with_one_name_the_second_is_refused_with_a_line(dit, installed):
    installed("dit-draw", {"draw": "dit_draw:main"}, DRAW)
    installed("dit-redraw", {"draw": "dit_redraw:main"}, DRAW.replace("drawing", "redrawing"))
    shown = dit("draw", "a circle")
    assert shown.out in ("drawing a circle in red\n", "redrawing a circle in red\n")
    assert shown.err.count("is not used: a command of that name exists already") == 1


def test_metadata_that_cannot_be_read_costs_the_plugins_and_nothing_else(dit, installed, tmp_path):
    installed("dit-torn", {})
    (tmp_path / "dit_torn-1.2.dist-info" / "entry_points.txt").write_text("[dit.commands]\nno equals sign\n")
    shown = dit("presets", "nano", "--quiet")
    assert shown.code == 0
    assert shown.err.startswith("warning: no plugin is used: an installed package's entry points cannot be read: ")
