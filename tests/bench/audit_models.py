"""docs/audit-models.md: what the transformers of diffusers keep and break, each at a configuration of seconds.

    python -m tests.bench.audit_models [MODEL...] > docs/audit-models.md

Each is built from `tests/audit/diffusers_models.py` and judged as `dit audit diffusers:MODEL` does; some minutes each
ten models.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import diffusers

from dittool.audit.isolation.watched import Limits
from dittool.audit.report import Audit
from dittool.audit.runner import audit
from dittool.console import Console
from dittool.errors import DitError
from dittool.families.family import specimen_of
from tests.audit.diffusers_models import TINY

CODES = ("R1", "R2", "E1", "E2", "E3", "E5", "C1", "C6", "C8")
SIGNS = {"pass": "✔", "warn": "!", "fail": "✘", "skip": "–"}
WORDS = {"pass": "pass", "warn": "warn", "fail": "fail", "skip": "skipped"}
SECONDS = 150.0

_TABLE = "beyond it the index runs on into the next row without an error; the published table has 32"
_UNREAD = "right: forward takes pooled_projections and never reads it"

# Models of which every cell was read against their source by hand: right, where REVIEWED says nothing else of one
READ_WHOLE = (
    *("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel"),
    *("BriaTransformer2DModel", "Lumina2Transformer2DModel", "LuminaNextDiT2DModel", "AuraFlowTransformer2DModel"),
    *("PRXTransformer2DModel", "ErnieImageTransformer2DModel"),
)
# Cells read so, with the reason: right, false (an alarm where nothing is wrong) or missed (something wrong, not seen)
REVIEWED = {
    ("DiTTransformer2DModel", "E2"): "right: unpatchify takes the square root of the number of tokens for both sides",
    ("BriaTransformer2DModel", "C6"): _UNREAD,
    ("BriaFiboTransformer2DModel", "C6"): _UNREAD,
    ("AuraFlowTransformer2DModel", "E2"): f"right of this configuration, whose table has 8 places a side: {_TABLE}",
    ("ErnieImageTransformer2DModel", "E2"): (
        "right: angles are laid out for neighbours (θ0, θ0, θ1, θ1) and turn halves, so a pair is turned by two angles"
        " and a logit depends on the place itself: between two equal tokens a column apart it goes from 0.4 to 3.9"
    ),
    (
        "Lumina2Transformer2DModel",
        "E5",
    ): "right: only the loop over layers asks for checkpointing, the refiners' does not",
    ("HunyuanImageTransformer2DModel", "E5"): (
        "right: both loops of blocks hand keyword arguments to a checkpointing function that takes none"
    ),
    ("LuminaNextDiT2DModel", "R1"): "right: pad_token is torch.empty, and nothing fills it",
    ("LuminaNextDiT2DModel", "C6"): "right: no line of forward reads pad_token",
    ("BriaTransformer2DModel", "C1"): (
        "right: __init__ makes the guidance embedding without time_theta, which has no default, so it cannot be built"
    ),
}
_NOT_FOUND = "no input was found with which it runs"
LEFT_OUT = {
    "WanAnimateTransformer3DModel": f"{_NOT_FOUND}: a pose's latent and a face's pixels beside each other",
    "HunyuanVideoFramepackTransformer3DModel": f"{_NOT_FOUND}: latents of a history at three scales",
    "LTX2VideoTransformer3DModel": f"{_NOT_FOUND}: video and audio are fed together",
    "QwenImage21Transformer2DModel": f"{_NOT_FOUND}: a mask says which tokens of the text are a picture's",
    "JoyImageEditPlusTransformer3DModel": f"{_NOT_FOUND}: patches of several pictures in one sequence",
    "Ideogram4Transformer2DModel": "text and picture are packed into one sequence by an indicator; none was packed so",
    "SanaWMTransformer3DModel": f"{_NOT_FOUND}: cameras and chunks of frames",
    "Kandinsky5Transformer3DModel": f"{_NOT_FOUND}: its latent has its channels last",
    "Kandinsky6Transformer3DModel, Kandinsky6SRTransformer3DModel": f"{_NOT_FOUND}: its latent has its channels last",
    "MiniMaxH3Transformer3DModel, Cosmos3": "tokens of several media are handed over with indices into one sequence",
    "WanAnimate2Transformer3DModel, AnyFlowFARTransformer3DModel": "frames that came before are needed",
    "SanaWMLTX2RefinerTransformer3DModel": "refines a video's latents of another model",
    "Transformer2DModel, DreamLiteTransformer2DModel, TransformerTemporalModel": "a part of a U-net, without a time",
    "AceStep, LongCatAudio, MiniMaxMusic3, StableAudio": "sound",
}


def judged(name: str, config: dict[str, object]) -> Audit | str:
    try:
        return audit(
            [f"diffusers:{name}"],
            specimen_of,
            select=CODES,
            kwargs=json.dumps(config),
            limits=Limits(SECONDS),
            talk=Console(quiet=True),
        )[0]
    except DitError as error:
        return error.message


def cells(result: Audit) -> dict[str, str]:
    """The worst sign of each rule."""
    order = list(SIGNS)
    found: dict[str, str] = {}
    for each in result.findings:
        code, status = each.rule.code, each.finding.status
        if status != "skip" and (found.get(code, "skip") == "skip" or order.index(status) > order.index(found[code])):
            found[code] = status
        found.setdefault(code, status)
    return found


def verdict(model: str, code: str) -> str:
    """`right`, `false` or `missed` of a cell that was read by hand; "" of one that was not."""
    said = REVIEWED.get((model, code), "right" if model in READ_WHOLE else "")
    return said.partition(":")[0].partition(" ")[0]


def rows_of(results: dict[str, Audit | str]) -> list[list[str]]:
    rows = []
    for name, result in results.items():
        if isinstance(result, str):
            continue
        signs = {code: SIGNS[status] for code, status in cells(result).items()}
        signs |= {crash.rule.code: "broke" for crash in result.crashes}
        marks = {code: sign + {"": "", "right": "*"}.get(verdict(name, code), "*!") for code, sign in signs.items()}
        rows.append([name.removesuffix("Model"), *(marks.get(code, "") for code in CODES)])
    return rows


def counted(results: dict[str, Audit | str]) -> list[str]:
    """How many cells there are of each kind, how many were read, and what they were found to be."""
    audits = {name: result for name, result in results.items() if not isinstance(result, str)}
    statuses = Counter(status for result in audits.values() for status in cells(result).values())
    broken = sum(len(result.crashes) for result in audits.values())
    verdicts = Counter(verdict(name, code) for name, result in audits.items() for code in cells(result))
    reasons = Counter(
        re.sub(r"\(\w+\.py:.*|: enable_.*|[\d.e-]+(?=\))", "", each.finding.evidence)[:160].strip()
        for result in audits.values()
        for each in result.findings
        if each.finding.status == "skip" and cells(result)[each.rule.code] == "skip"
    )
    told = ", ".join(f"{statuses[status]} {word}" for status, word in WORDS.items())
    lines = [
        f"- {len(audits)} models, {sum(statuses.values()) + broken} cells: {told}, {broken} broken.",
        f"- Read by hand: {sum(verdicts.values()) - verdicts['']} cells: {verdicts['right']} right,"
        f" {verdicts['false']} false, {verdicts['missed']} missed. Every cell that fails is among them.",
        f"- Not read: {verdicts['']} cells.",
    ]
    return lines + [f"- Not judged, {number}: {reason}" for reason, number in reasons.most_common()]


def said_of(results: dict[str, Audit | str]) -> list[str]:
    """What fails, and what was read of other cells, with what the source says."""
    lines = []
    for name, result in results.items():
        if isinstance(result, str):
            continue
        for each in result.findings:
            code, note = each.rule.code, REVIEWED.get((name, each.rule.code))
            if each.finding.status == "fail" or (note and each.finding.status == cells(result)[code]):
                said = each.finding.evidence.replace("\n", " ")[:300]
                at = f" ({each.finding.where.rpartition('/')[2]})" if each.finding.where else ""
                what = f"{name.removesuffix('Model')}, {each.rule.title}, {each.finding.status}"
                lines.append(f"- {what}: {said}{at}. *{note or verdict(name, code) or 'not reviewed'}*")
    return lines


def page(results: dict[str, Audit | str]) -> str:
    head = ["model", *CODES]
    rows = [head, ["---"] * len(head), *rows_of(results)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    made = f"Generated by `python -m tests.bench.audit_models` with diffusers {diffusers.__version__}; do not edit."
    says = (
        "✔ passes, ! warns, ✘ fails, – could not be judged, broke: the rule itself did; profile *any*, at a"
        " small configuration, with inputs that were guessed. An asterisk marks a cell that was"
        " read against the model's source by hand and found right, *! one that was found wrong; every other cell is"
        " what the rule says, and was not reviewed. These classes are made to load weights: how they begin matters to"
        " whoever trains one from nothing."
    )
    unjudged = [f"- {name}: {result[:300]}" for name, result in results.items() if isinstance(result, str)]
    unjudged += [f"- {names}: {why}." for names, why in LEFT_OUT.items()]
    parts = ["# What the transformers of diffusers keep and break", made, says, table]
    parts += ["## The count", "\n".join(counted(results)), "## What fails, and what else was read"]
    return "\n\n".join([*parts, "\n".join(said_of(results)), "## Left out", "\n".join(unjudged)]) + "\n"


def main() -> None:
    wanted = sys.argv[1:] or list(TINY)
    results: dict[str, Audit | str] = {}
    for name in wanted:
        results[name] = judged(name, TINY[name])
        print(name, "done", file=sys.stderr, flush=True)
    print(page(results), end="")


if __name__ == "__main__":
    main()
