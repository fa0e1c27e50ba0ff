"""Who may import whom, what must stay light, how long a file may be. Read from the source, so that nothing slips in
unseen.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from dittool.cli import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for top in ("dittool", "commands", "presets") for path in (ROOT / top).rglob("*.py"))
MODULES = sorted(path for path in SOURCES if path.name != "__init__.py")
HEAVY = {"torch", "torchvision", "numpy", "PIL", "skimage", "matplotlib", "tensorboard", "safetensors", "webdataset"}
HEAVY |= {"transformers", "diffusers", "lpips"}
STANDARD = set(sys.stdlib_module_names)


def name_of(path: Path) -> str:
    """`commands/train.py` → `commands.train`, `dittool/models/dit.py` → `dittool.models.dit`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Every module that a file imports, dotted; `from a import b` counts as `a.b`. What is imported for type checkers
    only is left out, and with `top_level_only` what functions import when they are called.
    """
    found = set()
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        runs_later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for_types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not for_types_only and not (top_level_only and runs_later):
            nodes += ast.iter_child_nodes(node)
    return frozenset(found)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offenders(paths: list[Path], forbidden, top_level_only: bool = False) -> list[str]:
    """`file imports module` for each import that `forbidden(module)` holds for."""
    return [
        f"{name_of(path)} imports {module}"
        for path in paths
        for module in sorted(imports(path, top_level_only))
        if forbidden(module)
    ]


def files_of(*packages: str) -> list[Path]:
    return [path for path in SOURCES if any(within(name_of(path), package) for package in packages)]


def test_the_source_is_found():
    assert {"dittool.cli", "dittool.config.load", "commands.options", "commands.presets"} <= {
        name_of(path) for path in SOURCES
    }


# Directions


def test_the_library_never_imports_commands():
    library = [path for path in files_of("dittool") if name_of(path) != "dittool.cli"]
    assert offenders(library, lambda module: within(module, "dittool.commands")) == []
    assert offenders(library, lambda module: within(module, "typer") or within(module, "click")) == []


def test_nobody_imports_click():
    assert offenders(SOURCES, lambda module: within(module, "click") or within(module, "typer._click")) == []


def test_commands_never_import_each_other():
    commands = files_of("commands")
    assert (
        offenders(
            commands,
            lambda module: within(module, "dittool.commands") and not within(module, "dittool.commands.options"),
        )
        == []
    )


@pytest.mark.parametrize("package", ["dittool.models", "dittool.objective"])
def test_models_and_objective_import_only_torch_and_each_other(package):
    def foreign(module: str) -> bool:
        root = module.split(".")[0]
        return (
            root not in STANDARD | {"torch"}
            and not within(module, "dittool.models")
            and not within(module, "dittool.objective")
        )

    assert offenders(files_of(package), foreign) == []


def test_models_do_not_know_the_objective():
    assert offenders(files_of("dittool.models"), lambda module: within(module, "dittool.objective")) == []


@pytest.mark.parametrize("package", ["dittool.data", "dittool.encoders", "dittool.ckpt", "dittool.audit"])
def test_data_encoders_checkpoints_and_audit_never_import_training(package):
    assert offenders(files_of(package), lambda module: within(module, "dittool.train")) == []


def test_only_encoders_import_transformers_and_diffusers():
    others = [path for path in SOURCES if not within(name_of(path), "dittool.encoders")]
    assert offenders(others, lambda module: within(module, "transformers") or within(module, "diffusers")) == []


def test_there_are_no_relative_imports():
    tree = {path: ast.walk(ast.parse(path.read_text())) for path in SOURCES}
    assert [
        name_of(path)
        for path, nodes in tree.items()
        if any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)
    ] == []


# Lightness

LIGHT = [
    "dittool.cli",
    "dittool.config",
    "dittool.console",
    "dittool.errors",
    "dittool.storage",
    "dittool.seeding",
    "dittool.__main__",
    "commands",
]


def test_light_modules_import_nothing_heavy_when_they_are_imported():
    assert offenders(files_of(*LIGHT), lambda module: module.split(".")[0] in HEAVY, top_level_only=True) == []


def test_light_modules_import_only_light_modules_of_ours():
    library = {
        "dittool.models",
        "dittool.objective",
        "dittool.sampling",
        "dittool.encoders",
        "dittool.train",
        "dittool.validate",
        "dittool.demo",
    }

    def heavy(module: str) -> bool:
        return any(within(module, package) for package in library)

    assert offenders(files_of(*LIGHT), heavy, top_level_only=True) == []


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


# Size and names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_opens_by_saying_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_no_longer_than_one_reads_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= (180 if path.parent.name == "commands" else 400)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_body_of_a_function_fits_a_screen(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {one.name: one.end_lineno - one.body[0].lineno + 1 for one in functions}
    assert [f"{name}: {lines} lines" for name, lines in lengths.items() if lines >= 80] == []


def test_no_file_has_a_name_that_says_nothing():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert names & {"util", "utils", "helper", "helpers", "common", "misc", "manager", "process"} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_left_for_later(path):
    assert not re.search(r"\bNotImplementedError\b|\bTODO\b|\bFIXME\b|\bXXX\b", path.read_text())
