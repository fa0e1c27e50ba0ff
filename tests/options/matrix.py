"""What a line of the command line did, and whether each of its options had a part in it.

A line is run in a fresh copy of the workshop. What is observed of it, kind by kind: how it ended, what it printed,
which files it made or changed, their pixels, their other content. The effect of an option is the kinds that differ with
it and without it. Beside another option it must differ in the same kinds again, or the line is refused, or says what
has no effect.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from dittool.cli import run
from tests.options.table import EXAMPLES, Situation
from tests.options.workshop import copied, tensors_digest

ENDED = (0, 1)  # codes of a command that did its work
ACTS, SAID, IS_REFUSED, IDLE = "acts", "acts, and what does not is said", "refused", "idle"
WRONG = "WRONG"
_PROGRESS = re.compile(r"^\S.* \d+/\d+( |$).*$", re.M)
_TIMED = "seconds|seconds_per_step|memory_bytes|peak_memory_bytes|images_per_second|tflops|mfu|of_step"
_VOLATILE = (  # what no two runs have in common
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?\S*"), "DATE"),
    (re.compile(r"\d+:\d\d(:\d\d)?"), "TIME"),
    (re.compile(r"process \d+"), "process N"),
    (re.compile(rf'"({_TIMED})": [^,}}\]]+'), r'"\1"'),
    (re.compile(r"\b\d+(\.\d+)?(e[+-]\d+)? (s|MB|GB|kB)\b"), "N"),
    (re.compile(r"[\w.]*\d\.\d+[\w.+%-]*|\b\d+\.?\d*%"), "N"),
    (re.compile(r"^(matrix product|forward|step|step with reading|reading|decoding) .*$", re.M), r"\1"),
    (re.compile(r" +(\n?)"), r" \1"),
    (re.compile(r" \n"), "\n"),
    (re.compile(r"─+"), "─"),
)
_LOOSE = {"out", "talk", "files", "gone"}  # what was said, and where it went: that it differs at all is enough
_MEASURES = ("bench", "train")  # commands whose figures are times


@dataclass(frozen=True)
class Observed:
    """What a line did, by kind."""

    code: int
    err: str
    kinds: dict[str, object] = field(default_factory=dict)


class Matrix:
    """Runs lines of situations in copies of a workshop, each line once."""

    def __init__(self, workshop: Path, scratch: Path) -> None:
        self.workshop, self.scratch = workshop, scratch
        self.observed = cache(self._observed)
        self.before = _files(workshop)

    def _observed(self, situation: Situation, added: frozenset[str]) -> Observed:
        place = self.scratch / "place"  # one name: what is printed holds it
        copied(self.workshop, place)
        try:
            with _inside(place), _captured() as (out, err):
                code = run(situation.words(*_in_order(situation, added)))
            talk = _plain(_PROGRESS.sub("", err()), place, situation.command)
            after = _files(place)
            changed = sorted(name for name, state in after.items() if self.before.get(name) != state)
            kinds = {"code": code, "out": _plain(out(), place, situation.command), "talk": talk}
            kinds["gone"] = sorted(self.before.keys() - after.keys())
            return Observed(code, talk, kinds | _of_files(place, changed, situation.command))
        finally:
            shutil.rmtree(place)

    def effect(self, situation: Situation, option: str, beside: frozenset[str] = frozenset()) -> set[str]:
        """The kinds that differ with an option and without it."""
        with_it, without = self.observed(situation, beside | {option}), self.observed(situation, beside)
        return {kind for kind in with_it.kinds if with_it.kinds[kind] != without.kinds[kind]}

    def single(self, situation: Situation, option: str) -> str:
        """How one option ends in a situation."""
        done = self.observed(situation, frozenset({option}))
        if wrong := _broken(done):
            return f"{WRONG}: {wrong}"
        if done.code not in ENDED:
            return f"{IS_REFUSED} with {done.code}"
        if not self.effect(situation, option):
            return IDLE if option in situation.idle else f"{WRONG}: no effect, and nothing says so"
        return ACTS

    def pair(self, situation: Situation, one: str, other: str) -> str:
        """How two options end in a situation."""
        done = self.observed(situation, frozenset({one, other}))
        if wrong := _broken(done):
            return f"{WRONG}: {wrong}"
        if done.code not in ENDED:
            return f"{IS_REFUSED} with {done.code}"
        outcome = ACTS
        for option, beside in ((one, other), (other, one)):
            alone, here = self.effect(situation, option), self.effect(situation, option, frozenset({beside}))
            if self.observed(situation, frozenset({option})).code not in ENDED:
                alone = set()  # here it is not: it acts beside the other
            missing = alone - here - _LOOSE
            if not here and option not in situation.idle:
                return f"{WRONG}: {option} has no effect beside {beside}, and nothing says so"
            if missing and option not in situation.idle and not _says(done.err, option):
                lost = f"{', '.join(sorted(alone))} alone, beside {beside} not {', '.join(sorted(missing))}"
                return f"{WRONG}: {option} changes {lost}"
            outcome = SAID if missing else outcome
        return outcome

    def pairs(self, situation: Situation) -> list[tuple[str, str]]:
        return list(itertools.combinations(situation.options, 2)) if situation.paired else []


def _in_order(situation: Situation, added: frozenset[str]) -> list[str]:
    return [name for name in EXAMPLES[situation.command] if name in added]


def _broken(done: Observed) -> str:
    """What is wrong with how a line ended, whatever it was to do."""
    errors, hints = len(re.findall(r"^error: ", done.err, re.M)), len(re.findall(r"^ +next: ", done.err, re.M))
    if done.code not in (0, 1, 2, 3, 5, 7):
        return f"code {done.code}: {done.err[-300:]}"
    if "Traceback" in done.err:
        return "a traceback"
    if done.code in ENDED:
        return "" if not errors else f"code {done.code} beside an error"
    if (errors, hints) != (1, 1):
        return f"code {done.code} with {errors} errors and {hints} next steps"
    return ""


def _says(talk: str, option: str) -> bool:
    """Whether a remark or a warning says something of an option."""
    return any(option in line for line in talk.splitlines())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[object, object]]:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams
    try:
        yield tuple((lambda stream=stream: stream.buffer.getvalue().decode()) for stream in streams)
    finally:
        sys.stdout, sys.stderr = kept


def _plain(text: str, place: Path, command: str) -> str:
    """Without what differs between two runs of one line."""
    text = text.replace(str(place.resolve()), "PLACE").replace(str(place), "PLACE")
    for pattern, word in _VOLATILE:
        if word not in ("N", r"\1") or command in _MEASURES:
            text = pattern.sub(word, text)
    return text


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each file its size and time of writing."""
    return {
        path.relative_to(folder).as_posix(): (stat.st_size, stat.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
        for stat in [path.stat()]
    }


def _of_files(place: Path, changed: list[str], command: str) -> dict[str, object]:
    pixels, content = [], []
    for name in changed:
        path = place / name
        if path.suffix in (".png", ".jpg", ".webp"):
            with Image.open(path) as image:
                pixels.append(hashlib.sha256(image.tobytes()).hexdigest())
                content.append(_plain(str(image.info.get("dit", "")), place, command))
        elif path.suffix == ".safetensors":
            content.append(tensors_digest(path))
        elif path.suffix in (".json", ".jsonl", ".html", ".toml", ".txt"):
            content.append(_plain(path.read_text(), place, command))
        else:
            content.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return {"files": changed, "pixels": sorted(pixels), "content": sorted(content)}
