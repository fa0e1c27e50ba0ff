"""The network as programs of torch.export (.pt2): one size of picture, any batch and caption, no Python of ours.

    velocity.pt2                     (z, t, text, text mask, CLS, patches) → velocity
    velocity_without_reference.pt2   (z, t, text, text mask) → velocity with the reference's nulls
    nulls.safetensors                `text`: what stands for no caption, as its single token
    generator.pt2                    (noise, guidance scale, labels, style) → latents

A dropped reference is a program of its own: its null patches have no positions and weigh as one token, which features
cannot say. B batch · C H W latent · L text tokens · N patches
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dittool.ckpt.write import write_safetensors
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError
from dittool.geometry import nearest_bucket
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT
from dittool.models.drift_dit import ClassConditions, DriftDiT
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.pipeline import Pipeline
from dittool.storage import write_atomic

PROGRAMS = ("velocity.pt2", "velocity_without_reference.pt2", "generator.pt2")
_BATCH, _TOKENS = torch.export.Dim("batch", max=1024), torch.export.Dim("tokens", max=4096)
_MOST_DIFFERENCE = 1e-4  # of the output's root mean square; norms are computed by other kernels there
Inputs = tuple[Tensor, ...]


class _Velocity(nn.Module):
    def __init__(self, model: DiT, patch_grid: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.patch_grid = model, patch_grid

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        cls: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> Tensor:
        conditions = Conditions(text, text_mask, cls, patches, self.patch_grid)
        context = self.model.context(conditions, None, z.shape[0], self.model.token_grid(z))
        return self.model.velocity(z, t, context)


class _Generator(nn.Module):
    def __init__(self, model: DriftDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, noise: Tensor, alpha: Tensor, labels: Tensor, style: Tensor) -> Tensor:
        return self.model(noise, alpha, ClassConditions(labels, style))


def write_programs(folder: Path, pipeline: Pipeline | OneStepPipeline, talk: Talk = SILENT) -> None:
    """Writes the programs of a pipeline's network, each compared with it before. Raises `BadDataError` where one
    differs.
    """
    networks = _generator(pipeline) if isinstance(pipeline, OneStepPipeline) else _velocities(pipeline)
    with talk.progress("programs", len(networks), "file") as task:
        for name, (network, first, second) in networks.items():
            write_atomic(folder / name, partial(torch.export.save, _program(network, first, second)))
            task.advance()
    if isinstance(pipeline, Pipeline):
        null = pipeline.model.conditioning.null_text
        write_safetensors(folder / "nulls.safetensors", {"text": null}, {"format": "pt"})


def _velocities(pipeline: Pipeline) -> dict[str, tuple[nn.Module, Inputs, Inputs]]:
    facts, widths = pipeline.facts, pipeline.data.widths
    bucket = nearest_bucket(1, 1, pipeline.buckets)
    grid, cells = pipeline.reference_grid(bucket), bucket.latent_grid(facts.stride)

    def inputs(batch: int, tokens: int) -> Inputs:
        drawn = torch.Generator().manual_seed(batch)
        mask = torch.arange(tokens)[None] < torch.arange(1, batch + 1)[:, None]  # captions of 1, 2, … tokens
        shapes = [(batch, facts.latent_channels, *cells), (batch, tokens, widths.text), (batch, widths.image)]
        shapes += [(batch, grid[0] * grid[1], widths.image)] * facts.reads_patches
        z, text, *reference = (torch.randn(shape, generator=drawn) for shape in shapes)
        return z, torch.rand(batch, generator=drawn), text, mask, *reference

    network = _Velocity(pipeline.model, grid)
    first, second = inputs(2, 7), inputs(3, 4)
    return {
        "velocity.pt2": (network, first, second),
        "velocity_without_reference.pt2": (network, first[:4], second[:4]),
    }


def _generator(pipeline: OneStepPipeline) -> dict[str, tuple[nn.Module, Inputs, Inputs]]:
    config = pipeline.model.config

    def inputs(batch: int) -> Inputs:
        noise = torch.randn(batch, config.channels, *config.cells, generator=torch.Generator().manual_seed(batch))
        labels, style = torch.arange(batch) % config.classes, torch.zeros(batch, config.style_tokens, dtype=torch.int64)
        return noise, torch.linspace(1, 2, batch), labels, style

    return {"generator.pt2": (_Generator(pipeline.model), inputs(2), inputs(3))}


@torch.no_grad()
def _program(network: nn.Module, first: Inputs, second: Inputs) -> torch.export.ExportedProgram:
    """The program that `first` is traced with, when it answers `second` as the network does."""
    network(*first)  # fills what is cached by shape: what is made while tracing is no number
    expected = network(*second)
    of_caption = (2, 3) if isinstance(network, _Velocity) else ()  # the places of text and mask
    sizes = tuple({0: _BATCH, 1: _TOKENS} if place in of_caption else {0: _BATCH} for place in range(len(first)))
    program = torch.export.export(network, first, dynamic_shapes=sizes)
    difference = (program.module()(*second) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    if not difference <= _MOST_DIFFERENCE:
        raise BadDataError(
            f"torch.export's program differs from the network by {difference:.1e} of its output, at most"
            f" {_MOST_DIFFERENCE:.0e} may be",
            "export it as safetensors or for diffusers; torch may not fit this version: dit doctor",
        )
    return program
