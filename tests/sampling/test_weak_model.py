"""Away from a weak model: an earlier checkpoint or a smaller network, judged by the plain loop."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import pytest
import torch
from PIL import Image

from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.config.load import config_from_dict
from dittool.errors import BadDataError, UsageError
from dittool.models.build import build_model
from dittool.models.conditioning import Kept
from dittool.objective.routing import passing_tokens
from dittool.sampling.draw import draw_all
from dittool.sampling.latents import TextFeatures, sample_latents, sampling_cost
from dittool.sampling.picture_file import SETTINGS_KEY
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.request import SampleOptions, plan
from dittool.sampling.solvers import SOLVERS, time_grid
from dittool.seeding import derive_seed

PLAIN = {"guidance": "joint", "cfg_text": 1.0, "cfg_dino": 1.0, "steps": 3}


def written(checkpoint, folder, seed, **changes):
    """The checkpoint with weights that act, of a network that differs in these keys of `[model]`, and how it went on
    with data that differ in `data`.
    """
    state, data = load_checkpoint(checkpoint), changes.pop("data", {})
    state["config"]["model"] |= changes
    state["data"] = {**state["data"], **data}
    widths = Pipeline.load(checkpoint).data.widths
    config = config_from_dict(state["config"], "test")
    model = build_model(config, widths.text, widths.image, widths.latent_channels)
    torch.manual_seed(seed)
    state["ema"] = {name: 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    return save_checkpoint(folder, state, final=True)


@pytest.fixture(scope="module")
def strong(checkpoint, tmp_path_factory):
    return written(checkpoint, tmp_path_factory.mktemp("strong"), 0)


@pytest.fixture(scope="module")
def smaller(checkpoint, tmp_path_factory):
    """Half as wide, and without patches."""
    return written(checkpoint, tmp_path_factory.mktemp("smaller"), 1, width=32, heads=2, depth=1, patches=False)


@pytest.fixture
def inputs(strong, tiny_shards):
    pipeline = Pipeline.load(strong)
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size((64, 96), reference)
    return pipeline.conditions("a red circle", reference, bucket, 2), pipeline.noise(bucket, [0, 1])


def plain_branch(pipeline, conditions, z, t, text, reference):
    kept = Kept(torch.full((len(z),), text), torch.full((len(z),), reference))
    return pipeline.model(z, torch.full((len(z),), t), conditions, kept)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_it_is_the_plain_loop_with_a_smaller_model_without_patches(strong, smaller, inputs, solver, interval):
    own, other = Pipeline.load(strong), Pipeline.load(smaller)
    conditions, noise = inputs
    changes = {**PLAIN, "solver": solver, "cfg_weak": 1.7, "guidance_interval": interval}
    ours = own.with_weak(smaller).latents(conditions, noise, own.settings.changed(changes))

    def velocity(z, t):
        good, poor = (plain_branch(one, conditions, z, t, True, True) for one in (own, other))
        return poor + 1.7 * (good - poor) if interval[0] <= t <= interval[1] else good

    with torch.inference_mode():
        plain = SOLVERS[solver](velocity, noise, time_grid(3))
    assert float((ours - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize(
    ("keep", "kind", "passes"),
    [
        (("text",), "additive", 3),  # v_∅ and v_text, and the weak model's v_text
        (("reference",), "additive", 3),
        (("text", "reference"), "additive", 5),
        (("text", "reference"), "nested", 4),
        (("text", "reference"), "joint", 4),
        ((), "additive", 2),
    ],
)
def test_a_guided_evaluation_has_one_pass_of_the_weak_model(strong, smaller, inputs, monkeypatch, keep, kind, passes):
    own, (conditions, noise) = Pipeline.load(strong).with_weak(smaller), inputs
    if "text" not in keep:
        conditions = dataclasses.replace(conditions, text=None, text_mask=None)
    if "reference" not in keep:
        conditions = dataclasses.replace(conditions, cls=None, patches=None)
    rows = []
    for model in (own.model, own.weak):
        original = model.velocity
        monkeypatch.setattr(
            model, "velocity", lambda z, *rest, original=original: rows.append(len(z)) or original(z, *rest)
        )
    settings = own.settings.changed({"guidance": kind, "steps": 2, "cfg_text": 3.0, "cfg_dino": 2.0})
    own.latents(conditions, noise, settings)
    cost = sampling_cost(settings, noise.shape[-2:], "text" in keep, "reference" in keep, has_weak=True)
    assert sum(rows) / 2 == cost.passes == 2 * passes and cost.evaluations == 2


def test_at_scale_one_it_is_what_is_drawn_without_it_to_the_bit(strong, smaller, inputs):
    own = Pipeline.load(strong)
    settings = own.settings.changed({"steps": 2, "cfg_weak": 1.0})
    assert torch.equal(own.with_weak(smaller).latents(*inputs, settings), own.latents(*inputs, settings))


def test_a_sample_does_not_depend_on_its_neighbours(strong, smaller, inputs):
    own, (conditions, noise) = Pipeline.load(strong).with_weak(smaller), inputs
    settings = own.settings.changed({"steps": 3, "guidance_parallel": 0.2, "guidance_momentum": -0.5})
    settings = settings.changed({"guidance_norm": 0.2})
    together = own.latents(conditions, noise, settings)
    alone = own.latents(conditions.map(lambda tensor: tensor[1:]), noise[1:], settings)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_with_a_negative_prompt_the_weak_model_sees_what_the_model_sees(strong, smaller, inputs):
    """Without a prompt the plain branch has the negative one, in both models."""
    own, other = Pipeline.load(strong).with_weak(smaller), Pipeline.load(smaller)
    conditions, noise = inputs
    avoided = TextFeatures(*own.encode_prompts(["a blue square"])).expand(2)
    settings = own.settings.changed({"steps": 1, "cfg_text": 0.0, "cfg_dino": 0.0, "cfg_weak": 3.0})
    found = noise - sample_latents(own.model, conditions, noise, settings, negative=avoided, weak=own.weak)
    negative = dataclasses.replace(conditions, text=avoided.hidden, text_mask=avoided.mask)
    with torch.inference_mode():
        good, poor = (plain_branch(one, negative, noise, 1.0, True, False) for one in (own, other))
    torch.testing.assert_close(found, poor + 3 * (good - poor), rtol=1e-4, atol=1e-4)


def test_the_routed_model_itself_is_a_weak_one(strong, inputs):
    own, (conditions, noise) = Pipeline.load(strong), inputs
    settings = own.settings.changed({**PLAIN, "cfg_weak": 1.7, "weak_routed": 0.5})
    ours, kept = own.latents(conditions, noise, settings), Kept(*[torch.ones(len(noise), dtype=torch.bool)] * 2)
    tokens = noise.shape[-2] * noise.shape[-1] // 4
    taken = []

    def velocity(z, t):
        route = passing_tokens([derive_seed("routed", f"{t:.6f}")], tokens, 0.5).expand(len(z), -1)
        taken.append(route[0])
        times = torch.full((len(z),), t)
        good, poor = (own.model(z, times, conditions, kept, None, way) for way in (None, route))
        return poor + 1.7 * (good - poor)

    with torch.inference_mode():
        plain = SOLVERS["euler"](velocity, noise, time_grid(3))
    assert float((ours - plain).norm() / plain.norm()) < 1e-5
    assert not torch.equal(taken[0], taken[1])
    assert sampling_cost(settings, noise.shape[-2:], True, True).passes == 2 * 3
    alone = own.latents(conditions.map(lambda tensor: tensor[1:]), noise[1:], settings)
    torch.testing.assert_close(ours[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_weak_model_and_the_routed_one_exclude_each_other(strong, smaller, inputs):
    own = Pipeline.load(strong).with_weak(smaller)
    with pytest.raises(UsageError, match="exclude each other"):
        own.latents(*inputs, own.settings.changed({"weak_routed": 0.5}))
    with pytest.raises(UsageError, match="exclude each other"):
        plan(options(strong, smaller, weak_routed=0.5))


# Which models fit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"identity_hash": "0" * 64, "order_hash": "other"}}, "other features"),
        ({"patch_size": 4}, "patch size 4 does not divide this one's 2"),
        ({"patch_size": 1, "patch_fusion": "added"}, "adds patches to tokens of 1 cells, and this one's have 2"),
    ],
)
def test_a_model_that_cannot_be_asked_the_same_is_refused(strong, checkpoint, tmp_path, changes, said):
    other = written(checkpoint, tmp_path, 2, **changes)
    with pytest.raises(BadDataError, match=said) as raised:
        Pipeline.load(strong).with_weak(other)
    assert str(other) in raised.value.message and "earlier checkpoint" in raised.value.hint


def test_a_model_that_reads_patches_is_none_for_one_that_does_not(strong, smaller):
    with pytest.raises(BadDataError, match="reads a reference's patches and this one does not"):
        Pipeline.load(smaller).with_weak(strong)


def test_latents_normalised_otherwise_are_refused(strong, checkpoint, tmp_path):
    norm = load_checkpoint(checkpoint)["data"]["norm"]
    moved = {name: [value + 1 for value in values] for name, values in norm.items()}
    other = written(checkpoint, tmp_path, 2, data={"norm": moved})
    with pytest.raises(BadDataError, match="normalised otherwise"):
        Pipeline.load(strong).with_weak(other)


# On the command line


def options(checkpoint, weak, **changes):
    settings = {"steps": 2, **changes}
    return SampleOptions(prompt="a red circle", checkpoint=checkpoint, weak=weak, size="64x64", settings=settings)


def test_its_settings_travel_in_the_picture_and_draw_it_again(strong, smaller, tmp_path):
    (image,) = draw_all(plan(options(strong, smaller, cfg_weak=2.5)), tmp_path / "a.png")
    inside = json.loads(Image.open(image.path).text[SETTINGS_KEY])
    assert inside["cfg_weak"] == 2.5 and len(inside["weak_sha256"]) == 64 and inside["passes"] == 2 * 3
    (again,) = draw_all(plan(SampleOptions(again=image.path)), tmp_path)
    assert again.same_pixels is True and again.settings == image.settings
    (moved,) = draw_all(plan(SampleOptions(again=image.path, weak=smaller)), tmp_path)
    assert moved.same_pixels is True
    (plain,) = draw_all(plan(options(strong, None)), tmp_path / "b.png")
    assert "cfg_weak" not in plain.settings and "weak" not in plain.settings


def test_a_routed_picture_is_drawn_again_and_with_another_scale(strong, tmp_path):
    (image,) = draw_all(plan(options(strong, None, weak_routed=0.5, cfg_weak=2.5)), tmp_path / "a.png")
    inside = json.loads(Image.open(image.path).text[SETTINGS_KEY])
    assert (inside["weak_routed"], inside["cfg_weak"], inside["passes"]) == (0.5, 2.5, 2 * 3) and "weak" not in inside
    (again,) = draw_all(plan(SampleOptions(again=image.path)), tmp_path)
    assert again.same_pixels is True and again.settings == image.settings
    (other,) = draw_all(plan(SampleOptions(again=image.path, settings={"cfg_weak": 4.0})), tmp_path)
    assert (other.settings["weak_routed"], other.settings["cfg_weak"]) == (0.5, 4.0)


def test_another_weak_model_than_then_is_said(strong, smaller, tmp_path, listener):
    (image,) = draw_all(plan(options(strong, smaller)), tmp_path / "a.png")
    draw_all(plan(SampleOptions(again=image.path, weak=strong)), tmp_path, listener)
    assert any("is not the weak model that" in warning for warning in listener.warnings)


def test_its_options_without_effect_are_refused_or_said(strong, smaller, tmp_path, listener):
    with pytest.raises(UsageError, match="--cfg-weak has no effect without --weak or --weak-routed") as raised:
        plan(options(strong, None, cfg_weak=3.0))
    assert "--weak CHECKPOINT" in raised.value.hint
    draw_all(plan(options(strong, smaller, cfg_weak=1.0)), tmp_path, listener)
    assert [warning.split(":")[0] for warning in listener.warnings] == ["--weak has no effect at --cfg-weak 1"]


def test_every_rule_and_solver_draws_finite_latents_from_every_condition(strong, smaller, inputs):
    own, (conditions, noise) = Pipeline.load(strong).with_weak(smaller), inputs
    alone = dataclasses.replace(conditions, cls=None, patches=None)
    projected = {"guidance_parallel": 0.0, "guidance_norm": 0.1, "guidance_momentum": -0.5}
    for kind, solver, given in product(("additive", "nested", "joint"), SOLVERS, (conditions, alone)):
        settings = own.settings.changed({"guidance": kind, "solver": solver, "steps": 2, **projected})
        begun = own.latents(given, noise, settings, init=noise[0], strength=0.5)
        assert torch.isfinite(begun).all(), (kind, solver)
