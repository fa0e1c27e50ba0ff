"""Planted faults in foreign models against rules: what is found, what is missed, what is alarmed at for nothing.

To make docs/audit-matrix.md again: python -m tests.audit.foreign_matrix > docs/audit-matrix.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.subject import Subject
from tests.audit import foreign_habits, foreign_mixed, foreign_styles
from tests.audit.foreign_habits import HABITS, STYLES
from tests.audit.opened import open_subject

AlarmsOf = Callable[[str, str], frozenset[str]]

MODELS = Path(__file__).with_name("foreign_models.py")
STREAMS = MODELS.with_name("foreign_streams.py")
MODEL_FILES = (MODELS, STREAMS, MODELS.with_name("foreign_stages.py"))
HABITS_FILE = MODELS.with_name("foreign_habits.py")
JUDGED = ("R1", "R2", "E1", "E2", "E3", "E5", "C1", "C4", "C6", "C8")
CLEAN = ("fused", "text", "single", "sequence", "rotary", "streams", "parallel", "staged")
FAULTS = {  # factory → the rules that must find its fault, and what it is
    "fused_open_modulation": ({"E1"}, "the final layer is zero, the blocks' modulation is not"),
    "fused_transposed_positions": ({"E2"}, "height and width exchanged in sin-cos positions"),
    "fused_no_positions": ({"E2"}, "no positions"),
    "fused_columns_for_rows": ({"E2"}, "tokens put back together column by column"),
    "fused_deaf_to_class": ({"C6"}, "a class label that is read and never used"),
    "fused_unscaled_time": ({"C6"}, "t in [0, 1] fed without its factor of 1000"),
    "fused_ignored_qk_norm": ({"C1"}, "an argument qk_norm that is parsed and never used"),
    "fused_half": ({"C4"}, "master weights in bf16"),
    "text_six_vectors_no_gates": ({"E1"}, "six modulation vectors, all zero, and no gates"),
    "text_mask_ignored": ({"C6"}, "the caption's mask is never used"),
    "text_biased_attention": ({"E3"}, "biases in separate q, k, v"),
    "text_dead_blocks": ({"E1", "C6"}, "blocks that return their input whatever their gates say"),
    "single_random_tables": ({"E1"}, "one shared modulation of zero, random tables added in each block"),
    "sequence_zero_projections": ({"E1"}, "no gates; the identity only because projections begin at zero"),
    "sequence_learned_positions": ({"E2"}, "a learned table of positions"),
    "sequence_stored_positions": ({"E2"}, "sin-cos positions of a fixed size in the state dict"),
    "rotary_transposed": ({"E2"}, "height and width exchanged in rotary angles"),
    "rotary_in_raster_order": ({"E2"}, "rotary angles from the place in the sequence"),
    "rotary_query_bias": ({"E3"}, "a bias of the queries as a parameter of its own"),
    "streams_checkpointing_ignored": ({"E5", "C1"}, "an argument use_checkpoint that is parsed and never used"),
    "streams_half_recomputed": ({"E5"}, "checkpointing reaches one of two kinds of blocks"),
    "streams_pooled_unread": ({"C6"}, "a pooled vector that is projected and multiplied by zero"),
    "parallel_ungated_mlp": (
        {"E1"},
        "one gate for two branches that stand side by side, and the second is added past it",
    ),
    "parallel_checkpointing_ignored": ({"E5"}, "an attribute gradient_checkpointing that is set and never used"),
    "staged_open_second_stage": ({"E1"}, "the second of two stages' modulations is not zero"),
    "staged_deaf_to_time": ({"C6"}, "a timestep that is embedded and multiplied by zero"),
}
EXAMPLES = {"fused_unscaled_time": "unit_time"}


def models_of(factory: str) -> Path:
    """The file that defines a factory."""
    return next(path for path in MODEL_FILES if f"\ndef {factory}(" in path.read_text(encoding="utf-8"))


@cache
def alarms(factory: str) -> frozenset[str]:
    """Codes of the rules that fail, or warn, on a factory's model. Raises AssertionError when a rule breaks or none
    judges.
    """
    example = f"{MODELS}:{EXAMPLES[factory]}" if factory in EXAMPLES else None
    return _alarms_of(open_subject(f"{models_of(factory)}:{factory}", example=example))


@cache
def alarms_of_habit(style: str, habit: str) -> frozenset[str]:
    """The same of a clean model of a style with one habit."""
    kwargs = json.dumps({"style": style, "habit": habit})
    return _alarms_of(open_subject(f"{HABITS_FILE}:with_habit", kwargs=kwargs))


@cache
def alarms_of_kind(style: str, habit: str) -> frozenset[str]:
    """The same of a style of `foreign_styles` with a habit of `foreign_mixed`."""
    kwargs, example = json.dumps({"style": style, "habit": habit}), f"{foreign_styles.__file__}:example"
    return _alarms_of(open_subject(f"{foreign_mixed.__file__}:made", kwargs=kwargs, example=example))


def _alarms_of(subject: Subject) -> frozenset[str]:
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code in JUDGED])
    assert not result.crashes, result.crashes
    assert result.counts["pass"] or any(judged.finding.ends for judged in result.findings)
    return frozenset(judged.rule.code for judged in result.findings if judged.finding.status in ("fail", "warn"))


def matrix_page() -> str:
    """docs/audit-matrix.md."""
    missed = sum(len(wanted - alarms(factory)) for factory, (wanted, _) in FAULTS.items())
    false = sum(len(alarms(factory)) for factory in CLEAN) + sum(
        len(alarms(factory) - wanted) for factory, (wanted, _) in FAULTS.items()
    )
    lines = [
        "# Planted faults in foreign models",
        "",
        "Generated from the models of tests/audit/foreign_*.py; to make it again:",
        "",
        "    python -m tests.audit.foreign_matrix > docs/audit-matrix.md",
        "",
        (
            f"{len(FAULTS)} faults in {len(CLEAN)} styles of models, each beside a clean twin (in bold), audited with"
            " `dit audit file.py:factory`."
        ),
        f"**{missed} missed, {false} false alarms.** ● found · ✘ missed · ! alarm for nothing",
        "",
        f"| model | planted fault | {' | '.join(JUDGED)} |",
        f"| --- | --- |{' --- |' * len(JUDGED)}",
    ]
    for factory in sorted([*CLEAN, *FAULTS], key=lambda name: (CLEAN.index(name.split("_")[0]), name not in CLEAN)):
        wanted, fault = FAULTS.get(factory, (set(), ""))
        marks = [
            (
                "●"
                if code in wanted & alarms(factory)
                else "✘"
                if code in wanted
                else "!"
                if code in alarms(factory)
                else ""
            )
            for code in JUDGED
        ]
        lines.append(f"| {factory if fault else f'**{factory}**'} | {fault} | {' | '.join(marks)} |")
    return "\n".join([*lines, "", *_habits()]) + "\n"


def _in_styles(
    title: str, styles: Iterable[str], wanted: dict[str, set[str]], texts: dict[str, str], alarmed: AlarmsOf
) -> list[str]:
    """A table of habits and faults in each of several styles."""
    names = list(styles)
    found = {habit: {style: alarmed(style, habit) for style in names} for habit in wanted}
    missed = sum(len(wanted[habit] - seen) for habit, by_style in found.items() for seen in by_style.values())
    false = sum(len(seen - wanted[habit]) for habit, by_style in found.items() for seen in by_style.values())
    sound = sum(not codes for codes in wanted.values())
    lines = [
        f"## {title}",
        "",
        (
            f"{len(wanted) - sound} faults and {sound} sound habits (in bold), each put into the clean models of"
            f" {len(names)} styles. **{missed} missed, {false} false alarms.** A cell names the rules that alarm."
        ),
        "",
        f"| habit | must alarm | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for habit, codes in wanted.items():
        seen = [", ".join(sorted(found[habit][style])) for style in names]
        text = texts[habit] if codes else f"**{texts[habit]}**"
        lines.append(f"| {text} | {', '.join(sorted(codes))} | {' | '.join(seen)} |")
    return lines


def _habits() -> list[str]:
    """Put from outside, by hooks; and as a part of the model's own code."""
    outside = {habit: (getattr(foreign_habits, habit).__doc__ or "").rstrip(".") for habit in HABITS}
    inside = {habit.__name__: habit.__doc__ or "" for habit in foreign_mixed.HABITS}
    codes = {habit.__name__: set(wanted) for habit, wanted in foreign_mixed.HABITS.items()}
    return [
        *_in_styles("Habits of any style", STYLES, HABITS, outside, alarms_of_habit),
        "",
        *_in_styles("Kinds in three styles", foreign_styles.STYLES, codes, inside, alarms_of_kind),
    ]


if __name__ == "__main__":
    print(matrix_page(), end="")
