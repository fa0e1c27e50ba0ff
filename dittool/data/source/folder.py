"""A folder as a source: NAME.jpg with its caption in NAME.txt, also nested; or class folders, CLASS/NAME.jpg without
any text. And the walk that every kind of folder shares.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from dittool.data.source.item import CAPTION_SUFFIX, IMAGE_SUFFIXES, Source, SourceItem, nfc, shown, stem_of, suffix_of
from dittool.errors import BadDataError


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


def folder_source(folder: Path, walked: Walked) -> Source:
    """Each image with the text beside it. Images without text and texts without image are refused items."""
    ignored = Counter(walked.ignored)
    captions: dict[str, list[str]] = defaultdict(list)  # name after NFC → its caption files
    for path in walked.files:
        if suffix_of(path) == CAPTION_SUFFIX:
            captions[nfc(stem_of(path))].append(path)
        elif suffix_of(path) not in IMAGE_SUFFIXES:
            ignored[suffix_of(path) or "no suffix"] += 1
    by_folded_name = {name.casefold(): paths[0] for name, paths in captions.items()}
    images = walked.having(*IMAGE_SUFFIXES)
    items = list(walked.problems)
    for path in images:
        found = captions.get(nfc(stem_of(path)), [])
        item = SourceItem(stem_of(path), path, folder / found[0] if found else "")
        if len(found) > 1:
            item = replace(
                item, reason="two-captions", detail=f"{shown(found[0])} and {shown(found[1])} both belong to it"
            )
        elif not found:
            near = by_folded_name.get(nfc(stem_of(path)).casefold())
            hint = f"; {shown(near)} differs in upper and lower case" if near else ""
            item = replace(
                item,
                reason="no-caption",
                detail=f"no {shown(Path(stem_of(path)).name)}{CAPTION_SUFFIX} beside it{hint}",
            )
        items.append(item)
    illustrated = {nfc(stem_of(path)) for path in images}
    for name, paths in captions.items():
        if name not in illustrated:
            items += [SourceItem(path, reason="no-image", detail="a caption with no image beside it") for path in paths]
    return Source("folder", folder, items, dict(ignored))


def is_class_folder(walked: Walked) -> bool:
    """Whether every image lies in a folder and none of them can have a caption."""
    images = walked.having(*IMAGE_SUFFIXES)
    return bool(images) and not walked.having(CAPTION_SUFFIX) and all("/" in path for path in images)


def classes_source(folder: Path, walked: Walked) -> Source:
    """Each image of the class that its outermost folder is named after; the name is the caption too, with spaces for
    hyphens and underscores.
    """
    images = walked.having(*IMAGE_SUFFIXES)
    ignored = walked.ignored + Counter(
        suffix_of(path) or "no suffix" for path in walked.files if suffix_of(path) not in IMAGE_SUFFIXES
    )
    items = list(walked.problems)
    for path in images:
        name = path.split("/")[0]
        items.append(SourceItem(stem_of(path), path, name.replace("-", " ").replace("_", " "), cls=name))
    return Source("classes", folder, items, dict(ignored))
