"""Who may import whom, what must stay light, how long a file may be. Read from the source, so that nothing slips in
unseen.

A direction that does not hold everywhere yet has a list of those that break it. The list must be exact: whoever mends a
file deletes its name, and nobody may add one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dittool.cli import BUILT_IN
from tests.house import House, circles, forks, imported_by, statements, within

ROOT = Path(__file__).resolve().parents[1]
HOUSE = House(ROOT)
SOURCES = list(HOUSE.files)
MODULES = [name for name, path in HOUSE.files.items() if path.name != "__init__.py"]
HEAVY = {"torch", "torchvision", "numpy", "PIL", "skimage", "matplotlib", "tensorboard", "safetensors", "webdataset"}
HEAVY |= {"transformers", "diffusers", "lpips"}
STANDARD = set(sys.stdlib_module_names)

# The rooms from the ground up: each may import those before it, never those after it.
ROOMS = (
    *(
        "presets",
        "shell",
        "nearest",
        "errors",
        "plugins",
        "seeding",
        "storage",
        "address",
        "whereabouts",
        "machine",
        "console",
        "geometry",
        "config",
        "untrusted",
    ),
    *("models", "objective", "ckpt", "devices", "encoders", "installation", "data", "sampling", "audit", "completion"),
    *("validate", "runs", "families", "export", "train", "ablate", "demo", "cli", "__main__", "commands"),
)


def offenders(names: Iterable[str], forbidden: Callable[[str], bool], top_level_only: bool = False) -> list[str]:
    """`file imports module` for each import that `forbidden(module)` holds for."""
    return [
        f"{name} imports {module}"
        for name in names
        for module in sorted(imported_by(HOUSE.trees[name], top_level_only))
        if forbidden(module)
    ]


def files_of(*packages: str) -> list[str]:
    return [name for name in SOURCES if any(within(name, package) for package in packages)]


def any_of(*packages: str) -> Callable[[str], bool]:
    return lambda module: any(within(module, package) for package in packages)


def test_the_source_is_found():
    assert {"dittool.cli", "dittool.config.load", "commands.options", "commands.presets"} <= set(SOURCES)


# Directions


def test_the_library_never_imports_commands():
    library = [name for name in files_of("dittool") if name != "dittool.cli"]
    assert offenders(library, any_of("dittool.commands")) == []
    assert offenders(library, any_of("typer", "click")) == []


def test_nobody_imports_click():
    assert offenders(SOURCES, any_of("click", "typer._click")) == []


def test_commands_never_import_each_other():
    def another(module: str) -> bool:
        return within(module, "dittool.commands") and not module.startswith("dittool.commands.options")

    assert offenders(files_of("commands"), another) == []


@pytest.mark.parametrize("room", ["dittool.models", "dittool.objective", "dittool.geometry"])
def test_models_objective_and_geometry_import_only_torch_numbers_and_errors(room):
    ours = ("dittool.models", "dittool.objective", "dittool.geometry", "dittool.errors")
    known = any_of("torch", *ours, *STANDARD)
    assert offenders(files_of(room), lambda module: not known(module)) == []


def test_models_do_not_know_the_objective():
    assert offenders(files_of("dittool.models"), any_of("dittool.objective")) == []


def test_encoders_import_neither_data_nor_training():
    assert offenders(files_of("dittool.encoders"), any_of("dittool.data", "dittool.train")) == []


@pytest.mark.parametrize("package", ["dittool.data", "dittool.encoders", "dittool.ckpt", "dittool.audit"])
def test_data_encoders_checkpoints_and_audit_never_import_training(package):
    assert offenders(files_of(package), any_of("dittool.train")) == []


def test_validation_never_imports_the_demo():
    assert offenders(files_of("dittool.validate"), any_of("dittool.demo")) == []


def test_rules_import_no_specimen_but_the_protocol():
    """A rule asks a specimen and judges; how the answer is found is not its matter."""
    specimens = any_of("dittool.audit.specimens", "dittool.audit.foreign")

    def another(module: str) -> bool:
        return specimens(module) and not within(module, "dittool.audit.specimens.specimen")

    rules = files_of("dittool.audit.rules")
    assert offenders(rules, another) == []


def test_only_encoders_and_what_an_export_takes_along_import_transformers_and_diffusers():
    rooms = ("dittool.encoders", "dittool.export.loaded")
    others = [name for name in SOURCES if not any(within(name, room) for room in rooms)]
    assert offenders(others, any_of("transformers", "diffusers")) == []


def test_there_are_no_relative_imports():
    relative = [
        name
        for name, tree in HOUSE.trees.items()
        if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    ]
    assert relative == []


def test_files_import_each_other_in_no_circle():
    """Imports inside functions counted: they hide a circle from Python, not from a reader."""
    assert circles(HOUSE.arrows) == []


def test_every_room_has_its_place_in_the_order():
    assert {HOUSE.room_of(name) for name in SOURCES} - {"dittool"} <= set(ROOMS)


def test_a_room_imports_only_rooms_before_it():
    back = [
        arrow
        for room, targets in HOUSE.room_arrows.items()
        for target, arrows in targets.items()
        if ROOMS.index(target) > ROOMS.index(room)
        for arrow in arrows
    ]
    assert back == []


def test_circles_are_found_however_long():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == [["a", "b", "c"], ["e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# One house for every family


def test_only_families_and_configuration_ask_for_the_name_of_an_architecture():
    assert list(HOUSE.forks_outside_families()) == []


def test_forks_are_found():
    text = "config.model.arch == 'dit'\nisinstance(config, DriftConfig)\n{}.get(model.arch)\nrun.architecture == 1"
    assert len(forks(ast.parse(text))) == 3


def test_the_loop_knows_no_objective_and_no_network():
    assert offenders(["dittool.train.loop"], any_of("dittool.models", "dittool.objective")) == []


# Lightness

LIGHT = [
    "dittool.cli",
    "dittool.completion",
    "dittool.config",
    "dittool.console",
    "dittool.errors",
    "dittool.machine",
    "dittool.plugins",
    "dittool.shell",
    "dittool.storage",
    "dittool.seeding",
    "dittool.__main__",
    "commands",
]


def test_light_modules_import_nothing_heavy_when_they_are_imported():
    assert offenders(files_of(*LIGHT), any_of(*HEAVY), top_level_only=True) == []


def test_light_modules_import_only_light_modules_of_ours():
    heavy = ("models", "objective", "sampling", "encoders", "train", "families", "validate", "demo")
    ours = any_of(*(f"dittool.{room}" for room in heavy))
    assert offenders(files_of(*LIGHT), ours, top_level_only=True) == []


def loaded_by(*arguments: str) -> set[str]:
    """Top-level names of the modules in a fresh process after a command line has run."""
    code = (
        "import sys; from dittool.cli import run; code = run(sys.argv[1:]); print(); print(*sys.modules);"
        " sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {module.split(".")[0] for module in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_help_of_a_command_loads_nothing_heavy(name):
    assert loaded_by(name, "--help") & HEAVY == set()


def test_the_list_of_commands_loads_not_even_the_configuration():
    assert loaded_by("--help") & (HEAVY | {"pydantic", "tomllib", "tomli"}) == set()


# Size and names: a function fits a screen, a file is read in one sitting. Growth is measured in statements, which no
# formatter makes: tests/bench/size_of_house.py


@pytest.mark.parametrize("name", MODULES)
def test_a_file_opens_by_saying_what_it_is(name):
    assert ast.get_docstring(HOUSE.trees[name])


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_no_longer_than_one_reads_in_one_sitting(name):
    assert len(HOUSE.files[name].read_text().splitlines()) <= (180 if within(name, "commands") else 400)


def test_the_body_of_a_function_fits_a_screen():
    lengths = {
        f"{name}.{node.name}": node.end_lineno - node.body[0].lineno + 1
        for name, tree in HOUSE.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert [name for name, lines in lengths.items() if lines >= 60] == []


def test_statements_count_neither_docstrings_nor_lines():
    assert statements(ast.parse('"""A page."""\n\nx = (\n    1,\n)\nif x:\n    """Why."""\n    y = 2\n')) == 3


def test_no_file_has_a_name_that_says_nothing():
    names = {path.stem for path in HOUSE.files.values()} | {path.parent.name for path in HOUSE.files.values()}
    assert names & {"util", "utils", "helper", "helpers", "common", "misc", "manager", "process"} == set()


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_left_for_later(name):
    assert not re.search(r"\bNotImplementedError\b|\bTODO\b|\bFIXME\b|\bXXX\b", HOUSE.files[name].read_text())
