"""Faults of one-step generators. Each function plants one; see `planted.py`."""

from __future__ import annotations

import torch

from dittool.audit.subject import Subject
from dittool.config.load import load_config
from dittool.models import drift_dit
from tests.audit.opened import preset_subject
from tests.audit.planted import plants
from tests.audit.workshop import Workshop

SMALL = ("model.depth=2", "model.width=64", "model.heads=2", "model.mlp_width=32", "model.input=8x8", "model.classes=5")


def generator(*overrides: str) -> Subject:
    return preset_subject("drift-b2", load_config("drift-b2", [*SMALL, *overrides]))


@plants("G1", "queries and keys of length 1, so that attention is almost uniform for ever")
def uniform_attention(shop: Workshop) -> Subject:
    return generator("model.qk_norm=l2")


@plants("G2", "a guidance scale that the condition vector leaves out")
def deaf_to_alpha(shop: Workshop) -> Subject:
    original = drift_dit.DriftDiT.condition
    shop.monkeypatch.setattr(
        drift_dit.DriftDiT,
        "condition",
        lambda self, alpha, conditions: original(self, torch.ones_like(alpha), conditions),
    )
    return generator()


@plants("G2", "one class for all samples")
def deaf_to_the_class(shop: Workshop) -> Subject:
    original = drift_dit.DriftDiT.condition

    def condition(self, alpha, conditions):
        return original(self, alpha, drift_dit.ClassConditions(torch.zeros_like(conditions.labels), conditions.style))

    shop.monkeypatch.setattr(drift_dit.DriftDiT, "condition", condition)
    return generator()


@plants("G2", "register positions that are never added")
def unused_tensor(shop: Workshop) -> Subject:
    def register_tokens(self, c):
        return self.register_base + self.condition_to_registers(c)[:, None]

    shop.monkeypatch.setattr(drift_dit.DriftDiT, "register_tokens", register_tokens)
    return generator()


@plants("E1", "a generator's blocks without gates")
def generator_without_gates(shop: Workshop) -> Subject:
    def forward(self, x, c, angles):
        shift_a, scale_a, _, shift_m, scale_m, _ = self.modulation(torch.nn.functional.silu(c)).chunk(6, dim=1)
        x = x + self.attention(drift_dit.modulate(self.attention_norm(x), shift_a, scale_a), angles)
        return x + self.mlp(drift_dit.modulate(self.mlp_norm(x), shift_m, scale_m))

    shop.monkeypatch.setattr(drift_dit.GeneratorBlock, "forward", forward)
    return generator()


@plants("E5", "a generator that does not read its checkpointing key")
def generator_never_recomputes(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(drift_dit, "checkpoint", lambda block, *given, **_: block(*given))
    return generator()
