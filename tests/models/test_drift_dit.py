"""The one-step generator: its tensors one by one, and that each key of its architecture acts as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dittool.config.load import load_config
from dittool.models.build import build_generator
from dittool.models.drift_dit import ClassConditions, DriftDiT, attention_entropy
from dittool.models.rotary import rotary_angles, rotate


def documented_tensors(h: int, f: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the documented implementation's tensors."""
    tensors = {
        "patch_embedding.weight": (h, 4, 2, 2),
        "patch_embedding.bias": (h,),
        "positions": (1, 256, h),
        "class_embedding.weight": (1000, h),
        "alpha.up.weight": (128, 1),
        "alpha.up.bias": (128,),
        "alpha.out.weight": (h, 128),
        "alpha.out.bias": (h,),
        "style.weight": (64, h),
        "register_base": (1, 16, h),
        "register_positions": (1, 16, h),
        "condition_to_registers.weight": (h, h),
        "condition_to_registers.bias": (h,),
        "output_norm.weight": (h,),
        "output.weight": (16, h),
        "output.bias": (16,),
    }
    for index in range(depth):
        block = {
            "attention_norm.weight": (h,),
            "mlp_norm.weight": (h,),
            "attention.qkv.weight": (3 * h, h),
            "attention.qkv.bias": (3 * h,),
            "attention.out.weight": (h, h),
            "attention.out.bias": (h,),
            "mlp.up.weight": (2 * f, h),
            "mlp.up.bias": (2 * f,),
            "mlp.down.weight": (h, f),
            "mlp.down.bias": (h,),
            "modulation.weight": (6 * h, h),
            "modulation.bias": (6 * h,),
        }
        tensors |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return tensors


def authors_tensors(h: int, f: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' parts."""
    tensors = {
        "patch_embedding.weight": (h, 16),
        "patch_embedding.bias": (h,),
        "positions": (1, 256, h),
        "class_embedding.weight": (1000, h),
        "alpha.mlp.up.weight": (h, 256),
        "alpha.mlp.up.bias": (h,),
        "alpha.mlp.out.weight": (h, h),
        "alpha.mlp.out.bias": (h,),
        "alpha.norm.weight": (h,),
        "style.weight": (32 * 64, h),
        "register_base": (1, 16, h),
        "condition_to_registers.weight": (h, h),
        "condition_to_registers.bias": (h,),
        "output_norm.weight": (h,),
        "output_modulation.weight": (2 * h, h),
        "output_modulation.bias": (2 * h,),
        "output.weight": (16, h),
        "output.bias": (16,),
    }
    for index in range(depth):
        block = {
            "attention_norm.weight": (h,),
            "mlp_norm.weight": (h,),
            "attention.qkv.weight": (3 * h, h),
            "attention.qkv.bias": (3 * h,),
            "attention.norm.query.gain": (64,),
            "attention.norm.key.gain": (64,),
            "attention.out.weight": (h, h),
            "attention.out.bias": (h,),
            "mlp.value.weight": (f, h),
            "mlp.value.bias": (f,),
            "mlp.gate.weight": (f, h),
            "mlp.gate.bias": (f,),
            "mlp.down.weight": (h, f),
            "mlp.down.bias": (h,),
            "modulation.weight": (6 * h, h),
            "modulation.bias": (6 * h,),
        }
        tensors |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return tensors


def shapes(preset: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {
            name: tuple(parameter.shape) for name, parameter in build_generator(load_config(preset)).named_parameters()
        }


@pytest.mark.parametrize(
    ("preset", "table", "total"),
    [
        ("drift-b2", documented_tensors(768, 2184, 12), 133_088_720),
        ("drift-l2", documented_tensors(1024, 2824, 24), 462_922_384),
        ("drift-b2-paper", authors_tensors(768, 2048, 12), 132_708_880),
        ("drift-l2-paper", authors_tensors(1024, 2752, 24), 462_909_456),
    ],
)
def test_a_preset_has_exactly_the_tensors_of_the_specification(preset, table, total):
    found = shapes(preset)
    assert found == table
    assert sum(torch.Size(shape).numel() for shape in found.values()) == total


@pytest.mark.parametrize(("preset", "h", "f", "depth"), [("drift-b2", 768, 2184, 12), ("drift-l2", 1024, 2824, 24)])
def test_the_documented_tensors_follow_the_closed_form(preset, h, f, depth):
    found = shapes(preset)
    assert len(found) == 16 + 12 * depth
    assert (
        sum(torch.Size(shape).numel() for shape in found.values())
        == depth * (10 * h * h + 3 * h * f + 13 * h + 2 * f) + h * h + 1516 * h + 272
    )


SMALL = (
    "model.depth=2",
    "model.width=32",
    "model.heads=4",
    "model.mlp_width=24",
    "model.input=8x4",
    "model.classes=5",
    "model.registers=3",
    "model.style_tokens=4",
    "model.style_codebook=6",
)


def small(*overrides: str, awake: bool = True) -> DriftDiT:
    torch.manual_seed(0)
    model = build_generator(load_config("drift-b2", [*SMALL, *overrides]))
    if awake:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, ClassConditions]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, 4, 4, 8, generator=generator)
    style = torch.randint(6, (batch, 4), generator=generator)
    return noise, 1 + torch.arange(batch) / 2, ClassConditions(torch.arange(batch) % 5, style)


def same_weights(model: DriftDiT, other: DriftDiT) -> DriftDiT:
    other.load_state_dict(model.state_dict())
    return other


def test_a_latent_comes_back_in_the_shape_of_the_noise():
    noise, alpha, conditions = inputs()
    assert small()(noise, alpha, conditions).shape == noise.shape


def test_noise_of_another_size_is_refused_with_both_sizes():
    _, alpha, conditions = inputs()
    with pytest.raises(ValueError, match="4×8×4 values; this generator draws 4×4×8"):
        small()(torch.zeros(3, 4, 8, 4), alpha, conditions)


def test_class_guidance_scale_and_style_each_change_the_answer():
    model, (noise, alpha, conditions) = small(), inputs()
    plain = model(noise, alpha, conditions)
    assert not torch.allclose(plain, model(noise, alpha + 1, conditions))
    assert not torch.allclose(plain, model(noise, alpha, replace(conditions, labels=(conditions.labels + 1) % 5)))
    assert not torch.allclose(plain, model(noise, alpha, replace(conditions, style=(conditions.style + 1) % 6)))


def test_one_shared_codebook_does_not_tell_the_order_of_code_words_and_separate_ones_do():
    noise, alpha, conditions = inputs()
    turned = replace(conditions, style=conditions.style.flip(1))
    shared, separate = small(), small("model.style_tables=separate")
    assert torch.allclose(shared(noise, alpha, conditions), shared(noise, alpha, turned), atol=1e-5)
    assert not torch.allclose(separate(noise, alpha, conditions), separate(noise, alpha, turned))


def test_every_block_is_the_identity_at_step_0_and_no_embedding_dominates():
    model = small(awake=False)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, given, answer: seen.append(torch.equal(given[0], answer)))
    model(*inputs())
    assert seen == [True, True]
    assert 0.015 < model.class_embedding.weight.std() < 0.025 and 0.015 < model.positions.std() < 0.025
    assert small("model.embedding_std=1.0", awake=False).style.weight.std() > 0.7


def test_the_first_answer_is_zero_only_where_the_key_says_so():
    assert small("model.zero_output=true", awake=False)(*inputs()).abs().max() == 0
    assert small(awake=False)(*inputs()).abs().max() > 0


# One shared set of weights, two settings of a key: the answers must differ. Keys that change the tensors are compared
# by those.


@pytest.mark.parametrize(
    "override", ["model.rope=none", "model.rope=1d", "model.qk_norm=l2", "model.qk_norm=none", "model.norm=layer"]
)
def test_a_key_that_keeps_the_tensors_changes_the_answer(override):
    model = small()
    other = same_weights(model, small(override))
    assert not torch.allclose(model(*inputs()), other(*inputs()), atol=1e-4)


@pytest.mark.parametrize(
    "override",
    [
        "model.mlp_width=20",
        "model.registers=2",
        "model.registers=0",
        "model.style_tokens=0",
        "model.style_codebook=5",
        "model.classes=4",
        "model.style_tables=separate",
        "model.alpha_embedding=sinusoid",
        "model.patch_embedding=linear",
        "model.qk_norm=rms_gain",
        "model.swiglu=split",
        "model.output_modulation=true",
        "model.register_tensors=one",
        "model.patch_size=4",
        "model.channels=3",
        "model.input=4x4",
        "model.depth=1",
        "model.width=64",
        "model.qk_norm=rms_gain",
    ],
)
def test_a_key_changes_the_tensors(override):
    plain, changed = (small(*overrides).state_dict() for overrides in ((), (override,)))
    assert {name: value.shape for name, value in plain.items()} != {
        name: value.shape for name, value in changed.items()
    }


def test_fused_and_split_swiglu_compute_the_same():
    fused, split = small(), small("model.swiglu=split")
    split.load_state_dict(
        {name: value for name, value in fused.state_dict().items() if ".mlp.up." not in name}, strict=False
    )
    for mine, theirs in zip(fused.blocks, split.blocks, strict=True):
        for part in ("weight", "bias"):
            value, gate = getattr(mine.mlp.up, part).chunk(2)
            getattr(theirs.mlp.value, part).data.copy_(value)
            getattr(theirs.mlp.gate, part).data.copy_(gate)
    assert torch.allclose(fused(*inputs()), split(*inputs()), atol=1e-4)


def test_a_convolution_of_stride_p_and_a_linear_layer_on_patches_compute_the_same():
    conv, linear = small(), small("model.patch_embedding=linear")
    state = conv.state_dict()
    linear.load_state_dict({**state, "patch_embedding.weight": state["patch_embedding.weight"].flatten(1)})
    assert torch.allclose(conv(*inputs()), linear(*inputs()), atol=1e-4)


def test_gradient_checkpointing_runs_each_block_twice_and_changes_no_gradient():
    gradients, runs = {}, {}
    for wanted in ("false", "true"):
        model = small(f"model.gradient_checkpointing={wanted}").train()
        counted = []
        for block in model.blocks:
            block.attention.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        model(*inputs()).square().sum().backward()
        gradients[wanted], runs[wanted] = model.positions.grad, len(counted)
    assert runs == {"false": 2, "true": 4}
    assert torch.allclose(gradients["false"], gradients["true"], rtol=1e-4)


# Positions


@pytest.mark.parametrize(("kind", "registers"), [("1d", 0), ("2d", 0), ("2d", 3)])
def test_a_rotated_product_depends_on_the_distance_alone(kind, registers):
    angles = rotary_angles(kind, registers, (4, 5), 16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = registers + 20
    q, k = (rotate(one.expand(1, 1, tokens, 16), angles.double())[0, 0] for one in (q, k))
    products = q @ k.T  # (N, N)
    at = [registers + place for place in (0, 1, 6, 7)]  # of a grid of 5 columns: (0, 0), (0, 1), (1, 1), (1, 2)
    assert torch.isclose(products[at[0], at[1]], products[at[2], at[3]], atol=1e-6)
    assert not torch.isclose(products[at[0], at[1]], products[at[1], at[0]], atol=1e-3)


def test_axial_positions_tell_rows_from_columns_and_leave_registers_alone():
    angles = rotary_angles("2d", 2, (3, 4), 8)
    assert not angles[:2].any()
    patches = angles[2:].unflatten(0, (3, 4))
    assert torch.equal(patches[:, 0, :2], patches[:, 3, :2]) and torch.equal(patches[0, :, 2:], patches[2, :, 2:])
    assert (patches[1:, :, :2] > 0).all() and (patches[:, 1:, 2:] > 0).all()


# Attention that can choose


def test_the_l2_norm_bounds_logits_so_that_attention_stays_almost_uniform():
    x = torch.randn(2, 35, 32, generator=torch.Generator().manual_seed(0))
    entropies = {}
    for norm in ("rms", "l2"):
        attention = small(f"model.qk_norm={norm}").blocks[0].attention
        with torch.no_grad():
            attention.qkv.weight.mul_(50)  # whatever is learned
            entropies[norm] = float(attention_entropy(attention, x, None).mean())
    assert entropies["l2"] > 0.98 > 0.9 > entropies["rms"]
