"""The page of a comparison: both verdicts, all figures, and truth, A and B of each image beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dittool import __version__
from dittool.data.buckets import Bucket
from dittool.storage import output_folder, write_atomic
from dittool.validate.compare import Comparison, Side
from dittool.validate.pictures import strip_cells, thumb
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
    page = environment().get_template("compare.html").render(comparison=comparison, images=_images(comparison), version=__version__)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def _images(comparison: Comparison) -> list[ComparedImage]:
    """The images in common, those first whose figures differ most."""
    if comparison.pairs is None:
        return []
    first, second = (side.images for side in comparison.sides)
    values = {image: tuple(side[image][comparison.pairs.metric]["value"] for side in (first, second)) for image in comparison.pairs.ids}
    chosen = sorted(values, key=lambda image: -abs(values[image][0] - values[image][1]))[:_MOST_IMAGES]
    return [ComparedImage(first[image].get("caption", ""), values[image], _pictures(comparison.sides, image)) for image in chosen]


def _pictures(sides: tuple[Side, Side], image: str) -> list[tuple[str, Image.Image]]:
    cells = [_truth_and_result(side, image) for side in sides]
    truth = next((found[0] for found in cells if found), None)
    labelled = [("truth", truth), *((label, found and found[1]) for label, found in zip("AB", cells, strict=True))]
    return [(label, thumb(pixels)) for label, pixels in labelled if pixels is not None]


def _truth_and_result(side: Side, image: str) -> list[np.ndarray] | None:
    """The first two cells of the strip that the reconstruction left; None when it is not there any more."""
    row = side.images[image]
    try:
        size = Bucket.from_name(row["bucket"])
        return strip_cells(side.folder / "reconstruction" / Path(row["file"]).name, size.width, size.height, 2)
    except (KeyError, ValueError):
        return None
