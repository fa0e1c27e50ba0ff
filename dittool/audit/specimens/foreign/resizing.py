"""What a model says of sizes that do not fit, and the tensor of an attempt whose size is then exchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from dittool.audit.specimens.foreign.attempt import Attempt
from dittool.audit.specimens.foreign.forms import BATCH, POSITIONAL, Form

_LARGEST_SIZE = 200_000
_FEWEST_TOKENS = 8  # of a latent
_MOST_AXES = 4  # of a token's place
_EXCHANGES = (  # in what models say of sizes that do not fit: numbers that are there, and numbers that should be
    (re.compile(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)"), (1, 2)),
    (re.compile(r"to have (\d+) channels, but got (\d+) channels"), (2, 1)),
    (re.compile(r"normalized_shape=\[(\d+)\].*input of size\[.*?(\d+)\]$"), (2, 1)),
    (re.compile(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"), (1, 2)),
    (re.compile(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"), (2, 1)),
    (re.compile(r"Expected size (\d+) but got size (\d+)"), (2, 1)),
    (re.compile(r"Expected size (\d+) but got size (\d+)"), (1, 2)),
    (re.compile(r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)"), (2, 1)),
    (re.compile(r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)"), (1, 2)),
    (re.compile(r"[Ee]xpected.*?(\d+) channels.*?got (\d+)"), (2, 1)),
    (re.compile(r"expected (?:\w+ )*(\d+),? (?:but )?got (?:\w+ )*(\d+)"), (2, 1)),
)
_OUTSIDE = re.compile(r"index (\d+) is out of bounds for dimension \d+ with size (\d+)")
_RESHAPED = re.compile(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)")


def resized(attempt: Attempt, error: str) -> Iterator[Attempt]:
    """With a size exchanged that the error says is another than what is wanted."""
    if match := _OUTSIDE.search(error):
        yield from _with_size(attempt, int(match[2]), int(match[1]) + 1)
    if match := _RESHAPED.search(error):
        yield from _divisible(attempt, int(match[2]), math.prod(abs(int(size)) for size in match[1].split(",")))
    for pattern, (there, wanted) in _EXCHANGES:
        if match := pattern.search(error):
            yield from _with_size(attempt, int(match[there]), int(match[wanted]))


def _with_size(attempt: Attempt, there: int, wanted: int) -> Iterator[Attempt]:
    """Masks and positions first: they follow what they are of. A latent keeps its one frame, its rows and columns."""
    forms = sorted(attempt.forms(), key=lambda named: named[1].content != "mask" and named[1].content not in POSITIONAL)
    for path, form in forms:
        sizes = form.sizes
        kept = _rows_and_columns(sizes) if path == attempt.latent else ()
        for axis in range(0 if sizes[:1] != (BATCH,) else 1, len(sizes)):
            if axis in kept:
                continue
            shares, left = divmod(there, max(sizes[axis], 1))
            fits = not left and shares and wanted % shares == 0 and 0 < wanted // shares <= _LARGEST_SIZE
            is_token = path == attempt.latent and len(sizes) == 3 and axis == 1
            if fits and not (is_token and wanted // shares < _FEWEST_TOKENS) and not (kept and sizes[axis] == 1):
                other = (*sizes[:axis], wanted // shares, *sizes[axis + 1 :])
                if _may_be(form, other):
                    yield attempt.with_sizes(path, other)
        if path == attempt.latent and len(sizes) > 3 and (side := _other_side(sizes[-1], there, wanted)):
            yield attempt.with_sizes(path, (*sizes[:-2], side, side))


def _rows_and_columns(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a latent's rows and columns: the last two, or those before its channels."""
    end = len(sizes)
    if end <= 3:
        return ()
    return (end - 3, end - 2) if sizes[-3] == sizes[-2] != sizes[-1] else (end - 2, end - 1)


def _divisible(attempt: Attempt, values: int, wanted: int) -> Iterator[Attempt]:
    """Of a tensor with so many values, with as many as are to be divided by what is wanted."""
    for path, form in attempt.forms():
        if math.prod(form.sizes) == values and path != attempt.latent:
            for axis in range(len(form.sizes) - 1, 0, -1):
                one = values // form.sizes[axis]
                for size in dict.fromkeys([wanted, wanted // math.gcd(wanted, one)]):
                    other = (*form.sizes[:axis], size, *form.sizes[axis + 1 :])
                    if _may_be(form, other):
                        yield attempt.with_sizes(path, other)


def follows_the_latent(form: Form) -> bool:
    """Whether a tensor is as large as the latent says: of its tokens' places, or a mask of queries and keys."""
    return form.content in POSITIONAL or (form.content == "mask" and form.sizes[-1:] == form.sizes[-2:-1])


def _may_be(form: Form, sizes: tuple[int, ...]) -> bool:
    """Whether a tensor of positions still says anything at other sizes: several places, of a few coordinates each."""
    axes = {"place": sizes[-1], "across": sizes[-2] if len(sizes) > 1 else 0}.get(form.content, 0)
    return 0 not in sizes and (form.content not in POSITIONAL or (1 not in sizes and axes <= _MOST_AXES))


def _other_side(side: int, tokens: int, wanted: int) -> int:
    """Of a square latent whose tokens are not as many as there should be."""
    rows, rows_wanted = math.isqrt(tokens), math.isqrt(wanted)
    if rows**2 != tokens or rows_wanted**2 != wanted or not rows or side % rows:
        return 0
    return side // rows * rows_wanted
