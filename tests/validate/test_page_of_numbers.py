"""docs/validation.md names what there is to read in results.json and to set in a preset."""

from __future__ import annotations

from pathlib import Path

from dittool.config.judging import Thresholds, Validate
from dittool.config.load import load_config
from dittool.validate.run import OPTIONAL, TESTS
from dittool.validate.verdict import FEWEST

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "validation.md").read_text("utf-8")


def threshold_row(key):
    """The cells of the key's line in the table of thresholds, the only one of five columns."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith(f"| `{key}` |")
    ]
    (found,) = [cells for cells in lines if len(cells) == 5]
    return found


def test_every_test_and_threshold_is_explained():
    for name in (*TESTS, *OPTIONAL):
        assert f"{name}/" in PAGE or name in PAGE or name.replace("_", " ").capitalize() in PAGE
    assert all(threshold_row(name)[4] for name in Thresholds.model_fields)


def test_the_thresholds_are_those_of_the_presets():
    presets = [load_config(name).validate_.thresholds for name in ("nano", "demo")]
    for name in Thresholds.model_fields:
        for cell, thresholds in zip(threshold_row(name)[2:4], presets, strict=True):
            value = getattr(thresholds, name)
            shown = (
                "–"
                if value is None
                else " and ".join(f"{one:g}" for one in value)
                if isinstance(value, list)
                else f"{value:g}"
            )
            assert cell == shown, name


def test_every_key_of_the_section_is_mentioned():
    assert all(
        f"validate.{key}" in PAGE or f"`{key}`" in PAGE
        for key in Validate.model_fields
        if key not in ("limit", "thresholds")
    )


def test_the_number_below_which_there_is_no_go_is_stated():
    assert f"Of fewer than {FEWEST} images there is no GO" in " ".join(PAGE.split())
