"""The model: identity blocks at the start, dynamic shapes, conditions that count and nulls that tell nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dittool.models.conditioning import Conditions, Kept
from dittool.models.dit import DiT, DiTConfig, patchify, unpatchify

CONFIG = DiTConfig(
    depth=3,
    width=32,
    heads=4,
    mlp="gelu",
    mlp_ratio=2.0,
    patch_size=2,
    norm="layer",
    qk_norm=True,
    positions="sincos",
    shared_modulation=False,
    patches=True,
    patch_fusion="attended",
    patch_positions=True,
    context_norm=False,
    context_balance=False,
    time_init="small",
    gradient_checkpointing=False,
    routed_blocks=(2, 2),
    aligned_block=None,
    latent_channels=16,
    text_width=12,
    image_width=20,
)


def build(seed: int = 0, awake: bool = True, **changes: object) -> DiT:
    """A small model; `awake` gives every weight a value, so that all paths act."""
    torch.manual_seed(seed)
    model = DiT(dataclasses.replace(CONFIG, **changes))
    if awake:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def conditions(batch: int, length: int = 5, grid: tuple[int, int] = (3, 4), seed: int = 1) -> Conditions:
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, length, 12, generator=g)
    patches = torch.randn(batch, grid[0] * grid[1], 20, generator=g)
    return Conditions(
        text, torch.ones(batch, length, dtype=torch.bool), torch.randn(batch, 20, generator=g), patches, grid
    )


def keep(text: list[bool], reference: list[bool]) -> Kept:
    return Kept(torch.tensor(text), torch.tensor(reference))


def test_every_block_is_the_identity_at_step_0():
    model = build(awake=False)
    x, c, context = torch.randn(2, 7, 32), torch.randn(2, 32), torch.randn(2, 5, 32)
    for block in model.blocks:
        assert torch.equal(block(x, c, context, None), x)


def test_the_first_prediction_is_zero():
    z = torch.randn(2, 16, 6, 8)
    assert torch.equal(build(awake=False)(z, torch.rand(2), conditions(2)), torch.zeros_like(z))


def test_the_zero_output_holds_gradients_back_at_the_first_step_only():
    model = build(awake=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kept = keep([True, True, False, False], [True, False, True, False])

    def parts_with_gradient() -> set[str]:
        torch.manual_seed(3)
        optimizer.zero_grad()
        z, target = torch.randn(4, 16, 6, 8), torch.randn(4, 16, 6, 8)
        (model(z, torch.rand(4), conditions(4), kept) - target).square().mean().backward()
        optimizer.step()
        return {
            name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
        }

    assert parts_with_gradient() == {"output.weight", "output.bias"}
    second = parts_with_gradient()
    assert {f"blocks.{index}.modulation.weight" for index in range(3)} <= second  # the gates open
    assert parts_with_gradient() == {name for name, _ in model.named_parameters()}


def test_modulation_has_nine_vectors_and_attention_no_bias():
    block = build().blocks[0]
    assert block.modulation.weight.shape == (9 * 32, 32)
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias") and "modulation" not in name]


@pytest.mark.parametrize("shape", [(4, 4), (6, 8), (8, 6), (2, 12)])
def test_the_output_has_the_shape_of_the_latent(shape):
    z = torch.randn(2, 16, *shape)
    assert build()(z, torch.rand(2), conditions(2)).shape == z.shape


def test_a_latent_that_is_not_whole_tokens_is_refused():
    with pytest.raises(ValueError, match="5×4 cells"):
        build()(torch.randn(1, 16, 5, 4), torch.rand(1), conditions(1))


def test_patchify_is_row_major_and_has_an_inverse():
    z = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    tokens = patchify(z, 2)
    assert torch.equal(tokens[0, 1], z[0, :, 0:2, 2:4].flatten())  # second token: same rows, next columns
    assert torch.equal(unpatchify(tokens, (2, 3), 2), z)


def test_moving_a_latent_moves_more_than_the_result():
    """Positions act: two tokens with exchanged contents do not simply exchange their outputs."""
    model, z, t, c = build(), torch.randn(1, 16, 4, 4), torch.tensor([0.5]), conditions(1)
    swapped = z.clone()
    swapped[:, :, :2, :2], swapped[:, :, 2:, 2:] = z[:, :, 2:, 2:], z[:, :, :2, :2]
    out, out_swapped = model(z, t, c), model(swapped, t, c)
    assert (out_swapped[:, :, :2, :2] - out[:, :, 2:, 2:]).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["text", "cls", "patches"])
def test_each_condition_changes_the_result(part):
    model, z, t, c = build(), torch.randn(1, 16, 4, 4), torch.tensor([0.5]), conditions(1)
    other = dataclasses.replace(c, **{part: getattr(conditions(1, seed=2), part)})
    assert (model(z, t, c) - model(z, t, other)).abs().max() > 1e-3


def test_the_timestep_changes_the_result_over_its_whole_range():
    model, z, c = build(), torch.randn(1, 16, 4, 4), conditions(1)
    outputs = [model(z, torch.tensor([t]), c) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert min((a - b).abs().max() for i, a in enumerate(outputs) for b in outputs[:i]) > 1e-3


def test_a_dropped_caption_leaks_neither_content_nor_length():
    model, z, t = build(), torch.randn(1, 16, 4, 4), torch.tensor([0.5])
    short, long = conditions(1, length=2), conditions(1, length=9, seed=3)
    long = dataclasses.replace(long, cls=short.cls, patches=short.patches)
    dropped = keep([False], [True])
    without = dataclasses.replace(short, text=None, text_mask=None)
    torch.testing.assert_close(model(z, t, short, dropped), model(z, t, long, dropped), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(z, t, short, dropped), model(z, t, without), rtol=1e-5, atol=1e-5)


def test_padding_of_a_caption_changes_nothing():
    model, z, t, c = build(), torch.randn(1, 16, 4, 4), torch.tensor([0.5]), conditions(1)
    text = torch.cat([c.text, torch.full((1, 3, 12), 7.0)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(
        model(z, t, dataclasses.replace(c, text=text, text_mask=mask)), model(z, t, c), rtol=1e-5, atol=1e-5
    )


def test_n_equal_null_patches_weigh_as_one_token_raised_by_log_n():
    model, z, t, c = build(), torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.9]), conditions(2)
    expanded = model(z, t, c, keep([True, True], [False, False]))
    collapsed = model(z, t, dataclasses.replace(c, cls=None, patches=None))
    torch.testing.assert_close(expanded, collapsed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (6, 8)])
def test_balanced_parts_weigh_the_same_at_the_start_however_many_tokens_they_have(grid):
    model = build(context_balance=True)
    c = conditions(2, length=5, grid=grid)
    c = dataclasses.replace(c, text_mask=torch.arange(5)[None] < torch.tensor([[5], [2]]))
    bias = model.context(c, keep([True, True], [True, False]), 2, (2, 2)).bias
    shares = bias[:, 0, 0].softmax(-1)  # of attention where all keys are alike
    torch.testing.assert_close(shares[:, :5].sum(1), torch.full((2,), 1 / 3))
    torch.testing.assert_close(shares[:, 5], torch.full((2,), 1 / 3))


def test_normed_parts_of_the_context_have_the_size_of_one():
    model = build(awake=False, context_norm=True)
    c = conditions(2).map(lambda x: x if x.dtype == torch.bool else x * 37)
    sizes = model.context(dataclasses.replace(c, patch_grid=(3, 4)), None, 2, (3, 4)).tokens[:, :6].square().mean(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes))


def test_the_timesteps_part_of_the_condition_is_larger_with_xavier():
    t = torch.rand(64)
    small, xavier = (build(awake=False, time_init=kind).timestep(t).square().mean() for kind in ("small", "xavier"))
    assert xavier > 50 * small


def test_samples_of_a_batch_do_not_see_each_other():
    model, z, t, c = build(), torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.9]), conditions(2)
    kept = keep([True, False], [False, True])
    together = model(z, t, c, kept)
    for i in range(2):
        alone = model(
            z[i : i + 1],
            t[i : i + 1],
            c.map(lambda x, i=i: x[i : i + 1]),
            Kept(kept.text[i : i + 1], kept.reference[i : i + 1]),
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def masks_of(monkeypatch, c: Conditions, kept: Kept | None) -> set[bool]:
    """Whether attention was called with a mask, over all calls: {False} is what lets flash kernels serve."""
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None):
        seen.append(attn_mask is not None)
        assert attn_mask is None or q.shape[-2] != k.shape[-2], "self-attention has no padding"
        return real(q, k, v, attn_mask=attn_mask)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        build()(torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.9]), c, kept)
    return set(seen)


def test_attention_has_a_mask_only_where_there_is_padding(monkeypatch):
    c = dataclasses.replace(conditions(2), text_mask=None)
    both, a_caption_dropped = keep([True, True], [True, False]), keep([True, False], [True, True])
    assert masks_of(monkeypatch, c, None) == masks_of(monkeypatch, c, both) == {False}
    assert masks_of(monkeypatch, c, a_caption_dropped) == {False, True}
    padded = dataclasses.replace(c, text_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    assert masks_of(monkeypatch, padded, both) == {False, True}


def test_context_computed_once_gives_the_same_velocity():
    model, z, t, c = build(), torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.9]), conditions(2)
    context = model.context(c, None, 2, model.token_grid(z))
    torch.testing.assert_close(
        model.velocity(z, t, context, model.keys_values(context)), model(z, t, c), rtol=1e-5, atol=1e-5
    )


def test_patches_that_do_not_fill_the_grid_are_refused():
    c = dataclasses.replace(conditions(1), patch_grid=(4, 4))
    with pytest.raises(ValueError, match="12 patches"):
        build()(torch.randn(1, 16, 4, 4), torch.rand(1), c)


def test_without_patches_the_model_has_neither_their_projection_nor_their_null():
    names = dict(build(patches=False).named_parameters())
    assert not [name for name in names if "patch_proj" in name or "patch_token" in name]


def test_patch_positions_can_be_switched_off():
    c = conditions(1)
    shuffled = dataclasses.replace(c, patches=c.patches.flip(1))
    z, t = torch.randn(1, 16, 4, 4), torch.tensor([0.5])
    with_positions, without = build(), build(patch_positions=False)
    assert (with_positions(z, t, c) - with_positions(z, t, shuffled)).abs().max() > 1e-3
    torch.testing.assert_close(without(z, t, c), without(z, t, shuffled), rtol=1e-5, atol=1e-5)


def test_checkpointing_recomputes_each_block_and_keeps_the_gradients():
    z, t, c = torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.9]), conditions(2)
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = build(gradient_checkpointing=checkpointing).train()
        counts = [0] * len(model.blocks)
        for index, block in enumerate(model.blocks):
            block.mlp.register_forward_hook(
                lambda *_, index=index, counts=counts: counts.__setitem__(index, counts[index] + 1)
            )
        model(z, t, c).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        runs.append(counts)
    assert runs == [[1, 1, 1], [2, 2, 2]]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_state_dict_holds_no_position_and_fits_any_bucket():
    assert not [name for name in build().state_dict() if "pos" in name]
