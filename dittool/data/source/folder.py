"""What lies below a folder: the walk that every kind of folder shares, and class folders as a source: CLASS/NAME.jpg,
where the folder's name is the class and the caption because that is asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dittool.data.source.item import IMAGE_SUFFIXES, Source, SourceItem, stem_of, suffix_of
from dittool.errors import BadDataError

FOLDER_NAMES = "folder"  # of `data.captions`


@dataclass(frozen=True)
class Walked:
    """What lies below a folder."""

    files: list[str]  # relative paths with '/', sorted
    ignored: Counter[str] = field(default_factory=Counter)  # what was passed over on the way
    problems: list[SourceItem] = field(default_factory=list)  # a refused item for each unreadable folder

    def having(self, *suffixes: str) -> list[str]:
        return [path for path in self.files if suffix_of(path) in suffixes]


def walk(folder: Path) -> Walked:
    """Hidden files and linked folders are passed over. Raises `BadDataError` when the folder itself cannot be
    listed.
    """
    files: list[str] = []
    ignored: Counter[str] = Counter()
    problems: list[SourceItem] = []

    def unreadable(error: OSError) -> None:
        where = Path(error.filename)
        if where == folder:
            raise BadDataError(f"{folder}: cannot be listed: {error.strerror}", "check its permissions") from error
        problems.append(
            SourceItem(
                where.relative_to(folder).as_posix() + "/", reason="unreadable", detail=f"folder: {error.strerror}"
            )
        )

    for where, folders, names in os.walk(folder, onerror=unreadable):
        ignored["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        ignored["linked folder"] += sum(
            os.path.islink(os.path.join(where, name)) for name in folders if not name.startswith(".")
        )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        files += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return Walked(sorted(files), +ignored, problems)


def classes_source(folder: Path, walked: Walked) -> Source:
    """Each image with the name of the outermost folder that it lies in; hyphens and underscores of the caption are
    spaces. Captions of any other kind are passed over and counted.
    """
    images = walked.having(*IMAGE_SUFFIXES)
    ignored = walked.ignored + Counter(
        suffix_of(path) or "no suffix" for path in walked.files if suffix_of(path) not in IMAGE_SUFFIXES
    )
    items = list(walked.problems)
    named = []
    for path in images:
        name, slash, _ = path.partition("/")
        if slash:
            items.append(SourceItem(stem_of(path), path, name.replace("-", " ").replace("_", " "), cls=name))
            named.append(path)
        else:
            detail = "it lies in no folder whose name could be its caption"
            items.append(SourceItem(stem_of(path), path, reason="no-caption", detail=detail))
    return Source("classes", folder, items, dict(ignored), {"folder names": named} if named else {})
