"""From noise to latents: what runs how often, and that it is the same as the plain way."""

from __future__ import annotations

import pytest
import torch

from dittool.models.conditioning import Kept
from dittool.sampling import latents
from dittool.sampling.guidance import BRANCHES
from dittool.sampling.latents import sample_latents, sampling_cost
from dittool.sampling.pipeline import Pipeline

LATENT = (8, 8)  # cells


@pytest.fixture
def pipeline(tiny_run):
    """With weights that act: after eight steps the gates are still nearly closed."""
    pipeline = Pipeline.load(tiny_run / "checkpoints" / "checkpoint_final.pt")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return pipeline


@pytest.fixture
def inputs(pipeline, tiny_shards):
    """Conditions and noise of two samples with prompt and reference."""
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size((64, 96), reference)
    return pipeline.conditions("a red circle", reference, bucket, 2), pipeline.noise(bucket, [0, 1])


class Counted:
    """Counts the calls of the model's methods, and the rows of each call."""

    def __init__(self, monkeypatch, model):
        self.rows = {"context": [], "keys_values": [], "velocity": []}
        self.times = []
        for name, batch in (("context", 2), ("velocity", 0)):
            self._count(monkeypatch, model, name, lambda arguments, batch=batch: arguments[batch])
        for block in model.blocks:
            self._count(monkeypatch, block.cross_attention, "keys_values", lambda arguments: arguments[0])

    def _count(self, monkeypatch, owner, name, argument):
        original = getattr(owner, name)

        def counting(*arguments):
            given = argument(arguments)
            self.rows[name].append(given if isinstance(given, int) else len(given))
            if name == "velocity":
                self.times.append(float(arguments[1][0]))
            return original(*arguments)

        monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize(("kind", "branches"), [("additive", 3), ("nested", 3), ("joint", 3)])
@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 5), ("heun", 10), ("ab2", 5)])
def test_the_context_is_computed_once_a_sample_for_all_branches_in_one_batch(
    pipeline, inputs, monkeypatch, kind, branches, solver, evaluations
):
    counted = Counted(monkeypatch, pipeline.model)
    settings = pipeline.settings.changed({"steps": 5, "guidance": kind, "solver": solver})
    sample_latents(pipeline.model, *inputs, settings)
    assert counted.rows["context"] == [branches * 2]
    assert counted.rows["keys_values"] == [branches * 2] * len(pipeline.model.blocks)
    assert counted.rows["velocity"] == [branches * 2] * evaluations


def test_with_many_patches_the_branches_without_them_have_one_null_token_and_a_batch_of_their_own(
    pipeline, inputs, monkeypatch
):
    counted = Counted(monkeypatch, pipeline.model)
    contexts = []
    monkeypatch.setattr(
        pipeline.model.blocks[0].cross_attention,
        "keys_values",
        lambda tokens: contexts.append(tuple(tokens.shape[:2])) or tokens,
    )
    monkeypatch.setattr(pipeline.model, "velocity", lambda z, *_: z)
    conditions, noise = inputs
    text, patches = conditions.text.shape[1], conditions.patches.shape[1]
    sample_latents(pipeline.model, conditions, noise, pipeline.settings)
    monkeypatch.setattr(latents, "_MANY_PATCHES", patches)
    sample_latents(pipeline.model, conditions, noise, pipeline.settings)
    assert contexts == [(6, text + 1 + patches), (4, text + 1 + 1), (2, 1 + 1 + patches)]
    assert counted.rows["context"] == [6, 4, 2]


def test_outside_of_the_interval_only_the_conditional_branch_runs(pipeline, inputs, monkeypatch):
    counted = Counted(monkeypatch, pipeline.model)
    settings = pipeline.settings.changed({"steps": 10, "guidance_interval": (0.3, 0.7)})
    sample_latents(pipeline.model, *inputs, settings)
    rows = dict(zip([round(t, 6) for t in counted.times], counted.rows["velocity"], strict=True))
    assert rows == {1.0: 2, 0.9: 2, 0.8: 2, 0.7: 6, 0.6: 6, 0.5: 6, 0.4: 6, 0.3: 6, 0.2: 2, 0.1: 2}
    assert counted.rows["context"] == [2, 6], "once for each of the two rules, however many steps"
    assert sum(counted.rows["velocity"]) == 2 * sampling_cost(settings, LATENT, True, True).passes


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize(
    "interval", [(0.25, 0.75), *(pytest.param(other, marks=pytest.mark.slow) for other in ((0.0, 1.0), (0.9, 0.95)))]
)
@pytest.mark.parametrize("kind", ["additive", "nested", "joint"])
@pytest.mark.parametrize("many", [1, 1024])
def test_all_branches_at_once_are_the_plain_loop(pipeline, inputs, monkeypatch, solver, interval, kind, many):
    """The plain way: a whole forward pass, context included, for each branch and step."""
    monkeypatch.setattr(latents, "_MANY_PATCHES", many)
    conditions, noise = inputs
    changes = {"steps": 4, "solver": solver, "guidance": kind, "guidance_interval": interval}
    settings = pipeline.settings.changed(changes)

    def branch(name, z, t):
        text, reference = BRANCHES[name]
        kept = Kept(torch.full((len(z),), text), torch.full((len(z),), reference))
        return pipeline.model(z, torch.full((len(z),), t), conditions, kept)

    def velocity(z, t):
        if not interval[0] <= t <= interval[1]:
            return branch("full", z, t)
        none, text, dino, full = (branch(name, z, t) for name in BRANCHES)
        s_text, s_dino = settings.cfg_text, settings.cfg_dino
        if kind == "additive":
            return none + s_text * (text - none) + s_dino * (dino - none)
        if kind == "joint":
            return full + (s_text - 1) * (full - dino) + (s_dino - 1) * (full - text)
        return none + s_dino * (dino - none) + s_text * (full - dino)

    with torch.inference_mode():
        plain = latents.SOLVERS[solver](velocity, noise, latents.time_grid(4))
    ours = sample_latents(pipeline.model, conditions, noise, settings)
    assert float((ours - plain).norm() / plain.norm()) < 1e-5


def test_the_interval_changes_what_is_drawn(pipeline, inputs):
    whole, part = (
        sample_latents(pipeline.model, *inputs, pipeline.settings.changed({"steps": 4, "guidance_interval": interval}))
        for interval in ((0.0, 1.0), (0.4, 0.6))
    )
    assert float((whole - part).norm() / whole.norm()) > 0.01


@pytest.mark.parametrize(
    ("changes", "there", "start", "evaluations", "passes"),
    [
        ({}, (True, True), 1.0, 10, 30),
        ({"guidance": "joint"}, (True, True), 1.0, 10, 30),
        ({"guidance": "joint", "cfg_text": 1.0, "cfg_dino": 1.0}, (True, True), 1.0, 10, 10),
        ({"guidance": "joint", "cfg_dino": 1.0}, (True, True), 1.0, 10, 20),  # v_full and v_dino
        ({"guidance": "nested", "cfg_text": 2.0, "cfg_dino": 2.0}, (True, True), 1.0, 10, 20),
        ({"guidance": "nested", "guidance_parallel": 0.0}, (True, True), 1.0, 10, 30),
        ({"guidance": "nested", "cfg_text": 2.0, "guidance_parallel": 0.0}, (True, True), 1.0, 10, 20),
        ({}, (True, False), 1.0, 10, 20),
        ({"cfg_text": 1.0}, (True, False), 1.0, 10, 10),
        ({"solver": "heun"}, (True, True), 1.0, 20, 60),
        ({"guidance_interval": (0.3, 0.7)}, (True, True), 1.0, 10, 20),
        ({"guidance_interval": (0.3, 0.7)}, (True, True), 0.5, 10, 20),
        ({}, (True, True), 0.0, 0, 0),
    ],
)
def test_the_cost_is_told_beforehand(pipeline, changes, there, start, evaluations, passes):
    cost = sampling_cost(pipeline.settings.changed({"steps": 10, **changes}), LATENT, *there, start)
    assert (cost.evaluations, cost.passes) == (evaluations, passes)


def test_a_time_at_the_edge_of_the_interval_is_guided(pipeline):
    """Times of a grid and numbers that were typed differ in the last bit."""
    for edge in range(1, 11):
        settings = pipeline.settings.changed({"steps": 10, "guidance_interval": (edge / 10, edge / 10)})
        assert sampling_cost(settings, LATENT, True, True).passes == 10 + 2


def test_a_shift_per_bucket_is_taken_at_the_size_that_is_drawn(pipeline):
    """As `flow.shift` of the same number."""
    noise = torch.randn(1, 16, 8, 32, generator=torch.Generator().manual_seed(0))
    conditions = pipeline.conditions("a red circle", None, pipeline.buckets[0], 1)
    per_bucket, number, none = (
        sample_latents(pipeline.model, conditions, noise, pipeline.settings.changed({"steps": 2, "shift": shift}))
        for shift in ("per-bucket", 3 * 16 / 128, 1.0)
    )
    assert torch.equal(per_bucket, number) and not torch.equal(per_bucket, none)
