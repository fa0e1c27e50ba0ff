"""Every pair of options of a command: together they act, or are refused in one line with code 2; never a bug of ours.

The suite runs a share of the pairs, chosen by a hash of their names; all of them are slow.
"""

from __future__ import annotations

import hashlib
import itertools

import pytest

OPTIONS = {
    "presets": (["--params"], ["-s", "train.steps=9"], ["--json"], ["-q"], ["-v"], ["demo"]),
    "inspect-ckpt RUN": (
        *(["--tree"], ["--diff", "RUN"], ["--export", "OUT/w.safetensors"], ["--weights", "model"]),
        *(["--force"], ["--json"], ["-q"], ["-v"]),
    ),
    "audit drift-toy": (
        *(["--preset", "demo"], ["--select", "E4"], ["--ignore", "C,E"], ["--kwargs", "{}"], ["--example", "a.py:f"]),
        *(["--spec", "drifting"], ["--explain", "E4"], ["-s", "train.steps=9"], ["--format", "sarif"], ["--json"]),
    ),
    "embed IMAGES --out OUT/derived --preset demo": (
        *(["--verify"], ["--estimate"], ["--rebuild"], ["--preview", "OUT/sheet.png"], ["--part", "0/2"]),
        *(["--pass", "t5"], ["-s", "data.holdout=0.1"], ["--device", "cpu"], ["--json"]),
    ),
}
PAIRS = [(line, *pair) for line, options in OPTIONS.items() for pair in itertools.combinations(options, 2)]
ONE_IN = 8  # of the pairs are in the suite


def is_chosen(pair) -> bool:
    return hashlib.sha256(repr(pair).encode()).digest()[0] % ONE_IN == 0


@pytest.mark.parametrize(
    ("line", "first", "second"),
    [pytest.param(*pair, marks=() if is_chosen(pair) else pytest.mark.slow) for pair in PAIRS],
)
def test_two_options_act_or_are_refused(line, first, second, dit, tiny_run, tiny_shards, tmp_path):
    places = {"RUN": tiny_run, "OUT": tmp_path, "IMAGES": tiny_shards.images}
    words = [*line.split(), *first, *second]
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    ended = dit(*words)
    assert ended.code in (0, 1, 2), ended.err
    assert ended.err.count("error: ") == (ended.code == 2) and ended.err.count("next: ") >= (ended.code == 2)
