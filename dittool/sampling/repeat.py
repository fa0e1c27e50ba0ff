"""A picture that is drawn again: are its files still those of then, and are its pixels the same?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dittool import __version__
from dittool.console import Talk
from dittool.sampling.picture_file import OneStepSettings, PictureSettings, same_pixels

# settings that name a file → what it is
_FILES = {"checkpoint": "checkpoint", "weak": "weak model", "reference": "reference", "init": "init"}


@dataclass(frozen=True)
class Repeat:
    """A picture that is to be drawn again, bit by bit."""

    path: Path
    settings: PictureSettings | OneStepSettings
    keep: int | None  # the one seed of the batch that is written; None: all
    exact: bool  # False: an option asks for something else than the picture
    asked: frozenset[str] = frozenset()  # fields of `[sample]` that an option asks for, not the picture


@dataclass(frozen=True)
class DrawnImage:
    path: Path
    settings: dict[str, object]
    same_pixels: bool | None = None  # of a picture that was drawn again: whether it came out the same

    def to_json(self) -> dict[str, object]:
        same = {} if self.same_pixels is None else {"same_pixels": self.same_pixels}
        return {"file": str(self.path), "settings": self.settings, **same}


def made_with(device: torch.device) -> dict[str, object]:
    """What rounding depends on, beside the settings."""
    return {"dit": __version__, "torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}


def warn_of_other_files(repeat: Repeat | None, found: Mapping[str, object], talk: Talk) -> None:
    """Tells which files are not those that the picture was drawn with; `found` are the settings of now."""
    if repeat is None:
        return
    for name, what in _FILES.items():
        then, now = getattr(repeat.settings, f"{name}_sha256", None), found.get(f"{name}_sha256")
        if then is not None and then != now:
            talk.warn(
                f"{found[name]} is not the {what} that {repeat.path} was drawn with: sha256 {str(now or 'none')[:12]}…,"
                f" then {then[:12]}…"
            )


def compare(repeat: Repeat | None, pixels: np.ndarray, now: Mapping[str, object], talk: Talk) -> bool | None:
    """Whether a picture (H, W, 3) that was to be repeated is the same, bit by bit; None when something else was
    asked for. `now` is what it is made with.
    """
    if repeat is None or not repeat.exact:
        return None
    same = same_pixels(repeat.path, pixels)
    then = repeat.settings.made_with
    if same:
        talk.note(f"the same pixels as {repeat.path}")
    else:
        changed = ", ".join(
            f"{key} {now[key]}, then {then[key]}" for key in now if key in then and then[key] != now[key]
        )
        talk.warn(f"the pixels differ from those of {repeat.path}" + (f"; drawn with {changed}" if changed else ""))
    return same
