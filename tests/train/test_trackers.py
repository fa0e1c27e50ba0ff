"""Trackers get a run's numbers and pictures, and none of them can end it. Weights & Biases and MLflow are played by
modules of the same face.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from PIL import Image

from dittool.ckpt.run_log import read_log
from dittool.errors import UsageError
from dittool.train import trackers
from dittool.train.estimate import estimate
from dittool.train.loop import train
from dittool.train.trackers import PatientTracker, TrackedRun


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb` that writes down what it is told."""
    said = SimpleNamespace(inits=[], rows=[], finished=[])

    def init(**settings):
        said.inits.append(settings)
        return SimpleNamespace(
            log=lambda figures, step: said.rows.append((step, figures)), finish=lambda: said.finished.append(True)
        )

    module = SimpleNamespace(init=init, Image=lambda path: Image.open(path).size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return said


@pytest.fixture
def mlflow(monkeypatch):
    """A module `mlflow` whose client writes down what it is told."""
    said = SimpleNamespace(experiments={}, runs=[], params={}, metrics=[], images=[], states=[])

    class MlflowClient:
        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id=said.experiments[name]) if name in said.experiments else None

        def create_experiment(self, name):
            return said.experiments.setdefault(name, "7")

        def create_run(self, experiment, run_name):
            said.runs.append((experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id=f"id{len(said.runs)}"))

        def update_run(self, run, status):
            said.states.append((run, status))

        def set_terminated(self, run):
            said.states.append((run, "FINISHED"))

        def log_batch(self, run, metrics=(), params=()):
            assert len(params) <= 100
            said.params.update(params)
            said.metrics += [(run, step, name, value) for name, value, _, step in metrics]

        def log_image(self, run, image, key, step):
            said.images.append((run, key, step, image.size))

    entities = SimpleNamespace(Param=lambda *pair: pair, Metric=lambda *row: row)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=MlflowClient, entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return said


@pytest.fixture
def tracked(tmp_path):
    """What trackers of `train.trackers` are begun with, and a picture."""
    (tmp_path / "run").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "drawn.png")
    run = TrackedRun(tmp_path / "run", 0, "birds", {"description": "one", "train": {"lr": 1e-3, "betas": [0.9]}})
    return SimpleNamespace(run=run, picture=tmp_path / "drawn.png")


def test_a_run_gives_every_row_and_picture_to_each_tracker(tiny_shards, tmp_path, wandb, mlflow):
    keys = ("train.wandb=my project", 'train.trackers=["mlflow:birds"]', "train.steps=3", "train.sample_every=3")
    config = tiny_shards.config_with(*keys)
    train(config, tiny_shards.folder, tmp_path / "run")
    (settings,) = wandb.inits
    assert (settings["project"], settings["name"], settings["resume"]) == ("my project", "run", "allow")
    assert settings["config"]["train"]["lr"] == config.train.lr
    losses = [(row["step"], row["loss"]) for row in read_log(tmp_path / "run")]
    assert [(step, row["loss"]) for step, row in wandb.rows if "loss" in row] == losses and wandb.finished == [True]
    assert [(step, value) for _, step, name, value in mlflow.metrics if name == "loss"] == losses
    with Image.open(tmp_path / "run" / "samples" / "step0000003_ema.png") as drawn:
        assert wandb.rows[-1] == (3, {"samples": drawn.size}) and mlflow.images == [("id1", "samples", 3, drawn.size)]
    assert mlflow.runs == [("7", "run")] and mlflow.params["train.lr"] == str(config.train.lr)
    assert not (tmp_path / "run" / "tensorboard").exists()  # not named


def test_a_resumed_run_goes_on_with_its_own_runs_there(tracked, wandb, mlflow):
    for _ in range(2):
        for begin in (trackers.WeightsAndBiases, trackers.MlFlow):
            begin(tracked.run).close()
    assert len({settings["id"] for settings in wandb.inits}) == 1
    assert mlflow.runs == [("7", "run")] and mlflow.states == [("id1", "RUNNING"), ("id1", "FINISHED")] * 2


def test_tensorboard_shows_numbers_and_pictures(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = trackers.TensorBoard(tracked.run)
    board.numbers(2, {"loss": 0.5, "lr": 1e-3})
    board.picture(2, "samples", tracked.picture)
    board.close()
    read = EventAccumulator(str(tracked.run.folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(2, 0.5)]
    (picture,) = read.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 6, 4)
    assert Image.open(io.BytesIO(picture.encoded_image_string)).getpixel((0, 0)) == (255, 0, 0)


class Shaky:
    """A tracker that cannot take the first so many pieces."""

    def __init__(self, failures, error=OSError):
        self.taken, self._failures, self._error = [], failures, error

    def numbers(self, step, figures):
        if self._failures:
            self._failures -= 1
            raise self._error("no route to host")
        print("uploading")
        self.taken.append((step, dict(figures)))

    def picture(self, step, name, file):
        self.taken.append((step, name))

    def close(self):
        self.taken.append("closed")


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_what_a_tracker_fails_at_waits_and_is_given_again_in_its_order(capsys, monkeypatch, tracked, error):
    monkeypatch.setattr(trackers, "_PAUSE", 0)
    shaky = Shaky(2, error)
    patient = PatientTracker("shaky", lambda: shaky)
    for step in (1, 2):
        with pytest.raises(RuntimeError, match=f"no route to host; {step} pieces wait"):
            patient.numbers(step, {"loss": step})
    patient.picture(2, "samples", tracked.picture)
    patient.close()
    assert shaky.taken == [(1, {"loss": 1}), (2, {"loss": 2}), (2, "samples"), "closed"]
    assert capsys.readouterr().out == ""  # what it prints is no part of a command's answer


def test_a_slow_failure_is_not_waited_for_at_each_row(monkeypatch):
    now, begun = [0.0], []

    def begin():
        begun.append(now[0])
        now[0] += 30  # seconds until it gives up
        raise OSError("no route to host")

    monkeypatch.setattr(trackers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    patient = PatientTracker("slow", begin)
    for step in range(1, 1000):
        now[0] += 1
        with suppress(RuntimeError):
            patient.numbers(step, {})
    assert len(begun) == 4  # 30 s of every 330


def test_no_tracker_ends_a_run(tiny_shards, tiny_run, tmp_path, monkeypatch, listener, wandb):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: sys.exit("not logged in"))
    monkeypatch.setitem(trackers.BUILT_IN, "shaky", (lambda _: Shaky(99), "sys"))
    config = tiny_shards.config_with("train.wandb=p", 'train.trackers=["shaky"]', "train.steps=3")
    assert train(config, tiny_shards.folder, tmp_path / "run", talk=listener).step == 3
    for name, reason in {"wandb": "SystemExit: not logged in", "shaky": "OSError: no route to host"}.items():
        said = [line for line in listener.warnings if f"tracking with {name} failed" in line]
        assert said[0].startswith("step 1: ") and reason in said[0] and said[0].endswith("training goes on")
    assert [row["step"] for row in read_log(tmp_path / "run")] == [1, 2, 3]


def test_a_missing_package_is_named_before_the_first_step(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import fails
    with pytest.raises(UsageError, match=r"train\.wandb = \"p\": the package wandb is not installed") as message:
        train(tiny_shards.config_with("train.wandb=p"), tiny_shards.folder, tmp_path / "run")
    assert "pip install wandb" in message.value.hint and not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_plan_names_a_tracker_that_is_none(tiny_shards):
    with pytest.raises(UsageError, match="names no tracker"):
        estimate(tiny_shards.config_with('train.trackers=["tensorbord"]'), tiny_shards.folder)


def test_a_tracker_that_is_none_is_named_before_the_first_step(tiny_shards, tmp_path):
    with pytest.raises(UsageError, match="names no tracker; there are tensorboard, wandb, mlflow"):
        train(tiny_shards.config_with('train.trackers=["wandv:p"]'), tiny_shards.folder, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))
