"""A .lst file as a source: a line is an image's path, a tab, and its caption."""

from __future__ import annotations

from pathlib import Path

from dittool.data.source.item import Pairing, Source, SourceItem, stem_of
from dittool.errors import BadDataError


def lines_source(path: Path, _pairing: Pairing) -> Source:
    """Paths are relative to the list's folder. A line without a tab is refused by its number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path}: {error}", "save it as UTF-8") from error
    items = []
    for number, line in enumerate(lines, start=1):
        image, tab, caption = line.partition("\t")
        reason = "" if tab else "bad-line"
        name = stem_of(image) if tab else f"{path.name}:{number}"
        items.append(SourceItem(name, image if tab else "", caption, reason=reason, detail=reason and "no tab in it"))
    return Source("lines", path.parent, items)
