"""The catalogue of faults: 62 rows, each with its tests.

A test says which rows it proves with `@pytest.mark.row(15)`, several numbers if it proves several, and stands wherever
the code that it tests has its tests: `grep -rn "mark.row(15" tests`. A row without a test fails here, and so does a
number that is in no row.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

# row → what goes wrong
CATALOGUE: dict[int, str] = {
    # A. Kill, disk, processes
    1: "embed killed while it writes a feature",
    2: "embed killed between a feature and its journal line",
    3: "shard killed inside a tar",
    4: "shard killed between a tar and its index",
    5: "killed while a checkpoint is written",
    6: "killed between a checkpoint and the pointer to it",
    7: "killed while old checkpoints are removed",
    8: "killed while pictures and reports are written",
    9: "disk full at any write",
    10: "disk full while the log grows",
    11: "output folder that cannot be written to",
    12: "one input that may not be read",
    13: "two writers of one folder",
    14: "a lock whose owner is dead",
    15: "SIGTERM and SIGINT in training",
    16: "SIGTERM during a save",
    17: "SIGHUP, and a reader of stdout that has gone",
    18: "a worker process killed",
    19: "one rank dies",
    20: "a save that fails where nobody looks",
    21: "clocks that jump",
    22: "a link or a file where the output folder should be",
    23: "resumed with another configuration",
    24: "resumed several times in one epoch",
    25: "resumed where there is no checkpoint",
    26: "the newest checkpoint is damaged",
    # B. Images and captions
    27: "no image at all: empty, a web page, a pointer",
    28: "an image cut off",
    29: "many pixels in few bytes",
    30: "a header of two billion by two billion",
    31: "no width, too small, too long",
    32: "inks instead of colours: CMYK, YCCK, Adobe's inversion",
    33: "16 bits a channel, floating point",
    34: "transparency and the colour it hides",
    35: "EXIF orientation",
    36: "several frames",
    37: "a wrong suffix, a dangerous format",
    38: "huge or broken profiles and texts",
    39: "one image under two names",
    40: "a file that changes under the reader",
    41: "an empty caption",
    42: "a caption longer than the encoder reads",
    43: "a caption that is damaged or no text",
    44: "captions without images, images without captions",
    45: "names that are equal, lead elsewhere or are no text",
    46: "names with dots, names that differ in case",
    47: "features that are not finite",
    48: "features of another model in the same folder",
    # C. Containers
    49: "a tar cut off, also between two members",
    50: "a tar without its end, garbage, an empty tar",
    51: "a member twice, a sample in two places",
    52: "members that lead out of the folder or are no files",
    53: "archives made to fool or to stall who unpacks them",
    54: "commands and addresses where a folder should stand",
    55: "arrays that hold objects, or lie about their size",
    56: "safetensors that the library would accept",
    57: "hostile and damaged .pt files",
    58: "a checkpoint of another architecture",
    59: "a checkpoint with NaN",
    60: "faults in TOML",
    61: "model weights that are missing",
    62: "loss or gradient that is not finite",
}


def rows_of(test: ast.FunctionDef) -> list[int]:
    """The numbers in a test's `@pytest.mark.row(…)`."""
    marks = [mark for mark in test.decorator_list if ast.unparse(mark).startswith("pytest.mark.row(")]
    return [ast.literal_eval(number) for mark in marks for number in mark.args]


@cache
def marked_tests() -> dict[int, list[str]]:
    """Row → `file::test` of each test that is marked with it."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert not rows_of(node) or node.name.startswith("test_"), f"{node.name} is marked and is no test"
                for row in rows_of(node):
                    found.setdefault(row, []).append(f"{path.relative_to(TESTS).as_posix()}::{node.name}")
    return found


def test_the_catalogue_has_all_its_rows():
    assert list(CATALOGUE) == list(range(1, 63))
    assert len(set(CATALOGUE.values())) == len(CATALOGUE)


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: f"{row}: {CATALOGUE[row]}")
def test_every_row_has_its_tests(row):
    assert marked_tests().get(row), f'no test is marked @pytest.mark.row({row}) ("{CATALOGUE[row]}")'


def test_no_test_belongs_to_a_row_that_does_not_exist():
    assert set(marked_tests()) <= set(CATALOGUE)


def test_the_rows_of_a_test_are_those_of_its_marker():
    text = "@pytest.mark.slow\n@pytest.mark.row(15, 16)\ndef test_a(): ...\ndef test_row_3_b(): ..."
    marked, unmarked = ast.parse(text).body
    assert (rows_of(marked), rows_of(unmarked)) == ([15, 16], [])
