"""What the run's own log says about the checkpoint: was the gradient alive and tame on the way there?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def training_figures(rows: Sequence[dict[str, Any]], step: int, warmup_steps: int) -> dict[str, Any] | None:
    """From the rows of `log.jsonl` up to `step`: the median gradient norm before clipping, after the warm-up, and the
    last losses.

    None when the log holds no row that early. The median is over rows after the warm-up, or over all when there is none
    after it.
    """
    until = [row for row in rows if row["step"] <= step]
    norms = [row for row in until if "grad_norm" in row]
    if not norms:
        return None
    settled = [row for row in norms if row["step"] > warmup_steps] or norms
    return {
        "rows": len(settled),
        "grad_norm": median(row["grad_norm"] for row in settled),
        "loss": norms[-1]["loss"],
        "eval_loss": next((row["eval_loss"] for row in reversed(until) if "eval_loss" in row), None),
    }
