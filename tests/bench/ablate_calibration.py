"""Is the instrument right? A hundred tiny plans whose variant changes nothing but the first weights, and planted harms
and improvements.

    python -m tests.bench.ablate_calibration [--plans 100] [--planted 20]

A variant that does nothing may be told apart in about 5 of 100 plans, and in more than 10 only where the intervals are
too narrow. Each plan has three seeds of its own, so the plans are independent. Prints a table; takes half an hour
of one core for the defaults.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dittool.ablate.plan import BASE, Plan, Rows
from dittool.ablate.results import planned, summarised
from dittool.ablate.runs import Job, Work
from dittool.ablate.statistics import Difference
from dittool.config.architectures import image_config
from dittool.config.load import load_config
from dittool.console import SILENT
from dittool.demo.run import drawn_shards

UPDATES, SEEDS = 24, 3
SMALL = {
    "model.depth": 1,
    "model.width": 32,
    "model.heads": 2,
    "train.batch_size": 8,
    "train.warmup_steps": 2,
    "sample.steps": 1,
    "ema.target": 0.9,
}
KINDS: dict[str, Mapping[str, object]] = {
    "other first weights": {"train.init_draw": 1},
    "harm: a tenth of the rate": {"train.lr": 2e-4},
    "improvement: Muon": {"train.optimizer": "muon"},
}


def compared(number: int, keys: Mapping[str, object], shards: Path) -> Difference:
    """The variant's difference to the base in plan `number`, whose seeds no other plan has."""
    seeds = list(range(SEEDS * number, SEEDS * (number + 1)))
    plan = Plan(base="demo", updates=UPDATES, seeds=seeds, set=SMALL, variant={"row": dict(keys)}, equal_time=False)
    out = Path(tempfile.mkdtemp())
    try:
        work = Work(Rows(plan, plan.rows(), UPDATES), shards, out, SILENT)
        for run in planned(work):
            work.do(Job(run, run.updates))
        found = next(row.equal_updates for row in summarised(work).rows if row.name != BASE)
        assert found is not None, work.failed
        return found.difference
    finally:
        shutil.rmtree(out)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--plans", type=int, default=100)
    options.add_argument("--planted", type=int, default=20)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = image_config(load_config("demo"), "demo", "calibration")
        shards = drawn_shards(Path(folder), config, 60)
        for kind, keys in KINDS.items():
            plans = chosen.plans if kind == "other first weights" else chosen.planted
            found = [compared(number, keys, shards) for number in range(plans)]
            verdicts = Counter(one.verdict for one in found)
            means = np.array([one.mean for one in found])
            halves = np.array([(one.high - one.low) / 2 for one in found])
            narrower = np.median([one.narrower for one in found])
            print(
                f"{kind}: {dict(verdicts)} of {plans}; mean difference {means.mean():+.4f}, spread {means.std():.4f},"
                f" median half interval {np.median(halves):.4f}; same samples make it {narrower:.1f} × narrower",
                flush=True,
            )


if __name__ == "__main__":
    main()
