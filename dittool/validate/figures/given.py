"""`dit validate F.npz`: the figures that papers print, of images that any program has drawn, without a checkpoint.

F_figures/    results.json  report.html
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dittool import __version__
from dittool.console import SILENT, Talk
from dittool.devices import device_of_choice
from dittool.encoders.metric_networks import load_network
from dittool.errors import UsageError
from dittool.storage import (
    file_sha256,
    folder_lock,
    nothing_left_of_refusal,
    output_folder,
    write_atomic,
    write_json,
)
from dittool.validate.figures.figure import FIGURE_TESTS, SetFigures, measure_figures, networks_of
from dittool.validate.figures.image_sets import (
    TEXTS,
    SetFile,
    open_set,
    read_set,
    require_features_file,
    write_features,
)
from dittool.validate.making import made_with
from dittool.validate.place import RESULTS, place_to_judge, take_the_place
from dittool.validate.report import environment
from dittool.validate.verdict import MEASURED, Results
from dittool.whereabouts import remembered

_TEMPLATE = "figures.html"


@dataclass(frozen=True)
class MeasuredSet:
    """The outcome."""

    figures: SetFigures
    results: Results
    report: Path


def measure_given(
    samples: Path,
    reference: Path | None,
    tests: Sequence[str],
    out: Path | None = None,
    features_out: Path | None = None,
    talk: Talk = SILENT,
) -> MeasuredSet:
    """Compares the samples, or features, in an `.npz` with those of another. Without a reference nothing but a CLIP
    score is measured; `features_out` is written in any case.

    Raises `UsageError`, `BadDataError`, `UnsafeFileError`, `WeightsMissingError`, `StorageError`.
    """
    start = time.monotonic()
    if strangers := [test for test in tests if test not in FIGURE_TESTS]:
        raise UsageError(
            f"--tests {','.join(strangers)}: of a set of images alone there are {', '.join(FIGURE_TESTS)}",
            "name some of those, or a run or a checkpoint to judge",
        )
    if reference is None and set(tests) != {"clip"} and features_out is None:
        raise UsageError(f"{samples}: nothing to compare it with", "name a set: --reference F.npz")
    files = {"samples": open_set(samples, "SAMPLES")}
    if reference is not None:
        files["reference"] = open_set(reference, "--reference")
    if features_out is not None:
        require_features_file(features_out, [file.path for file in files.values()])
    folder = out or samples.with_name(f"{samples.stem}_figures")
    with nothing_left_of_refusal(folder), folder_lock(output_folder(folder)), place_to_judge(folder) as place:
        figures = _measure(files, tests, features_out, talk)
        results: dict[str, object] = {
            "verdict": MEASURED,
            "figures": figures.to_json(),
            "asked": {
                "tests": list(tests),
                **{name: remembered(file.path, folder) for name, file in files.items()},
            },
            "made_of": {name: file_sha256(file.path) for name, file in files.items()},
            "made_with": made_with(device_of_choice()),
            "seconds": round(time.monotonic() - start, 1),
        }
        page = environment().get_template(_TEMPLATE)
        shown = page.render(title=samples.name, figures=figures.figures, version=__version__)
        write_atomic(place / "report.html", shown.encode("utf-8", "backslashreplace"))
        write_json(place / RESULTS, results)
        take_the_place(place, folder)
    return MeasuredSet(figures, results, folder / "report.html")


def _measure(files: dict[str, SetFile], tests: Sequence[str], features_out: Path | None, talk: Talk) -> SetFigures:
    wanted = networks_of(tests)
    compared = [name for name in wanted if name not in ("clip-crop", TEXTS)]
    needed = {name for name in wanted if name != TEXTS and files["samples"].needs(name)}
    if "clip" in tests:
        needed.add("clip-crop")  # reads the captions
    if "reference" in files:
        needed |= {name for name in compared if files["reference"].needs(name)}
    networks = {name: load_network(name) for name in sorted(needed)}
    drawn = read_set(files["samples"], wanted, networks, talk)
    if features_out is not None:
        write_features(features_out, drawn)
    if "reference" not in files:
        return SetFigures(measure_figures([test for test in tests if test == "clip"], drawn, None))
    return SetFigures(measure_figures(tests, drawn, read_set(files["reference"], compared, networks, talk)))
