"""Each option of the commands beside training acts in every line that it may stand in, or the line is refused.

The suite runs a share of the lines, chosen by a hash of their words; all of them are slow, and on a trained run:
`python -m tests.bench.option_matrix RUN`.
"""

from __future__ import annotations

import hashlib
import itertools

import pytest

from tests.options.matrix import IDLE, WRONG, Matrix
from tests.options.table import EXAMPLES, SITUATIONS, Situation, options_of, require_examples
from tests.options.workshop import build

ONE_IN = 400  # of the lines are in the suite
LINES = [
    (situation, added)
    for situation in SITUATIONS
    for count in ((1, 2) if situation.paired else (1,))
    for added in itertools.combinations(situation.options, count)
]


def is_chosen(situation: Situation, added: tuple[str, ...]) -> bool:
    return hashlib.sha256(repr((situation.name, added)).encode()).digest()[0] % ONE_IN == 0


@pytest.fixture(scope="module")
def matrix(tiny_run, class_run, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("options")
    (scratch / "workshop").mkdir()
    build(scratch / "workshop", tiny_run, class_run)
    return Matrix(scratch / "workshop", scratch)


@pytest.mark.parametrize(
    ("situation", "added"),
    [
        pytest.param(
            situation,
            added,
            marks=() if is_chosen(situation, added) else pytest.mark.slow,
            id=f"{situation.command}, {situation.name}: {' + '.join(added)}",
        )
        for situation, added in LINES
    ],
)
def test_every_option_acts_or_the_line_is_refused(situation, added, matrix):
    outcome = matrix.single(situation, *added) if len(added) == 1 else matrix.pair(situation, *added)
    assert not outcome.startswith(WRONG), outcome


def test_every_option_of_these_commands_has_an_example():
    require_examples()


def test_an_option_without_an_example_is_named(monkeypatch):
    monkeypatch.setitem(EXAMPLES, "bench", {"--preset": ("--preset", "demo")})
    with pytest.raises(KeyError, match=r"dit bench: no example.* --json"):
        require_examples()
    assert "--json" in options_of("bench")


def test_an_option_that_does_nothing_is_found(matrix):
    """Verbosity without a remark is idle where the table says why, and wrong where it does not."""
    named = Situation("two runs", "validate", {"--compare": ("--compare", "run", "other")}, {"--quiet": "no remark"})
    unnamed = Situation("two runs", "validate", {"--compare": ("--compare", "run", "other")})
    assert matrix.single(named, "--quiet") == IDLE
    assert matrix.single(unnamed, "--quiet").startswith(WRONG)
