"""Where a run's numbers and pictures go beside log.jsonl: trackers, named in `train.trackers`.

    numbers(step, {name: value})   picture(step, name, file)   close()

TensorBoard, Weights & Biases and MLflow stand here; other packages add theirs through the entry-point group
`dit.trackers` (docs/plugins.md). A tracker that fails is a warning: what it has not taken waits, and is given to it
again in its order.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dittool.config.architectures import AnyConfig
from dittool.config.load import config_to_dict
from dittool.errors import UsageError, described
from dittool.plugins import load_plugin, named_plugins
from dittool.storage import read_json, write_json
from dittool.train.growing_file import GrowingFile

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

PLUGIN_GROUP = "dit.trackers"
_PARAMS_AT_ONCE = 100  # MLflow's limit
_PAUSE = 10  # after a failure that took so long, as many times that pass before the next attempt


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is begun with."""

    folder: Path  # of the run; a tracker may keep files there under its own name
    start_step: int  # rows up to it were given before; those behind it will be made again
    project: str  # behind the colon in `train.trackers`: "wandb:my project"; "" without one
    config: Mapping[str, Any]  # resolved, sections of plain values


class Tracker(Protocol):
    """Takes a run's numbers and pictures. Any of these may raise: the run goes on."""

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        """One row of the log, its numbers alone."""

    def picture(self, step: int, name: str, file: Path) -> None:
        """A PNG that the run drew; `name` is the same at each step."""

    def close(self) -> None:
        """The run ended, or was interrupted."""


Begin = Callable[[TrackedRun], Tracker]


class PatientTracker:
    """A tracker, begun when it is first given something. What it fails at waits, with what comes behind it; after a
    slow failure it is left alone for ten times as long as that took.
    """

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.title = f"tracking with {name}"
        self._begin, self._tracker = begin, None
        self._waiting: list[Callable[[Tracker], None]] = []
        self._not_before = 0.0

    _tracker: Tracker | None

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        self._give(lambda tracker: tracker.numbers(step, figures))

    def picture(self, step: int, name: str, file: Path) -> None:
        self._give(lambda tracker: tracker.picture(step, name, file))

    def close(self) -> None:
        """Raises `RuntimeError` for what it does not take now either."""
        self._not_before = 0.0
        self._give(lambda tracker: tracker.close())

    def _give(self, piece: Callable[[Tracker], None]) -> None:
        self._waiting.append(piece)
        start = time.monotonic()
        if start < self._not_before:
            return
        try:
            with redirect_stdout(sys.stderr):  # what it prints is no part of a command's answer
                self._tracker = self._tracker or self._begin()
                while self._waiting:
                    self._waiting[0](self._tracker)
                    del self._waiting[0]
        except (Exception, SystemExit) as error:  # somebody else's program: it may even try to end this one
            took = time.monotonic() - start
            self._not_before = time.monotonic() + _PAUSE * took
            raise RuntimeError(f"{described(error)}; {len(self._waiting)} pieces wait") from error


def trackers_of(config: AnyConfig, folder: Path, start_step: int) -> list[PatientTracker]:
    """The trackers that a configuration names, none begun.

    Raises `UsageError` for a name that is none, and where the package of one is not there.
    """
    named = [*config.train.trackers, *([f"wandb:{config.train.wandb}"] if config.train.wandb else [])]
    tree = config_to_dict(config)
    found = {}
    for entry in named:
        name, _, project = entry.partition(":")
        found[entry] = PatientTracker(
            name, partial(_begin_of(name, entry), TrackedRun(folder, start_step, project, tree))
        )
    return list(found.values())


def _begin_of(name: str, entry: str) -> Begin:
    if name in BUILT_IN:
        begin, package = BUILT_IN[name]
        _require(package, entry)
        return begin
    plugins = named_plugins(PLUGIN_GROUP)
    if name not in plugins:
        known = ", ".join([*BUILT_IN, *sorted(plugins)])
        raise UsageError(
            f'train.trackers: "{entry}" names no tracker; there are {known}',
            "correct the name, or install the package that brings it (docs/plugins.md)",
        )
    begin = load_plugin(plugins[name], "tracker")
    if not callable(begin):
        raise UsageError(f"{plugins[name].value} is no function that begins a tracker", "see docs/plugins.md")
    return begin


def _require(package: str, entry: str) -> None:
    """Imports it now: an option that cannot work is said before the first step."""
    try:
        __import__(package)
    except ImportError as error:
        key = f'train.wandb = "{entry.partition(":")[2]}"' if package == "wandb" else f'train.trackers: "{entry}"'
        raise UsageError(
            f"{key}: the package {package} is not installed",
            f"pip install {package}, or take the key out of the preset",
        ) from error


def _kept_id(folder: Path, tracker: str, new: Callable[[], str]) -> str:
    """The tracker's own name of the run that this folder began before, or a new one, remembered beside the log."""
    record = folder / f"{tracker}.json"
    if not record.is_file():
        write_json(record, {"id": new()})
    return str(read_json(record)["id"])


class TensorBoard:
    """An event file, written at once and by this thread: torch's writer has a thread of its own, in which errors get
    lost.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Of a run that is resumed: events of other files after its step are not shown any more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if run.start_step:
            began = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=run.start_step + 1, session_log=began))
        self._file = GrowingFile(folder / name)
        self._write(events)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()])

    def picture(self, step: int, name: str, file: Path) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(file) as drawn:
            width, height = drawn.size
        png = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=file.read_bytes())
        self._add(step, [Summary.Value(tag=name, image=png)])

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, values: Sequence[Summary.Value]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write([Event(wall_time=time.time(), step=step, summary=Summary(value=[value])) for value in values])

    def _write(self, events: Sequence[Event]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        self._file.append(records.getvalue())


class WeightsAndBiases:
    """`wandb:PROJECT`. A resumed run goes on in the run there that its folder began."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=run.project or None,
            name=run.folder.name,
            id=_kept_id(run.folder, "wandb", partial(secrets.token_hex, 8)),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
        )

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        self._run.log({name: self._image(str(file))}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlFlow:
    """`mlflow:EXPERIMENT`, where MLflow's own settings (MLFLOW_TRACKING_URI) say. A resumed run goes on in the run
    there that its folder began.
    """

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, is_new = MlflowClient(), not (run.folder / "mlflow.json").is_file()
        self._id = _kept_id(run.folder, "mlflow", partial(self._new_run, run))
        self._client.update_run(self._id, "RUNNING")
        settings = [Param(key, str(value)) for key, value in _flat(run.config).items()]
        for start in range(0, len(settings) if is_new else 0, _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=settings[start : start + _PARAMS_AT_ONCE])

    def _new_run(self, run: TrackedRun) -> str:
        name = run.project or "dit"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        return str(self._client.create_run(experiment, run_name=run.folder.name).info.run_id)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in figures.items()])

    def picture(self, step: int, name: str, file: Path) -> None:
        from PIL import Image

        with Image.open(file) as drawn:
            self._client.log_image(self._id, drawn, key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(config: Mapping[str, Any]) -> dict[str, object]:
    """`train.lr` → its value."""
    rows = [(section, keys if isinstance(keys, dict) else {"": keys}) for section, keys in config.items()]
    return {f"{section}.{key}".rstrip("."): value for section, keys in rows for key, value in keys.items()}


BUILT_IN: dict[str, tuple[Begin, str]] = {  # name → what begins it, and the package that it needs
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MlFlow, "mlflow"),
}
