"""Four published transformers as diffusers builds them: what each rule must say, decided by reading their source, and
why.

All four classes are made to load weights, so none begins with closed gates: trained from scratch as they stand, that
would be a fault.
"""

from __future__ import annotations

import json

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from tests.audit.foreign_weights import DIFFUSERS, HEADS
from tests.audit.opened import open_subject

EXPECTED = {  # layout → rule → (status, part of the evidence); the reasons stand beside them
    "DiT, diffusers": {
        # AdaLayerNormZero has gates; its linear layer keeps torch's default initialisation
        "E1": ("fail", "its gates are there but open"),
        "E2": ("fail", "does not run"),  # unpatchify takes the square root of the number of tokens for both sides
        "E3": ("fail", "attn1.to_q.bias"),  # attention_bias=True by default, feed-forward with biases
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("fail", "norm_num_groups"),  # taken, kept in the configuration, never read
        "C4": ("pass", "float32"),
        "C6": ("pass", "class_labels"),
    },
    "PixArt, diffusers": {
        "E1": ("fail", "no gate closes"),  # cross-attention is added without a gate
        # sin-cos for the batch's own grid; the table for the configured one is a buffer that is not saved
        "E2": ("pass", "runs at"),
        "E3": ("fail", "attn1.to_q.bias"),
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("fail", "num_embeds_ada_norm"),  # only compared with None
        "C4": ("pass", "float32"),
        "C6": ("pass", "encoder_hidden_states"),
    },
    "SD3, diffusers": {
        "E1": ("fail", "its gates are there but open"),
        "E2": ("fail", "pos_embed.pos_embed"),  # a table of pos_embed_max_size² positions is saved, and cropped
        "E3": ("fail", "attn.to_q.bias"),
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("pass", "pos_embed_max_size"),
        "C4": ("pass", "float32"),
        "C6": ("fail", "add_q_proj"),  # the last block computes queries of the text whose answers nobody takes
    },
    "Flux, diffusers": {
        "E1": ("fail", "its gates are there but open"),
        "E2": ("pass", "runs at"),  # rotary angles from the ids of the batch
        "E3": ("fail", "attn.to_q.bias"),
        "E5": ("pass", "each of 6 blocks"),  # both kinds
        "C1": ("pass", "guidance_embeds"),
        "C4": ("pass", "float32"),
        "C6": ("pass", "pooled_projections"),
    },
}


@pytest.mark.parametrize("layout", EXPECTED)
def test_each_rule_says_what_reading_the_source_says(layout):
    name, kwargs = DIFFUSERS[layout]
    subject = open_subject(f"diffusers:{name}", kwargs=json.dumps({**HEADS, **kwargs}))
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code in EXPECTED[layout]])
    assert not result.crashes
    for code, (status, part) in EXPECTED[layout].items():
        findings = [judged.finding for judged in result.findings if judged.rule.code == code]
        assert {finding.status for finding in findings} - {"skip"} == {status}, (code, findings)
        assert any(part in finding.evidence for finding in findings if finding.status == status), (code, findings)
