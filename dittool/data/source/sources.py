"""What a source holds: which images, called what, with which captions. Nothing is opened here but the lists themselves,
and texts that two kinds of captions could make ambiguous.

Kinds of source, each read in its own module: a folder of captioned images (captioned.py), one of class folders
(folder.py), a list in JSON lines or a table (lists.py), COCO captions (coco.py), files that hold many samples, alone or
in a folder of them: tars and zips (archive.py), tables with pictures in them (embedded.py). Every
image, every caption without an image and every row ends as one item; those that cannot be used say why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

from dittool.data.records import safe_key
from dittool.data.source.archive import ARCHIVE_SUFFIXES, archive_source
from dittool.data.source.captioned import captioned_source, file_as_source
from dittool.data.source.coco import COCO_SUFFIX
from dittool.data.source.columns import CAPTION_COLUMNS, PATH_COLUMNS
from dittool.data.source.containers import containers_in, containers_source
from dittool.data.source.embedded import ARROW_SUFFIX, PARQUET_SUFFIX, embedded_source, picture_column
from dittool.data.source.folder import FOLDER_NAMES, classes_source, walk
from dittool.data.source.item import AUTO, CAPTION_SUFFIXES, IMAGE_SUFFIXES, Pairing, Source, SourceItem, shown
from dittool.data.source.lists import LIST_SUFFIXES, is_metadata, list_as_source
from dittool.data.source.text_lists import TEXT_LIST_SUFFIXES
from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.plugins import REMEDY, load_plugin, named_plugins, package_of

PLUGIN_GROUP = "dit.sources"  # an entry point's name is the suffix, without its dot


def _table_source(path: Path, pairing: Pairing) -> Source:
    """Rows with pictures in them, or with paths of pictures."""
    if picture_column(path, pairing):
        return embedded_source(path, pairing)
    if path.suffix.lower() == ARROW_SUFFIX:
        raise BadDataError(
            f"{path}: none of its columns holds pictures, as bytes or as a struct with bytes",
            "save the data set with its pictures in it, or give a list of paths as .parquet or .csv",
        )
    return list_as_source(path, pairing)


_READERS: dict[str, Callable[[Path, Pairing], Source]] = {
    **dict.fromkeys(LIST_SUFFIXES, list_as_source),
    **dict.fromkeys((COCO_SUFFIX, *TEXT_LIST_SUFFIXES), file_as_source),
    **dict.fromkeys((PARQUET_SUFFIX, ARROW_SUFFIX), _table_source),
    **dict.fromkeys(ARCHIVE_SUFFIXES, archive_source),
}
_ROW_NEEDS = (
    f"needs an image path ({', '.join(PATH_COLUMNS[:3])} …; others: -s data.image_column=NAME) and a caption"
    f" ({', '.join(CAPTION_COLUMNS)} …; others: -s data.caption_column=NAME)"
)
_ARCHIVE_KINDS = tuple(suffix.removeprefix(".") for suffix in ARCHIVE_SUFFIXES)
_NEEDED = {
    "metadata": f"each line {_ROW_NEEDS}",
    "manifest": f"each line {_ROW_NEEDS}",
    "table": f"each row {_ROW_NEEDS}",
    **dict.fromkeys(
        _ARCHIVE_KINDS,
        "each sample needs KEY.jpg (or .png, .webp …) and KEY.txt or KEY.json; tars of features go to: dit train --data"
        " FOLDER",
    ),
}


def list_source(source: Path, pairing: Pairing = AUTO) -> Source:
    """Lists a source, in the same order on every machine; `pairing` says where captions are looked for.

    Of two items with one name (also after Unicode NFC, or with one file name on a disk that ignores case) the first
    keeps it and the others are refused. Raises `UsageError` when there is no such source and for Parquet without
    pyarrow, `BadDataError` when no image or no caption is in it, when a list in it is damaged or captions contradict
    each other, `UnsafeFileError` for a tar with links or paths in it.
    """
    require_source(source)
    suffix = source.suffix.lower()
    if source.is_dir():
        listed = _list_folder(source, pairing)
    elif source.is_file() and suffix in _READERS:
        listed = _READERS[suffix](source, pairing)
    elif source.is_file() and (plugin := named_plugins(PLUGIN_GROUP).get(suffix.removeprefix("."))):
        listed = _read_by(plugin, source, pairing)
    else:
        *known, last = [*_READERS, *(f".{name}" for name in named_plugins(PLUGIN_GROUP))]
        raise BadDataError(
            f"{source}: neither a folder nor a {', '.join(known)} or {last} file",
            _UNREAD.get(
                source.suffix.lower(),
                "give a folder of images with .txt captions, or a list of images with one of these suffixes",
            ),
        )
    if not any(item.image for item in listed.items):
        raise _nothing_in(source, listed)
    return replace(listed, items=_with_unique_names(sorted(listed.items, key=lambda item: item.name)))


def _read_by(plugin: EntryPoint, source: Path, pairing: Pairing) -> Source:
    """What another package's reader, (path, pairing) → `Source`, makes of a file."""
    listed = load_plugin(plugin, "source")(source, pairing)
    if not isinstance(listed, Source):
        name = type(listed).__name__
        raise UsageError(f"source '{plugin.name}' of {package_of(plugin)} gave a {name}, no Source", REMEDY)
    return listed


def require_source(source: Path) -> None:
    """Raises `UsageError` when there is nothing of that name: asked before anything is made for it."""
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder", _where_to_look(source))


def source_root(source: Path) -> Path:
    """The folder that the image paths of a source's records are relative to."""
    return source if source.is_dir() else source.parent


def _list_folder(folder: Path, pairing: Pairing) -> Source:
    """Images rule, or metadata that lists them; then what holds many samples."""
    walked = walk(folder)
    images = walked.having(*IMAGE_SUFFIXES)
    if images and pairing.captions == FOLDER_NAMES:
        return classes_source(folder, walked)
    if not images and (containers := containers_in(folder, walked, pairing)):
        named = [path for path in walked.files if is_metadata(path) and path not in containers]
        if not (named and pairing.reads("metadata")):  # else rows may name pictures in the archives
            return containers_source(folder, containers, walked, pairing)
    return captioned_source(folder, walked, pairing)


# --- names ---


def _with_unique_names(items: list[SourceItem]) -> list[SourceItem]:
    owner: dict[str, str] = {}  # key as a file system that ignores case sees it → name
    kept = []
    for item in items:
        key = safe_key(item.name).casefold()
        if key in owner:
            first = owner[key]
            same = (
                f"the name {shown(item.name)} is taken"
                if first == item.name
                else f"its name gives the same files as {shown(first)}"
            )
            item = replace(
                item,
                name=_distinct_name(item, owner),
                reason=item.reason or "duplicate-name",
                detail=item.detail or same,
            )
            key = safe_key(item.name).casefold()
        owner[key] = item.name
        kept.append(item)
    return kept


def _distinct_name(item: SourceItem, owner: dict[str, str]) -> str:
    """A free name for a refused item, so that every record has its own id: the image's path, with a number when
    that is taken too.
    """
    name, count = item.image or item.name, 1
    while safe_key(name).casefold() in owner:
        count += 1
        name = f"{item.image or item.name} ({count})"
    return name


# --- when there is nothing ---


def _where_to_look(source: Path) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+]+:", str(source)):
        return (
            "addresses and commands are not followed (but hf://datasets/OWNER/NAME by dit embed): fetch the data first,"
            " and give the folder or file on this disk"
        )
    if any(sign in source.name for sign in "{*?["):
        return "patterns are not expanded: give the folder that holds these files"
    return did_you_mean(source, "check the path; images are looked for in data/images unless a SOURCE is given")


_ARCHIVES = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z", ".rar")
_CONTAINERS = (".lmdb", ".mdb", ".h5", ".hdf5", ".tfrecord")
_UNREAD = {  # suffix → what to do with a file of it
    **dict.fromkeys(_ARCHIVES, "unpack it, and give that folder as SOURCE"),
    **dict.fromkeys(_CONTAINERS, "write its pictures to files, with their captions, and give their folder as SOURCE"),
}


def _nothing_in(source: Path, listed: Source) -> BadDataError:
    present = Counter(listed.ignored)
    present += Counter(item.reason for item in listed.items if item.reason != "no-image")
    lonely = sum(item.reason == "no-image" for item in listed.items)
    what = "samples without an image" if listed.kind in _ARCHIVE_KINDS else CAPTION_SUFFIXES[0]
    there = [f"{lonely} {what}"] * bool(lonely) + [f"{count} {kind}" for kind, count in sorted(present.items())]
    message = f"{source}: no images in it ({', '.join(there) if there else 'it is empty'})"
    if first := next((item for item in listed.items if item.reason == "bad-line"), None):
        message += f". {shown(first.name)}: {first.detail}"
    if listed.kind in _NEEDED:
        return BadDataError(message, _NEEDED[listed.kind])
    if source.is_file():
        return BadDataError(message, "give a list that names images, or a folder of images with their captions")
    if unread := next((suffix for suffix in listed.ignored if suffix in _UNREAD), ""):
        return BadDataError(
            message, f"{unread} is not read: {_UNREAD[unread]} as SOURCE, with a caption for each picture"
        )
    if lists := sorted(path for path in source.rglob("*") if path.suffix.lower() in LIST_SUFFIXES):
        return BadDataError(message, f"give the list itself as SOURCE: {lists[0]}")
    return BadDataError(
        message, "put NAME.jpg (or .png, .webp …) with its caption in NAME.txt there, or give another folder as SOURCE"
    )
