"""Inputs for a forward that nobody described: a search that goes on from the attempt that came furthest.

How far an attempt came is counted in calls of torch's functions. What the model says when it fails leads to the next
one: "(14x37 and 48x64)" says that the tensor that is 37 wide should be 48 wide.
"""

from __future__ import annotations

import inspect
import math
import re
import time
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dittool.audit.specimens.foreign.attempt import Attempt, Outcome, tried
from dittool.audit.specimens.foreign.forms import (
    BATCH,
    NAMES,
    SIDE_IN_TOKENS,
    Form,
    Node,
    Widths,
    alternatives,
    from_annotation,
    kind_of,
    source_of,
    with_key,
)

_MOST_ATTEMPTS, _MOST_SECONDS = 3000, 60.0
_MOST_LEVEL = 2  # changes in a row that lead no further
_FOR_ONE_MORE = 30  # attempts to feed an argument that may be left out
_LARGEST_SIZE = 200_000
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
_MISSING_KEY = re.compile(r"^KeyError: '(\w+)'$")


@dataclass(eq=False)
class _Failed:
    """An attempt that failed, and what to try next."""

    steps: int
    level: int  # changes that led to it and no further
    others: Iterator[Attempt]
    followed: int = 0


class Search:
    """Looks for inputs with which a model runs. `found` is None where there were none; `best` came furthest."""

    def __init__(self, model: nn.Module, latents: Sequence[Form], widths: Sequence[int], labels: int) -> None:
        self._model, self._latents, self._widths, self._labels = model, latents, list(widths)[:12], labels
        self._dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        self._new_width, self._source = Widths(), source_of(model)
        self.parameters = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        try:
            self._hints = typing.get_type_hints(model.forward)
        except Exception:  # names that exist for type checkers only
            self._hints = {}
        self._firsts: dict[str, Node] = {}
        self._seen: set[Attempt] = set()
        self._end = time.monotonic() + _MOST_SECONDS
        self.best: tuple[Attempt, Outcome] | None = None
        self.found: Attempt | None = None
        needed = [name for name, parameter in self.parameters.items() if parameter.default is parameter.empty]
        usual = [name for name in NAMES["latent"] if name in self.parameters]
        self.latent = next(iter([*(name for name in usual if name in needed), *usual, *needed]), "")
        if not self.latent:
            return
        if any(kind_of(name) in ("place", "shapes", "rows") for name in self.parameters):  # of tokens
            self._latents = sorted(latents, key=lambda form: len(form.sizes) != 3)
        start = Attempt(((self.latent, self._latents[0]),), self.latent)
        for name in needed:
            if name != self.latent:
                start = start.with_argument(name, self._first(name))
        self.found = self._from(start, _MOST_ATTEMPTS)
        if self.found:
            self._leave_out_what_is_not_needed()
            self._feed_what_may_be_left_out()

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def _first(self, name: str) -> Node:
        """An argument's first form, always the same."""
        if name not in self._firsts:
            self._firsts[name] = self._first_form(name)
        return self._firsts[name]

    def _first_form(self, name: str) -> Node:
        hint = self._hints.get(name)
        kind = kind_of(name)
        if kind in ("text", "vector", "") and (
            parts := from_annotation(hint, name, self._source, self._new_width, self._labels)
        ):
            return parts
        return alternatives(kind, self._new_width(), self._labels)[0]

    def _leave_out_what_is_not_needed(self) -> None:
        """Of arguments without a usual name."""
        for name in dict(self.found.nodes) if self.found else ():
            unusual = not any(name in names for names in NAMES.values())
            if unusual and self.found and self.parameters[name].default is not inspect.Parameter.empty:
                other = self.found.without(name)
                if not tried(self._model, other.inputs(self._dtype)).error:
                    self.found = other

    def _feed_what_may_be_left_out(self) -> None:
        """Time and conditions under usual names, each kept where the model runs with it."""
        kinds = ("time", "label", "text", "vector", "mask")
        for name in self.parameters:
            if self.found and name in {usual for kind in kinds for usual in NAMES[kind]} - set(dict(self.found.nodes)):
                wider = self._from(self.found.with_argument(name, self._first(name)), _FOR_ONE_MORE, name)
                self.found = wider or self.found

    def _from(self, start: Attempt, most: int, only: str = "") -> Attempt | None:
        """The first attempt that runs; with `only` nothing but this argument is changed. By turns the next one of the
        failed attempt that came furthest, and of the one that was followed least.
        """
        failed: list[_Failed] = []

        def runs(attempt: Attempt, before: int, level: int) -> bool:
            self._seen.add(attempt)
            outcome = tried(self._model, attempt.inputs(self._dtype))
            if not outcome.error:
                return True
            if not only and (self.best is None or outcome.steps > self.best[1].steps):
                self.best = attempt, outcome
            level = 0 if outcome.steps > before else level + 1
            if level <= _MOST_LEVEL:
                failed.append(_Failed(outcome.steps, level, self._next(attempt, outcome, only)))
            return False

        if runs(start, -1, 0):
            return start
        while failed and most and time.monotonic() < self._end:
            furthest = max(failed, key=lambda each: (each.steps, -each.level))
            parent = furthest if most % 2 else min(failed, key=lambda each: (each.followed, -each.steps))
            other = next(parent.others, None)
            if other is None:
                failed.remove(parent)
            elif other not in self._seen:
                parent.followed += 1
                most -= 1
                if runs(other, parent.steps, parent.level):
                    return other
        return None

    # What to try next

    def _next(self, attempt: Attempt, outcome: Outcome, only: str) -> Iterator[Attempt]:
        if not only:
            yield from self._all_next(attempt, outcome)
            return
        for other in self._all_next(attempt, outcome):
            if all(dict(other.nodes).get(name) == node for name, node in attempt.nodes if name != only):
                yield other

    def _all_next(self, attempt: Attempt, outcome: Outcome) -> Iterator[Attempt]:
        yield from _resized(attempt, outcome.error)
        if key := _MISSING_KEY.match(outcome.error):
            for name in self.parameters:
                if kind_of(name) in ("text", "ignored", "vector", "") and name != self.latent:
                    held = dict(attempt.nodes).get(name)
                    yield attempt.with_argument(name, with_key(held, key[1], self._new_width, self._labels))
        if "None" in outcome.error or "unsupported operand" in outcome.error:
            yield from self._with_one_more(attempt)
        yield from self._with_one_less(attempt)
        if re.search(r"unpack|dimension|rank|shape|dims|permute|rearrange|D input|conv", outcome.error):
            yield from self._other_latents(attempt)
        yield from self._other_forms(attempt)
        yield from self._other_latents(attempt)
        yield from self._with_one_more(attempt)
        yield from self._other_widths(attempt)

    def _with_one_more(self, attempt: Attempt) -> Iterator[Attempt]:
        """One of the arguments that may be left out is fed: the known ones first, each as its first form."""
        missing = [name for name in self.parameters if name not in dict(attempt.nodes) and kind_of(name) != "ignored"]
        known = [name for name in missing if any(name in names for names in NAMES.values())]
        plain = [name for name in missing if self.parameters[name].default is None and name not in known]
        for name in (*known, *plain):
            yield attempt.with_argument(name, self._first(name))

    def _with_one_less(self, attempt: Attempt) -> Iterator[Attempt]:
        for name in dict(attempt.nodes):
            if name != attempt.latent and self.parameters[name].default is not inspect.Parameter.empty:
                yield attempt.without(name)

    def _other_latents(self, attempt: Attempt) -> Iterator[Attempt]:
        for form in self._latents:
            yield attempt.with_form(self.latent, form)

    def _other_forms(self, attempt: Attempt) -> Iterator[Attempt]:
        for path, form in attempt.forms():
            if path != self.latent:
                kind = kind_of(re.split(r"[.]", path)[-1])
                for other in alternatives(kind, form.sizes[-1] if form.sizes else 1, self._labels):
                    yield attempt.with_form(path, other)
                if form.content == "mask":  # of the latent's cells
                    yield attempt.with_form(path, replace(form, sizes=(BATCH, 1, *attempt.grid)))
                    yield attempt.with_form(path, replace(form, sizes=(1, 1, *attempt.grid)))
                if form.numbers == "float" and form.content != "mask":
                    yield attempt.with_form(path, replace(form, content="label", numbers="int", below=self._labels))
                if form.content == "label":
                    yield attempt.with_form(path, replace(form, below=2))

    def _other_widths(self, attempt: Attempt) -> Iterator[Attempt]:
        for path, form in attempt.forms():
            if form.content == "noise" and len(form.sizes) in (2, 3):
                for width in self._widths:
                    yield attempt.with_form(path, replace(form, sizes=(*form.sizes[:-1], width)))


def _resized(attempt: Attempt, error: str) -> Iterator[Attempt]:
    """With a size exchanged that the error says is another than what is wanted."""
    if match := _OUTSIDE.search(error):
        yield from _with_size(attempt, int(match[2]), int(match[1]) + 1)
    for pattern, (there, wanted) in _EXCHANGES:
        if match := pattern.search(error):
            yield from _with_size(attempt, int(match[there]), int(match[wanted]))


def _with_size(attempt: Attempt, there: int, wanted: int) -> Iterator[Attempt]:
    for path, form in attempt.forms():
        sizes = form.sizes
        for axis in range(0 if sizes[:1] != (BATCH,) else 1, len(sizes)):
            shares, left = divmod(there, max(sizes[axis], 1))
            if not left and shares and wanted % shares == 0 and 0 < wanted // shares <= _LARGEST_SIZE:
                other = (*sizes[:axis], wanted // shares, *sizes[axis + 1 :])
                yield attempt.with_form(path, replace(form, sizes=other))
        if path == attempt.latent and len(sizes) > 3 and (side := _other_side(sizes[-1], there, wanted)):
            yield attempt.with_form(path, replace(form, sizes=(*sizes[:-2], side, side)))


def _other_side(side: int, tokens: int, wanted: int) -> int:
    """Of a square latent whose tokens are not as many as there should be."""
    rows, rows_wanted = math.isqrt(tokens), math.isqrt(wanted)
    if rows**2 != tokens or rows_wanted**2 != wanted or not rows or side % rows:
        return 0
    return side // rows * rows_wanted


def latent_forms(sides: Sequence[int], channels: Sequence[int], widths: Sequence[int]) -> list[Form]:
    """A latent as an image, as tokens, as a video of one frame."""
    new = 29  # another width than that of any other tensor
    counts = list(dict.fromkeys([*channels, new]))
    images = [Form((BATCH, count, side, side)) for count in counts for side in sides]
    tokens = [Form((BATCH, SIDE_IN_TOKENS**2, width)) for width in (new, *widths)]
    videos = [
        Form(sizes)
        for side in sides
        for count in counts
        for sizes in ((BATCH, count, 1, side, side), (BATCH, 1, count, side, side))
    ]
    return images[:8] + tokens[:1] + videos[:4] + images[8:] + tokens[1:] + videos[4:]


def largest_label(model: nn.Module) -> int:
    """One less than the smallest table has rows, for labels that every table takes."""
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(min(tables) - 1, 2) if tables else 2
