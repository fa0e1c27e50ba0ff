"""What is shipped: a wheel, an editable install and a bare checkout all run, with every file and nothing at the top
level but dittool.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import dittool
from dittool.config.load import config_to_toml, load_config, read_toml
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
PROJECT = read_toml(ROOT / "pyproject.toml")
TOP = {"dittool": "dittool", "commands": "dittool.commands", "presets": "dittool.presets"}  # folder → package
SHIPPED = {".py", ".toml", ".html", ".typed"}
built = pytest.mark.xdist_group("packaging")  # one process builds and installs for all of them


def shipped_files() -> set[str]:
    """Every source and data file under the three folders, by its path in a wheel."""
    return {
        TOP[top].replace(".", "/") + "/" + path.relative_to(ROOT / top).as_posix()
        for top in TOP
        for path in (ROOT / top).rglob("*")
        if path.suffix in SHIPPED
    }


def test_the_packages_list_names_every_folder_with_code():
    folders = {file.rpartition("/")[0].replace("/", ".") for file in shipped_files() if file.endswith(".py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert all(f"{folder.replace('.', '/')}/__init__.py" in shipped_files() for folder in folders)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a wheel is built from, so that the build leaves no traces here and takes none in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in TOP:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout):
    out = checkout / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, checkout)
    (built,) = out.glob("*.whl")
    return built


def clean_python(folder: Path) -> Path:
    """The interpreter of a new environment in a folder, that has our dependencies and not `dit`."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # a folder named so is searched; its own .pth files are not read
    (site_packages / "dependencies.pth").write_text("\n".join(ours))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python_with_wheel(wheel, tmp_path_factory):
    """The interpreter of an environment in which the wheel is installed."""
    python = clean_python(tmp_path_factory.mktemp("wheel") / "environment")
    install(python, wheel)
    return python


def run(*command: object, cwd: Path | None = None) -> str:
    """Stdout of a command that must succeed, run without a hint where the checkout is."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python: Path, *what: object) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", *what)


def assert_it_works(cwd: Path, *dit: object) -> None:
    assert "inspect-ckpt" in run(*dit, "--help", cwd=cwd)
    assert "nano-patches" in run(*dit, "presets", cwd=cwd)


@built
def test_a_wheel_holds_every_file_and_only_dittool(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert shipped_files() <= names
    assert {name.split("/")[0] for name in names} == {"dittool", f"dit-{dittool.__version__}.dist-info"}


@built
def test_an_installed_wheel_runs_far_from_the_checkout(python_with_wheel, tmp_path):
    dit = python_with_wheel.parent / "dit"
    assert_it_works(tmp_path, dit)
    assert "batch_size" in run(dit, "presets", "large", cwd=tmp_path)
    look = (
        "import dittool, importlib.util as util; found = map(util.find_spec, ('commands', 'presets', 'tests'));"
        " print(dittool.__file__, *(spec.origin for spec in found if spec))"
    )
    where, *at_top_level = run(python_with_wheel, "-c", look, cwd=tmp_path).split()
    environment = str(python_with_wheel.parents[1])
    assert where.startswith(environment), "the wheel's own code runs"
    assert not [origin for origin in at_top_level if origin.startswith(environment)]  # a dependency may bring `tests`


@built
def test_an_editable_install_follows_the_checkout(checkout, tmp_path):
    python = clean_python(tmp_path / "environment")
    install(python, "--no-build-isolation", "--editable", checkout)
    assert_it_works(tmp_path, python.parent / "dit")
    look = "import dittool.commands.presets as module; print(module.__file__)"
    assert run(python, "-c", look, cwd=tmp_path).startswith(str(checkout))


@built
def test_a_bare_checkout_runs_without_being_installed(checkout, tmp_path):
    python = clean_python(tmp_path / "environment")
    assert_it_works(checkout, python, "-m", "dittool")


# From Python

USER_SCRIPT = """from pathlib import Path

import numpy as np
from PIL import Image

from dittool import as_webdataset, decode_patches, embed, load, load_config

made = embed(Path("images"), Path("derived"), load_config("demo", ["data.area=128x128"]))
latents = [sample["latent"] for sample in as_webdataset("shards", "train")]
patches = decode_patches(np.load("derived/dinov3_patches/a.npy"), "int8")
pipe = load(Path("runs/nano"))
images: list[Image.Image] = pipe(prompt="a red circle", reference="one.png", count=4, seed=7, size="128x128", steps=12)
images[0].save("drawn.png")
print(len(made.used) + 1, len(latents), patches, pipe.step + 1, pipe.settings.cfg_text * 2)
print([bucket.name.upper() for bucket in pipe.buckets])
"""
MISTAKES = """from dittool import load, embed, laod

load(3)
load("runs/nano")(count="four")
name: str = load().step
embed("images", "derived", "demo")
"""
# What mypy need not look into to know our own types: the test takes seconds instead of minutes.
MYPY_CONFIG = "[mypy]\n" + "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "numpy", "transformers", "diffusers", "skimage")
)


def test_documentation_promises_what_the_package_exports(checkout):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    promised = {
        name.strip()
        for page in pages
        for names in re.findall(r"^\s*from dittool import (.+)$", page.read_text(), re.MULTILINE)
        for name in names.split(",")
    }
    assert promised == set(dittool.__all__) - {"__version__"}
    assert all(hasattr(dittool, name) for name in dittool.__all__)


@built
@pytest.mark.slow
def test_a_users_script_is_type_checked_against_the_installed_wheel(python_with_wheel, tmp_path):
    look = "import dittool, sys; from dittool import load; print(dittool.__file__, 'torch' in sys.modules)"
    where, torch_loaded = run(python_with_wheel, "-c", look, cwd=tmp_path).split()
    assert where.startswith(str(python_with_wheel.parents[1])) and torch_loaded == "False"

    for name, text in (("script.py", USER_SCRIPT), ("mistakes.py", MISTAKES), ("mypy.ini", MYPY_CONFIG)):
        (tmp_path / name).write_text(text)
    mypy = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", python_with_wheel]
    command = [*map(str, mypy), "--strict", "script.py", "mistakes.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line.split(":")[:2] for line in found.stdout.splitlines() if "error:" in line]
    expected = [["mistakes.py", line] for line in ("1", "3", "4", "5", "6", "6", "6")]
    assert lines == expected, found.stdout + found.stderr


@pytest.mark.slow
@built
def test_every_public_name_is_there_in_the_installed_wheel(python_with_wheel, tmp_path):
    look = "import dittool; from dittool import *; print(*(eval(name) is not None for name in dittool.__all__))"
    assert set(run(python_with_wheel, "-c", look, cwd=tmp_path).split()) == {"True"}


# constraints.txt


def constraints() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once_for_each_python_and_within_its_own_bounds(python):
    surroundings = {"python_version": python, "extra": ""}
    pins = [pin for pin in constraints() if pin.marker is None or pin.marker.evaluate(surroundings)]
    names = [pin.name for pin in pins]
    assert len(names) == len(set(names))
    versions = {
        pin.name: next(iter(pin.specifier)).version for pin in pins if [one.operator for one in pin.specifier] == ["=="]
    }
    wanted = [
        Requirement(text)
        for text in (*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["test"])
    ]
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate(surroundings):
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_constraints_name_no_registry():
    assert not re.search(r"://|--index|--find-links|@", (ROOT / "constraints.txt").read_text())


# .ci/run


def test_the_readme_holds_the_command_that_ci_runs():
    begins = "pip install -c constraints.txt -e '.[test]' && pytest"
    assert begins in (ROOT / ".ci" / "run").read_text()
    assert any(line.startswith(begins) for line in (ROOT / "README.md").read_text().splitlines())


def test_ci_can_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    run("bash", "-n", ROOT / ".ci" / "run")


@pytest.mark.parametrize("check", ["ruff check .", "ruff format --check .", "mypy"])
def test_ci_checks_style_and_types(check):
    assert f'"{check}"' in (ROOT / ".ci" / "run").read_text()


def test_the_forge_runs_the_same_script_on_every_python_that_is_supported():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"] == [oldest, "3.11", "3.12", "3.13"]


def test_hooks_before_a_commit_need_no_network():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert {hook["entry"].split()[0] for hook in repository["hooks"]} == {"ruff", "mypy", "pytest"}


def test_the_citation_and_the_changelog_follow_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (dittool.__version__, PROJECT["project"]["license"])
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and "0.1.0" in headings


# Releases


@pytest.fixture(scope="module")
def release_notes():
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".ci" / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notes_of_a_release_are_its_section_of_the_changelog(release_notes, capsys):
    changelog = "# Changelog\n\n## Unreleased\n\n- new\n\n## 0.2.0 (2026-12-01)\n\n- a\n- b\n\n## 0.1.0\n\n- first\n"
    assert release_notes.notes(changelog, "0.2.0") == "- a\n- b"
    assert release_notes.notes(changelog, "0.3.0") == ""
    assert release_notes.version() == dittool.__version__
    assert release_notes.main("v9.9.9") == 1 and dittool.__version__ in capsys.readouterr().err
    assert release_notes.main("Unreleased") == 0 and capsys.readouterr().out.startswith("- ")


def test_a_release_is_built_checked_and_published_without_a_secret_and_without_the_name_of_a_registry():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "://" not in text and "secrets." not in text and "pypi.org" not in text
    jobs = yaml.safe_load(text)["jobs"]
    commands = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert all(part in commands for part in ("release_notes.py", "python -m build", "twine check --strict"))
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"]["id-token"] == "write"


def test_ci_builds_the_site_and_the_files_of_a_release():
    text = (ROOT / ".ci" / "run").read_text()
    assert all(part in text for part in ("properdocs build --strict", "python -m build", "twine check --strict"))


@pytest.mark.slow
@built
def test_the_demo_runs_from_the_wheel_without_a_checkout(wheel, tmp_path):
    """Four hundred pictures as they are; the preset of that installation is one of eight steps."""
    python = clean_python(tmp_path / "environment")
    install(python, wheel)
    (demo,) = (tmp_path / "environment").glob("lib/python*/site-packages/dittool/presets/demo.toml")
    demo.write_text(config_to_toml(load_config("demo", TINY)))
    done = subprocess.run(
        [python.parent / "dit", "demo"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "GO, after" in done.stdout and list((tmp_path / "runs" / "demo" / "validation").glob("*/report.html"))


# docs/dependencies.md


def test_every_package_that_the_source_imports_is_declared():
    """What only another package brings along vanishes with that package's next version."""
    names_of = {"PIL": "pillow", "skimage": "scikit-image", "fontTools": "fonttools", "pydantic_core": "pydantic"}
    imported = set()
    for path in (*(ROOT / "dittool").rglob("*.py"), *(ROOT / "commands").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    others = {names_of.get(name, name.replace("_", "-")) for name in imported - sys.stdlib_module_names - {"dittool"}}
    project = PROJECT["project"]
    extras = [needed for name, extra in project["optional-dependencies"].items() if name != "test" for needed in extra]
    declared = {Requirement(text).name for text in (*project["dependencies"], *extras)}
    assert others - declared == {"mlflow", "wandb"}  # imported only where train.trackers asks for it


def test_the_page_of_dependencies_has_a_row_with_the_floor_of_each():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, re.MULTILINE))
    project = PROJECT["project"]
    extras = [needed for name, extra in project["optional-dependencies"].items() if name != "test" for needed in extra]
    wanted = map(Requirement, (*project["dependencies"], *extras))
    assert rows == {one.name: next(iter(one.specifier)).version for one in wanted}
