"""`index.html` in a run's folder: curves, pictures, warnings, configuration and time left, in one file that opens
without a server and loads nothing but the pictures beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool import __version__
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict, config_to_dict, config_to_toml, load_config, read_toml
from dittool.config.presets import preset_names
from dittool.runs.chart import FRAME, Chart, chart
from dittool.runs.normal import Curves, curves_of
from dittool.runs.state import state_of
from dittool.storage import write_atomic
from dittool.validate.report import environment

PAGE = "index.html"
_RELOADED = 30  # seconds, while the run trains
_LEAST_SECONDS = 10.0  # between two pages
_SHARE_OF_TIME = 100  # a page that takes so long is written again after so many times that
_MOST_PICTURES = 60
_KEPT = ("none", "text_only", "reference_only", "both")
_CHARTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": "training", "eval_loss": "hold-out, averaged weights"}),
    ("hold-out loss by timestep", {f"eval_loss_q{q}": f"{q}% quantile" for q in (10, 30, 50, 70, 90)}),
    ("hold-out loss by what is kept, median timestep", {f"eval_loss_{mode}": mode.replace("_", " ") for mode in _KEPT}),
    ("training loss by what is kept", {f"loss_{mode}": mode.replace("_", " ") for mode in _KEPT}),
    ("norm of the gradient", {"grad_norm": "before clipping"}),
    ("distance of the average", {"ema_distance": "‖weights − average‖ / ‖weights‖"}),
    ("learning rate", {"lr": "rate"}),
    ("images a second", {"samples_per_second": "images/s"}),
    ("waiting for data", {"data_wait_share": "share of the time"}),
    ("memory", {"peak_memory_gb": "most so far, GB"}),
)


@dataclass(frozen=True)
class Change:
    """A key that differs from the preset's."""

    key: str
    preset: str
    run: str


@dataclass(frozen=True)
class Settings:
    """A run's configuration, and what of it differs from the shipped preset of the same description."""

    toml: str
    preset: str | None
    changes: list[Change]
    curves: Curves | None = None  # of runs of this preset, where this one can be held against them


class LivePage:
    """The page of a run that trains: renewed every few seconds at most, and in at most a hundredth of the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings: Settings | None = None
        self._next = 0.0

    def renew(self, rows: list[dict[str, Any]], ended: bool = False) -> None:
        """`ended`: the last time. Raises OSError, `UsageError`."""
        start = time.monotonic()
        if start < self._next and not ended:
            return
        self._next = start + _LEAST_SECONDS  # also when it fails
        self._settings = self._settings or settings_of(self._folder)
        write_page(self._folder, rows, self._settings, ended)
        self._next = start + max(_LEAST_SECONDS, _SHARE_OF_TIME * (time.monotonic() - start))


def write_page(folder: Path, rows: list[dict[str, Any]], settings: Settings, ended: bool = False) -> Path:
    """Writes the page and returns its path; the old one stays whole until the new one is. Raises OSError.

    ended: the run ends now, though its folder is still held.
    """
    run = state_of(folder, rows, ended)
    page = (
        environment(Path(__file__).parent)
        .get_template("run.html")
        .render(
            run=run,
            frame=FRAME,
            charts=_charts(rows, settings.curves),
            pictures=_pictures(folder),
            warnings=_warnings(rows),
            settings=settings,
            written=int(time.time()),
            reloaded=_RELOADED if run.state == "training" else 0,
            version=__version__,
        )
    )
    path = folder / PAGE
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def settings_of(folder: Path) -> Settings:
    """Of a run's `resolved.toml`. Raises `UsageError` where it cannot be read."""
    config = config_from_dict(read_toml(folder / "resolved.toml"), str(folder / "resolved.toml"))
    text, own = config_to_toml(config), _flat(config_to_dict(config))
    preset = preset_of(config)
    shipped = _flat(config_to_dict(load_config(preset))) if preset else own
    changed = [key for key in dict.fromkeys([*shipped, *own]) if shipped.get(key) != own.get(key)]
    changes = [Change(key, _text(shipped.get(key)), _text(own.get(key))) for key in changed]
    curves = curves_of(folder, preset, config.train.steps, config.train.batch_size)
    return Settings(text, preset, changes, curves)


def preset_of(config: AnyConfig) -> str | None:
    """The shipped preset that a configuration began as: that of its description."""
    return next((name for name in preset_names() if load_config(name).description == config.description), None)


def _charts(rows: Sequence[dict[str, Any]], curves: Curves | None) -> list[Chart]:
    bands = curves.bands if curves else {}
    drawn = (chart(title, rows, figures, bands.get(next(iter(figures)))) for title, figures in _CHARTS)
    return [one for one in drawn if one is not None]


def _pictures(folder: Path) -> list[tuple[int, str]]:
    """Step and place, seen from the page, of what was drawn on the way; of many, some at equal distances."""
    found = sorted(folder.glob("samples/step*.png"))
    numbered = [(int(match[1]), path) for path in found if (match := re.match(r"step(\d+)", path.name))]
    if len(numbered) > _MOST_PICTURES:
        places = {round(i * (len(numbered) - 1) / (_MOST_PICTURES - 1)) for i in range(_MOST_PICTURES)}
        numbered = [numbered[place] for place in sorted(places)]
    return [(step, path.relative_to(folder).as_posix()) for step, path in numbered]


def _warnings(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Step and words of what failed beside training, of updates left out, and of figures outside of their band."""
    said = []
    for row in rows:
        if "failed" in row:
            said.append((row["step"], f"{row['failed']} failed: {row.get('reason', '')}"))
        if "skipped_updates" in row:
            said.append((row["step"], f"loss or gradient not finite, no update ({row['skipped_updates']} so far)"))
        if "outside" in row:
            said.append((row["step"], str(row["outside"])))
    return said


def _flat(tree: dict[str, Any], under: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{under}{key}.") if isinstance(value, dict) else {f"{under}{key}": value}
    return found


def _text(value: object) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
