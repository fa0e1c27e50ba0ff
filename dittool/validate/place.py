"""The folder of a judgement: made in a place of its own inside, and put where an earlier one was when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dittool.storage import TEMPORARY_PREFIX, sync_folder

RESULTS = "results.json"
_WITH_PICTURES = ("reconstruction", "dino_swap", "text_manip")  # folders of strips


@contextmanager
def place_to_judge(folder: Path) -> Iterator[Path]:
    """An empty folder inside, gone at the end; what a killed judgement has left goes first. Call it under the lock."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    place = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder))
    try:
        yield place
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(place):
            error.filename = str(folder / Path(error.filename).relative_to(place))  # where the reader would look
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def take_the_place(place: Path, folder: Path) -> None:
    """Puts a complete judgement where an earlier one was, of which no picture stays. results.json goes first and comes
    last: where it stands, the rest does too.
    """
    (folder / RESULTS).unlink(missing_ok=True)
    for name in _WITH_PICTURES:
        if not (folder / name).is_symlink():
            for picture in (folder / name).glob("*.png"):
                picture.unlink()
    (folder / "loss.png").unlink(missing_ok=True)
    made = sorted((path for path in place.rglob("*") if path.is_file()), key=lambda path: path == place / RESULTS)
    for path in made:
        target = folder / path.relative_to(place)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    sync_folder(folder)
