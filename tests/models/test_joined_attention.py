"""Two attentions joined by their log-sum-exp are the one with a mask: outputs, gradients, operations."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dittool.config.load import load_config
from dittool.models import layers
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions
from dittool.models.joined_attention import joined_attention, joining_pays
from dittool.objective.flow import MODES, kept_conditions

MASKED, UNMASKED = 9, 37


@pytest.fixture
def joining(monkeypatch):
    """As on a GPU in bf16."""
    monkeypatch.setattr(layers, "joining_pays", lambda _q: True)


@pytest.mark.parametrize("common", [0.0, -math.log(UNMASKED)])
@pytest.mark.parametrize("queries", [1, 40])
def test_outputs_and_gradients_are_those_with_a_mask(common, queries):
    torch.manual_seed(0)
    columns = MASKED + UNMASKED
    q, k, v = (torch.randn(3, 2, n, 16, requires_grad=True) for n in (queries, columns, columns))
    bias = torch.zeros(3, 1, 1, columns)
    bias[0, ..., 3 : MASKED - 1] = bias[1, ..., 1 : MASKED - 1] = -math.inf
    bias[..., MASKED:] = common
    wanted, gradient = F.scaled_dot_product_attention(q, k, v, attn_mask=bias), torch.randn_like(q)
    found = joined_attention(q, k, v, bias, UNMASKED)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(*(torch.autograd.grad(o, (q, k, v), gradient) for o in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def tiny(*overrides: str):
    torch.manual_seed(0)
    sizes = (
        "model.patch_fusion=attended",
        "model.depth=2",
        "model.width=32",
        "model.heads=2",
        "model.qk_norm=true",
        *overrides,
    )
    model = build_model(load_config("demo", sizes), 12, 20, 4).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(size: int = 4, side: int = 12, length: int = 8, text: int = 12, image: int = 20, channels: int = 4):
    torch.manual_seed(1)
    mask = torch.arange(length)[None] < torch.arange(size)[:, None] % length + 1
    tokens = side // 2
    features = torch.randn(size, length, text), mask, torch.randn(size, image), torch.randn(size, tokens**2, image)
    kept = kept_conditions(torch.arange(size) % len(MODES))
    return torch.randn(size, channels, side, side), torch.rand(size), Conditions(*features, (tokens, tokens)), kept


@pytest.mark.parametrize("overrides", [(), ("model.context_balance=true",), ("model.gradient_checkpointing=true",)])
def test_a_model_that_joins_computes_what_one_with_a_mask_does(joining, monkeypatch, overrides):
    """With dropped captions and references in one batch."""
    model, found = tiny(*overrides), []
    for joins in (True, False):
        monkeypatch.setattr(layers, "joining_pays", lambda _q, joins=joins: joins)
        out = model(*batch())
        found.append((out, *torch.autograd.grad(out.square().mean(), list(model.parameters()))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("joins", [False, True])
def test_selective_recomputation_changes_no_gradient_and_runs_no_attention_again(joining, monkeypatch, joins):
    monkeypatch.setattr(layers, "joining_pays", lambda _q: joins)
    gradients, again = [], []
    for how in ("false", "selective", "true"):
        model = tiny(f"model.gradient_checkpointing={how}")
        loss = model(*batch()).square().mean()
        with Kernels() as counted:
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        again.append(counted.calls.total())
    assert again[:2] == [0, 0] and again[2] > 0
    for mine, selective, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, selective) and torch.equal(mine, theirs)


class Kernels(TorchDispatchMode):
    """Counts attention kernels by name and by the columns that their masks cover."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name(), kwargs or {}
        if "scaled_dot_product" in name and "backward" not in name:
            bias = kwargs.get("attn_mask", args[3] if "efficient" in name else None)
            self.calls[name.split("product_")[1], 0 if bias is None else bias.shape[-1]] += 1
        return func(*args, **kwargs)


def test_no_mask_lies_over_patches_where_one_lay_in_each_block(joining, monkeypatch):
    model, columns = tiny(), 8 + 1 + 36
    for joins, masked in ((False, columns), (True, 8 + 1)):
        monkeypatch.setattr(layers, "joining_pays", lambda _q, joins=joins: joins)
        with Kernels() as counted:
            model(*batch())
        by_columns = {width: sum(n for (_, w), n in counted.calls.items() if w == width) for width in (columns, masked)}
        assert by_columns[masked] == 2 and (masked == columns or not by_columns[columns])


def test_base_needs_as_many_operations_and_a_mask_over_text_alone(joining, monkeypatch):
    """At 1024² on the meta device, with the kernels of a GPU: 18 masks over 4,161 columns become 18 over 65."""
    with torch.device("meta"):
        model = build_model(load_config("base"), 4096, 1024, 16).train()
    model.config = model.config.__class__(**{**vars(model.config), "gradient_checkpointing": False})
    z, t, conditions, kept = batch(2, 128, 64, 4096, 1024, 16)
    onto = partial(torch.Tensor.to, device="meta")
    conditions = conditions.map(onto)
    operations = {}  # of a forward pass: backward, on meta only a kernel's recomputation is counted
    for joins in (False, True):
        monkeypatch.setattr(layers, "joining_pays", lambda _q, joins=joins: joins)
        with FlopCounterMode(display=False) as flops, Kernels() as counted:
            out = model(onto(z), onto(t), conditions, kept)
        operations[joins] = flops.get_total_flops()
    assert counted.calls["efficient_attention", 65] == 18 and counted.calls["flash_attention", 0] == 18
    assert not any(width > 65 for _, width in counted.calls)
    assert operations[True] == operations[False]
    out.sum().backward()


def test_a_cpu_keeps_the_mask():
    assert not joining_pays(torch.empty(1, 1, 2, 8, dtype=torch.bfloat16))
