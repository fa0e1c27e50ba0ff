"""The page of a comparison: both verdicts, all figures, and truth, A and B of each image beside each other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dittool import __version__
from dittool.ckpt.run_log import read_log
from dittool.geometry import Bucket
from dittool.storage import output_folder, write_atomic
from dittool.validate.compare import Comparison, Side
from dittool.validate.pictures import png_uri, strip_cells, thumb
from dittool.validate.report import environment

_MOST_IMAGES = 60


@dataclass(frozen=True)
class ComparedImage:
    caption: str
    values: tuple[float, float]
    pictures: list[tuple[str, Image.Image]]  # truth, A, B: those that are there


def write_comparison(comparison: Comparison, path: Path | None = None) -> Path:
    """Writes the page and returns its path; by default beside the second one's results. Raises `StorageError`."""
    first, second = comparison.sides
    if path is None:
        path = second.folder / f"compare_with_{first.folder.resolve().parent.parent.name}_{first.folder.name}.html"
    output_folder(path.parent)
    page = (
        environment()
        .get_template("compare.html")
        .render(
            comparison=comparison, images=_images(comparison), loss_plot=_loss_plot(comparison), version=__version__
        )
    )
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def _loss_plot(comparison: Comparison) -> str:
    """Training losses of both runs over steps, hold-out losses dashed; "" without a log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logs = [read_log(side.run) for side in comparison.sides]
    if not any("loss" in row for rows in logs for row in rows):
        return ""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for mark, rows, colour in zip("AB", logs, ("C0", "C1"), strict=True):
        for name, label, style in (("loss", "training", "-"), ("eval_loss", "hold-out, EMA weights", "--")):
            if points := [(row["step"], row[name]) for row in rows if name in row]:
                axis.plot(*zip(*points, strict=True), style, color=colour, label=f"{mark}, {label}", linewidth=1.2)
    axis.set(xlabel="step", ylabel="velocity error (mean square)", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    png = io.BytesIO()
    figure.savefig(png, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return png_uri(png.getvalue())


def _images(comparison: Comparison) -> list[ComparedImage]:
    """The images in common, those first whose figures differ most."""
    if comparison.pairs is None:
        return []
    first, second = (side.images for side in comparison.sides)
    values = {
        image: (first[image][comparison.pairs.metric]["value"], second[image][comparison.pairs.metric]["value"])
        for image in comparison.pairs.ids
    }
    chosen = sorted(values, key=lambda image: -abs(values[image][0] - values[image][1]))[:_MOST_IMAGES]
    return [
        ComparedImage(first[image].get("caption", ""), values[image], _pictures(comparison.sides, image))
        for image in chosen
    ]


def _pictures(sides: tuple[Side, Side], image: str) -> list[tuple[str, Image.Image]]:
    cells = [_truth_and_result(side, image) for side in sides]
    labelled = [("truth", found[0]) for found in cells if found][:1]
    labelled += [(label, found[1]) for label, found in zip("AB", cells, strict=True) if found]
    return [(label, thumb(pixels)) for label, pixels in labelled]


def _truth_and_result(side: Side, image: str) -> list[np.ndarray] | None:
    """The first two cells of the strip that the reconstruction left; None when it is not there any more."""
    row = side.images[image]
    try:
        size = Bucket.from_name(row["bucket"])
        return strip_cells(side.folder / "reconstruction" / Path(row["file"]).name, size.width, size.height, 2)
    except (KeyError, ValueError):
        return None
