"""Wall time of sampling beside the plain three-pass loop, as a ratio. Run: python -m tests.bench.bench_sampling

    plain         each step runs the model once for each branch of the guidance, context and all: the null condition as
                  N equal patches
    one batch     `sample_latents`: the context's keys and values once, the branches in one batch
    two batches   the same with the branches that do not keep the reference apart: its N null patches are one token
                  there

All draw the same latents; how far the furthest is from the plain one is printed. A model of nano's width and few
blocks, features of DINOv3-L and T5-large. Medians over rounds in which they take turns; on a machine that does other
work CPU time means more than wall time, and `chrt --rr 5 python -m tests.bench.bench_sampling` keeps other work away.
The last column is the share of a step that the modulation takes, and what is left of that share when the vectors of all
steps are computed at once.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dittool.config.schema import SampleSettings
from dittool.models.conditioning import Conditions, Kept
from dittool.models.dit import DiT, DiTConfig
from dittool.sampling import latents
from dittool.sampling.guidance import BRANCHES
from dittool.sampling.latents import sample_latents
from dittool.sampling.solvers import euler, time_grid

NANO = DiTConfig(
    depth=12,
    width=384,
    heads=6,
    mlp="gelu",
    mlp_ratio=4.0,
    patch_size=2,
    norm="layer",
    qk_norm=False,
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
    text_width=1024,
    image_width=1024,
)
CAPTION_TOKENS = 48
BRANCHES_RUN, STEPS = 3, 50  # of the modulation's rows: one sample, the usual number of steps


def awake_model(depth: int, patches: bool) -> DiT:
    """With weights as after training: nothing is zero."""
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(NANO, depth=depth, patches=patches)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


def inputs(grid: tuple[int, int], patches: bool) -> tuple[Conditions, Tensor]:
    """One sample: `grid` is its latent in tokens, and the reference's patches."""
    rows, columns = grid
    seen = torch.randn(1, rows * columns, NANO.image_width) if patches else None
    conditions = Conditions(
        torch.randn(1, CAPTION_TOKENS, NANO.text_width), None, torch.randn(1, NANO.image_width), seen, grid
    )
    return conditions, torch.randn(1, NANO.latent_channels, rows * NANO.patch_size, columns * NANO.patch_size)


@torch.inference_mode()
def three_passes(model: DiT, conditions: Conditions, noise: Tensor, settings: SampleSettings) -> Tensor:
    def velocity(z: Tensor, t: float) -> Tensor:
        none, text, dino = (
            model(
                z,
                torch.full((len(z),), t),
                conditions,
                Kept(torch.full((len(z),), keeps[0]), torch.full((len(z),), keeps[1])),
            )
            for keeps in (BRANCHES[name] for name in ("none", "text", "dino"))
        )
        return none + settings.cfg_text * (text - none) + settings.cfg_dino * (dino - none)

    return euler(velocity, noise, time_grid(settings.steps, settings.shift))


def ours(model: DiT, conditions: Conditions, noise: Tensor, settings: SampleSettings, apart_from: int) -> Tensor:
    """`sample_latents` with two batches for references of at least `apart_from` patches."""
    latents._MANY_PATCHES = apart_from
    return sample_latents(model, conditions, noise, settings)


@torch.inference_mode()
def modulated(model: DiT, rows: int, calls: int) -> Tensor:
    """The modulation of all blocks for `rows` condition vectors, `calls` times."""
    c = torch.randn(rows, model.config.width)
    return [[block.modulation(c) for block in model.blocks] for _ in range(calls)][-1][-1]


def timed(work: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    """Wall seconds, CPU seconds of this process, and what was made."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - wall, time.process_time() - cpu, made


def compare(side: int, patches: bool, depth: int, settings: SampleSettings, rounds: int) -> str:
    """A row of the table."""
    model, subject = awake_model(depth, patches), inputs((side, side), patches)
    contenders = [partial(three_passes, model, *subject, settings)]
    contenders += [
        partial(ours, model, *subject, settings, apart_from)
        for apart_from in ((sys.maxsize, 1) if patches else (sys.maxsize,))
    ]
    taken = [[timed(contender) for contender in contenders] for _ in range(rounds)]
    seconds = [statistics.median(one[index][1] for one in taken) / settings.steps for index in range(len(contenders))]
    ratios = [
        [statistics.median(one[index][clock] / one[0][clock] for one in taken) for index in range(1, len(contenders))]
        for clock in (1, 0)
    ]
    first = taken[0][0][2]
    apart = max(float((one[2] - first).norm() / first.norm()) for one in taken[0][1:])
    each, at_once = (
        statistics.median(timed(partial(modulated, model, rows, calls))[1] for _ in range(rounds)) / STEPS
        for rows, calls in ((BRANCHES_RUN, STEPS), (BRANCHES_RUN * STEPS, 1))
    )
    what = f"CLS and {side * side} patches" if patches else "CLS"
    cells = [", ".join(f"{value:.2f}" for value in values) for values in (seconds, *ratios)]
    return (
        f"| {side * side} | {what} | {' | '.join(cells)} | {apart:.0e} | {each / seconds[1]:.1%},"
        f" {at_once / seconds[1]:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=2, help="blocks; nano has 12")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="of the square of latent tokens")
    options = parser.parse_args()
    settings = SampleSettings(steps=options.steps, shift=1.0)
    print(
        f"{options.depth} blocks of width {NANO.width}, {options.steps} steps, {torch.get_num_threads()} threads,"
        f" {options.rounds} rounds\n"
    )
    print(
        "| latent tokens | reference | CPU s a step: plain, one batch, two | one, two / plain, CPU time | the same,"
        " wall | apart | modulation |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for side in options.sides:
        for patches in (False, True):
            print(compare(side, patches, options.depth, settings, options.rounds), flush=True)


if __name__ == "__main__":
    main()
