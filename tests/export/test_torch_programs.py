"""Programs of torch.export answer as the networks do, for other batches and captions than they were traced with."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from dittool import load
from dittool.errors import UsageError
from dittool.export.export import ExportRequest, export
from dittool.models.conditioning import Conditions
from dittool.models.drift_dit import ClassConditions
from dittool.sampling.one_step import OneStepPipeline
from tests.export.conftest import changed
from tests.export.test_diffusers_folder import NETWORKS


def programs_of(checkpoint, out):
    folder = export(ExportRequest(checkpoint, out, "torch-export")).folder
    return {path.stem: torch.export.load(path).module() for path in folder.glob("*.pt2")}, folder


def close(one, other):
    return torch.allclose(one, other, atol=1e-4 * other.square().mean().sqrt(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
@torch.no_grad()
def test_a_velocity_is_that_of_the_network(checkpoint, tmp_path, name):
    path = changed(checkpoint, tmp_path / "changed", **NETWORKS[name])
    model, (programs, folder) = load(path).model, programs_of(path, tmp_path / "out")
    reads = model.config.patches
    z, t, text, cls = torch.randn(5, 16, 16, 16), torch.rand(5), torch.randn(5, 9, 64), torch.randn(5, 64)
    mask, patches = torch.arange(9)[None] < torch.tensor([1, 9, 3, 4, 5])[:, None], torch.randn(5, 64, 64)
    reference = (cls, patches) if reads else (cls,)
    whole = model(z, t, Conditions(text, mask, cls, patches if reads else None, (8, 8)))
    assert close(programs["velocity"](z, t, text, mask, *reference), whole)
    alone = model(z, t, Conditions(text, mask, None, None, (8, 8)))
    assert close(programs["velocity_without_reference"](z, t, text, mask), alone) and not close(alone, whole)
    null = load_file(folder / "nulls.safetensors")["text"].expand(5, 1, -1)
    nothing = programs["velocity_without_reference"](z, t, null, torch.ones(5, 1, dtype=torch.bool))
    assert close(nothing, model(z, t, Conditions(None, None, None, None, (8, 8))))


@pytest.mark.slow
@torch.no_grad()
def test_a_generator_draws_the_latents_of_the_network(generator, tmp_path):
    model = load(generator, OneStepPipeline).model
    programs, _ = programs_of(generator, tmp_path / "out")
    config = model.config
    noise, alpha, labels = torch.randn(7, config.channels, *config.cells), torch.rand(7) + 1, torch.arange(7) % 2
    style = torch.randint(config.style_codebook, (7, config.style_tokens))
    assert close(
        programs["generator"](noise, alpha, labels, style), model(noise, alpha, ClassConditions(labels, style))
    )


@pytest.mark.parametrize("wanted", [{"dtype": "bf16"}, {"prompts": ["a dog"]}])
def test_programs_take_no_precision_and_no_pictures(checkpoint, tmp_path, wanted):
    with pytest.raises(UsageError, match="--format torch-export"):
        export(ExportRequest(checkpoint, tmp_path / "out", "torch-export", **wanted))
    assert not (tmp_path / "out").exists()
