"""The plot of a run's losses."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dittool.ckpt.run_log import plot_losses


def test_both_losses_are_drawn(tmp_path):
    rows = [{"step": step, "loss": 1 / step} | ({"eval_loss": 0.5} if step % 4 == 0 else {}) for step in range(1, 9)]
    for name, drawn in (("both", rows), ("one", [{"step": row["step"], "loss": row["loss"]} for row in rows])):
        plot_losses(drawn, tmp_path / f"{name}.png")
    both, one = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), float) for name in ("both", "one"))
    blue, orange = ([31, 119, 180], [255, 127, 14])  # matplotlib's first two colours
    seen = [
        [bool((np.abs(picture - colour).sum(-1) < 30).any()) for colour in (blue, orange)] for picture in (both, one)
    ]
    assert seen == [[True, True], [True, False]]
