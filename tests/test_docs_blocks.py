"""Each block of commands in README and docs says how far it is true: run (a test types it in a scratch folder), dry-run
(it needs a GPU, several machines or gated weights: parsed, and its configuration read) or shown.

    ```sh run    ```console run    ```python run        ```sh dry-run        ```sh shown
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

from dittool.cli import BUILT_IN, _built_in_command
from dittool.config import presets
from dittool.config.load import config_to_toml, load_config
from dittool.demo import run as demo_run
from dittool.demo.drawing import draw_dataset
from tests import api_page
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if path.name != "CHANGELOG.md")
MARKS = ("run", "dry-run", "shown")
FENCE = re.compile(r"^```(\S*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
IMAGES = 24  # of a demo here, instead of 400
RUN_ELSEWHERE = {  # first line of a block, or the page of all its consoles → where it is run
    "pip install -c constraints.txt -e . && dit demo": ".ci/run installs so, tests/demo runs the demo",
    "pip install -c constraints.txt -e '.[test]' && pytest": ".ci/run types it",
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "docs/plugins.md": "tests/test_plugin_template.py",
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    rest: str  # a mark, or a file's name
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def run_elsewhere(self) -> bool:
        by_page = self.language == "console" and str(self.page.relative_to(ROOT)) in RUN_ELSEWHERE
        return by_page or self.text.partition("\n")[0] in RUN_ELSEWHERE

    def lines(self) -> Iterator[tuple[list[str], list[str]]]:
        """The words of each command line, comments left out, and what it must print."""
        if self.language == "console":
            for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
                command, *printed = part.splitlines()
                yield shlex.split(command), printed
        else:
            for line in self.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words, []


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2], m[3]) for m in FENCE.finditer(text)]


COMMANDS = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "console")]
RUN_PAGES = sorted(
    {block.page for page in PAGES for block in blocks(page) if block.rest == "run" and not block.run_elsewhere}
)


def marked(*marks: str) -> list:
    return [pytest.param(block, id=block.where) for block in COMMANDS if block.rest in marks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_says_how_far_it_is_true(page):
    for block in blocks(page):
        assert block.language, f"{block.where}: a block without a language"
        assert block.language not in ("bash", "shell"), (
            f"{block.where}: commands are called sh, or console with answers"
        )
        assert block.language not in ("sh", "console") or block.rest in MARKS, f"{block.where}: {block.rest!r}"
    unfenced = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert not re.search(r"^    (?:\$ )?(?:dit|pip|python|torchrun|git) ", unfenced, re.MULTILINE)


def dit_words(words: list[str]) -> list[str] | None:
    """What `dit` is given by a command line, itself or through torchrun; None where it is no such line."""
    if words[0] == "dit":
        return words[1:]
    if words[0] == "torchrun":
        launcher = get_args_parser().parse_args(words[1:])
        assert (launcher.module, launcher.training_script) == (True, "dittool")
        return launcher.training_script_args
    return None


def options_in(words: list[str], *names: str) -> list[str]:
    return [value for name, value in pairwise(words) if name in names]


@pytest.mark.parametrize("block", marked("run", "dry-run"))
def test_the_commands_of_a_block_are_understood(block):
    """Options and arguments parse; the preset is there, and its keys."""
    for words, _ in block.lines():
        if words[0] == "sbatch" or words[0].startswith("JOB="):
            scripts = [word.rstrip(")") for word in words if word.rstrip(")").endswith(".sbatch")]
            assert scripts and all((ROOT / script).is_file() for script in scripts)
        given = dit_words(words)
        if given is None or given[0] not in BUILT_IN:  # --help, or a plugin's command
            continue
        _built_in_command(given[0]).make_context(given[0], given[1:], resilient_parsing=False)
        chosen = options_in(given, "--preset") or (["nano"] if options_in(given, "-s") else [])
        for preset in chosen:
            if preset in presets.preset_names():
                load_config(preset, options_in(given, "-s"))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder with what the pages take for granted, and a demo as small as tests are: two dozen pictures, eight steps
    of a narrow model.
    """
    small = tmp_path / "presets"
    small.mkdir()
    for name in presets.preset_names():
        (small / f"{name}.toml").write_text((presets.preset_folder() / f"{name}.toml").read_text())
    (small / "demo.toml").write_text(config_to_toml(load_config("demo", TINY)))
    monkeypatch.setattr(presets, "preset_folder", lambda: small)
    monkeypatch.setattr(demo_run, "IMAGES", IMAGES)
    work = tmp_path / "work"
    draw_dataset(work / "path" / "to" / "images", IMAGES, seed=0)
    images = work / "path" / "to" / "images"
    for suffix in (".png", ".txt"):
        (images / f"scene-0001{suffix}").rename(images / f"one{suffix}")
    for name in ("one.png", "sketch.png"):
        shutil.copy(images / "one.png", work / name)
    for name in ("prompts.txt", "geneval.txt"):
        (work / name).write_text("a red circle\na blue square\n")
    monkeypatch.chdir(work)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_as_they_are_typed(page, scratch, dit):
    """In their order, in one folder. Only a verdict, an audit and the doctor may answer no (code 1)."""
    if page.name in NEEDS_A_RUN:
        for words in NEEDS_A_RUN[page.name]:
            assert dit(*words.split()).code in (0, 1)
    for block in blocks(page):
        if block.language == "python" and block.rest == "run":
            exec(compile(block.text, block.where, "exec"), {})
        elif block.language == "python" and block.rest:  # a file that the page shows
            (scratch / block.rest).write_text(block.text)
        if block not in COMMANDS or block.rest != "run" or block.run_elsewhere:
            continue
        for words, printed in block.lines():
            assert words[0] == "dit", f"{block.where}: only dit is run: {words}"
            ended = dit(*words[1:])
            allowed = (0, 1) if words[1] in ("demo", "validate", "audit", "doctor") else (0,)
            assert ended.code in allowed, f"{block.where}: {shlex.join(words)}\n{ended.err}"
            missing = [text for text in printed if text not in ended.out]
            assert not missing, f"{block.where}: {shlex.join(words)} does not print {missing}\n{ended.out}"


MADE = ("embed path/to/images --preset demo", "shard", "train --preset demo")
NEEDS_A_RUN = {  # page → what a reader of it has done before
    "api.md": MADE,
    "verdict.md": MADE,
    "export.md": (*MADE[:2], "train --preset demo --out runs/nano"),
    "sampling.md": MADE,
}


def test_every_page_is_in_the_navigation_of_the_site():
    """Else its strict build fails, which .ci/run does."""
    named = re.findall(r": (\S+\.md)$", (ROOT / "properdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(named) - {"index.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}) == sorted(
        path.name for path in (ROOT / "docs").glob("*.md")
    )


def test_the_page_of_the_api_is_made_from_the_docstrings():
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == api_page.page(), "python -m tests.api_page > docs/api.md"


def test_each_cell_of_the_comparison_says_where_it_was_read():
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    sources = dict(re.findall(r'^\[(\w+)\]: \S+ "(.+)"$', text, re.MULTILINE))
    assert all("2026-" in when for when in sources.values())
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    _head, *rest = [row for row in rows if not set(row[0]) <= set("-")]
    assert len(rest) > 20
    for name, *cells in rest:
        assert len(cells) == 7, name
        for cell in cells:
            assert cell == "not checked" or re.search(r"\[(\w+)\]$", cell)[1] in sources, (name, cell)


def test_the_pictures_of_the_pages_are_small():
    """A page that is slow to load is not read."""
    for path in (ROOT / "docs" / "pictures").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width <= 2400 and path.stat().st_size < 500_000
