"""Steps that each solver needs to come as near to a 1000-step solution as 50 steps of Euler. Run: python
tests/bench/solver_steps.py CHECKPOINT

Samples of the hold-out are drawn from their own caption, without and with their own reference, with the run's scales.
The distance of two solutions is |a − b| / |b| over all their latents. A solver needs N steps when N and every longer
one of the list is near enough. The data is where the run says; --data names another folder of shards. A demo's
checkpoint (dit demo) takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.files import run_folder
from dittool.ckpt.run_data import recorded_data
from dittool.data.shards.read import ShardSet
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.solvers import SOLVERS, evaluation_times, time_grid
from dittool.validate.samples import bucket_batches, choose, stored_conditions

STEPS = (4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 35, 40, 50)
FINE, USUAL = 1000, 50  # steps of Euler


def drawn_samples(pipeline: Pipeline, shards: ShardSet, count: int) -> list[tuple[Conditions, Tensor]]:
    """Conditions and noise, bucket by bucket, of some samples of the hold-out."""
    _, subjects = choose(shards, count)
    parts = []
    for bucket, batch in bucket_batches([subject.ref for subject in subjects], lambda ref: ref):
        conditions = stored_conditions(pipeline, [shards.read(ref, pipeline.config.model.patches) for ref in batch])
        parts.append((conditions, pipeline.noise(Bucket(bucket.width, bucket.height), list(range(len(batch))))))
    return parts


def without_reference(conditions: Conditions) -> Conditions:
    return dataclasses.replace(conditions, cls=None, patches=None)


def solved(pipeline: Pipeline, parts: list[tuple[Conditions, Tensor]], solver: str, steps: int) -> Tensor:
    """All latents in one row."""
    settings = pipeline.settings.changed({"solver": solver, "steps": steps})
    return torch.cat([pipeline.latents(conditions, noise, settings).flatten() for conditions, noise in parts])


def report(name: str, pipeline: Pipeline, parts: list[tuple[Conditions, Tensor]]) -> None:
    start = time.monotonic()
    fine = solved(pipeline, parts, "euler", FINE)
    distances = {
        (solver, steps): float((solved(pipeline, parts, solver, steps) - fine).norm() / fine.norm())
        for solver in SOLVERS
        for steps in STEPS
    }
    goal = distances["euler", USUAL]
    print(f"\n{name}: {USUAL} steps of Euler are {goal:.4f} from {FINE} ({time.monotonic() - start:.0f} s)\n")
    print("| solver | steps needed | evaluations | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("| --- " * (3 + len(STEPS)) + "|")
    for solver in SOLVERS:
        needed = None
        for steps in reversed(STEPS):
            if distances[solver, steps] > goal:
                break
            needed = steps
        evaluations = (
            len(evaluation_times(solver, time_grid(needed)))
            if needed
            else f"> {len(evaluation_times(solver, time_grid(STEPS[-1])))}"
        )
        row = " | ".join(f"{distances[solver, steps]:.4f}" for steps in STEPS)
        print(f"| {solver} | {needed or f'> {STEPS[-1]}'} | {evaluations} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=6)
    options = parser.parse_args()
    pipeline = Pipeline.load(options.checkpoint)
    run = run_folder(options.checkpoint)
    shards = ShardSet.open(options.data or recorded_data(run, "the same command with", options.checkpoint))
    parts = drawn_samples(pipeline, shards, options.samples)
    print(
        f"step {pipeline.step}, {options.samples} samples, scales {pipeline.settings.cfg_text:g} and"
        f" {pipeline.settings.cfg_dino:g}"
    )
    report("caption alone", pipeline, [(without_reference(conditions), noise) for conditions, noise in parts])
    report("caption and reference", pipeline, parts)


if __name__ == "__main__":
    main()
