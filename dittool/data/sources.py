"""What a source holds: which images, called what, with which captions. Nothing is opened here but the lists themselves.

Three kinds. A folder, also nested: NAME.jpg with its caption in NAME.txt. A folder with metadata.jsonl: lines of file_name and text or
caption. A manifest, any other .jsonl file: lines of image_id, image_path and caption, and aspect_bucket if it likes.
Every image, every caption without an image and every line ends as one item; those that cannot be used say why.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dittool.data.records import safe_key
from dittool.errors import BadDataError

METADATA = "metadata.jsonl"
_READ_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
_UNREAD_SUFFIXES = frozenset((".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".ico", ".eps", ".fits"))
_IMAGE_SUFFIXES = _READ_SUFFIXES | _UNREAD_SUFFIXES  # a picture that we do not read is refused by name, not passed over
_CAPTION_SUFFIX = ".txt"
_LONGEST_LINE = 1 << 20  # bytes of one JSON line


@dataclass(frozen=True)
class SourceItem:
    """One input. When `reason` is set it cannot be used, whatever else stands here."""

    name: str  # what the source calls it: path without suffix, or image_id
    image: str = ""  # path of the image: relative to the source's root, or absolute as a manifest gave it
    caption: Any = ""  # a Path to read it from, or what stands in the JSON line; not checked yet
    bucket_hint: str = ""  # "WIDTHxHEIGHT" as a manifest gave it
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Source:
    """A listed source."""

    kind: str  # "folder", "metadata" or "manifest"
    root: Path  # image paths are relative to it
    items: list[SourceItem]  # in the order of their names
    ignored: dict[str, int] = field(default_factory=dict)  # what else lies there: suffix or kind → how many


def list_source(source: Path) -> Source:
    """Lists a folder or a manifest, in the same order on every machine.

    Of two items with one name (also after Unicode NFC, or with one file name on a disk that ignores case) the first keeps it and the
    others are refused. Raises `BadDataError` when there is no such source, or no image in it.
    """
    if source.is_dir():
        listed = _metadata_source(source) if (source / METADATA).is_file() else _folder_source(source)
    elif source.suffix.lower() == ".jsonl" and source.is_file():
        listed = Source("manifest", source.parent, [_manifest_item(number, row, source) for number, row in _json_lines(source)])
    elif source.exists():
        raise BadDataError(f"{source}: neither a folder nor a .jsonl manifest", "give a folder of images with .txt captions, or a .jsonl manifest")
    else:
        raise BadDataError(f"{source}: no such file or folder", "check the path; images are looked for in data/images unless a SOURCE is given")
    if not any(item.image for item in listed.items):
        raise _nothing_in(source, listed)
    return replace(listed, items=_with_unique_names(sorted(listed.items, key=lambda item: item.name)))


def source_root(source: Path) -> Path:
    """The folder that the image paths of a source's records are relative to."""
    return source if source.is_dir() else source.parent


# --- a folder with .txt captions ---


def _folder_source(folder: Path) -> Source:
    files, ignored, problems = _walk(folder)
    images = [path for path in files if _suffix(path) in _IMAGE_SUFFIXES]
    captions: dict[str, list[str]] = defaultdict(list)  # name after NFC → its caption files
    for path in files:
        if _suffix(path) == _CAPTION_SUFFIX:
            captions[_nfc(_stem(path))].append(path)
        elif _suffix(path) not in _IMAGE_SUFFIXES:
            ignored[_suffix(path) or "no suffix"] += 1
    by_folded_name = {name.casefold(): paths[0] for name, paths in captions.items()}
    items = list(problems)
    for path in images:
        found = captions.get(_nfc(_stem(path)), [])
        item = SourceItem(_stem(path), path, folder / found[0] if found else "")
        if len(found) > 1:
            item = replace(item, reason="two-captions", detail=f"{_shown(found[0])} and {_shown(found[1])} both belong to it")
        elif not found:
            near = by_folded_name.get(_nfc(_stem(path)).casefold())
            hint = f"; {_shown(near)} differs in upper and lower case" if near else ""
            item = replace(item, reason="no-caption", detail=f"no {_shown(Path(_stem(path)).name)}{_CAPTION_SUFFIX} beside it{hint}")
        items.append(item)
    illustrated = {_nfc(_stem(path)) for path in images}
    for name, paths in captions.items():
        if name not in illustrated:
            items += [SourceItem(path, reason="no-image", detail="a caption with no image beside it") for path in paths]
    return Source("folder", folder, items, dict(ignored))


def _walk(folder: Path) -> tuple[list[str], Counter[str], list[SourceItem]]:
    """Paths of the files below, relative and with '/'; counts of what is passed over; a refused item for each unreadable folder."""
    files: list[str] = []
    ignored: Counter[str] = Counter()
    problems: list[SourceItem] = []

    def unreadable(error: OSError) -> None:
        where = Path(error.filename)
        if where == folder:
            raise BadDataError(f"{folder}: cannot be listed: {error.strerror}", "check its permissions") from error
        problems.append(SourceItem(where.relative_to(folder).as_posix() + "/", reason="unreadable", detail=f"folder: {error.strerror}"))

    for where, folders, names in os.walk(folder, onerror=unreadable):
        ignored["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        ignored["linked folder"] += sum(os.path.islink(os.path.join(where, name)) for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        files += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files), +ignored, problems


# --- metadata.jsonl and manifests ---


def _metadata_source(folder: Path) -> Source:
    items = [_metadata_item(number, row) for number, row in _json_lines(folder / METADATA)]
    files, ignored, problems = _walk(folder)
    listed = {os.path.normpath(item.image) for item in items if item.image}
    for path in files:
        if _suffix(path) in _IMAGE_SUFFIXES and path not in listed:
            items.append(SourceItem(_stem(path), path, reason="no-caption", detail=f"not in {METADATA}"))
        elif path not in listed and path != METADATA:
            ignored[_suffix(path) or "no suffix"] += 1
    return Source("metadata", folder, [*items, *problems], dict(ignored))


def _metadata_item(number: int, row: Any) -> SourceItem:
    if isinstance(row, _BadLine):
        return SourceItem(f"{METADATA}:{number}", reason="bad-line", detail=row.why)
    image = row.get("file_name")
    if not isinstance(image, str) or not image:
        return SourceItem(f"{METADATA}:{number}", reason="bad-line", detail="file_name is missing or not text")
    item = SourceItem(_stem(image), image, row.get("caption", row.get("text")))
    if os.path.isabs(image) or ".." in Path(image).parts:  # it travels with the folder, and so must what it lists
        return replace(item, reason="outside-source", detail="file_name leads out of the folder")
    if item.caption is None:
        return replace(item, reason="no-caption", detail="neither text nor caption in its line")
    if "text" in row and "caption" in row and row["text"] != row["caption"]:
        return replace(item, reason="two-captions", detail="text and caption differ")
    return item


def _manifest_item(number: int, row: Any, manifest: Path) -> SourceItem:
    line = f"{manifest.name}:{number}"
    if isinstance(row, _BadLine):
        return SourceItem(line, reason="bad-line", detail=row.why)
    name, image, hint = row.get("image_id"), row.get("image_path"), row.get("aspect_bucket")
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    for key, value in (("image_id", name), ("image_path", image)):
        if not isinstance(value, str) or not value:
            return SourceItem(line, reason="bad-line", detail=f"{key} is missing or not text")
    item = SourceItem(name, image, row.get("caption"), hint if isinstance(hint, str) else "")
    if item.caption is None:
        return replace(item, reason="no-caption", detail="no caption in its line")
    return item


@dataclass(frozen=True)
class _BadLine:
    why: str


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadLine]]:
    """(line number, object) for each line that is not blank; `_BadLine` for those that are not a JSON object."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_LONGEST_LINE)
                    yield number, _BadLine(f"longer than {_LONGEST_LINE:,} bytes")
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


# --- names ---


def _with_unique_names(items: list[SourceItem]) -> list[SourceItem]:
    owner: dict[str, str] = {}  # key as a file system that ignores case sees it → name
    kept = []
    for item in items:
        key = safe_key(item.name).casefold()
        if key in owner:
            first = owner[key]
            same = f"the name {_shown(item.name)} is taken" if first == item.name else f"its name gives the same files as {_shown(first)}"
            item = replace(item, name=_distinct_name(item, owner), reason=item.reason or "duplicate-name", detail=item.detail or same)
            key = safe_key(item.name).casefold()
        owner[key] = item.name
        kept.append(item)
    return kept


def _distinct_name(item: SourceItem, owner: dict[str, str]) -> str:
    """A free name for a refused item, so that every record has its own id: the image's path, with a number when that is taken too."""
    name, count = item.image or item.name, 1
    while safe_key(name).casefold() in owner:
        count += 1
        name = f"{item.image or item.name} ({count})"
    return name


def _nothing_in(source: Path, listed: Source) -> BadDataError:
    present = Counter(listed.ignored)
    present += Counter(item.reason for item in listed.items if item.reason != "no-image")
    captions = sum(item.reason == "no-image" for item in listed.items)
    there = [f"{captions} {_CAPTION_SUFFIX}"] * bool(captions) + [f"{count} {kind}" for kind, count in sorted(present.items())]
    message = f"{source}: no images in it ({', '.join(there) if there else 'it is empty'})"
    manifests = sorted(source.glob("*.jsonl")) if source.is_dir() else []
    if listed.kind != "folder":
        keys = "image_id, image_path and caption" if listed.kind == "manifest" else "file_name and text or caption"
        return BadDataError(message, f"each line needs {keys}")
    if manifests:
        return BadDataError(message, f"give the manifest itself as SOURCE: {manifests[0]}")
    return BadDataError(message, "put NAME.jpg (or .png, .webp …) with its caption in NAME.txt there, or give another folder as SOURCE")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shown(path: str) -> str:
    """For messages: control characters and bytes that are no text are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in path)
