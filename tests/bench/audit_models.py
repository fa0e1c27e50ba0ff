"""docs/audit-models.md: what the transformers of diffusers keep and break, each at a configuration of seconds.

    python -m tests.bench.audit_models --answers FILE.jsonl [MODEL...] > docs/audit-models.md

Each is built from `tests/audit/diffusers_models.py` and judged as `dit audit diffusers:MODEL` does, in half a minute
on a quiet core. FILE.jsonl keeps the answers, a model a line: those in it are not asked for again. What was read by
hand stands in `audit_models_reviewed.toml`, by model, rule and status: where the status is another, the mark is gone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import diffusers

from dittool.audit.isolation.watched import Limits
from dittool.audit.runner import audit
from dittool.console import Console
from dittool.errors import DitError
from dittool.families.family import specimen_of
from tests.audit.diffusers_models import TINY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODES = ("R1", "R2", "E1", "E2", "E3", "E5", "C1", "C6", "C8")
SIGNS = {"pass": "✔", "warn": "!", "fail": "✘", "skip": "–"}
WORDS = {"pass": "pass", "warn": "warn", "fail": "fail", "skip": "skipped"}
SECONDS = 150.0
REVIEWED = Path(__file__).with_name("audit_models_reviewed.toml")

_NOT_FOUND = "no input was found with which it runs"
LEFT_OUT = {
    "WanAnimateTransformer3DModel": f"{_NOT_FOUND}: a pose's latent and a face's pixels beside each other",
    "HunyuanVideoFramepackTransformer3DModel": f"{_NOT_FOUND}: latents of a history at three scales",
    "LTX2VideoTransformer3DModel": f"{_NOT_FOUND}: video and audio are fed together",
    "QwenImage21Transformer2DModel": f"{_NOT_FOUND}: a mask says which tokens of the text are a picture's",
    "JoyImageEditPlusTransformer3DModel": f"{_NOT_FOUND}: patches of several pictures in one sequence",
    "Ideogram4Transformer2DModel": "text and picture are packed into one sequence by an indicator; none was packed so",
    "SanaWMTransformer3DModel": f"{_NOT_FOUND}: cameras and chunks of frames",
    "Kandinsky6SRTransformer3DModel": "not tried: tokens in multiples of 8 by 8, of a picture, another one and a mask",
    "MiniMaxH3Transformer3DModel, Cosmos3": "tokens of several media are handed over with indices into one sequence",
    "WanAnimate2Transformer3DModel, AnyFlowFARTransformer3DModel": "frames that came before are needed",
    "SanaWMLTX2RefinerTransformer3DModel": "refines a video's latents of another model",
    "Transformer2DModel, DreamLiteTransformer2DModel, TransformerTemporalModel": "a part of a U-net, without a time",
    "AceStep, LongCatAudio, MiniMaxMusic3, StableAudio": "sound",
}


@dataclass(frozen=True)
class Said:
    """One finding about a model."""

    code: str
    title: str
    status: str
    evidence: str
    where: str = ""


@dataclass(frozen=True)
class Answer:
    """What the audit said of a model; `refusal` where it could not be judged at all."""

    model: str
    findings: tuple[Said, ...] = ()
    broken: tuple[str, ...] = ()  # codes of rules that ended with an error of their own
    refusal: str = ""

    @property
    def cells(self) -> dict[str, str]:
        """The worst status of each rule; a skip beside another is none."""
        order = list(SIGNS)
        found: dict[str, str] = {}
        for each in self.findings:
            before = found.get(each.code, "skip")
            worse = each.status != "skip" and (before == "skip" or order.index(each.status) > order.index(before))
            found[each.code] = each.status if worse else before
        return found


def judged(name: str, config: dict[str, object]) -> Answer:
    try:
        result = audit(
            [f"diffusers:{name}"],
            specimen_of,
            select=CODES,
            kwargs=json.dumps(config),
            limits=Limits(SECONDS),
            talk=Console(quiet=True),
        )[0]
    except DitError as error:
        return Answer(name, refusal=error.message)
    said = (
        Said(one.rule.code, one.rule.title, one.finding.status, one.finding.evidence, one.finding.where)
        for one in result.findings
    )
    return Answer(name, tuple(said), tuple(crash.rule.code for crash in result.crashes))


def kept_answers(path: Path) -> dict[str, Answer]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["model"]: Answer(**{**row, "findings": tuple(Said(**one) for one in row["findings"])}) for row in rows}


@cache
def reviews() -> dict[str, dict[str, dict[str, str]]]:
    """Of each model, rule and status what was found in the source: "right", "false" (an alarm where nothing is wrong)
    or "missed" (something wrong, not seen), a colon, and the reason.
    """
    return tomllib.loads(REVIEWED.read_text(encoding="utf-8"))


def review(answer: Answer, code: str) -> str:
    """What was read of a cell by hand, as long as the cell says what it said then; "" of one that was not read."""
    return reviews().get(answer.model, {}).get(code, {}).get(answer.cells.get(code, ""), "")


def rows_of(answers: list[Answer]) -> list[list[str]]:
    rows = []
    for answer in answers:
        signs = {code: SIGNS[status] for code, status in answer.cells.items()}
        for code in signs:
            verdict = review(answer, code).partition(":")[0]
            signs[code] += {"": "", "right": "*"}.get(verdict, "*!")
        signs |= dict.fromkeys(answer.broken, "broke")
        rows.append([answer.model.removesuffix("Model"), *(signs.get(code, "") for code in CODES)])
    return rows


def counted(answers: list[Answer]) -> list[str]:
    """How many cells there are of each kind, how many were read, and what they were found to be."""
    statuses = Counter(status for answer in answers for status in answer.cells.values())
    broken = sum(len(answer.broken) for answer in answers)
    verdicts = Counter(review(answer, code).partition(":")[0] for answer in answers for code in answer.cells)
    read = {code: sum(bool(review(answer, code)) for answer in answers) for code in CODES}
    unread_fails = sum(
        not review(answer, code) for answer in answers for code, status in answer.cells.items() if status == "fail"
    )
    reasons = Counter(
        re.sub(r"\(\w+\.py:.*|: enable_.*|[\d.e-]+(?=\))", "", each.evidence)[:160].strip()
        for answer in answers
        for each in answer.findings
        if each.status == "skip" and answer.cells[each.code] == "skip"
    )
    said = ", ".join(f"{statuses[status]} {word}" for status, word in WORDS.items())
    lines = [
        f"- {len(answers)} models, {sum(statuses.values()) + broken} cells: {said}, {broken} broken.",
        f"- Read by hand: {sum(verdicts.values()) - verdicts['']} cells: {verdicts['right']} right,"
        f" {verdicts['false']} false, {verdicts['missed']} missed. Cells that fail and were not read: {unread_fails}.",
        f"- By rule: {', '.join(f'{code} {number}' for code, number in read.items())}. Not read: {verdicts['']} cells.",
    ]
    return lines + [f"- Not judged, {number}: {reason}" for reason, number in reasons.most_common()]


def said_of(answers: list[Answer]) -> list[str]:
    """What fails, and what was read of other cells, with what the source says."""
    lines = []
    for answer in answers:
        for code in CODES:
            status, note = answer.cells.get(code, ""), review(answer, code)
            worst = [each for each in answer.findings if each.code == code and each.status == status]
            if not worst or (status != "fail" and not note):
                continue
            name = f"{answer.model.removesuffix('Model')}, {worst[0].title}, {status}"
            if status in ("pass", "skip"):
                lines.append(f"- {name}. *{note}*")
                continue
            for each in worst:
                said = each.evidence.replace("\n", " ")[:300]
                at = f" ({each.where.rpartition('/')[2]})" if each.where else ""
                lines.append(f"- {name}: {said}{at}. *{note or 'not reviewed'}*")
    return lines


def page(answers: dict[str, Answer]) -> str:
    told = [answer for answer in answers.values() if not answer.refusal]
    head = ["model", *CODES]
    rows = [head, ["---"] * len(head), *rows_of(told)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    made = f"Generated by `python -m tests.bench.audit_models` with diffusers {diffusers.__version__}; do not edit."
    says = (
        "✔ passes, ! warns, ✘ fails, – could not be judged, broke: the rule itself did; profile *any*, at a"
        " small configuration, with inputs that were guessed. An asterisk marks a cell that was"
        " read against the model's source by hand and found right, *! one that was found wrong; every other cell is"
        " what the rule says, and was not reviewed. These classes are made to load weights: how they begin matters to"
        " whoever trains one from nothing."
    )
    unjudged = [f"- {answer.model}: {answer.refusal[:300]}" for answer in answers.values() if answer.refusal]
    unjudged += [f"- {names}: {why}." for names, why in LEFT_OUT.items()]
    parts = ["# What the transformers of diffusers keep and break", made, says, table]
    parts += ["## The count", "\n".join(counted(told)), "## What fails, and what else was read"]
    return "\n\n".join([*parts, "\n".join(said_of(told)), "## Left out", "\n".join(unjudged)]) + "\n"


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--answers", type=Path, default=Path("audit-models.jsonl"))
    asked.add_argument("models", nargs="*")
    options = asked.parse_args()
    kept = kept_answers(options.answers)
    for name in (name for name in options.models or TINY if name not in kept):
        kept[name] = judged(name, TINY[name])
        with options.answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(kept[name])) + "\n")
        print(name, "done", file=sys.stderr, flush=True)
    print(page({name: kept[name] for name in TINY if name in kept}), end="")


if __name__ == "__main__":
    main()
