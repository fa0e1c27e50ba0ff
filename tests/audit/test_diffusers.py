"""Four published transformers as diffusers builds them: what each rule must say, decided by reading their source, and
why.

All four classes are made to load weights, so none begins with closed gates: trained from scratch as they stand, that
costs, and it is a warning.
"""

from __future__ import annotations

import json

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from tests.audit.foreign_weights import DIFFUSERS, HEADS
from tests.audit.opened import open_subject
from tests.quick import others_slow

EXPECTED = {  # layout → rule → (status, part of the evidence); the reasons stand beside them
    "DiT, diffusers": {
        # AdaLayerNormZero has gates; its linear layer keeps torch's default initialisation
        "E1": ("warn", "its gates are there but open"),
        # unpatchify takes the square root of the number of tokens for both sides, and six times two samples make three
        "E2": ("fail", "it answers in the shape (3, 4, 4, 4)"),
        "E3": ("warn", "attn1.to_q.bias"),  # attention_bias=True by default, feed-forward with biases
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("pass", "num_layers"),
        "C4": ("pass", "float32"),
        "C6": ("pass", "class_labels"),
        "C8": ("pass", "class_labels"),
    },
    "PixArt, diffusers": {
        "E1": ("warn", "no gate closes"),  # cross-attention is added without a gate
        # sin-cos for the batch's own grid; the table for the configured one is a buffer that is not saved
        "E2": ("pass", "runs at"),
        "E3": ("warn", "attn1.to_q.bias"),
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("pass", "caption_channels"),
        "C4": ("pass", "float32"),
        "C6": ("pass", "encoder_hidden_states"),
        "C8": ("pass", "timestep"),
    },
    "SD3, diffusers": {
        "E1": ("warn", "its gates are there but open"),
        "E2": ("warn", "pos_embed.pos_embed"),  # a table of pos_embed_max_size² positions is saved, and cropped
        "E3": ("warn", "attn.to_q.bias"),
        "E5": ("pass", "enable_gradient_checkpointing()"),
        "C1": ("pass", "pos_embed_max_size"),
        "C4": ("pass", "float32"),
        "C6": ("pass", "pooled_projections"),
        "C8": ("pass", "pooled_projections"),
    },
    "Flux, diffusers": {
        "E1": ("warn", "its gates are there but open"),
        "E2": ("pass", "runs at"),  # rotary angles from the ids of the batch
        "E3": ("warn", "attn.to_q.bias"),
        "E5": ("pass", "each of 6 blocks"),  # both kinds
        "C1": ("pass", "guidance_embeds"),
        "C4": ("pass", "float32"),
        "C6": ("pass", "pooled_projections"),
        "C8": ("pass", "encoder_hidden_states"),
    },
}
SKIPPED = {  # what is not judged, and a part of the reason
    # taken, kept in the configuration, and read nowhere in the class
    "DiT, diffusers": ("C1", "norm_num_groups (not seen to act here: the model's config keeps it"),
    "PixArt, diffusers": ("C1", "num_embeds_ada_norm"),  # only compared with None
    # the last block computes queries of the text whose answers nobody takes
    "SD3, diffusers": ("C6", "add_q_proj"),
}


@pytest.mark.parametrize("layout", others_slow(EXPECTED, ("DiT, diffusers", "SD3, diffusers")))
def test_each_rule_says_what_reading_the_source_says(layout):
    name, kwargs = DIFFUSERS[layout]
    subject = open_subject(f"diffusers:{name}", kwargs=json.dumps({**HEADS, **kwargs}))
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code in EXPECTED[layout]])
    assert not result.crashes
    for code, (status, part) in EXPECTED[layout].items():
        findings = [judged.finding for judged in result.findings if judged.rule.code == code]
        assert {finding.status for finding in findings} - {"skip"} == {status}, (code, findings)
        assert any(part in finding.evidence for finding in findings if finding.status == status), (code, findings)
    if layout in SKIPPED:
        code, part = SKIPPED[layout]
        skips = [judged.finding for judged in result.findings if judged.rule.code == code]
        assert any(finding.status == "skip" and part in finding.evidence for finding in skips), skips
