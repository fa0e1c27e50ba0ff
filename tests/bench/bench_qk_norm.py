"""What q/k norm costs an update on a CPU: the demo's network without it, with torch's own RMS-norm, and with the one of
dittool/models/fast_rms_norm.py. Run: python -m tests.bench.bench_qk_norm

Forward and backward over a batch of 24, the three by turns; printed are times beside the network without the norm,
medians over rounds. On a machine that does other work only the ratios mean anything.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.config.load import load_config
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions

_ROUNDS, _BATCH, _TEXT, _GRID = 40, 24, 16, (8, 8)


def torchs_own(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, gain.shape, gain, eps=1e-6)


def update(qk_norm: bool) -> Callable[[], None]:
    model = build_model(load_config("demo", [f"model.qk_norm={str(qk_norm).lower()}"]), 64, 64, 16).train()
    z, t = torch.randn(_BATCH, 16, 16, 16), torch.rand(_BATCH)
    features = torch.randn(_BATCH, _TEXT, 64), None, torch.randn(_BATCH, 64), torch.randn(_BATCH, 64, 64)
    conditions = Conditions(*features, _GRID)

    def run() -> None:
        model.zero_grad()
        model(z, t, conditions).square().mean().backward()

    return run


def main() -> None:
    plain, normed = update(False), update(True)
    times: dict[str, list[float]] = {"without": [], "torch's own": [], "ours": []}
    for _ in range(_ROUNDS):
        for name, seconds in times.items():
            run = plain if name == "without" else normed
            own = patch("dittool.models.layers.rms_norm_with_gain", torchs_own)
            with own if name == "torch's own" else nullcontext():
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
    for name, seconds in times.items():
        ratios = [one / base for one, base in zip(seconds, times["without"], strict=True)]
        print(
            f"{name:12} {statistics.median(ratios):.2f} × (fastest rounds: {min(seconds) / min(times['without']):.2f})"
        )


if __name__ == "__main__":
    main()
