"""Reference curves of a preset from finished runs of it: what `dit train` holds other runs of it against.

    python -m tests.bench.reference_curves demo RUN RUN RUN … > presets/demo.curves.json
    python -m tests.bench.reference_curves demo --judge RUN …        # which of them leave the bands, and when

Each figure is smoothed as `dittool.runs.normal` does. At a step the band is exp(m ± (k·s + floor)): m is the mean of
the logarithms over the runs, s their standard deviation, pooled over the neighbouring rows, since few runs tell it
badly.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean

from dittool.ckpt.run_log import read_log
from dittool.config.load import read_toml
from dittool.runs.normal import SMOOTHED, curves_of, newly_outside, smoothed
from dittool.storage import read_json

FIGURES = ("loss", "grad_norm", "ema_distance")
DEVIATIONS, FLOOR, NEIGHBOURS = 6.0, 0.05, 10


def curve(logs: list[list[dict]], figure: str) -> dict[str, list[float]]:
    """The band of one figure over the steps that all of at least three runs have."""
    by_step: dict[int, list[float]] = {}
    for rows in logs:
        pairs = [(row["step"], row[figure]) for row in rows if figure in row]
        steps = [step for step, _ in pairs][SMOOTHED - 1 :]
        for step, value in zip(steps, smoothed([value for _, value in pairs]), strict=True):
            by_step.setdefault(step, []).append(math.log(value))
    steps = sorted(step for step, values in by_step.items() if len(values) >= 3)
    means = [fmean(by_step[step]) for step in steps]
    low, high = [], []
    for i, mean in enumerate(means):
        near = range(max(i - NEIGHBOURS, 0), min(i + NEIGHBOURS + 1, len(steps)))
        squares = [(value - means[j]) ** 2 for j in near for value in by_step[steps[j]]]
        free = len(squares) - len(near)
        reach = DEVIATIONS * math.sqrt(sum(squares) / free) + FLOOR
        low.append(float(f"{math.exp(mean - reach):.4g}"))
        high.append(float(f"{math.exp(mean + reach):.4g}"))
    return {"steps": steps, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--judge", action="store_true")
    given = parser.parse_args()
    if given.judge:
        for run in given.runs:
            judge(run, given.preset)
        return
    logs = [read_log(run) for run in given.runs]
    settings = [read_toml(run / "resolved.toml")["train"] for run in given.runs]
    records = [read_json(run / "run.json") for run in given.runs]
    (hashes,) = {(record["identity_hash"], record["order_hash"]) for record in records}
    ((steps, batch),) = {(train["steps"], train["batch_size"]) for train in settings}
    content = {
        "preset": given.preset,
        "identity_hash": hashes[0],
        "order_hash": hashes[1],
        "steps": steps,
        "batch_size": batch,
        "seeds": [train["seed"] for train in settings],
        "figures": {name: curve(logs, name) for name in FIGURES},
    }
    print(json.dumps(content, separators=(",", ":")))


def judge(run: Path, preset: str) -> None:
    """Prints what leaves the bands, row by row as training would."""
    train, rows = read_toml(run / "resolved.toml")["train"], []
    curves = curves_of(run, preset, train["steps"], train["batch_size"])
    if curves is None:
        print(f"{run.name}: no curves for it")
        return
    for row in read_log(run):
        rows.append(row)
        for figure, text in newly_outside(rows, curves).items():
            rows.append({"step": row["step"], "outside_figure": figure})
            print(f"{run.name}: step {row['step']}: {text}")
    print(f"{run.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
