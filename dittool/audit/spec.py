"""Parity with a published architecture: a specification is a file in `specs/`, and each of its components is held
against the model.

A specification says of each component what is stated and where from, in which forms it may stand in a model (tensors
with their shapes, keys with their values), and which rules and measures must pass. Another paper is another file.
Tensors that no component names are an error too, so that a model can have no more than what is specified.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dittool.audit.measures import MEASURES, Measured
from dittool.audit.registry import built_in_rules
from dittool.audit.rule import FAIL, PASS
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.specimen import NotAnswered
from dittool.audit.subject import Data, Subject
from dittool.config.drift_schema import DriftConfig
from dittool.config.load import read_toml
from dittool.errors import UsageError, listed
from dittool.models.build import ParameterTensor, build_generator, parameter_table

STATUSES = ("PAPER-BACKED", "INFERRED", "OPEN")
_FOLDER = Path(__file__).parent / "specs"


@dataclass(frozen=True)
class Row:
    """One component and what was found."""

    component: str
    status: str  # one of STATUSES: what the statement rests on
    statement: str
    evidence: str
    code: str
    result: str  # pass or fail
    measured: str


@dataclass(frozen=True)
class Parity:
    """A model held against a specification."""

    target: str
    title: str
    source: str
    rows: list[Row]
    parameters: int
    tensors: int

    @property
    def ok(self) -> bool:
        return all(row.result == PASS for row in self.rows)


def spec_names() -> list[str]:
    """The specifications that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def parity(subject: Subject, name: str) -> Parity:
    """The rows of a specification for a subject with a configuration. Raises `UsageError` for an unknown name or
    another family of models.
    """
    if name not in spec_names():
        raise UsageError(f"--spec {name}: there is no such specification", f"there is: {', '.join(spec_names())}")
    config = _generator(subject)
    if config is None:
        raise UsageError(
            f"{subject.target}: the specification '{name}' is of a one-step generator",
            "try: dit audit drift-b2 --spec drifting",
        )
    spec = read_toml(_FOLDER / f"{name}.toml")
    tensors = parameter_table(lambda: build_generator(config))
    judge = _Judge(subject, config, tensors, spec["totals"])
    rows = [judge.row(component) for component in spec["component"]]
    if strays := [tensor.name for tensor in tensors if tensor.name not in judge.named]:
        stated = ("no tensor beyond those above", "the totals leave no room", "models/drift_dit.py: DriftDiT")
        rows.append(Row("nothing else", "INFERRED", *stated, FAIL, listed(strays, most=4)))
    return Parity(
        subject.target, spec["title"], spec["source"], rows, sum(tensor.parameters for tensor in tensors), len(tensors)
    )


def _generator(subject: Subject) -> DriftConfig | None:
    """The configuration, when it is a one-step generator's."""
    try:
        return None if isinstance(subject, Data) else subject.specimen.generator()
    except NotAnswered:
        return None


class _Judge:
    """Holds components against one model, and remembers which of its tensors they named."""

    def __init__(
        self, subject: Subject, config: DriftConfig, tensors: list[ParameterTensor], totals: dict[str, int]
    ) -> None:
        self.named: set[str] = set()
        self._subject, self._config, self._tensors, self._totals = subject, config, tensors, totals
        model = config.model
        self._sizes = {"H": model.width, "D": model.depth, "F": model.mlp_width, "K": model.width // model.heads, "": 1}
        self._rules = {rule.code: rule for rule in built_in_rules()}

    def row(self, component: dict[str, Any]) -> Row:
        """The first form that fits, or what the nearest one lacks."""
        tried = [(form["name"], *self._fit(form)) for form in component["forms"]]
        form, faults, measured = min(tried, key=lambda form: len(form[1]))
        shown = {key: component[key] for key in ("status", "statement", "evidence", "code")}
        held = [f"not {form}: {fault}" for fault in faults] or [f"as {form}"]
        return Row(component["name"], **shown, result=FAIL if faults else PASS, measured="; ".join([*held, *measured]))

    def _fit(self, form: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Faults, and what was measured without any."""
        faults: list[str] = []
        measured: list[str] = []
        wanted = form.get("tensors", {})
        found = [tensor for pattern, shape in wanted.items() for tensor in self._tensors_like(pattern, shape, faults)]
        checks = [self._key(key, value) for key, value in form.get("keys", {}).items()]
        checks += [self._measure(name) for name in form.get("measures", ())]
        checks += [self._rule(code) for code in form.get("rules", ())]
        for holds, text in checks:
            (measured if holds else faults).append(text)
        if wanted and not faults:
            measured.insert(0, f"{len(found)} tensors, {sum(tensor.parameters for tensor in found):,} parameters")
            self.named |= {tensor.name for tensor in found}
        return faults, measured

    def _key(self, key: str, stated: object) -> Measured:
        section, _, name = key.rpartition(".")  # of [model] where none is named
        actual = getattr(getattr(self._config, section or "model"), name)
        return actual == stated, f"{key} = {actual}" + ("" if actual == stated else f", not {stated}")

    def _tensors_like(self, pattern: str, shape: str, faults: list[str]) -> list[ParameterTensor]:
        found = [tensor for tensor in self._tensors if fnmatchcase(tensor.name, pattern)]
        expected = tuple(self._length(factor) for factor in shape.split("×"))
        count = self._sizes["D"] if pattern.startswith("blocks.*") else 1
        if len(found) != count:
            faults.append(f"{pattern}: {len(found)} tensors, not {count}")
        if wrong := [tensor for tensor in found if tensor.shape != expected]:
            faults.append(f"{wrong[0].name}: {'×'.join(map(str, wrong[0].shape))}, not {'×'.join(map(str, expected))}")
        return found

    def _length(self, factor: str) -> int:
        number, letter = factor.rstrip("DFHK"), factor.lstrip("0123456789")
        return int(number or 1) * self._sizes[letter]

    def _measure(self, name: str) -> Measured:
        if name != "total":
            return MEASURES[name](self._config)
        total = sum(tensor.parameters for tensor in self._tensors)
        key = "/".join(str(self._sizes[letter]) for letter in "HDF")
        stated = self._totals.get(key)
        rest = "" if total == stated else f", stated for {key}: {stated or 'nothing'}"
        return total == stated, f"{total:,} parameters in {len(self._tensors)} tensors{rest}"

    def _rule(self, code: str) -> Measured:
        (judged,) = audit_subject(self._subject, [self._rules[code]], named=True).findings[:1]
        return judged.finding.status != FAIL, f"{code}: {judged.finding.evidence}"


# Reports


COLUMNS = ("component", "", "stated", "measured")
_MARKS = {PASS: "✔", FAIL: "✘"}


def table_rows(parity: Parity) -> list[tuple[str, str, str, str]]:
    """For `COLUMNS`."""
    return [
        (f"{row.component}\n{row.status}", _MARKS[row.result], f"{row.statement}\n→ {row.code}", row.measured)
        for row in parity.rows
    ]


def summary_line(parity: Parity) -> str:
    counts = ", ".join(f"{sum(row.status == status for row in parity.rows)} {status}" for status in STATUSES)
    held = sum(row.result == PASS for row in parity.rows)
    return (
        f"{parity.target}: {held} of {len(parity.rows)} components hold ({counts}); {parity.parameters:,} parameters in"
        f" {parity.tensors} tensors"
    )


def as_json(parity: Parity) -> dict[str, object]:
    head = {
        "target": parity.target,
        "title": parity.title,
        "source": parity.source,
        "parameters": parity.parameters,
        "tensors": parity.tensors,
    }
    return {**head, "components": [vars(row) for row in parity.rows], "ok": parity.ok}


def as_markdown(parity: Parity) -> str:
    """A table to paste, with the evidence of each statement."""
    lines = [f"# {parity.title}", "", f"Source: {parity.source}. {summary_line(parity)}.", ""]
    lines += [
        "| component | status | stated | evidence | code | result | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in parity.rows:
        cells = (row.component, row.status, row.statement, row.evidence, f"`{row.code}`", row.result, row.measured)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
