"""The catalogue of faults: 62 rows, what each is, and where its named tests are.

A row's test has the row's number in its name: `test_row_49_…`. A row without one fails here, unless it stands in `NOT_YET` with the
issue that brings it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
IMAGES, ITEMS, CONTAINERS = "faults/test_rows_27_to_39_images.py", "faults/test_rows_40_to_48_items.py", "faults/test_rows_49_to_56_containers.py"

# row → (what goes wrong, the files that hold its tests; others may hold more)
CATALOGUE: dict[int, tuple[str, tuple[str, ...]]] = {
    # A. Kill, disk, processes
    1: ("embed killed while it writes a feature", ()),
    2: ("embed killed between a feature and its journal line", ()),
    3: ("shard killed inside a tar", ()),
    4: ("shard killed between a tar and its index", ()),
    5: ("killed while a checkpoint is written", ()),
    6: ("killed between a checkpoint and the pointer to it", ()),
    7: ("killed while old checkpoints are removed", ()),
    8: ("killed while pictures and reports are written", ()),
    9: ("disk full at any write", ("data/test_shard_faults.py",)),
    10: ("disk full while the log grows", ()),
    11: ("output folder that cannot be written to", ()),
    12: ("one input that may not be read", ("data/test_sources.py",)),
    13: ("two writers of one folder", ()),
    14: ("a lock whose owner is dead", ()),
    15: ("SIGTERM and SIGINT in training", ()),
    16: ("SIGTERM during a save", ()),
    17: ("SIGHUP, and a reader of stdout that has gone", ()),
    18: ("a worker process killed", ()),
    19: ("one rank dies", ()),
    20: ("a crash inside the saving thread", ()),
    21: ("clocks that jump", ()),
    22: ("a link or a file where the output folder should be", ()),
    23: ("resumed with another configuration", ()),
    24: ("resumed several times in one epoch", ()),
    25: ("resumed where there is no checkpoint", ()),
    26: ("the newest checkpoint is damaged", ()),
    # B. Images and captions
    27: ("no image at all: empty, a web page, a pointer", (IMAGES, "data/test_images.py")),
    28: ("an image cut off", (IMAGES, "data/test_images.py")),
    29: ("many pixels in few bytes", (IMAGES, "data/test_images.py")),
    30: ("a header of two billion by two billion", (IMAGES, "data/test_images.py")),
    31: ("no width, too small, too long", (IMAGES, "data/test_images.py")),
    32: ("inks instead of colours: CMYK, YCCK, Adobe's inversion", (IMAGES, "data/test_images.py")),
    33: ("16 bits a channel, floating point", (IMAGES, "data/test_images.py")),
    34: ("transparency and the colour it hides", (IMAGES, "data/test_images.py")),
    35: ("EXIF orientation", (IMAGES, "data/test_images.py")),
    36: ("several frames", (IMAGES, "data/test_images.py")),
    37: ("a wrong suffix, a dangerous format", (IMAGES, "data/test_images.py")),
    38: ("huge or broken profiles and texts", (IMAGES, "data/test_images.py")),
    39: ("one image under two names", (IMAGES, "data/test_scan.py")),
    40: ("a file that changes under the reader", (ITEMS, "data/test_scan.py")),
    41: ("an empty caption", (ITEMS, "data/test_captions.py")),
    42: ("a caption longer than the encoder reads", (ITEMS,)),
    43: ("a caption that is damaged or no text", (ITEMS, "data/test_captions.py")),
    44: ("captions without images, images without captions", (ITEMS, "data/test_sources.py")),
    45: ("names that are equal, lead elsewhere or are no text", (ITEMS, "data/test_sources.py")),
    46: ("names with dots, names that differ in case", (ITEMS,)),
    47: ("features that are not finite", (ITEMS,)),
    48: ("features of another model in the same folder", (ITEMS,)),
    # C. Containers
    49: ("a tar cut off, also between two members", (CONTAINERS,)),
    50: ("a tar without its end, garbage, an empty tar", (CONTAINERS,)),
    51: ("a member twice, a sample in two places", (CONTAINERS,)),
    52: ("members that lead out of the folder or are no files", (CONTAINERS,)),
    53: ("archives made to fool or to stall who unpacks them", (CONTAINERS,)),
    54: ("commands and addresses where a folder should stand", (CONTAINERS,)),
    55: ("arrays that hold objects, or lie about their size", (CONTAINERS, "data/test_shards.py")),
    56: ("safetensors that the library would accept", (CONTAINERS,)),
    57: ("hostile and damaged .pt files", ()),
    58: ("a checkpoint of another architecture", ()),
    59: ("a checkpoint with NaN", ()),
    60: ("faults in TOML", ("config/test_load.py",)),
    61: ("model weights that are missing", ()),
    62: ("loss or gradient that is not finite", ()),
}
# row → the issue that brings its named test
NOT_YET = {row: 4 for row in (*range(1, 9), 10, 11, *range(13, 27), 57, 58, 59, 61, 62)}


@cache
def rows_tested() -> dict[int, set[str]]:
    """Which files under tests/ have a test of each row, read from the names of their functions."""
    found: dict[int, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (row := re.match(r"test_row_(\d+)_", node.name)):
                found.setdefault(int(row[1]), set()).add(path.relative_to(TESTS).as_posix())
    return found


def test_the_catalogue_is_whole():
    assert list(CATALOGUE) == list(range(1, 63))
    assert len({title for title, _ in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("row", CATALOGUE)
def test_every_row_has_a_named_test(row):
    title, files = CATALOGUE[row]
    if row in NOT_YET:
        assert not rows_tested().get(row), f"row {row} ({title}) is tested now: name its file in CATALOGUE and take it out of NOT_YET"
    else:
        assert files, f"row {row} ({title}) names no file"
        missing = set(files) - rows_tested().get(row, set())
        assert not missing, f"row {row} ({title}) has no function test_row_{row:02d}_… in {', '.join(sorted(missing))}"


def test_no_test_belongs_to_a_row_that_does_not_exist():
    assert set(rows_tested()) <= set(CATALOGUE)
