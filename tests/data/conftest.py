"""Images and a derived folder that tests may alter; warnings as errors."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def older_derived(tiny_shards, tmp_path, forget_digests: Callable[[Path], None]) -> Path:
    """Features under a journal without digests, so that what a test changes in them is not noticed by its bytes."""
    folder = shutil.copytree(tiny_shards.store.folder, tmp_path / "derived")
    forget_digests(folder)
    return folder


@pytest.fixture
def images(tiny_shards, tmp_path):
    """Eight drawn images, free to be edited."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(tiny_shards.images.iterdir())[:16]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what the module asks for when it is imported
        yield


@pytest.fixture
def full_at_sync(monkeypatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with full_at_sync(3)`: where space is allotted late, the third fsync finds the disk full."""

    @contextmanager
    def full_at(nth: int) -> Iterator[None]:
        real, left = os.fsync, [nth]

        def fsync(descriptor: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            yield

    return full_at
