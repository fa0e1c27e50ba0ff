"""The rows of a run's log.jsonl, and their plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dittool.storage import read_json_lines, write_atomic


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `log.jsonl`; none when there is no log."""
    path = folder / "log.jsonl"
    return read_json_lines(path) if path.is_file() else []


def plot_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Training and evaluation loss over steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, label in (("loss", "training"), ("eval_loss", "hold-out, EMA weights")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    axis.set(xlabel="step", ylabel="loss (mean square)", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))
    plt.close(figure)
