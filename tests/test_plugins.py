"""What other packages add: found by metadata, loaded when called for, and harmless when broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from dittool.audit.registry import BUILT_IN
from dittool.audit.registry import PLUGIN_GROUP as RULES
from dittool.completion import presets

if sys.version_info >= (3, 11):
    pass
else:
    pass

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with entry points: `installed("dit-draw", {"draw": "dit_draw:main"}, source)`."""

    def install(
        package: str,
        named: dict[str, str],
        source: str = "",
        version: str = "1.2",
        group: str = "dit.commands",
    ) -> None:
        module = package.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)  # an earlier test's
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [f"{name} = {value}" for name, value in named.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))

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
    outcome = dit("tree", "fel")
    assert outcome.code == 2 and "Did you mean 'fell'?" in outcome.err and "see dit tree --help" in outcome.err


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
    outcome = dit("broken", "--some-option")
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith(f"error: plugin 'broken' of dit-broken 1.2 cannot be loaded: {reason}")
    assert second.startswith("  next: update or uninstall that package")
    assert dit("presets").code == 0


def test_a_plugin_that_crashes_is_blamed_by_name(dit, installed):
    installed("dit-crash", {"crash": "dit_crash:main"}, "def main(): raise ValueError('too small')")
    outcome = dit("crash")
    assert outcome.code == 70
    assert outcome.err.splitlines()[0] == "error: plugin 'crash' of dit-crash 1.2 failed: ValueError: too small"


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


def test_entry_points_that_cannot_be_read_cost_the_plugins_of_that_package_alone(dit, installed, tmp_path):
    installed("dit-torn", {})
    (tmp_path / "dit_torn-1.2.dist-info" / "entry_points.txt").write_text("[dit.commands]\nno equals sign\n")
    installed("dit-draw", {"draw": "dit_draw:main"}, DRAW)
    shown = dit("draw", "a circle")
    assert (shown.code, shown.out) == (0, "drawing a circle in red\n")
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("warning: no plugin of dit-torn 1.2 is used: its entry points cannot be read: ")


def test_a_plugin_that_leaves_by_itself_keeps_its_code_and_its_words(dit, installed):
    source = "import sys\ndef three(): sys.exit(3)\ndef words(): sys.exit('no colour left')"
    installed("dit-leaves", {"three": "dit_leaves:three", "words": "dit_leaves:words"}, source)
    assert dit("three").code == 3
    outcome = dit("words")
    assert outcome.code == 70 and "plugin 'words' of dit-leaves 1.2 failed: SystemExit: no colour left" in outcome.err


# Rules

RULE = '''"""It holds.

## What it checks
A thing.

## Why it matters
It does.

## Example
Such.

## Fix
So.
"""
from dittool.audit.rule import Finding, passed
from dittool.errors import BadDataError
CODE, NAME, SEVERITY, SCOPE, SINCE = "M1", "mine", "{severity}", ("preset", "plan"), "1"
def check(subject):
    {body}
'''
BROKEN = [  # a rule's body, and what is said about it
    ("raise ValueError('oops\\nand more')", "ValueError: oops and more"),
    ("open('/nowhere/at/all')", "FileNotFoundError: "),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("return None", "BrokenRule: M1 found nothing"),
    ("return [5]", "AttributeError: "),
    ("return [Finding('pass', 5)]", "BrokenRule: M1 gave evidence or a fix that is no text"),
    ("return [Finding('maybe', 'x')]", "gave the status 'maybe'"),
]


def test_a_broken_rule_of_another_package_lets_training_begin_and_is_named(dit, installed, tmp_path):
    installed("dit-mine", {"mine": "dit_mine"}, RULE.format(severity="warning", body=BROKEN[0][0]), group=RULES)
    installed("dit-gone", {"gone": "dit_gone"}, "import a_module_that_nobody_has", group=RULES)
    few = ("drift.generated=8", "drift.positives=8", "train.batch_size=8", "train.steps=20", "train.warmup_steps=1")
    keys = [word for key in few for word in ("-s", key)]
    done = dit("train", "--preset", "drift-toy", "--out", tmp_path / "run", *keys)
    assert done.code == 0, done.err
    warnings = [line for line in done.err.splitlines() if "dit-mine" in line or "dit-gone" in line]
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings)
    assert "audit rule 'gone' of dit-gone 1.2 cannot be used: ModuleNotFoundError" in warnings[0]
    assert "rule M1 mine of dit-mine 1.2 broke: ValueError: oops and more" in warnings[1]
    (error,) = json.loads((tmp_path / "run" / "audit.json").read_text())["errors"]
    assert error["package"] == "dit-mine 1.2"


@pytest.mark.parametrize("severity", ["warning", "error"])
@pytest.mark.parametrize(("body", "said"), BROKEN)
def test_a_broken_rule_of_another_package_changes_no_answer_of_an_audit(dit, installed, severity, body, said):
    installed("dit-mine", {"mine": "dit_mine"}, RULE.format(severity=severity, body=body), group=RULES)
    done = dit("audit", "drift-toy", "--select", "M1,K1,E4", "--json")
    assert done.code == 70 and not json.loads(done.out)["ok"]  # asked for by name
    ignored = ",".join(code for code in BUILT_IN if code != "E4")
    done = dit("audit", "drift-toy", "--ignore", ignored, "--json")
    assert done.code == 0 and json.loads(done.out)["ok"], done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: rule M1 mine of dit-mine 1.2 broke: ") and said in line


def test_a_sample_that_a_warning_rule_cannot_read_is_a_warning(dit, installed):
    body = "raise BadDataError('torn', 'mend it')"
    installed("dit-mine", {"mine": "dit_mine"}, RULE.format(severity="warning", body=body), group=RULES)
    done = dit("audit", "drift-toy", "--select", "M1", "--json")
    assert done.code == 0 and json.loads(done.out)["counts"]["warn"] == 1


def test_what_a_rule_of_another_package_prints_is_no_part_of_the_answer(dit, installed):
    body = "print('hello'); return passed('1 of 1')"
    installed("dit-mine", {"mine": "dit_mine"}, RULE.format(severity="error", body=body), group=RULES)
    done = dit("audit", "drift-toy", "--select", "M1", "--json")
    assert done.code == 0 and json.loads(done.out)["ok"] and "hello" in done.err


# Presets, families, encoders, sources


@pytest.mark.parametrize(
    ("group", "named", "reason"),
    [
        ("dit.presets", "a_package_that_is_not_there", "a_package_that_is_not_there is no package that can be found"),
        ("dit.presets", "dit_broken", "dit_broken is no package that can be found"),  # a module
        ("dit.presets", "dit_broken.inside", "RuntimeError: imported"),
    ],
)
def test_presets_that_cannot_be_found_are_a_warning_of_the_list_and_harm_no_other(dit, installed, group, named, reason):
    installed("dit-broken", {"mine": named}, "raise RuntimeError('imported')", group=group)
    listed = dit("presets", "--json")
    assert listed.code == 0 and "nano" in [row["name"] for row in json.loads(listed.out)["presets"]]
    (line,) = [line for line in listed.err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: presets 'mine' of dit-broken 1.2 cannot be found: ") and reason in line
    assert dit("presets", "nano").code == 0
    unknown = dit("presets", "mine")
    assert unknown.code == 2 and "dit-broken 1.2" in unknown.err


def test_a_preset_of_a_plugin_with_a_mistake_is_a_warning_of_the_list(dit, installed, tmp_path):
    installed("dit-more", {"more": "dit_more_presets"}, group="dit.presets")
    folder = tmp_path / "dit_more_presets"
    folder.mkdir()
    (folder / "torn.toml").write_text("base = ")
    (folder / "nano.toml").write_text("base = ")  # a shipped name stays ours
    (folder / "good.toml").write_text('base = "nano"\ndescription = "good"\n')
    listed = dit("presets", "--json")
    names = [row["name"] for row in json.loads(listed.out)["presets"]]
    assert "good" in names and "torn" not in names and names.count("nano") == 1
    assert listed.err.count("warning: ") == 1 and "preset torn cannot be used" in listed.err
    assert 'description = "good"' in dit("presets", "good").out
    assert dit("audit", "good", "--select", "C5").code == 0
    assert "good" in presets("go")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_module_that_nobody_has", "family 'mine' of dit-broken 1.2 cannot be loaded: ModuleNotFoundError"),
        ("row = 5", "family 'mine' of dit-broken 1.2: dit_broken:row is no dittool.config.architectures.Architecture"),
    ],
)
def test_a_family_that_cannot_be_used_is_named_with_its_package(dit, installed, tmp_path, source, said):
    installed("dit-broken", {"mine": "dit_broken:row"}, source, group="dit.families")
    (tmp_path / "mine.toml").write_text('base = "demo"\n[model]\narch = "mine"\n')
    (tmp_path / "other.toml").write_text('base = "demo"\n[model]\narch = "other"\n')
    outcome = dit("train", "--preset", tmp_path / "mine.toml")
    assert outcome.code == 2 and said in outcome.err
    unknown = dit("train", "--preset", tmp_path / "other.toml")
    assert unknown.code == 2 and "'mine', not 'other'" in unknown.err
    assert dit("presets", "demo").code == 0


@pytest.mark.parametrize("kind", ["image", "text", "vae"])
def test_an_encoder_that_no_package_brings_is_named(dit, installed, tmp_path, kind):
    installed("dit-more", {"shapes": "dit_more:Shapes"}, group={"vae": "dit.codecs"}.get(kind, f"dit.{kind}_encoders"))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (128, 128)).save(tmp_path / "images" / "one.png")
    (tmp_path / "images" / "one.txt").write_text("black")
    words = ("embed", tmp_path / "images", "--preset", "demo", "--out", tmp_path / "derived")
    outcome = dit(*words, "-s", f"encoders.{kind}=plugin:shape")
    assert outcome.code == 2 and f"encoders.{kind}: 'plugin:shape' is in no installed package" in outcome.err
    assert "plugin:shapes" in outcome.err
    broken = dit(*words, "-s", f"encoders.{kind}=plugin:shapes")
    assert (
        broken.code == 2 and f"{kind} encoder 'shapes' of dit-more 1.2 cannot be loaded: AttributeError" in broken.err
    )


def test_a_source_that_gives_something_else_is_named(dit, installed, tmp_path):
    installed("dit-more", {"lst": "dit_more:read"}, "def read(path, pairing): return [1]", group="dit.sources")
    (tmp_path / "list.lst").write_text("one.png")
    (tmp_path / "list.xyz").write_text("one.png")
    outcome = dit("embed", tmp_path / "list.lst", "--preset", "demo", "--out", tmp_path / "derived")
    assert outcome.code == 2 and "source 'lst' of dit-more 1.2 gave a list, no Source" in outcome.err
    assert "or .lst file" in dit("embed", tmp_path / "list.xyz", "--preset", "demo").err
