"""Inputs for a forward that nobody described: a search that goes on from the attempt that came furthest.

How far an attempt came is counted in calls of torch's functions. What the model says when it fails leads to the next
one: "(14x37 and 48x64)" says that the tensor that is 37 wide should be 48 wide.
"""

from __future__ import annotations

import inspect
import re
import time
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from types import SimpleNamespace

import torch
from torch import nn

from dittool.audit.specimens.foreign.attempt import Attempt, Outcome, tried
from dittool.audit.specimens.foreign.forms import (
    BATCH,
    CONDITIONS,
    EMPTY,
    NAMES,
    NOTHING,
    Form,
    Grid,
    Node,
    Parts,
    Widths,
    alternatives,
    forms_in,
    kind_of,
)
from dittool.audit.specimens.foreign.holders import from_annotation, holder_of_latent, source_of, with_key
from dittool.audit.specimens.foreign.ran import Ran
from dittool.audit.specimens.foreign.resizing import follows_the_latent, resized
from dittool.audit.specimens.foreign.signature import parameters_of
from dittool.audit.specimens.parts import part_of

_MOST_ATTEMPTS, _MOST_SECONDS = 3000, 60.0  # of this thread's work: what else a machine does changes no guess
_MOST_LEVEL = 2  # changes in a row that lead no further
_AFTER_A_REFUSAL = 200  # attempts to come further than to where the model's own code would not run here
_FOR_ONE_MORE = 60  # attempts to feed an argument that may be left out
_PLAIN_HINT = re.compile(r"\b(?:bool|int|float|str|dtype|device|Generator|Callable)\b")
_NO_CONDITION = re.compile(r"dtype|device|generator|cfg|_scale$|layers?$|blocks?$|index|^return|^output_|bias")
_TABLES = ("cos", "sin", "turn")  # contents of an argument that is exchanged with all of its parts
_TOO_SHORT = re.compile(
    r"(?:list|tuple) index out of range|index (\d+) is out of bounds for dimension 0 with size (\d+)"
)
_NO_MAPPING = re.compile(r"must be a mapping, not NoneType|'NoneType' object has no attribute '(?:get|pop|items|copy)'")
_MUST_BE_GIVEN = re.compile(
    r"None|must be (?:given|provided|specified|passed|set)|required|missing|[Pp]lease (?:give|pass)"
)
_MISSING_ARGUMENTS = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")
_WANTS_A_LIST = re.compile(r"list|tuple|sequence|iterable|'Tensor' object", re.IGNORECASE)
_NO_ATTRIBUTE = re.compile(r"^AttributeError: 'Tensor' object has no attribute '(\w+)'$")
_MISSING_KEY = re.compile(r"^(?:KeyError: |AttributeError: 'types.SimpleNamespace' object has no attribute )'(\w+)'$")


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
        self._model, self._widths, self._labels = model, list(widths)[:12], labels
        self._latents: list[Form] = list(latents)
        self._samples: list[Form] = []  # the same as lists of samples
        self._dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        self._ran = Ran(model, self._dtype)
        self._new_width, self._source = Widths(), source_of(model)
        self.parameters = parameters_of(model)
        try:
            self._hints = typing.get_type_hints(model.forward)
        except Exception:  # names that exist for type checkers only
            self._hints = {}
        self._firsts: dict[str, Node] = {}
        self._at_size = cache(self._found_at_size)
        self._depths = _depths(model)
        self._tables = sorted({each.num_embeddings for each in model.modules() if isinstance(each, nn.Embedding)})
        self._seen: set[Attempt] = set()
        self._end = time.thread_time() + _MOST_SECONDS
        self.best: tuple[Attempt, Outcome] | None = None
        self.found: Attempt | None = None
        needed = [name for name, parameter in self.parameters.items() if parameter.default is parameter.empty]
        usual = [name for name in NAMES["latent"] if name in self.parameters]
        self.latent = next(iter([*(name for name in usual if name in needed), *usual, *needed]), "")
        if not self.latent:
            return
        if any(kind_of(name) in ("place", "grid", "shapes", "rows") for name in self.parameters):  # of tokens
            self._latents = sorted(latents, key=lambda form: len(form.sizes) != 3)
        samples = [replace(form, listed=True) for form in self._latents]
        by_hint = "list" in str(self._hints.get(self.latent, "")).lower()
        self._latents, self._samples = (samples, self._latents) if by_hint else (self._latents, samples)
        start = self._start(by_hint)
        for name in needed:
            if name != start.holder:
                start = start.with_argument(name, self._first(name))
        self.found = self._from(start)
        if self.found:
            self.found = self._ran.in_training(self._not_mixed(self.found, start), self.latent)
            self._leave_out_what_is_not_needed()
            self._leave_out_layers()
            self._feed_what_may_be_left_out()

    def _start(self, listed: bool) -> Attempt:
        """The latent as it will most likely be taken."""
        name, first = self.latent, self._latents[0]
        if not listed:
            hint = self._hints.get(name)
            if held := holder_of_latent(hint, name, self._source, first, self._new_width, self._labels):
                node, self.latent = held
                return Attempt(((name, node),), self.latent)
        return Attempt(((name, first),), name)

    def _not_mixed(self, found: Attempt, start: Attempt) -> Attempt:
        """What was found, where one sample's inputs leave the others' answers as they are; else, where there is such a
        one, a latent of fewer axes: with too many a vector a sample meets tokens, and samples are taken for these.
        """
        if not self._ran.mixes(found):
            return found
        for axes in (3, 2):
            form = next(form for form in self._latents if len(form.sizes) == axes)
            other = self._from(start.with_form(self.latent, form), _FOR_ONE_MORE)
            latent = other[self.latent] if other else None
            if other and isinstance(latent, Form) and len(latent.sizes) == axes and not self._ran.mixes(other):
                return other
        return found

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
        if kind in ("text", "vector", "pixels", "") and (
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

    def _leave_out_layers(self) -> None:
        """Of what is given layer by layer, those that are not needed."""
        for path, form in self.found.forms() if self.found else ():
            while self.found and form.listed and len(form.sizes) == 4 and path != self.latent and form.sizes[0] > 1:
                form = replace(form, sizes=(form.sizes[0] - 1, *form.sizes[1:]))
                fewer = self.found.with_form(path, form)
                if tried(self._model, fewer.inputs(self._dtype)).error:
                    break
                self.found = fewer

    def _feed_what_may_be_left_out(self) -> None:
        """Time and conditions under usual names, each kept where the model runs with it; what is None by default and
        may be another condition, where the model computes with it and leaves out nothing that ran without it.
        """
        for name in self.parameters:
            fed = {} if self.found is None else dict(self.found.nodes)
            # a mask by its name where there is a text: one that nothing reads is to be found
            kinds = CONDITIONS if self.found and self.found.texts(self.latent) else CONDITIONS[:-1]
            by_name = any(name in NAMES[kind] for kind in kinds) or kind_of(name) == "rotary"
            if self.found and name not in fed and (by_name or self._may_be_a_condition(name)):
                wider = self._from(self.found.with_argument(name, self._first(name)), _FOR_ONE_MORE, [name])
                fits = wider is not None and name in dict(wider.nodes)  # else it runs once the argument is gone again
                if wider and fits and (by_name or self._ran.uses(self.found, wider, name)):
                    self.found = wider

    def _may_be_a_condition(self, name: str) -> bool:
        hint = str(self._hints.get(name, "Tensor"))
        plain = _PLAIN_HINT.search(hint) and "Tensor" not in hint
        is_one = kind_of(name) in (*CONDITIONS, "pixels", "scale", "") and not _NO_CONDITION.search(name)
        return is_one and not plain and self.parameters[name].default is None

    def at_size(self, size: Grid) -> Attempt:
        """What was found, with a latent of another size; what does not fit it is looked for again."""
        return self._at_size(size)

    def _found_at_size(self, size: Grid) -> Attempt:
        assert self.found is not None
        attempt = self.found.of_size(size)
        places = [path for path, form in attempt.forms() if form.content == "mask" or follows_the_latent(form)]
        if not places or attempt == self.found:
            return attempt
        self._end = time.thread_time() + _MOST_SECONDS
        return self._from(attempt, _FOR_ONE_MORE, {re.split(r"\.", path)[0] for path in places}) or attempt

    def _from(self, start: Attempt, most: int = 0, only: Collection[str] = ()) -> Attempt | None:
        """The first attempt that runs; with `only` nothing but these arguments is changed. By turns the next one of the
        failed attempt that came furthest, and of the one that was followed least.
        """
        failed: list[_Failed] = []
        left = most or _MOST_ATTEMPTS

        def runs(attempt: Attempt, before: int, level: int) -> bool:
            nonlocal left
            self._seen.add(attempt)
            outcome = tried(self._model, attempt.inputs(self._dtype))
            if not outcome.error:
                return True
            if not only and (self.best is None or outcome.steps > self.best[1].steps):
                self.best = attempt, outcome
            if outcome.refusal:  # whatever else it is given
                left = min(left, _AFTER_A_REFUSAL)
                return False
            level = 0 if outcome.steps > before else level + 1
            if level <= _MOST_LEVEL:
                failed.append(_Failed(outcome.steps, level, self._next(attempt, outcome, only)))
            return False

        if runs(start, -1, 0):
            return start
        while failed and left and time.thread_time() < self._end:
            furthest = max(failed, key=lambda each: (each.steps, -each.level))
            parent = furthest if left % 2 else min(failed, key=lambda each: (each.followed, -each.steps))
            other = next(parent.others, None)
            if other is None:
                failed.remove(parent)
            elif other not in self._seen:
                parent.followed += 1
                left -= 1
                if runs(other, parent.steps, parent.level):
                    return other
        return None

    # What to try next

    def _next(self, attempt: Attempt, outcome: Outcome, only: Collection[str]) -> Iterator[Attempt]:
        for other in self._all_next(attempt, outcome):
            if not only or all(dict(other.nodes).get(name) == node for name, node in attempt.nodes if name not in only):
                yield other

    def _all_next(self, attempt: Attempt, outcome: Outcome) -> Iterator[Attempt]:
        yield from resized(attempt, outcome.error)
        if _NO_MAPPING.search(outcome.error):
            for name, parameter in self.parameters.items():
                if name not in dict(attempt.nodes) and parameter.default is None:
                    yield attempt.with_argument(name, EMPTY[dict])
        yield from self._asked_for(attempt, outcome.error, outcome.where)
        if match := _TOO_SHORT.search(outcome.error):
            yield from self._longer(attempt, int(match[1] or 0))
        if "index out of range in self" in outcome.error:
            for path, form in attempt.forms():
                for below in (1, *self._tables) if form.content == "label" else ():
                    yield attempt.with_form(path, replace(form, below=below))
        if key := _MISSING_KEY.match(outcome.error):
            for name in self.parameters:
                holds = name == attempt.holder != attempt.latent
                if holds or (kind_of(name) in ("text", "ignored", "vector", "") and name != self.latent):
                    held = dict(attempt.nodes).get(name)
                    yield attempt.with_argument(name, with_key(held, key[1], self._new_width, self._labels))
            for path, held in attempt.holders():
                if "." in path and (held.kind is SimpleNamespace) == ("Attribute" in outcome.error):
                    yield attempt.with_form(path, with_key(held, key[1], self._new_width, self._labels))
        if attribute := _NO_ATTRIBUTE.match(outcome.error):
            for path, form in attempt.forms():
                if path != attempt.latent:
                    held = with_key(form, attribute[1], self._new_width, self._labels, SimpleNamespace)
                    yield attempt.with_form(path, held)
        if "None" in outcome.error or "unsupported operand" in outcome.error:
            yield from self._with_one_more(attempt)
        yield from self._with_one_less(attempt)
        yield from self._empty(attempt)
        if re.search(r"unpack|dimension|rank|shape|dims|permute|rearrange|D input|conv", outcome.error):
            yield from self._other_latents(attempt)
        yield from self._other_forms(attempt)
        yield from self._other_latents(attempt)
        yield from self._with_one_more(attempt)
        yield from self._other_widths(attempt)
        yield from self._none(attempt)
        if _WANTS_A_LIST.search(outcome.error):
            for form in self._samples:
                yield attempt.with_form(self.latent, form)

    def _asked_for(self, attempt: Attempt, error: str, where: str) -> Iterator[Attempt]:
        """With an argument that the model names as one that must not be left out, or with what that one of its parts
        misses to which it hands a dictionary on.
        """
        if _MUST_BE_GIVEN.search(error):
            for name in self.parameters:
                if name not in dict(attempt.nodes) and re.search(rf"\b{re.escape(name)}\b", error):
                    as_dict = "dict" in str(self._hints.get(name, "")).lower() or name.endswith("kwargs")
                    yield attempt.with_argument(name, EMPTY[dict] if as_dict else self._first(name))
        missing = _MISSING_ARGUMENTS.search(error)
        keys = re.findall(r"'(\w+)'", missing[1]) if missing else self._conditions_of(where)
        for name, node in attempt.nodes if "NoneType" in error or missing else ():
            if name != attempt.latent and (node is EMPTY[dict] or (isinstance(node, Parts) and node.kind is dict)):
                for key in keys:
                    node = with_key(node, key, self._new_width, self._labels)
                yield attempt.with_argument(name, node)

    def _conditions_of(self, where: str) -> list[str]:
        """Arguments of a part of the model by whose names they are conditions of its own, as a picture's resolution."""
        taken = inspect.signature(part_of(self._model, where).forward).parameters
        of_condition = [name for name in taken if kind_of(name) in ("pixels", "scale", "vector", "label", "text")]
        return [name for name in of_condition if name not in self.parameters and not name.startswith("batch")]

    def _longer(self, attempt: Attempt, least: int) -> Iterator[Attempt]:
        """With more layers of what is given layer by layer: as many as the model's own lists have, one by one or
        together.
        """
        for path, form in attempt.forms():
            if len(form.sizes) == 4 and form.sizes[1] == BATCH and path != attempt.latent:
                for layers in (form.sizes[0] + 1, *self._depths):
                    if layers > max(least, form.sizes[0]):
                        yield attempt.with_form(path, replace(form, sizes=(layers, *form.sizes[1:])))

    def _empty(self, attempt: Attempt) -> Iterator[Attempt]:
        """With nothing in a list or a dictionary, where an argument's annotation says that it is one."""
        for name in dict(attempt.nodes):
            hint = str(self._hints.get(name, "")).lower()
            for kind, node in EMPTY.items():
                if name != attempt.holder and kind.__name__ in hint:
                    yield attempt.with_argument(name, node)

    def _none(self, attempt: Attempt) -> Iterator[Attempt]:
        """With None for an argument that must be given, and may be that."""
        for name in dict(attempt.nodes):
            hint = str(self._hints.get(name, ""))
            is_allowed = "None" in hint or "Optional" in hint or kind_of(name) == "mask"
            if name != attempt.holder and is_allowed and self.parameters[name].default is inspect.Parameter.empty:
                yield attempt.with_argument(name, NOTHING)

    def _with_one_more(self, attempt: Attempt) -> Iterator[Attempt]:
        """One of the arguments that may be left out is fed: the known ones first, each as its first form."""
        missing = [name for name in self.parameters if name not in dict(attempt.nodes) and kind_of(name) != "ignored"]
        known = [name for name in missing if any(name in names for names in NAMES.values())]
        plain = [name for name in missing if self.parameters[name].default is None and name not in known]
        for name in (*known, *plain):
            yield attempt.with_argument(name, self._first(name))

    def _with_one_less(self, attempt: Attempt) -> Iterator[Attempt]:
        for name in dict(attempt.nodes):
            if name != attempt.holder and self.parameters[name].default is not inspect.Parameter.empty:
                yield attempt.without(name)

    def _other_latents(self, attempt: Attempt) -> Iterator[Attempt]:
        for form in self._latents:
            yield attempt.with_form(self.latent, form)

    def _other_forms(self, attempt: Attempt) -> Iterator[Attempt]:
        for name, node in attempt.nodes:
            if kind_of(name) == "rotary":
                width = next((form.sizes[-1] for _, form in forms_in(node, name)), self._new_width())
                for other in alternatives("rotary", width, self._labels):
                    yield attempt.with_argument(name, other)
        for path, form in attempt.forms():
            if path != self.latent and form.content not in _TABLES:
                kind = kind_of(re.split(r"[.]", path)[-1])
                for other in alternatives(kind, form.sizes[-1] if form.sizes else 1, self._labels):
                    yield attempt.with_form(path, other)
                if form.content == "noise" and isinstance(latent := attempt[self.latent], Form):  # another picture
                    yield attempt.with_form(path, replace(form, sizes=latent.sizes, listed=latent.listed))
                if form.content == "mask":  # of the latent's cells
                    yield attempt.with_form(path, replace(form, sizes=(BATCH, 1, *attempt.grid)))
                    yield attempt.with_form(path, replace(form, sizes=(1, 1, *attempt.grid)))
                    tokens = form.sizes[-1]
                    yield attempt.with_form(path, replace(form, sizes=(BATCH, tokens, tokens), numbers="float"))
                if form.numbers == "float" and form.content != "mask":
                    yield attempt.with_form(path, replace(form, content="label", numbers="int", below=self._labels))
                if form.content == "label":
                    yield attempt.with_form(path, replace(form, below=2))

    def _other_widths(self, attempt: Attempt) -> Iterator[Attempt]:
        for path, form in attempt.forms():
            if form.content == "noise" and len(form.sizes) in (2, 3):
                for width in self._widths:
                    yield attempt.with_form(path, replace(form, sizes=(*form.sizes[:-1], width)))


def _depths(model: nn.Module) -> list[int]:
    """How long the model's own lists are, and the first of them together."""
    lengths = [len(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(dict.fromkeys([*lengths, *accumulate(lengths)]))
