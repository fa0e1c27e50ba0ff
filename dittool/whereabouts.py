"""Paths that our files remember, so that a project can be moved, copied or mounted elsewhere.

A file remembers a path relative to the folder in which it stands itself:

    project/runs/nano/run.json     {"data": "../../data/shards"}      is project/data/shards

What is not there any more is looked for beside it: the end of the path, in the file's folder, in the folders around it
and in the working folder. Files of older versions hold absolute paths, or such as were given; they are found as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from dittool.address import Address, place_of

_AROUND = 4  # folders above a file's own, in which the end of a path is looked for: RUN/validation/step1/ in runs/ in …


def remembered(path: Path, folder: Path) -> str:
    """The text for `path` in a file that stands in `folder`; an address is itself, without its secrets."""
    if isinstance(path, Address):
        return str(path)
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def exact_place(text: str, folder: Path) -> Path:
    """Where a path that a file in `folder` remembers should be."""
    if isinstance(address := place_of(text), Address):
        return address
    return shortest(Path(os.path.normpath(folder.resolve() / text)))


def places_beside(text: str, folder: Path) -> Iterator[Path]:
    """Where it may be after a move: as it was given to an older version, then by its end, the longest one first."""
    yield Path(text)
    ends = [part for part in PurePosixPath(text).parts if part not in ("/", "..", ".")]
    own = folder.resolve()
    around = list(dict.fromkeys([own, *own.parents[:_AROUND], Path.cwd()]))
    for start in range(len(ends)):
        for base in around:
            yield base.joinpath(*ends[start:])


def find(text: str, folder: Path, fits: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The path that a file in `folder` remembers as `text`, or None. What exists where it says is taken; elsewhere
    only what exists and `fits`. Whether an address is there, its opening tells.
    """
    exact = exact_place(text, folder)
    if isinstance(exact, Address) or exact.exists():
        return exact
    beside = (place for place in places_beside(text, folder) if place.exists() and fits(place))
    return next(map(shortest, beside), None)


def shortest(path: Path) -> Path:
    """As people would write it: from the working folder when it is inside."""
    resolved, here = path.resolve(), Path.cwd()
    return resolved.relative_to(here) if path.is_absolute() and resolved.is_relative_to(here) else path
