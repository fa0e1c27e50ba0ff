"""The report: one page with everything inside, pictures included, that opens anywhere without a server or a network.

Texts from the data (captions, names) are escaped, control characters and marks that reorder text are shown, and the
page's own policy forbids it to load anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dittool import __version__
from dittool.ckpt.run_log import plot_losses, read_log
from dittool.config.load import config_to_toml
from dittool.config.schema import Config
from dittool.console import duration_text, escaped
from dittool.storage import write_atomic
from dittool.validate.captions import Captions
from dittool.validate.figures.figure import FIGURE_COLUMNS, SetFigures, figure_rows
from dittool.validate.metrics import Metric
from dittool.validate.mode_losses import ModeLosses
from dittool.validate.pictures import data_uri, png_uri
from dittool.validate.reconstruction import Reconstruction
from dittool.validate.set_metrics import SetMetrics
from dittool.validate.swap import Swap
from dittool.validate.text_edit import TextEdits
from dittool.validate.verdict import Criterion, Results, value_text

TEMPLATE = "report.html"
_DIGITS = {"psnr": 1}  # after the point; three for all others


@dataclass(frozen=True)
class Tested:
    """What the tests that ran found; None: not asked for."""

    reconstruction: Reconstruction | None = None
    swap: Swap | None = None
    text: TextEdits | None = None
    captions: Captions | None = None
    modes: ModeLosses | None = None
    sets: SetMetrics | None = None
    figures: SetFigures | None = None

    def parts(
        self,
    ) -> dict[str, Reconstruction | Swap | TextEdits | Captions | ModeLosses | SetMetrics | SetFigures | None]:
        """By the name in `results.json`."""
        return {
            "reconstruction": self.reconstruction,
            "dino_swap": self.swap,
            "text_manip": self.text,
            "captions": self.captions,
            "mode_losses": self.modes,
            "set_metrics": self.sets,
            "figures": self.figures,
        }


def write_report(
    folder: Path, results: Results, criteria: list[Criterion], tested: Tested, config: Config, run: Path | None
) -> Path:
    """Writes `report.html`, and `loss.png` when the run's `log.jsonl` is there. Returns the page's path."""
    page = (
        environment()
        .get_template(TEMPLATE)
        .render(
            results=results,
            criteria=criteria,
            tested=tested,
            title=run.name if run is not None else "model",
            loss_plot=_loss_plot(folder, run),
            config=config_to_toml(config),
            version=__version__,
        )
    )
    path = folder / "report.html"
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


@cache
def environment(*folders: Path) -> Environment:
    """The surroundings of templates, here and in `folders`: escaping on, unknown names an error. A template is compiled
    once.
    """
    surroundings = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters |= {
        "shown": escaped,
        "uri": data_uri,
        "figure": figure_text,
        "percent": percent_text,
        "duration": duration_text,
    }
    surroundings.filters |= {"value": value_text, "ratio": ratio_text, "figure_rows": figure_rows}
    surroundings.globals["figure_columns"] = FIGURE_COLUMNS
    return surroundings


def figure_text(value: float | None, metric: Metric | str = "") -> str:
    """`0.214`, or `24.1` for decibels; a dash for what was not measured."""
    name = metric.name if isinstance(metric, Metric) else metric
    return "–" if value is None else f"{value:.{_DIGITS.get(name, 3)}f}"


def percent_text(value: float | None) -> str:
    """`94 %`; a dash for what was not measured."""
    return "–" if value is None else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def ratio_text(value: float | None) -> str:
    """`1.30 ×`; a dash for what was not measured."""
    return "–" if value is None else f"{value:.2f} ×"


def _loss_plot(folder: Path, run: Path | None) -> str:
    rows = read_log(run) if run is not None else []
    if not any("loss" in row for row in rows):
        return ""
    path = folder / "loss.png"
    plot_losses(rows, path)
    return png_uri(path.read_bytes())
