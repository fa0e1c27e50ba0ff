"""Drawn images with three captions each: a table that names them, the features and the shards that it becomes."""

from __future__ import annotations

import csv
from pathlib import Path

from dittool.config.load import load_config
from dittool.config.schema import Config
from tests.conftest import TINY

KINDS = ("short", "long", "tags")
CONFIG = (*TINY, "data.caption_column=['short','long','tags']", "data.caption_weights={long=3, tags=0.5}")


def captions_of(caption: str, number: int) -> dict[str, str]:
    """Of an image with this caption: another text for each kind; each fourth image has no tags."""
    return {
        "short": caption.split(",")[0],
        "long": f"this drawing, seen from the left side, shows {caption}",
        "tags": ", ".join(caption.replace(",", "").split()) if number % 4 else "",
    }


def write_list(images: Path) -> Path:
    """A table beside the drawn images, whose texts it takes the captions from."""
    path = images / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", *KINDS])
        for number, text in enumerate(sorted(images.glob("*.txt"))):
            picture = next(file for file in images.glob(f"{text.stem}.*") if file != text)
            rows.writerow([picture.name, *captions_of(text.read_text().strip(), number).values()])
            text.unlink()
    return path


def config(*overrides: str) -> Config:
    return load_config("demo", [*CONFIG, *overrides])
