"""Foreign models in different styles: each planted fault is found by the rules that it breaks, and by no other; clean twins are clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.subject import open_subject

MODELS = Path(__file__).with_name("foreign_models.py")
JUDGED = ("E1", "E2", "E3", "E5", "C1", "C4", "C6")
RULES = [rule for rule in built_in_rules() if rule.code in JUDGED]

CLEAN = ("fused", "text", "single", "sequence", "rotary", "streams")
FAULTS = {  # factory → the rules that must find its fault
    "fused_open_modulation": {"E1"},
    "fused_transposed_positions": {"E2"},
    "fused_no_positions": {"E2"},
    "fused_columns_for_rows": {"E2"},
    "fused_deaf_to_class": {"C6"},
    "fused_unscaled_time": {"C6"},
    "fused_ignored_qk_norm": {"C1"},
    "fused_half": {"C4"},
    "text_six_vectors_no_gates": {"E1"},
    "text_mask_ignored": {"C6"},
    "text_biased_attention": {"E3"},
    "text_dead_blocks": {"E1", "C6"},
    "single_random_tables": {"E1"},
    "sequence_zero_projections": {"E1"},
    "sequence_learned_positions": {"E2"},
    "sequence_stored_positions": {"E2"},
    "rotary_transposed": {"E2"},
    "rotary_in_raster_order": {"E2"},
    "rotary_query_bias": {"E3"},
    "streams_checkpointing_ignored": {"E5", "C1"},
    "streams_half_recomputed": {"E5"},
    "streams_pooled_unread": {"C6"},
}
EXAMPLES = {"fused_unscaled_time": "unit_time"}


def statuses(factory: str) -> dict[str, set[str]]:
    example = f"{MODELS}:{EXAMPLES[factory]}" if factory in EXAMPLES else None
    result = audit_subject(open_subject(f"{MODELS}:{factory}", example=example), RULES)
    assert not result.crashes, result.crashes
    found: dict[str, set[str]] = {}
    for judged in result.findings:
        found.setdefault(judged.rule.code, set()).add(judged.finding.status)
    return found


@pytest.mark.parametrize("factory", [*CLEAN, *FAULTS])
def test_a_planted_fault_is_found_by_its_rules_and_by_no_other(factory):
    found = statuses(factory)
    assert {code for code, these in found.items() if these & {"fail", "warn"}} == FAULTS.get(factory, set())
    assert "pass" in set().union(*found.values())
