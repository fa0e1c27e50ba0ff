"""The script of a card's first ten minutes, as far as a CPU can run it."""

from __future__ import annotations

import json

import pytest

from dittool.train import state
from tests.bench import gpu_all


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Figures of parts at tiny size, compiled without a compiler."""
    monkeypatch.setattr(state, "COMPILER", "eager")

    def measure(*parts: str, seconds: int = 500) -> dict[str, dict]:
        gpu_all.main(["--tiny", "--out", str(tmp_path), "--seconds", str(seconds), "--parts", *parts])
        assert (tmp_path / "gpu_all.md").read_text().count("| ") > len(parts)
        return json.loads((tmp_path / "gpu_all.json").read_text())["parts"]

    return measure


def test_steps_variants_waits_and_sampling_run(found):
    parts = found("one step: nano-patches", "a run", "waits", "sampling with both guidances: nano")
    assert not [name for name, part in parts.items() if "failed" in part], parts
    assert len(parts) == 4 and all(part.get("finite", True) for part in parts.values())
    assert parts["a run of four steps"]["saved_step"] == 4
    assert parts["waits in a step: nano"]["waits_per_step"] == 0


@pytest.mark.slow
def test_every_part_runs(found):
    parts = found("")
    failed = {name: part["failed"] for name, part in parts.items() if "failed" in part}
    assert not failed or all(name.startswith("beside diffusers") for name in failed), failed
    assert parts["rates: base"]["peak_over_count"] >= 0


def test_what_finds_no_time_or_fails_is_written_down_and_the_rest_goes_on(found, monkeypatch):
    assert found("one step: nano", seconds=-1) == {
        name: {"skipped": "no time left"}
        for name in ("one step: nano", "one step: nano-fast", "one step: nano-patches")
    }

    def broken(*_):
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setattr(gpu_all, "one_step", broken)
    parts = found("one step: nano")
    assert len(parts) == 3 and all("no kernel image" in part["failed"] for part in parts.values())
