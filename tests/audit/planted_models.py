"""Faults of models, of the objective and of schedules. Each function plants one; see `planted.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from dittool.audit.subject import Subject
from dittool.models import conditioning, dit, layers
from dittool.models.conditioning import Kept
from dittool.objective import flow
from dittool.sampling import latents
from dittool.sampling.guidance import Guidance
from tests.audit.planted import plants
from tests.audit.workshop import Workshop


@plants("R1", "a norm's root of what is negative")
def not_a_number(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(dit, "unpatchify", lambda x, *_: x.sum() * math.nan)
    return shop.preset()


@plants("R2", "dropout that evaluation mode does not stop", "warn")
def dropout_in_evaluation(shop: Workshop) -> Subject:
    original = dit.unpatchify
    shop.monkeypatch.setattr(dit, "unpatchify", lambda x, *rest: original(F.dropout(x, 0.1), *rest))
    return shop.preset()


@plants("E1", "six modulation vectors, all zero, and no gates")
def blocks_without_gates(shop: Workshop) -> Subject:
    def forward(self, x, c, context, bias, keys_values=None, angles=None, unmasked=0):
        shift_a, scale_a, _, shift_x, scale_x, _, shift_m, scale_m, _ = self.modulation(c).chunk(9, dim=1)
        x = x + self.attention(layers.modulate(layers.layer_norm(x), shift_a, scale_a))
        x = x + self.cross_attention(
            layers.modulate(layers.layer_norm(x), shift_x, scale_x), self.cross_attention.keys_values(context), bias
        )
        return x + self.mlp(layers.modulate(layers.layer_norm(x), shift_m, scale_m))

    shop.monkeypatch.setattr(dit.Block, "forward", forward)
    return shop.preset()


@plants("E1", "a zero output layer over a modulation that is not zero")
def zero_head_alone(shop: Workshop) -> Subject:
    original = dit.DiT.initialize_weights

    def initialize(self):
        original(self)
        for block in self.blocks:
            nn.init.xavier_uniform_(block.modulation.weight)

    shop.monkeypatch.setattr(dit.DiT, "initialize_weights", initialize)
    return shop.preset()


@plants("E1", "offsets to a shared modulation that begin at random")
def random_offsets(shop: Workshop) -> Subject:
    """As PixArt's scale_shift_table."""
    original = layers.ModulationOffset.__init__

    def drawn(self, width, vectors):
        original(self, width, vectors)
        nn.init.normal_(self.offset, std=width**-0.5)

    shop.monkeypatch.setattr(layers.ModulationOffset, "__init__", drawn)
    return shop.preset("model.shared_modulation=true")


@plants("E1", "a block that returns its input whatever its gates say")
def dead_block(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(dit.Block, "forward", lambda self, x, *_: x)
    return shop.preset()


def _patch_latent_positions(shop: Workshop, positions: Callable) -> Subject:
    original = dit.cached_positions
    shop.monkeypatch.setattr(
        dit, "cached_positions", lambda grid, width, span, device: positions(original, grid, width, span, device)
    )
    return shop.preset()


def _patch_angles(shop: Workshop, angles: Callable) -> Subject:
    original = dit.cached_angles
    shop.monkeypatch.setattr(dit, "cached_angles", lambda *where: angles(original, *where))
    return shop.preset("model.positions=rope")


@plants("E2", "rotary angles of height and width exchanged")
def exchanged_angles(shop: Workshop) -> Subject:
    return _patch_angles(shop, lambda original, kind, n, grid, *rest: original(kind, n, grid[::-1], *rest))


@plants("E2", "rotary angles that turn nothing")
def still_angles(shop: Workshop) -> Subject:
    return _patch_angles(shop, lambda original, *where: torch.zeros_like(original(*where)))


@plants("E2", "no positions at all")
def no_positions(shop: Workshop) -> Subject:
    return _patch_latent_positions(shop, lambda original, *where: torch.zeros_like(original(*where)))


@plants("E2", "height and width exchanged")
def transposed_positions(shop: Workshop) -> Subject:
    return _patch_latent_positions(shop, lambda original, grid, *rest: original(grid[::-1], *rest))


@plants("E2", "a learned table of one fixed size")
def learned_table(shop: Workshop) -> Subject:
    original = dit.DiT.__init__

    def with_table(self, config):
        original(self, config)
        self.table = nn.Parameter(torch.randn(64, config.width))
        self.patch_embedding.register_forward_hook(
            lambda _module, _inputs, tokens: tokens + self.table[: tokens.shape[1]]
        )

    shop.monkeypatch.setattr(dit.DiT, "__init__", with_table)
    return shop.preset()


@plants("E2", "tokens put back together column by column")
def transposed_output(shop: Workshop) -> Subject:
    original = dit.unpatchify
    by_column = lambda x, grid, p: original(x.unflatten(1, grid[::-1]).transpose(1, 2).flatten(1, 2), grid, p)  # noqa: E731
    shop.monkeypatch.setattr(dit, "unpatchify", by_column)
    return shop.preset()


@plants("E3", "biases in the attention's q, k, v")
def attention_bias(shop: Workshop) -> Subject:
    original = layers.SelfAttention.__init__

    def with_bias(self, width, heads, qk_norm):
        original(self, width, heads, qk_norm)
        self.qkv = nn.Linear(width, 3 * width)

    shop.monkeypatch.setattr(layers.SelfAttention, "__init__", with_bias)
    return shop.preset()


@plants("E4", "0.9999 after 500 of 5,000 updates")
def ema_remembers_warmup(shop: Workshop) -> Subject:
    return shop.preset("train.steps=5000", "ema.target=0.9999", 'ema.warmup="linear"', "ema.warmup_steps=500")


@plants("E4", "an average that was never updated")
def ema_of_the_start(shop: Workshop) -> Subject:
    def forget(content):
        content["ema"] = {name: tensor * 1e-3 for name, tensor in content["model"].items()}

    return shop.open(shop.checkpoint(forget))


@plants("E5", "a key gradient_checkpointing that nobody reads")
def checkpointing_ignored(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(dit, "checkpoint", lambda block, *inputs, use_reentrant: block(*inputs))
    return shop.preset()


@plants("C1", "a key gradient_checkpointing that nobody reads", slow=True)
def checkpointing_without_effect(shop: Workshop) -> Subject:
    return checkpointing_ignored(shop)


@plants("C1", "positions of the reference's patches that are always added", slow=True)
def patch_positions_ignored(shop: Workshop) -> Subject:
    original = conditioning.Conditioning.__init__

    def always(self, width, text_width, image_width, patches, fusion, patch_positions, *rest):
        original(self, width, text_width, image_width, patches, fusion, True, *rest)

    shop.monkeypatch.setattr(conditioning.Conditioning, "__init__", always)
    return shop.preset()


@plants("C1", "a key timestep_sampling that nobody reads")
def timestep_sampling_ignored(shop: Workshop) -> Subject:
    return timesteps_ignore_the_key(shop)


@plants("C2", "two independent masks that overlap")
def overlapping_dropout(shop: Workshop) -> Subject:
    def two_masks(modes):
        text, reference = torch.rand(2, len(modes), generator=torch.Generator().manual_seed(1))
        return Kept(text=text > 0.3, reference=reference > 0.3)

    shop.monkeypatch.setattr(flow, "kept_conditions", two_masks)
    return shop.preset()


@plants("C3", "a key timestep_sampling that nobody reads")
def timesteps_ignore_the_key(shop: Workshop) -> Subject:
    original = flow.timesteps
    shop.monkeypatch.setattr(flow, "timesteps", lambda uniform, sampling, shift: original(uniform, "uniform", shift))
    return shop.preset()


@plants("C3", "a resolution shift that nobody reads")
def shift_ignored(shop: Workshop) -> Subject:
    original = flow.timesteps
    shop.monkeypatch.setattr(flow, "timesteps", lambda uniform, sampling, shift: original(uniform, sampling, 1.0))
    return shop.preset("flow.shift=3.0")


@plants("C4", "a model that is cast to bf16 instead of run under autocast")
def cast_model(shop: Workshop) -> Subject:
    original = dit.DiT.initialize_weights

    def cast(self):
        original(self)
        self.blocks.to(torch.bfloat16)

    shop.monkeypatch.setattr(dit.DiT, "initialize_weights", cast)
    return shop.preset("train.precision=bf16")


@plants("C4", "averaged weights kept in bf16")
def half_average(shop: Workshop) -> Subject:
    def halve(content):
        content["ema"] = {name: tensor.bfloat16() for name, tensor in content["ema"].items()}

    return shop.open(shop.checkpoint(halve))


@plants("C5", "a warm-up as long as the run")
def warmup_is_all(shop: Workshop) -> Subject:
    return shop.preset(train={"steps": 5000, "warmup_steps": 5000})


@plants("C5", "steps counted in micro-batches")
def steps_are_micro_batches(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content.update(step=content["step"] * 8)))


@plants("C6", "patches that never reach the context")
def patches_not_read(shop: Workshop) -> Subject:
    original = conditioning.Conditioning._patches

    def deaf(self, conditions, *rest):
        return original(self, replace(conditions, patches=torch.zeros_like(conditions.patches)), *rest)

    shop.monkeypatch.setattr(conditioning.Conditioning, "_patches", deaf)
    return shop.preset()


@plants("C6", "t fed without its factor of 1000")
def timestep_unscaled(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(layers, "TIMESTEP_SCALE", 1.0)
    return shop.preset()


@plants("C6", "a dropped text that keeps its mask")
def length_leaks(shop: Workshop) -> Subject:
    original = conditioning.Conditioning._text

    def with_mask(self, conditions, kept, batch):
        tokens, _ = original(self, conditions, kept, batch)
        tokens = tokens + torch.arange(tokens.shape[1])[:, None] * 0.01  # else equal tokens hide how many there are
        return tokens, torch.zeros(conditions.text_mask.shape).masked_fill(~conditions.text_mask, -math.inf)

    shop.monkeypatch.setattr(conditioning.Conditioning, "_text", with_mask)
    return shop.preset()


@plants("C8", "timesteps that are averaged over the batch")
def one_time_for_all(shop: Workshop) -> Subject:
    original = layers.TimestepEmbedding.forward
    shop.monkeypatch.setattr(
        layers.TimestepEmbedding, "forward", lambda self, t: original(self, t.mean(0, keepdim=True).expand_as(t))
    )
    return shop.preset()


@plants("C8", "one sample's text for all")
def one_text_for_all(shop: Workshop) -> Subject:
    original = conditioning.Conditioning._text

    def first_only(self, conditions, *rest):
        return original(self, replace(conditions, text=conditions.text[:1].expand_as(conditions.text)), *rest)

    shop.monkeypatch.setattr(conditioning.Conditioning, "_text", first_only)
    return shop.preset()


@plants("C7", "guidance that adds its scale to the wrong branch")
def wrong_guidance(shop: Workshop) -> Subject:
    shop.monkeypatch.setattr(
        latents,
        "guidance",
        lambda kind, text, dino, **_: Guidance({"none": -text - dino, "text": 1 + text, "dino": dino}),
    )
    return shop.preset()
