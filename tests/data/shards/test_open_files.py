"""Shards that are open at a time: few, whatever their number; a shortage of descriptors is said as that."""

import os
import pickle
import resource
from contextlib import contextmanager

import pytest

from dittool.cli import explain
from dittool.data.shards import open_files
from dittool.data.shards.open_files import OpenFiles


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.tar" for number in range(30)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    return paths


@contextmanager
def descriptors_left(count: int):
    """Inside, this process may open so many files more."""
    before, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    highest = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, before[1]))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for one in held:
            os.close(one)


def test_the_file_that_was_not_read_the_longest_gives_way(files, monkeypatch):
    monkeypatch.setattr(open_files, "most_open", lambda: 3)
    cache = OpenFiles()
    first = cache.descriptor(files[0])
    for path in files[1:3]:
        cache.descriptor(path)
    assert cache.descriptor(files[0]) == first
    for number, path in enumerate(files):
        assert os.pread(cache.descriptor(path), 1, 0) == bytes([number]) and len(cache) <= 3


def test_a_quarter_of_the_limit_is_used(monkeypatch):
    for soft, most in ((256, 64), (20, 16), (1_000_000, 1024), (resource.RLIM_INFINITY, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert open_files.most_open() == most


def test_where_no_descriptor_is_left_ours_give_way(files):
    cache = OpenFiles()
    with descriptors_left(2):
        read = [os.pread(cache.descriptor(path), 1, 0) for path in files]
    assert read == [bytes([number]) for number in range(30)]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs a list of descriptors")
def test_a_shortage_is_said_with_the_limit_and_how_to_raise_it(files):
    with descriptors_left(0), pytest.raises(OSError, match="Too many open files") as failure:
        OpenFiles().descriptor(files[0])
    for error in (failure.value, RuntimeError("unable to open shared memory object: Too many open files (24)")):
        said = explain(error)
        assert said.exit_code == 5 and "too many open files: this process may have" in said.message
        assert "ulimit -n" in said.hint or "who runs this machine" in said.hint


def test_a_process_that_is_started_anew_opens_its_own(files):
    cache = OpenFiles()
    cache.descriptor(files[0])
    assert len(pickle.loads(pickle.dumps(cache))) == 0
