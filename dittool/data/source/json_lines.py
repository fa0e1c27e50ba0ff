"""Lists in JSON lines as sources: metadata.jsonl in a folder (file_name, and text or caption), and manifests (image_id,
image_path, caption).

A line that is no such object is refused by its number and the others stand.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dittool.data.source.folder import Walked
from dittool.data.source.item import (
    IMAGE_SUFFIXES,
    LONGEST_LINE,
    Source,
    SourceItem,
    stem_of,
    suffix_of,
    with_caption_of,
)
from dittool.errors import BadDataError

METADATA = "metadata.jsonl"


def metadata_source(folder: Path, walked: Walked) -> Source:
    """The lines of the folder's metadata.jsonl; images below the folder that it does not list are refused items."""
    items = [_metadata_item(number, row) for number, row in _json_lines(folder / METADATA)]
    ignored = Counter(walked.ignored)
    listed = {os.path.normpath(item.image) for item in items if item.image}
    for path in walked.files:
        if suffix_of(path) in IMAGE_SUFFIXES and path not in listed:
            items.append(SourceItem(stem_of(path), path, reason="no-caption", detail=f"not in {METADATA}"))
        elif path not in listed and path != METADATA:
            ignored[suffix_of(path) or "no suffix"] += 1
    return Source("metadata", folder, [*items, *walked.problems], dict(ignored))


def manifest_source(path: Path) -> Source:
    """The lines of a manifest. Its paths are relative to the manifest's folder, or absolute."""
    return Source("manifest", path.parent, [_manifest_item(number, row, path) for number, row in _json_lines(path)])


def _metadata_item(number: int, row: Any) -> SourceItem:
    if isinstance(row, _BadLine):
        return SourceItem(f"{METADATA}:{number}", reason="bad-line", detail=row.why)
    image = row.get("file_name")
    if not isinstance(image, str) or not image:
        return SourceItem(f"{METADATA}:{number}", reason="bad-line", detail="file_name is missing or not text")
    item = SourceItem(stem_of(image), image)
    if os.path.isabs(image) or ".." in Path(image).parts:  # it travels with the folder, and so must what it lists
        return replace(item, reason="outside-source", detail="file_name leads out of the folder")
    return with_caption_of(item, row)


def _manifest_item(number: int, row: Any, manifest: Path) -> SourceItem:
    line = f"{manifest.name}:{number}"
    if isinstance(row, _BadLine):
        return SourceItem(line, reason="bad-line", detail=row.why)
    name, image, hint = row.get("image_id"), row.get("image_path"), row.get("aspect_bucket")
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    for key, value in (("image_id", name), ("image_path", image)):
        if not isinstance(value, str) or not value:
            return SourceItem(line, reason="bad-line", detail=f"{key} is missing or not text")
    return with_caption_of(
        SourceItem(name, image, bucket_hint=hint if isinstance(hint, str) else ""), {"caption": row.get("caption")}
    )


@dataclass(frozen=True)
class _BadLine:
    why: str


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadLine]]:
    """(line number, object) for each line that is not blank; `_BadLine` for those that are not a JSON object."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_LINE)
                    yield number, _BadLine(f"longer than {LONGEST_LINE:,} bytes")
                elif line.strip():
                    yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error


def _json_object(line: bytes) -> dict[str, Any] | _BadLine:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _BadLine(f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return _BadLine(f"not valid JSON: {error}")
    return value if isinstance(value, dict) else _BadLine(f"not a JSON object but {type(value).__name__}")
