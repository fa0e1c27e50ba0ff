"""Files that hold many samples, and paths that lead into them: tars, zips, and tables with pictures in them. A folder
without loose pictures is a source of all that lie below it, of every kind, in any folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dittool.data.source.archive import ARCHIVE_SUFFIXES, read_image_member, samples_of
from dittool.data.source.embedded import (
    ARROW_SUFFIX,
    EMBEDDED_SUFFIXES,
    STATE,
    data_files,
    embedded_items,
    picture_column,
    read_embedded_image,
)
from dittool.data.source.folder import Walked
from dittool.data.source.images import read_image_file
from dittool.data.source.item import Pairing, Source, shown, stem_of, suffix_of
from dittool.errors import BadDataError, UsageError

_READERS: dict[str, Callable[[Path, str], bytes]] = {
    **dict.fromkeys(ARCHIVE_SUFFIXES, read_image_member),
    **dict.fromkeys(EMBEDDED_SUFFIXES, read_embedded_image),
}
MIXED = "containers"  # kind of a source of several kinds of them


def containers_in(folder: Path, walked: Walked, pairing: Pairing) -> list[str]:
    """The paths of the containers below a folder. Of tables those that hold pictures; of a folder that `datasets`
    saved, the files that its state.json lists. Raises `BadDataError`, and `UsageError` where nothing but tables is
    there and pyarrow is not.
    """
    saved = {path.rpartition("/")[0] for path in walked.files if path.rpartition("/")[2] == STATE}
    listed = {parent: data_files(folder / parent) for parent in saved}
    found: list[str] = []
    for path in walked.having(*_READERS):
        parent, _, name = path.rpartition("/")
        if suffix_of(path) == ARROW_SUFFIX and (names := listed.get(parent)) is not None and name not in names:
            continue  # what `datasets` computed from the data
        if suffix_of(path) in ARCHIVE_SUFFIXES or _holds_pictures(folder / path, pairing, bool(found)):
            found.append(path)
    return found


def containers_source(folder: Path, containers: list[str], walked: Walked, pairing: Pairing) -> Source:
    """The samples of a folder's containers (relative paths); an item's name is CONTAINER/NAME, because many sets count
    their keys anew in each file.
    """
    items, held = list(walked.problems), set(containers)
    ignored = walked.ignored + Counter(suffix_of(path) or "no suffix" for path in walked.files if path not in held)
    alike = Counter(stem_of(path) for path in containers)
    for path in containers:
        if suffix_of(path) in ARCHIVE_SUFFIXES:
            found, others = samples_of(folder / path, path, pairing)
        else:
            found, others = embedded_items(folder / path, path, pairing), Counter()
        called = stem_of(path) if alike[stem_of(path)] == 1 else path  # 0.tar beside 0.zip
        items += [replace(item, name=f"{called}/{item.name}") for item in found]
        ignored += others
    kinds = {suffix_of(path).removeprefix(".") for path in containers}
    return Source(kinds.pop() if len(kinds) == 1 else MIXED, folder, items, dict(ignored))


def container_of(path: Path) -> Path | None:
    """The file that a path leads into: `some.tar/KEY.jpg`."""
    return next((parent for parent in path.parents if suffix_of(parent.name) in _READERS and parent.is_file()), None)


def read_picture(path: Path) -> bytes:
    """The bytes of a picture: a file, or what a container holds. Raises `ImageRefused`."""
    container = container_of(path)
    if container is None:
        return read_image_file(path)
    return _READERS[suffix_of(container.name)](container, path.relative_to(container).as_posix())


def _holds_pictures(path: Path, pairing: Pairing, others_are_there: bool) -> bool:
    """Whether a table does. Beside other containers one that cannot be looked at is passed over: img2dataset's tars
    have theirs, which says how the pictures were fetched.
    """
    try:
        return bool(picture_column(path, pairing))
    except (BadDataError, UsageError):
        if others_are_there:
            return False
        raise


def not_read_here(ignored: Counter[str] | dict[str, int]) -> list[tuple[str, int]]:
    """Of what was passed over, the containers, by suffix."""
    return [(shown(suffix), ignored[suffix]) for suffix in _READERS if ignored.get(suffix)]
