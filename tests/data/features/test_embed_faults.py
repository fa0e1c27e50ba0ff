"""Embedding under faults: killed at any file event, disk full at any write, inputs that change, encoders that give
nonsense.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dittool.config.load import load_config
from dittool.data.features import journal, passes
from dittool.data.features.embed import embed
from dittool.data.features.pipeline import decoders, loaded_ahead
from dittool.data.features.store import FeatureStore
from dittool.data.features.verify import verify
from dittool.data.records import STAGES, Record
from dittool.encoders.interfaces import ImageFeatures
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, StorageError
from tests.killed import killed_at

CONFIG = ("data.area=None", 'data.buckets=["96x64"]')
EMBED = ("--preset", "demo", "--quiet", *(word for override in CONFIG for word in ("-s", override)))
FULL_AT_BYTE = """
import resource, signal, sys
from dittool.cli import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def images(tiny_shards, tmp_path_factory):
    """Three drawn images."""
    folder = tmp_path_factory.mktemp("faults") / "images"
    folder.mkdir()
    for path in sorted(tiny_shards.images.iterdir())[:6]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def config():
    return load_config("demo", CONFIG)


@pytest.fixture(scope="module")
def whole(images, config, tmp_path_factory):
    """What an undisturbed run leaves."""
    derived = tmp_path_factory.mktemp("whole") / "derived"
    embed(images, derived, config)
    return derived


def features_of(derived):
    return {
        str(path.relative_to(derived)): path.read_bytes()
        for path in derived.rglob("*.npy")
        if not path.name.startswith(".tmp-")
    }


def assert_the_next_run_completes(images, derived, config, whole):
    embed(images, derived, config)
    assert features_of(derived) == features_of(whole)
    assert verify(derived).faults == [] and verify(derived).strays == 0
    assert not list(derived.rglob(".tmp-*"))
    assert embed(images, derived, config).made == dict.fromkeys(STAGES, 0)


# Rows 1 and 2: killed


@pytest.mark.slow
@pytest.mark.row(1)
def test_killed_at_a_file_event_the_next_run_completes_with_the_same_bytes(images, config, whole, tmp_path):
    events = (37,)
    assert killed_at(events, tmp_path, "embed", images, "--out", "OUT", *EMBED) == {}
    for event in events:
        assert_the_next_run_completes(images, tmp_path / f"killed{event}", config, whole)


@pytest.mark.slow
def test_killed_at_every_file_event_the_next_run_completes_with_the_same_bytes(images, config, whole, tmp_path):
    command = ("embed", images, "--out", "OUT", *EMBED)
    last, code = killed_at([0], tmp_path, *command)[0]
    assert last > 80 and code == 0
    survived = killed_at(range(1, last + 1), tmp_path, *command)
    # threads meet: a run may have an event more or less
    assert all(count < event and code == 0 for event, (count, code) in survived.items())
    for event in range(1, last + 1):
        derived = tmp_path / f"killed{event}"
        assert_the_next_run_completes(images, derived, config, whole)
        shutil.rmtree(derived)


@pytest.mark.slow
def test_killed_twice_and_at_any_moment(images, config, whole, tmp_path):
    command = [sys.executable, "-m", "dittool", "embed", images, "--out", tmp_path / "derived", *EMBED]
    for seconds in (2.0, 2.5, 3.0, 3.5, 4.0):
        running = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert_the_next_run_completes(images, tmp_path / "derived", config, whole)


@pytest.mark.row(2)
def test_what_a_journal_line_promises_is_on_disk_before_it_is_written(images, config, tmp_path, monkeypatch):
    """A kill cannot show this, only the order of the calls can: file synced, then renamed, its folder synced, then
    the line.
    """
    calls = []
    real_fsync, real_replace, real_append = os.fsync, os.replace, journal.append_rows

    def fsync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace(source, target):
        calls.append(("rename", str(source), str(target)))
        real_replace(source, target)

    def append(path, line):
        calls.append(("journal", str(path)))
        real_append(path, line)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(journal, "append_rows", append)
    derived = tmp_path / "derived"
    embed(images, derived, config, ["vae"])
    renames = [number for number, call in enumerate(calls) if call[0] == "rename" and "vae_latents" in call[2]]
    entered = next(number for number, call in enumerate(calls) if call[0] == "journal")
    folder = max(
        number for number, call in enumerate(calls[:entered]) if call == ("fsync", str(derived / "vae_latents"))
    )
    assert len(renames) == 3 and max(renames) < folder < entered
    assert all(("fsync", calls[number][1]) in calls[:number] for number in renames)
    assert ("fsync", str(derived / "journal.rows")) in calls[entered:]


def test_a_killed_run_leaves_no_decoding_process_behind(tmp_path):
    code = """
import sys, time
from dittool.data.features.pipeline import decoders
from dittool.data.records import Record
if __name__ == "__main__":
    pool = decoders([Record("", "", "", "used", width=1024, height=1024)] * 10_000)
    pool.submit(abs, 1).result()
    print(*pool._processes, flush=True)
    time.sleep(60)
"""
    (tmp_path / "run.py").write_text(code)
    running = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in running.stdout.readline().split()]
    assert workers
    running.kill()
    running.wait()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Row 9: disk full


def test_a_full_disk_ends_with_5_and_the_next_run_completes(images, config, whole, tmp_path):
    """The limit on a file's size stands for a full disk: small files fit, a latent does not."""
    derived = tmp_path / "derived"
    overrides = [word for override in CONFIG for word in ("-s", override)]
    command = [
        sys.executable,
        "-c",
        FULL_AT_BYTE,
        3000,
        "embed",
        images,
        "--preset",
        "demo",
        "--out",
        derived,
        "-q",
        *overrides,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "to write" in done.stderr and "Traceback" not in done.stderr
    assert all(len(np.load(derived / name)) for name in features_of(derived))  # what is there, is whole
    assert_the_next_run_completes(images, derived, config, whole)


@pytest.mark.row(9)
@pytest.mark.parametrize("fails_at", [1, 4, 6, 7, 10, 13])
def test_no_space_at_the_n_th_write_leaves_nothing_half_written(fails_at, images, config, whole, tmp_path, monkeypatch):
    derived, real, count = tmp_path / "derived", os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count >= fails_at + 6:  # the first are of the small files that every run begins with
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises((StorageError, OSError), match="No space left"):
            embed(images, derived, config)
    assert not list(derived.rglob(".tmp-*"))
    assert all(features_of(whole)[name] == content for name, content in features_of(derived).items())
    assert len(FeatureStore(derived).read_journal()) < 3 * len(FeatureStore(whole).read_records())
    assert_the_next_run_completes(images, derived, config, whole)


def test_a_journal_line_that_did_not_fit_is_taken_back(tmp_path, monkeypatch):
    store, records = FeatureStore(tmp_path), [Record(f"r{i}", f"r{i}", "", "used", caption=str(i)) for i in range(2)]
    store.append_journal("t5", records[:1])
    before = (tmp_path / "journal.rows").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"journal\.rows: No space left on device: \d+ B to write, .* free"):
        store.append_journal("t5", records[1:])
    assert (tmp_path / "journal.rows").read_bytes() == before


# Row 11: read-only


@pytest.mark.row(11)
def test_a_folder_that_cannot_be_written_to_is_told_before_any_encoder_is_loaded(images, dit, monkeypatch):
    def loaded(*_):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(passes, "load_image_encoder", loaded)
    run = dit("embed", images, "--preset", "demo", "--out", "/proc/derived")
    assert run.code == 5 and "/proc/derived" in run.err and run.err.count("\n") == 2


# Row 18: a worker dies


@pytest.mark.row(18)
def test_a_decoding_process_that_is_killed_is_named(tmp_path):
    records = [Record(str(i), "", "", "used", width=1024, height=1024) for i in range(10_000)]
    with decoders(records) as pool, pytest.raises(StorageError, match="memory"):
        list(loaded_ahead([records[:3]], _die, tmp_path, pool))


def _die(record, source):
    os.kill(os.getpid(), signal.SIGKILL)


# Row 40: changed between listing and reading


def test_an_image_that_changes_after_the_scan_is_left_out_and_taken_by_the_next_run(
    images, config, tmp_path, monkeypatch
):
    source = tmp_path / "images"
    shutil.copytree(images, source)
    victim, other = sorted(source.glob("*.png"))[:2]
    scanned = FeatureStore.merge_records

    def changed_meanwhile(store, records, forget=()):
        victim.write_bytes(other.read_bytes())
        return scanned(store, records, forget)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "merge_records", changed_meanwhile)
        done = embed(source, tmp_path / "derived", config)
    assert [(record.name, record.reason) for record in done.records if not record.used] == [
        (victim.stem, "decode:changed")
    ]
    again = embed(source, tmp_path / "derived", config)
    assert len(again.used) == 3 and again.made == {"dinov3": 1, "vae": 1, "t5": 1}
    assert verify(tmp_path / "derived").faults == []


# Row 47: nonsense from an encoder


class NonsenseCodec:
    """The built-in codec, which answers NaN, a constant or values beyond float16 for the image whose first pixel it
    is told to spoil.
    """

    def __init__(self, pixel, value):
        self._codec, self._pixel, self._value = load_codec("builtin:dct"), pixel, value
        self.card, self.channels, self.stride = self._codec.card, self._codec.channels, self._codec.stride

    def encode(self, pixels):
        latents = self._codec.encode(pixels)
        for index, image in enumerate(pixels):
            if self._pixel is None or np.array_equal(image[0, 0], self._pixel):
                latents[index, 0 if np.isfinite(self._value) and self._value else slice(None)] = self._value
        return latents


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "not-finite"), (1e6, "not-finite"), (0.0, "constant")])
def test_an_image_whose_features_are_nonsense_is_refused_and_the_others_go_on(
    images, config, tmp_path, monkeypatch, value, reason
):
    source, derived = tmp_path / "images", tmp_path / "derived"
    shutil.copytree(images, source)
    from PIL import Image

    victim = min(source.glob("*.png"))
    Image.new("RGB", (128, 128), (1, 2, 3)).save(victim)
    with monkeypatch.context() as patched:
        patched.setattr(passes, "load_codec", lambda name: NonsenseCodec((1, 2, 3), value))
        done = embed(source, derived, config)
        again = embed(source, derived, config)
    for run in (done, again):
        assert [(record.name, record.reason) for record in run.records if not record.used] == [
            (victim.stem, f"encode:vae:{reason}")
        ]
    assert done.made["vae"] == 2 and again.made == dict.fromkeys(STAGES, 0)
    assert not (derived / "vae_latents" / f"{victim.stem}.npy").exists() and verify(derived).faults == []
    assert embed(source, derived, config, ["vae"], rebuild=True).made == {"vae": 3}  # the encoder was repaired


class FailingEncoder:
    """An image encoder that finds one of a batch, or all, impossible, as the real ones do for values that are not
    finite in fp32 either.
    """

    def __init__(self, pixel):
        self._encoder, self._pixel = embed_passes_image_encoder("builtin:dinov3", "fp32"), pixel
        self.card, self.patch_size = self._encoder.card, self._encoder.patch_size

    def encode(self, pixels) -> ImageFeatures:
        if any(self._pixel is None or np.array_equal(image[0, 0], self._pixel) for image in pixels):
            raise BadDataError("features of 1 image are not finite, in fp32 either", "")
        return self._encoder.encode(pixels)


embed_passes_image_encoder = passes.load_image_encoder


def test_the_one_image_that_an_encoder_rejects_is_found_in_its_batch(images, config, tmp_path, monkeypatch):
    source = tmp_path / "images"
    shutil.copytree(images, source)
    from PIL import Image

    victim = min(source.glob("*.png"))
    Image.new("RGB", (128, 128), (1, 2, 3)).save(victim)
    monkeypatch.setattr(passes, "load_image_encoder", lambda name, dtype, talk: FailingEncoder((1, 2, 3)))
    done = embed(source, tmp_path / "derived", config)
    refused = [record for record in done.records if not record.used]
    assert [(record.name, record.reason) for record in refused] == [(victim.stem, "encode:dinov3:not-encodable")]
    assert "not finite, in fp32 either" in refused[0].detail and done.made == {"dinov3": 2, "vae": 2, "t5": 2}


def test_an_encoder_that_rejects_everything_is_at_fault_not_the_images(images, config, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "load_image_encoder", lambda name, dtype, talk: FailingEncoder(None))
    with pytest.raises(BadDataError, match="not finite, in fp32 either"):
        embed(images, tmp_path / "derived", config)
    assert all(record.used for record in FeatureStore(tmp_path / "derived").read_records())


@pytest.mark.slow
def test_processes_decode_what_threads_decode(images, config, monkeypatch, tmp_path, whole):
    monkeypatch.setattr("dittool.data.features.pipeline._WORTH_A_PROCESS", 0)
    monkeypatch.setattr("dittool.data.features.pipeline._SMALL", 0)
    embed(images, tmp_path / "derived", config)
    assert features_of(tmp_path / "derived") == features_of(whole)


def test_a_decoding_process_imports_no_torch():
    """Or each would take seconds and hundreds of megabytes to start."""
    code = "import sys, dittool.data.features.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
