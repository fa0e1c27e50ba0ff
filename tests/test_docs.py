"""What the pages lead to is there: files, headings, scripts, and a phrase for every room."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.house import House

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_are_named_exist(page):
    named = re.findall(r"\b(?:tests|\.ci|commands|dittool)/[\w/]+\.py\b", page.read_text(encoding="utf-8"))
    missing = {name for name in named if "NAME" not in name and not (ROOT / name).exists()}
    if page.name == "CONTRIBUTING.md":  # shows files that are to be added
        missing -= set(re.findall(r"^```python (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert missing == set()


SCRIPTS = sorted((ROOT / "tests" / "bench").glob("*.py"))


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_scripts_are_run_as_modules_of_the_checkout(path):
    """As files they would not find the tests' own helpers."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"python3? tests/", text)
    named = set(re.findall(r"python3? -m (tests\.[\w.]+)", text)) - {"tests.bench.NAME"}
    assert [name for name in named if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_of_measurements_finds_what_it_imports(path):
    importlib.import_module(f"tests.bench.{path.stem}")


def test_the_readme_shows_every_room():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^ *(\w+)/ {2,}\S", page, re.MULTILINE))
    house = House(ROOT)
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in house.files.values()}
    top = {room.split("/")[-1] for room in rooms if room.count("/") < 2 or room.startswith("dittool/data/")}
    assert top <= shown
