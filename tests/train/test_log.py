"""What a run writes down: the figures of a row, the plot on the way, and Weights & Biases, played here by a module
of the same face.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dittool.ckpt.run_log import read_log
from dittool.errors import UsageError
from dittool.families import flow
from dittool.train.loop import train


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb` that writes down what it is told."""
    message = SimpleNamespace(inits=[], rows=[], finished=[])

    def init(**settings):
        message.inits.append(settings)
        return SimpleNamespace(
            log=lambda figures, step: message.rows.append((step, figures)), finish=lambda: message.finished.append(True)
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return message


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


def test_weights_and_biases_gets_the_numbers_of_every_row(tiny_shards, tmp_path, wandb):
    config = tiny_shards.config_with("train.wandb=my project", "train.steps=3")
    train(config, tiny_shards.folder, tmp_path / "run")
    (settings,) = wandb.inits
    assert (settings["project"], settings["name"]) == ("my project", "run") and settings["config"]["train"][
        "lr"
    ] == config.train.lr
    assert [step for step, _ in wandb.rows] == [1, 2, 3] and wandb.finished == [True]
    assert wandb.rows[0][1]["loss"] == read_log(tmp_path / "run")[0]["loss"]


def test_a_resumed_run_goes_on_with_its_own_run_there(tiny_shards, tmp_path, wandb):
    for steps in (3, 4):
        config = tiny_shards.config_with("train.wandb=p", f"train.steps={steps}")
        train(config, tiny_shards.folder, tmp_path / "run", resume=steps > 3, named_changes=["train.steps"])
    assert len({settings["id"] for settings in wandb.inits}) == 1 and {
        settings["resume"] for settings in wandb.inits
    } == {"allow"}


def test_a_missing_package_is_named_before_the_first_step(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import fails
    with pytest.raises(UsageError, match=r"train\.wandb = \"p\": the package wandb is not installed") as message:
        train(tiny_shards.config_with("train.wandb=p"), tiny_shards.folder, tmp_path / "run")
    assert "pip install wandb" in message.value.hint and not list((tmp_path / "run").glob("checkpoints/*"))
