"""What the demo does when it is stopped."""

from __future__ import annotations

import os
import signal

import pytest

from dittool.demo.run import run_demo
from dittool.errors import Interrupted
from dittool.train import loop


def test_a_signal_in_the_last_step_of_training_stops_the_demo_before_it_judges(tmp_path, monkeypatch, new_listener):
    preset = tmp_path / "short.toml"
    preset.write_text('base = "demo"\n[train]\nsteps = 1\nwarmup_steps = 0\nsample_every = 0\n')
    genuine, listener = loop._show, new_listener()

    def signalled(run, averaged, last, judges):
        genuine(run, averaged, last, judges)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dittool.demo.run.IMAGES", 24)
    monkeypatch.setattr("dittool.demo.run._audit", lambda *_: None)
    monkeypatch.setattr(loop, "_show", signalled)
    with pytest.raises(Interrupted, match="trained, and not judged yet") as stop:
        run_demo(tmp_path / "demo", str(preset), listener)
    assert stop.value.exit_code == 128 + signal.SIGTERM
    assert list((tmp_path / "demo" / "checkpoints").glob("checkpoint_final*"))
    assert not (tmp_path / "demo" / "validation").exists()
