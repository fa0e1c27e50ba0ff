"""`results.json` for machines and `report.html` for people: one page that loads nothing from anywhere."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dittool import __version__
from dittool.ablate.plan import BASE
from dittool.ablate.results import Compared, Results, Row, summary, verdict
from dittool.ablate.runs import Look, Run
from dittool.ablate.statistics import Difference
from dittool.ckpt.run_log import read_log
from dittool.console import duration_text
from dittool.storage import write_atomic, write_json
from dittool.validate.captions import ALONE, WITH_REFERENCE, Share, shares_to_json
from dittool.validate.pictures import png_uri
from dittool.validate.report import environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTHED = 0.9  # of the plotted training losses: shown ← 0.9·shown + 0.1·loss
_LARGEST_PICTURE = 4_000_000  # bytes of a sheet that the page takes in


def write_results(results: Results) -> None:
    """For machines. Raises OSError with the old file untouched."""
    write_json(results.out / "results.json", to_json(results))


def write_page(results: Results) -> None:
    """Both files. Raises OSError with the old ones untouched."""
    write_results(results)
    template = environment(Path(__file__).parent).get_template("ablate.html")
    page = template.render(
        results=results,
        targets=[(row.name, target_text(row)) for row in results.rows if results.plan.plan.target is not None],
        rows=[shown_row(row, results) for row in results.rows],
        looks=[(row.name, [look_text(row, at) for at in results.plan.looks]) for row in results.rows if row.looks],
        summary=summary(results),
        scenes=[shown for row in results.rows for shown in scene_rows(row)],
        figures=[(row.name, row.equal_updates.figures) for row in results.rows if row.equal_updates],
        modes=mode_rows(results),
        plots=[uri for uri in (_differences(results), _curves(results), *_by_timestep(results)) if uri],
        sheets=_sheets(results),
        version=__version__,
    )
    write_atomic(results.out / "report.html", page.encode("utf-8", "backslashreplace"))


def to_json(results: Results) -> dict[str, object]:
    return {
        "base": results.plan.plan.base,
        "updates": results.plan.updates,
        "seeds": list(results.plan.plan.seeds),
        "rows_tried": results.tried,
        "complete": results.complete,
        "runs_done": results.runs_done,
        "runs_planned": results.runs_planned,
        "base_loss": results.base_loss,
        "target": results.plan.plan.target,
        "looks": results.plan.looks,
        "rows": [_row_json(row, results) for row in results.rows],
    }


def _row_json(row: Row, results: Results) -> dict[str, object]:
    return {
        "name": row.name,
        "keys": dict(row.keys),
        "failed": row.failed or None,
        "time": row.cost.time if row.cost else None,
        "memory": row.cost.memory if row.cost else None,
        "seconds_per_update": row.cost.seconds if row.cost else None,
        "equal_updates": _compared_json(row.equal_updates),
        "equal_time": _compared_json(row.equal_time),
        "shorter": [_compared_json(one) for one in row.shorter],
        "updates_to_base_loss": row.updates_to_base,
        "confirmed": _compared_json(row.confirmed),
        "scenes": {updates: shares_to_json(shares) for updates, shares in row.scenes.items()},
        "target": row.target and {**asdict(row.target), "share": row.target.share.to_json()},
        "looks": [_look_json(look) for look in row.looks],
        "stopped": _look_json(row.stopped) if row.stopped else None,
        "verdict": None if row.failed else verdict(row, results) or None,
    }


def _look_json(look: Look) -> dict[str, object]:
    return {"updates": look.updates, **_difference_json(look.difference)}


def _compared_json(compared: Compared | None) -> dict[str, object] | None:
    if compared is None:
        return None
    found = compared.difference
    return {
        "updates": compared.updates,
        **_difference_json(found),
        "seeds": found.seeds,
        "samples": found.samples,
        "narrower_by_pairing": found.narrower if np.isfinite(found.narrower) else None,
        "by_mode": _differences_json(compared.by_mode),
        "by_timestep": _differences_json(compared.by_timestep),
        "by_column": _differences_json(compared.by_column),
        "figures": _differences_json(compared.figures),
    }


def _differences_json(parts: Mapping[str, Difference]) -> dict[str, object]:
    return {name: _difference_json(part) for name, part in parts.items()}


def _difference_json(found: Difference) -> dict[str, object]:
    return {"difference": found.mean, "interval": None if np.isnan(found.low) else [found.low, found.high]}


@dataclass(frozen=True)
class ShownRow:
    """A row of the table, as text."""

    name: str
    keys: str
    equal_updates: str
    time: str
    memory: str
    equal_time: str
    reaches: str
    verdict: str


def shown_row(row: Row, results: Results) -> ShownRow:
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.keys.items())
    if row.name == BASE:
        loss = "–" if results.base_loss is None else f"loss {results.base_loss:.4f}"
        return ShownRow(BASE, f"{results.plan.plan.base}, {results.plan.updates:,} updates", loss, "1", "1", "", "", "")
    words = verdict(row, results) or "runs"
    if row.confirmed:
        words += f"; on unseen seeds {interval_text(row.confirmed)}: {row.confirmed.difference.words()}"
    time = (f"{row.cost.time:.2f} ×", f"{row.cost.memory:.2f} ×") if row.cost else ("–", "–")
    reaches = f"{row.updates_to_base:,}" if row.updates_to_base else "–"
    return ShownRow(
        row.name, keys, interval_text(row.equal_updates), *time, interval_text(row.equal_time), reaches, words
    )


@dataclass(frozen=True)
class ShownScenes:
    """What was read from the pictures of a row's runs of one length: captions alone, then with a reference."""

    name: str
    updates: int
    known: dict[str, str]  # by attribute
    new: dict[str, str]
    known_with_reference: str
    new_with_reference: str


def scene_rows(row: Row) -> list[ShownScenes]:
    return [
        ShownScenes(
            row.name,
            updates,
            {name: share_text(share) for name, share in shares["known"][ALONE].items()},
            {name: share_text(share) for name, share in shares["new"][ALONE].items()},
            share_text(shares["known"][WITH_REFERENCE]["all"]),
            share_text(shares["new"][WITH_REFERENCE]["all"]),
        )
        for updates, shares in row.scenes.items()
    ]


def share_text(share: Share) -> str:
    """`78 % (61 to 89)`."""
    low, high = share.interval
    return f"{100 * share.value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def target_text(row: Row) -> str:
    return f"{row.target.updates:,} updates, {duration_text(row.target.seconds)}" if row.target else "not reached"


def interval_text(compared: Compared | None) -> str:
    """`−0.0123 (−0.0150 … −0.0096), 1,100 updates`"""
    return "–" if compared is None else f"{_difference_text(compared.difference)}, {compared.updates:,} updates"


def mode_rows(results: Results) -> list[tuple[str, dict[str, str]]]:
    """(Row, its difference at equal updates by mode of dropout), where the family has modes."""
    compared = [(row.name, row.equal_updates.by_mode) for row in results.rows if row.equal_updates]
    return [(row, {mode: _difference_text(part) for mode, part in parts.items()}) for row, parts in compared if parts]


def look_text(row: Row, updates: int) -> str:
    """The same on the way."""
    return next((_difference_text(look.difference) for look in row.looks if look.updates == updates), "–")


def _difference_text(found: Difference) -> str:
    return f"{found.mean:+.4f}" + ("" if np.isnan(found.low) else f" ({found.low:+.4f} … {found.high:+.4f})")


def _plot(draw: Callable[[Axes], bool], height: float) -> str:
    """A picture of what `draw` draws; "" where it has nothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, height), layout="constrained")
    try:
        if not draw(axis):
            return ""
        axis.grid(alpha=0.3)
        png = io.BytesIO()
        figure.savefig(png, dpi=110, metadata={"Software": None})
        return png_uri(png.getvalue())
    finally:
        plt.close(figure)


def _differences(results: Results) -> str:
    """Each row's difference to the base with its interval, at equal updates and at equal time."""
    rows = [row for row in results.rows if row.equal_updates or row.equal_time]

    def draw(axis: Axes) -> bool:
        for place, row in enumerate(reversed(rows)):
            for compared, colour, shift in ((row.equal_updates, "C0", 0.12), (row.equal_time, "C1", -0.12)):
                if compared:
                    found = compared.difference
                    half = 0.0 if np.isnan(found.low) else found.high - found.mean
                    axis.errorbar(found.mean, place + shift, xerr=half, fmt="o", color=colour, capsize=3)
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set(
            yticks=range(len(rows)),
            yticklabels=[row.name for row in reversed(rows)],
            xlabel="loss of the row − loss of the base; left is better. Blue: equal updates, orange: equal time",
        )
        return bool(rows)

    return _plot(draw, 1.2 + 0.5 * len(rows))


def _curves(results: Results) -> str:
    """Training losses of the first seed's runs at equal updates, smoothed."""
    seed, updates = results.plan.plan.seeds[0], results.plan.updates

    def draw(axis: Axes) -> bool:
        drawn = False
        for row in results.rows:
            folder = results.folders.get(Run(row.name, seed, updates))
            points = [(line["step"], line["loss"]) for line in read_log(folder) if "loss" in line] if folder else []
            if points:
                steps, losses = zip(*points, strict=True)
                axis.plot(steps, _smooth(losses), label=row.name, linewidth=1.2)
                drawn = True
        axis.set(xlabel=f"update, seed {seed}", ylabel="training loss, smoothed")
        if drawn:
            axis.legend()
        return drawn

    return _plot(draw, 4)


def _smooth(losses: tuple[float, ...]) -> list[float]:
    shown = [losses[0]]
    for loss in losses[1:]:
        shown.append(_SMOOTHED * shown[-1] + (1 - _SMOOTHED) * loss)
    return shown


def _by_timestep(results: Results) -> list[str]:
    """Differences at equal updates by timestep: a picture for each mode of dropout, one line a row."""
    compared = [(row.name, row.equal_updates) for row in results.rows if row.equal_updates]

    def draw(mode: str, axis: Axes) -> bool:
        for place, (name, found) in enumerate(compared):
            parts = [found.by_column[f"{mode} {t}"] for t in found.by_timestep]
            times = np.array([float(t) for t in found.by_timestep]) + 0.003 * place  # so that no bar hides another
            half = [part.high - part.mean for part in parts]
            axis.errorbar(times, [part.mean for part in parts], yerr=half, fmt="o-", capsize=2, label=name)
        axis.axhline(0, color="0.5", linewidth=1)
        axis.set(xlabel=f"timestep t (1 is noise), {mode}", ylabel="difference to the base")
        axis.legend()
        return True

    return [_plot(partial(draw, mode), 3.2) for mode in (compared[0][1].by_mode if compared else ())]


def _sheets(results: Results) -> list[tuple[str, str]]:
    """(Row, its last picture): drawn from the same noise and conditions, first seed, equal updates."""
    seed, updates = results.plan.plan.seeds[0], results.plan.updates
    sheets = []
    for row in results.rows:
        folder = results.folders.get(Run(row.name, seed, updates))
        picture = folder and folder / "samples" / f"step{updates:07d}_ema.png"
        if picture and picture.is_file() and picture.stat().st_size <= _LARGEST_PICTURE:
            sheets.append((row.name, png_uri(picture.read_bytes())))
    return sheets
