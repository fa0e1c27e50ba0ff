"""Projected guidance against the paper's algorithm, written out in predicted images."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dittool.config.load import load_config
from dittool.config.schema import SampleSettings
from dittool.sampling.draw import draw
from dittool.sampling.latents import guidance_rules, sample_latents
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.projected import Projection
from dittool.sampling.request import DrawRequest

SETTINGS = SampleSettings.of(load_config("demo"))


def tensors(count):
    chance = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 5, 6, generator=chance, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("norm", [0.3, 3.0, 300.0])
@pytest.mark.parametrize("parallel", [0.0, 0.4, 1.0])
def test_one_evaluation_is_the_papers(norm, parallel):
    """D = D_c + min(1, r / |ΔD|)·(ΔD⊥ + η·ΔD∥), sample by sample."""
    z, plain, guided = tensors(3)
    t = 0.6
    found = z - t * Projection(parallel, norm, 0.0).velocity(plain, guided, z, t)
    for index in range(3):
        image = (z - t * plain)[index].flatten()
        change = (z - t * guided)[index].flatten() - image
        change = change * min(1.0, norm / change.square().mean().sqrt().item())
        unit = image / image.norm()
        along = (change @ unit) * unit
        expected = image + (change - along) + parallel * along
        torch.testing.assert_close(found[index].flatten(), expected)


def test_without_a_parallel_part_the_change_is_orthogonal_to_the_image():
    z, plain, guided = tensors(3)
    held = Projection(0.0, None, 0.0).velocity(plain, guided, z, 0.5) - plain
    product = (held * (z - 0.5 * plain)).sum(dim=(1, 2, 3))
    assert product.abs().max() < 1e-10 < held.abs().max()


def test_momentum_adds_a_share_of_the_changes_before():
    z, plain, first, second, third = tensors(5)
    projection = Projection(1.0, None, -0.5)
    found = [projection.velocity(plain, guided, z, 0.5) - plain for guided in (first, second, third)]
    changes = [guided - plain for guided in (first, second, third)]
    torch.testing.assert_close(found[0], changes[0])
    torch.testing.assert_close(found[1], changes[1] - 0.5 * changes[0])
    torch.testing.assert_close(found[2], changes[2] - 0.5 * (changes[1] - 0.5 * changes[0]))


def test_at_the_image_itself_nothing_is_divided_by_t():
    z, plain, guided = tensors(3)
    assert torch.isfinite(Projection(0.0, 0.1, -0.5).velocity(plain, guided, z, 0.0)).all()


def test_settings_that_change_nothing_are_no_projection():
    assert Projection.of(SETTINGS) is None
    for name, value in (("guidance_parallel", 0.5), ("guidance_norm", 1.0), ("guidance_momentum", -0.1)):
        assert Projection.of(SETTINGS.changed({name: value})) is not None


def test_it_stands_on_the_rule_at_scales_of_one():
    """With additive guidance that is v_text + v_dino − v_∅, whose branches run anyway."""
    projected = SETTINGS.changed({"guidance_parallel": 0.0})
    plain = {
        kind: guidance_rules(projected.changed({"guidance": kind}), True, True)[0].plain
        for kind in ("additive", "nested", "joint")
    }
    assert plain == {
        "additive": {"none": -1.0, "text": 1.0, "dino": 1.0},
        "nested": {"full": 1.0},
        "joint": {"full": 1.0},
    }
    assert guidance_rules(projected, True, False)[0].plain == {"text": 1.0}


@pytest.fixture
def pipeline(checkpoint):
    pipeline = Pipeline.load(checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return pipeline


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize("kind", ["additive", "nested", "joint"])
def test_settings_that_hold_nothing_back_draw_what_guidance_draws(pipeline, tiny_shards, kind, solver):
    """A norm beyond all changes takes the way of projected guidance and arrives where the weights' sum does."""
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size((64, 96), reference)
    conditions, noise = pipeline.conditions("a red circle", reference, bucket, 2), pipeline.noise(bucket, [0, 1])
    settings = pipeline.settings.changed({"guidance": kind, "solver": solver, "steps": 3})
    settings = settings.changed({"guidance_interval": [0.2, 0.9]})
    one, other = (
        sample_latents(pipeline.model, conditions, noise, settings.changed(changes))
        for changes in ({}, {"guidance_norm": 1e9})
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    held = sample_latents(pipeline.model, conditions, noise, settings.changed({"guidance_parallel": 0.0}))
    assert float((held - one).norm() / one.norm()) > 1e-3


def test_options_without_effect_are_said(checkpoint, tmp_path, listener):
    request = DrawRequest(checkpoint, "a red circle", None, 1, 0, (64, 64), {})
    idle = {"cfg_text": 1.0, "guidance_parallel": 0.5, "guidance_interval": [0.2, 0.6], "guidance": "joint"}
    draw(dataclasses.replace(request, changes=idle), tmp_path, listener)
    assert [warning.split(" has no effect")[0] for warning in listener.warnings] == [
        "--guidance",
        "--guidance-interval",
        "--guidance-parallel",
    ]
