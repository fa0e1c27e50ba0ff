"""`dit validate --repeat results.json`: the same validation once more, and its numbers beside those of then.

A number is the same to the bit, differs as rounding does (other threads, devices and libraries add in another order),
or differs by more. `ROUNDING` is the line between the last two; what was measured stands in docs/validation.md. A share
of so many images moves by whole images, so one image that tips is more than rounding, and is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.run_data import DEFAULT_DATA
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.storage import read_json, write_json
from dittool.validate.figures.drawn import FigureOptions
from dittool.validate.figures.given import measure_given
from dittool.validate.run import ValidateOptions, validate
from dittool.validate.text_edit import CaptionChecker
from dittool.validate.verdict import Results
from dittool.whereabouts import exact_place, find

ROUNDING = 1e-3  # relative …
LEAST = 1e-5  # … or absolute, of what is near 0
_NOT_COMPARED = ("seconds", "checkpoint", "asked", "made_with", "made_of", "settings", "data", "training")
_SHOWN = 20
_HINT = "make the validation again with this version of dit validate, which writes down what a repetition needs"


@dataclass(frozen=True)
class Difference:
    """One entry of `results.json` that is not the same."""

    where: str  # dino_swap.mean_margin
    then: Any
    now: Any

    @property
    def apart(self) -> float | None:
        """|now − then|; None for what is no number on both sides."""
        numbers = [value for value in (self.then, self.now) if _is_number(value)]
        return abs(numbers[1] - numbers[0]) if len(numbers) == 2 else None

    @property
    def is_rounding(self) -> bool:
        if self.apart is None or isinstance(self.then, int) or isinstance(self.now, int):
            return False
        return self.apart <= max(LEAST, ROUNDING * max(abs(self.then), abs(self.now)))

    def to_json(self) -> dict[str, object]:
        found = {"where": self.where, "then": self.then, "now": self.now, "apart": self.apart}
        return found | {"rounding": self.is_rounding}


@dataclass(frozen=True)
class Repetition:
    """Both results, number by number."""

    numbers: int  # compared
    differences: list[Difference]  # the largest first
    made_otherwise: list[str]  # of `made_of` and `made_with`: inputs, versions, devices, threads
    other_inputs: bool  # whether something of `made_of` differs
    file: Path | None = None  # where all of this was written

    @property
    def same(self) -> bool:
        """But for rounding."""
        return all(difference.is_rounding for difference in self.differences)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """For a table: the largest differences."""
        return [
            (
                one.where,
                *(f"{value:.6g}" if _is_number(value) else str(value) for value in (one.then, one.now)),
                "–" if one.apart is None else f"{one.apart:.1g}",
                "rounding" if one.is_rounding else "✘ more",
            )
            for one in self.differences[:_SHOWN]
        ]

    @property
    def line(self) -> str:
        """What was found, in one sentence."""
        beyond = sum(not difference.is_rounding for difference in self.differences)
        rounded = len(self.differences) - beyond
        equal = self.numbers - sum(difference.apart is not None for difference in self.differences)
        found = f"{self.numbers} numbers: {equal} equal to the bit, {rounded} within rounding, {beyond} beyond it"
        return found + ("; the inputs are not those of then" if beyond and self.other_inputs else "")

    def to_json(self) -> dict[str, object]:
        return {
            "numbers": self.numbers,
            "same": self.same,
            "differences": [difference.to_json() for difference in self.differences],
            "made_otherwise": self.made_otherwise,
        }


@dataclass(frozen=True)
class Recorded:
    """The results of then and the folder that they lie in."""

    path: Path
    results: Mapping[str, Any]

    @property
    def asked(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.results["asked"]
        return found

    def file(self, text: str | None, option: str) -> Path | None:
        """A path that the results remember. Raises `UsageError` when it is not there."""
        if text is None:
            return None
        if (found := find(text, self.path.parent)) is None:
            place = exact_place(text, self.path.parent)
            raise UsageError(f"{self.path} was made with {place}, which is not there", f"say where it is now: {option}")
        return found


def recorded(path: Path) -> Recorded:
    """Raises `UsageError` when there is no such file, `BadDataError` for one that says too little."""
    if not path.is_file():
        raise UsageError(f"--repeat {path}: no such file", did_you_mean(path, "name the results.json of a validation"))
    results = read_json(path)
    wanted = {"asked": dict, "made_of": dict, "made_with": dict}
    if not isinstance(results, dict) or any(not isinstance(results.get(key), kind) for key, kind in wanted.items()):
        raise BadDataError(f"{path}: does not say how it was made ({', '.join(wanted)})", _HINT)
    tests = results["asked"].get("tests")
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise BadDataError(f"{path}: asked.tests is no list of tests", _HINT)
    return Recorded(path, results)


def repeat(
    path: Path,
    target: Path | None,
    data: Path | None,
    out: Path | None,
    checker: CaptionChecker | None = None,
    talk: Talk = SILENT,
) -> Repetition:
    """Validates, or measures, as a `results.json` was asked for, into `out` (default: FOLDER_repeat beside its folder),
    and writes `repeat.json` there. `target` and `data` are where checkpoint or samples and shards are now, where that
    is not where they were.

    Raises `UsageError` and `BadDataError`, and what the validation raises.
    """
    then = recorded(path)
    asked, folder = then.asked, out or path.parent.with_name(f"{path.parent.resolve().name}_repeat")
    reference = then.file(asked.get("reference"), "put it back, no option names it")
    results: Results
    if asked.get("samples") is not None:
        samples = target or then.file(asked["samples"], "dit validate SAMPLES.npz --repeat …")
        results = measure_given(samples or Path(), reference, asked["tests"], folder, None, talk).results
    else:
        options = ValidateOptions(
            asked["tests"],
            asked.get("limit"),
            asked.get("split"),
            then.file(asked.get("lpips_backbone"), "put it back, no option names it"),
            checker if asked.get("checker") else None,
            FigureOptions(reference, asked.get("images")),
        )
        checkpoint = target or then.file(then.results["checkpoint"] or None, "dit validate CHECKPOINT --repeat …")
        if checkpoint is None:
            raise UsageError(f"{path}: names no checkpoint", "name it: dit validate CHECKPOINT --repeat …")
        shards = data or then.file(then.results["data"]["shards"], "--data FOLDER")
        found = resolve_checkpoint(checkpoint, talk=talk)
        results = validate(found, shards or DEFAULT_DATA, folder, options, talk).results
    compared = replace(compare_results(then.results, results), file=folder / "repeat.json")
    write_json(folder / "repeat.json", compared.to_json())
    return compared


def compare_results(then: Mapping[str, Any], now: Mapping[str, Any]) -> Repetition:
    """Every entry of two `results.json`, but for times and places."""
    before, after = (dict(_leaves(results)) for results in (then, now))
    paths = list(dict.fromkeys([*before, *after]))
    numbers = sum(_is_number(before.get(path)) and _is_number(after.get(path)) for path in paths)
    found = [Difference(path, before.get(path), after.get(path)) for path in paths]
    differing = [one for one in found if one.then != one.now]
    differing.sort(key=lambda one: (one.is_rounding, -(one.apart or 0) / (abs(one.then or 1) if one.apart else 1)))
    inputs, surroundings = (_listed(then.get(key, {}), now.get(key, {})) for key in ("made_of", "made_with"))
    return Repetition(numbers, differing, inputs + surroundings, bool(inputs))


def _listed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = (dict(_flat(value)) for value in (then, now))
    paths = dict.fromkeys([*before, *after])
    return [
        f"{path}: {after.get(path)}, then {before.get(path)}" for path in paths if before.get(path) != after.get(path)
    ]


def _leaves(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return _flat({key: value for key, value in results.items() if key not in _NOT_COMPARED})


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{where}[{index}]")
    else:
        yield where, value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
