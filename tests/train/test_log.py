"""What a run writes down: the figures of a row, and the plot on the way."""

from __future__ import annotations

from dataclasses import replace

from dittool.ckpt.run_log import read_log
from dittool.families import flow
from dittool.train.loop import train


def test_a_row_holds_what_one_wants_to_see(tiny_run):
    rows = read_log(tiny_run)
    names = {"loss", "lr", "grad_norm", "velocity_norm", "samples_per_second", "data_wait_share", "peak_memory_gb"}
    assert all(names <= set(row) for row in rows)
    assert all(0 <= row["data_wait_share"] <= 1 and 0.05 < row["peak_memory_gb"] < 1000 for row in rows)
    seen = {name for row in rows for name in row}
    assert {
        "loss_none",
        "loss_text_only",
        "loss_reference_only",
        "loss_both",
        "loss_t_low",
        "loss_t_mid",
        "loss_t_high",
    } <= seen


def test_the_plot_is_drawn_on_the_way(tiny_shards, tmp_path, monkeypatch):
    """With each picture of samples, not only at the end."""
    seen = []
    draw = lambda *_: seen.append((tmp_path / "run" / "loss.png").is_file())  # noqa: E731
    monkeypatch.setattr(flow, "FAMILY", replace(flow.FAMILY, draw=draw))
    train(tiny_shards.config_with("train.sample_every=4"), tiny_shards.folder, tmp_path / "run")
    assert seen == [True, True]
