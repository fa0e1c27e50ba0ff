"""A run's page: what it shows, how often it is written, and that nothing of it ends a run."""

from __future__ import annotations

import re
import shutil

import pytest

from dittool.ckpt.run_log import read_log
from dittool.runs import page
from dittool.runs.page import LivePage, settings_of, write_page
from dittool.train.loop import train


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "mine <b>&")


def text_of(path):
    return path.read_text("utf-8")


def test_training_leaves_a_page_that_says_it_is_finished(tiny_run):
    shown = text_of(tiny_run / "index.html")
    assert "finished" in shown and "of 8" in shown and "const written" in shown
    assert re.search(r"reloaded = 0;", shown), "a run that has ended is not loaded again"
    assert "<h3>loss</h3>" in shown and "<h3>norm of the gradient</h3>" in shown


def test_names_are_escaped_and_pictures_lie_beside(run):
    (run / "samples").mkdir(exist_ok=True)
    for step in range(200):
        (run / "samples" / f"step{step:07d}_ema.png").write_bytes(b"")
    shown = text_of(write_page(run, read_log(run), settings_of(run)))
    assert "mine <b>" not in shown and "mine &lt;b&gt;&amp;" in shown
    pictures = re.findall(r"samples/step\d+_ema\.png", shown)
    assert (
        len(set(pictures)) == 60
        and "samples/step0000000_ema.png" in pictures
        and "samples/step0000199_ema.png" in pictures
    )


def test_what_differs_from_the_preset_is_named(run):
    settings = settings_of(run)
    assert settings.preset == "demo"
    changed = {change.key: (change.preset, change.run) for change in settings.changes}
    assert changed["train.steps"] == ("1300", "8") and "model.arch" not in changed


def test_what_failed_is_shown(run):
    rows = [*read_log(run), {"step": 8, "failed": "drawing a picture", "reason": "no <space> left"}]
    rows.append({"step": 8, "skipped_updates": 2, "not_finite": ["a"]})
    shown = text_of(write_page(run, rows, settings_of(run)))
    assert "drawing a picture failed: no &lt;space&gt; left" in shown and "no update (2 so far)" in shown


def test_it_is_renewed_now_and_then_and_at_the_end(run, monkeypatch):
    clock, written = [100.0], []
    monkeypatch.setattr(page.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(page, "write_page", lambda *_: written.append(clock[0]))
    live = LivePage(run)
    for now in (100.0, 101.0, 109.0, 110.5, 111.0):
        clock[0] = now
        live.renew([])
    live.renew([], ended=True)
    assert written == [100.0, 110.5, 111.0]


def test_a_page_that_cannot_be_written_ends_no_run(tiny_shards, tmp_path, monkeypatch, new_listener):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_atomic", full)
    listener = new_listener()
    assert train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", talk=listener).step == 8
    assert any("writing index.html failed" in line for line in listener.warnings)


def test_the_old_page_stays_until_the_new_one_is_there(run, monkeypatch):
    before = text_of(write_page(run, read_log(run), settings_of(run)))
    monkeypatch.setattr(page, "_charts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(run, read_log(run), settings_of(run))
    assert text_of(run / "index.html") == before and not list(run.glob("*.tmp*"))
