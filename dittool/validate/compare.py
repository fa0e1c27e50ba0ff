"""`dit validate --compare A B`: two validations side by side, figure by figure and image by image.

What is compared are the `results.json` that were written before; nothing is drawn again. Two validations of one data
set judge the same images from the same noise, so the images are compared in pairs, and a permutation test says whether
the difference is more than luck.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool.config.schema import Sample
from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.objective.flow import MODES
from dittool.shell import quoted
from dittool.storage import read_json
from dittool.validate.swap import sign_flip_p
from dittool.validate.verdict import CHECKS, Results

RESULTS = "results.json"
_CONTRACT = ("step", "criteria", "verdict")  # what every results.json holds
# name → (title, lower is better)
_METRICS = {"lpips-alex": ("LPIPS", True), "ssim": ("SSIM", False), "psnr": ("PSNR", False)}

_SAMPLING = {  # keys of `[sample]`, as a difference is told
    "solver": "solver",
    "steps": "steps of the solver",
    "guidance": "guidance",
    "cfg_text": "guidance scale of the text",
    "cfg_dino": "guidance scale of the reference",
    "guidance_interval": "guidance interval",
    "guidance_parallel": "guidance along the image",
    "guidance_norm": "largest guidance",
    "guidance_momentum": "momentum of the guidance",
}


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str  # "nano, step 5,000"
    folder: Path
    run: Path  # where its log is, if there is one
    results: Results

    @property
    def diagnosis(self) -> str:
        return str(self.results.get("diagnosis", ""))

    @property
    def images(self) -> dict[str, Results]:
        """Rows of the reconstruction by the image's id."""
        return {row["id"]: row for row in self.results.get("reconstruction", {}).get("per_image", [])}


@dataclass(frozen=True)
class Row:
    """One figure of both sides."""

    title: str
    values: tuple[float | None, float | None]
    lower_is_better: bool | None  # None: neither is better

    @property
    def better(self) -> int | None:
        """0, 1, or None where they are equal, one is missing, or neither is better."""
        first, second = self.values
        if first is None or second is None or first == second or self.lower_is_better is None:
            return None
        return int((second < first) == self.lower_is_better)


@dataclass(frozen=True)
class Pairs:
    """The images that both sides have drawn, in the first metric that both have measured."""

    metric: str
    lower_is_better: bool
    ids: list[str]
    second_better: float  # share of the images
    equal: float  # share of the images whose figures are the same
    # chance of a mean difference so far from zero between two models that are alike (two-sided permutation test)
    p_value: float

    @property
    def line(self) -> str:
        """For people."""
        if self.equal == 1:
            return f"all {len(self.ids)} images are as near to the truth in B as in A ({self.metric})"
        equal = f", {self.equal:.0%} are as near" if self.equal else ""
        return (
            f"B is nearer to the truth in {self.second_better:.0%} of {len(self.ids)} images{equal} ({self.metric});"
            f" chance of that between models that are alike {self.p_value:.2g}"
        )


@dataclass(frozen=True)
class Comparison:
    sides: tuple[Side, Side]
    rows: list[Row]
    pairs: Pairs | None  # None: no image in common
    differences: list[str]  # in data and settings: reasons for which figures are not those of the models alone

    def to_json(self) -> dict[str, object]:
        return {
            "sides": [
                {
                    "name": side.name,
                    "folder": str(side.folder),
                    **{key: side.results[key] for key in ("step", "verdict")},
                }
                for side in self.sides
            ],
            "rows": [{"title": row.title, "values": list(row.values), "better": row.better} for row in self.rows],
            "pairs": None
            if self.pairs is None
            else {
                "metric": self.pairs.metric,
                "images": len(self.pairs.ids),
                "second_better": self.pairs.second_better,
                "equal": self.pairs.equal,
                "p_value": self.pairs.p_value,
            },
            "differences": self.differences,
        }


def compare(first: Path, second: Path) -> Comparison:
    """Compares two validations: each a run (its newest one), a folder of one, or its `results.json`.

    Raises `UsageError` where there is none and `BadDataError` for a file that is no results.json.
    """
    sides = _open(first), _open(second)
    return Comparison(
        sides, _rows(*(side.results for side in sides)), _pairs(*sides), _differences(*(side.results for side in sides))
    )


def newest_results(target: Path) -> Path:
    """The results that a path stands for. A run's newest are those of its highest step, on the hold-out."""
    if target.is_file():
        if target.suffix.lower() != ".json":
            raise UsageError(
                f"{target}: not the {RESULTS} of a validation",
                f"judge it first with: dit validate {quoted(target)}; then compare what that writes",
            )
        return target
    if (target / RESULTS).is_file():
        return target / RESULTS
    found = target.glob(f"validation/step*/{RESULTS}")
    steps = {int(match[1]): path for path in found if (match := re.fullmatch(r"step(\d+)", path.parent.name))}
    if not steps:
        if not target.exists():
            raise UsageError(f"{target}: no such file or folder", did_you_mean(target, "name a run or a results.json"))
        expected = f"{RESULTS} or validation/stepNNNNNNN/{RESULTS}"
        raise UsageError(
            f"{target}: no validation here, which would be {expected}",
            f"make one with: dit validate {quoted(target)}",
        )
    return steps[max(steps)]


def _open(target: Path) -> Side:
    path = newest_results(target)
    results = read_json(path)
    if not isinstance(results, dict) or not all(key in results for key in _CONTRACT):
        expected = ", ".join(_CONTRACT)
        raise BadDataError(
            f"{path}: not the results of a validation: {expected} should be in it",
            "make them again with: dit validate RUN",
        )
    folder = path.parent
    run = folder.parent.parent if folder.parent.name == "validation" else folder
    return Side(f"{run.resolve().name}, step {results['step']:,}", folder, run, results)


def _rows(first: Results, second: Results) -> list[Row]:
    """The criteria, then what stands behind them."""
    criteria = [{criterion["name"]: criterion for criterion in results["criteria"]} for results in (first, second)]
    rows = []
    for name in dict.fromkeys([*criteria[0], *criteria[1]]):
        both = [found.get(name) for found in criteria]
        known = next(criterion for criterion in both if criterion)
        # a check holds or does not; within a range no place is better
        neither = name in CHECKS or isinstance(known["threshold"], list)
        direction = None if neither else known.get("lower_is_better")
        rows.append(Row(known.get("title", name), (_at(both[0], ["value"]), _at(both[1], ["value"])), direction))
    decisive = [_at(results, ("reconstruction", "metric")) for results in (first, second)]
    for name, (title, lower) in _METRICS.items():
        if name != "lpips-alex":  # that one is a criterion
            rows.append(
                _row(
                    f"reconstruction, mean {title}",
                    first,
                    second,
                    "reconstruction",
                    "metrics",
                    name,
                    "value",
                    lower=lower,
                )
            )
        if decisive != [name, name]:
            gap = ("reconstruction", "metrics", name, "gap_closed")
            rows.append(_row(f"reconstruction, share of the gap closed ({name})", first, second, *gap, lower=False))
    rows.append(_row("swap, mean margin", first, second, "dino_swap", "mean_margin", lower=False))
    for mode in MODES:
        rows.append(
            _row(f"loss, {mode.replace('_', ' ')} kept", first, second, "mode_losses", "loss", mode, lower=True)
        )
    return [row for row in rows if row.values != (None, None)]


def _row(title: str, first: Results, second: Results, *path: str, lower: bool | None) -> Row:
    return Row(title, (_at(first, path), _at(second, path)), lower)


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _pairs(first: Side, second: Side) -> Pairs | None:
    images = first.images, second.images
    ids = [image for image in images[0] if image in images[1]]
    metric = next(
        (name for name in _METRICS if ids and all(name in side[image] for side in images for image in ids)), None
    )
    if metric is None:
        return None
    lower = _METRICS[metric][1]
    # of the second
    gains = [
        (images[0][image][metric]["value"] - images[1][image][metric]["value"]) * (1 if lower else -1) for image in ids
    ]
    one_sided = min(sign_flip_p(gains), sign_flip_p([-gain for gain in gains]))
    better, equal = (sum(hits) / len(gains) for hits in ([gain > 0 for gain in gains], [gain == 0 for gain in gains]))
    return Pairs(metric, lower, ids, better, equal, min(1.0, 2 * one_sided))


def _differences(first: Results, second: Results) -> list[str]:
    found = []
    for what, *path in (
        ("data identity", "data", "identity_hash"),
        ("split", "data", "split"),
        ("images judged", "reconstruction", "images"),
        ("metric", "reconstruction", "metric"),
        ("distance of text edits", "text_manip", "distance"),
    ):
        values = _at(first, path), _at(second, path)
        if None not in values and values[0] != values[1]:
            found.append(f"{what}: {_short(values[0])} and {_short(values[1])}")
    said = _at(first, ["settings"]), _at(second, ["settings"])
    return found + (_sampled_otherwise(*said) if None not in said else [])


def _sampled_otherwise(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Settings that a result leaves out are as they were before they could be said."""
    found = []
    for name, what in _SAMPLING.items():
        values = [settings.get(name, Sample.model_fields[name].default) for settings in (first, second)]
        if values[0] != values[1]:
            found.append(f"{what}: {_short(values[0])} and {_short(values[1])}")
    return found


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 32 else str(value)
