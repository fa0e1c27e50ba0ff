"""A folder of captioned images as a source: from all that may hold a caption, the one that is meant, or none.

A caption stands in a list (metadata in any folder, or COCO captions) or in a text beside the image, NAME.txt or
NAME.caption. A list speaks for the folders of its images: an image there that it leaves out is refused, and no text
beside it answers instead. Where a list and a text, or both texts, caption one image and differ, nothing says which is
meant, and that is an error; `data.captions` says it. A folder's name is never a caption here.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dittool.data.source.captions import LARGEST_JSON, CaptionRefused, choose_caption, read_caption_file
from dittool.data.source.coco import COCO_SUFFIX, coco_captions
from dittool.data.source.folder import Walked, walk
from dittool.data.source.item import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Pairing,
    Source,
    SourceItem,
    nfc,
    shown,
    stem_of,
    suffix_of,
)
from dittool.data.source.lists import LIST_SUFFIXES, is_metadata, metadata_items
from dittool.errors import BadDataError

_NAMED = 3  # files that a message names


def captioned_source(folder: Path, walked: Walked, pairing: Pairing) -> Source:
    """Every image below the folder, every row of a list and every text without an image, each once.

    Raises `BadDataError` when a list is damaged, when no image has a caption, and when two kinds of captions disagree
    and `pairing` does not say which is meant.
    """
    tree = _Tree(folder, walked, pairing)
    listed = _lists_of(tree)
    items = [*walked.problems, *listed.lonely]
    conflicts: list[_Conflict] = []
    answered: dict[str, list[str]] = defaultdict(list)  # where captions stand → images
    for image in tree.images:
        texts = tree.texts_of(image)
        item = listed.rows.get(image) or _without_row(tree, listed, image, texts)
        items.append(item)
        if item.reason:
            continue
        place = listed.list_of.get(image) or texts[0]
        answered[posixpath.basename(place) if image in listed.rows else suffix_of(place)].append(image)
        conflicts += _conflicts_of(tree, item, place, [text for text in texts if text != place])
    if conflicts:
        raise _undecided(folder, conflicts)
    if tree.images and all(item.reason in ("no-caption", "no-image") for item in items):
        raise _no_captions(tree, [item for item in items if item.reason == "no-caption"])
    ignored = Counter(walked.ignored) + listed.ignored
    illustrated = {nfc(stem_of(image)) for image in tree.images}
    for path in tree.others:
        if path in tree.text_files and not listed.governing(path):
            if nfc(stem_of(path)) not in illustrated:
                items.append(SourceItem(path, reason="no-image", detail="a caption with no image beside it"))
        elif path not in listed.read:
            ignored[suffix_of(path) or "no suffix"] += 1
    return Source(listed.kind or "folder", folder, items, dict(ignored), dict(answered))


def coco_as_source(path: Path, _: Pairing) -> Source:
    """The images below the folder of a file of COCO captions that it lists. Raises `BadDataError`."""
    folder = path.parent
    images = walk(folder).having(*IMAGE_SUFFIXES)
    found = coco_captions(folder, path.name, images, _by_last_part(images))
    if found is None:
        raise BadDataError(
            f"{path}: no COCO captions: it needs images (id, file_name) and annotations (image_id, caption)",
            "give the folder of the images as SOURCE, or a list as metadata.jsonl, .csv or .parquet",
        )
    if not found.found:
        raise BadDataError(
            f"{path}: none of its {len(found.items)} images lies below {folder}",
            "give the folder that holds both as SOURCE",
        )
    return Source("coco", folder, found.items)


# --- what lies there ---


@dataclass
class _Tree:
    """The files below the source's folder, as looking for captions needs them."""

    folder: Path
    walked: Walked
    pairing: Pairing

    @cached_property
    def images(self) -> list[str]:
        return self.walked.having(*IMAGE_SUFFIXES)

    @cached_property
    def others(self) -> list[str]:
        images = set(self.images)
        return [path for path in self.walked.files if path not in images]

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Path without suffix, after NFC → the files beside an image that could be called so."""
        found = defaultdict(list)
        for path in self.others:
            found[nfc(stem_of(path))].append(path)
        return found

    @cached_property
    def text_suffixes(self) -> list[str]:
        """Of the texts that `pairing` lets answer for the image beside them."""
        return [suffix for suffix in CAPTION_SUFFIXES if self.pairing.reads(suffix.removeprefix("."))]

    @cached_property
    def text_files(self) -> frozenset[str]:
        return frozenset(path for path in self.others if suffix_of(path) in self.text_suffixes)

    @cached_property
    def _by_folded_stem(self) -> dict[str, str]:
        return {nfc(stem_of(path)).casefold(): path for path in reversed(self.others) if path in self.text_files}

    @cached_property
    def lists_in(self) -> dict[str, list[str]]:
        """Folder → files in it that may list images: tables, and JSON that is called like none of them."""
        images = {nfc(stem_of(image)) for image in self.images} | {nfc(image) for image in self.images}
        found = defaultdict(list)
        for path in self.others:
            if suffix_of(path) in LIST_SUFFIXES or (
                suffix_of(path) == COCO_SUFFIX and nfc(stem_of(path)) not in images
            ):
                found[posixpath.dirname(path)].append(path)
        return found

    def texts_of(self, image: str) -> list[str]:
        """The texts beside an image, .txt first."""
        beside = [path for path in self.by_stem.get(nfc(stem_of(image)), ()) if path in self.text_files]
        return sorted(beside, key=lambda path: (CAPTION_SUFFIXES.index(suffix_of(path)), path))

    def other_spelling(self, image: str) -> str | None:
        """A text whose name differs from the image's in upper and lower case only."""
        return self._by_folded_stem.get(nfc(stem_of(image)).casefold())

    def neighbours(self, image: str, read: set[str]) -> str:
        """What lies beside an image and is none of the lists that are read, in words; "" when nothing does."""
        twins = [*self.by_stem.get(nfc(stem_of(image)), ()), *self.by_stem.get(nfc(image), ())]  # a.json, a.jpg.json
        twins = [path for path in twins if suffix_of(path) not in LIST_SUFFIXES]
        lists = [path for path in self.lists_in.get(posixpath.dirname(image), []) if path not in read]
        return ", ".join(self._described(path) for path in [*twins, *lists][:_NAMED])

    def _described(self, path: str) -> str:
        name = shown(posixpath.basename(path))
        keys = _json_keys(self.folder / path) if suffix_of(path) == COCO_SUFFIX else []
        return f"{name} (with {', '.join(shown(key)[:40] for key in keys[:8])})" if keys else name


@dataclass
class _Listed:
    """What the lists of a tree say."""

    rows: dict[str, SourceItem] = field(default_factory=dict)  # image → its row
    list_of: dict[str, str] = field(default_factory=dict)  # image → the list that the row stands in
    lonely: list[SourceItem] = field(default_factory=list)  # rows of no image in the tree
    read: set[str] = field(default_factory=set)  # paths of the lists
    scopes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # folder → lists that speak for it
    ignored: Counter[str] = field(default_factory=Counter)
    kind: str = ""  # of the source

    def governing(self, path: str) -> list[str]:
        """The lists that speak for the folder of a path."""
        found: list[str] = []
        folder = posixpath.dirname(path)
        while True:
            found += self.scopes.get(folder, ())
            if not folder:
                return list(dict.fromkeys(found))
            folder = posixpath.dirname(folder)

    def add(self, path: str, items: Iterable[SourceItem], images: frozenset[str]) -> None:
        self.read.add(path)
        for item in items:
            before = self.rows.get(item.image)
            if item.image not in images or (before is not None and before.reason == item.reason == "no-caption"):
                self.lonely.append(item)
            elif before is None or before.reason == "no-caption":
                self.rows[item.image], self.list_of[item.image] = item, path
            elif item.reason != "no-caption" and _first_of(before.caption) != _first_of(item.caption):
                detail = (
                    f"{shown(self.list_of[item.image])} and {shown(path)} caption it differently: give one as SOURCE"
                )
                self.rows[item.image] = replace(before, reason=before.reason or "two-captions", detail=detail)


def _lists_of(tree: _Tree) -> _Listed:
    listed, images = _Listed(), frozenset(tree.images)
    if tree.pairing.reads("metadata"):
        for path in filter(is_metadata, tree.others):
            try:
                listed.add(path, metadata_items(tree.folder, path, tree.pairing), images)
            except BadDataError as error:
                raise BadDataError(error.message, f"{error.hint}; {_without('metadata')}") from error
            listed.scopes[posixpath.dirname(path)].append(path)
            listed.kind = "metadata"
    if tree.pairing.reads("coco"):
        by_name = _by_last_part(tree.images)
        beside_images = {nfc(stem_of(image)) for image in tree.images} | {nfc(image) for image in tree.images}
        for path in tree.others:
            if suffix_of(path) != COCO_SUFFIX or nfc(stem_of(path)) in beside_images:
                continue
            found = coco_captions(tree.folder, path, tree.images, by_name)
            if found is None:
                continue
            if not found.found:  # annotations of a part of COCO that is not here
                listed.read.add(path)
                listed.ignored[f"COCO captions without their images ({shown(posixpath.basename(path))})"] += 1
                continue
            listed.add(path, found.items, images)
            listed.ignored += Counter({"caption of an image that COCO's file does not list": found.stray})
            for image in found.items:
                if image.image in images:
                    lists = listed.scopes[posixpath.dirname(image.image)]
                    lists += [] if path in lists else [path]
            listed.kind = listed.kind or "coco"
    return listed


def _by_last_part(images: Iterable[str]) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_name[posixpath.basename(image)].append(image)
    return by_name


# --- an image that no list captions ---


def _without_row(tree: _Tree, listed: _Listed, image: str, texts: list[str]) -> SourceItem:
    """The item of an image with the text beside it, or refused for having none, or one that may not answer."""
    item, neighbours = SourceItem(stem_of(image), image), tree.neighbours(image, listed.read)
    beside = f"; beside it is {neighbours}" if neighbours else ""
    if lists := listed.governing(image):
        return replace(item, reason="no-caption", detail=f"not in {', '.join(map(shown, lists[:_NAMED]))}{beside}")
    if len(texts) > 1 and suffix_of(texts[0]) == suffix_of(texts[1]):
        detail = f"{shown(texts[0])} and {shown(texts[1])} both belong to it"
        return replace(item, reason="two-captions", detail=detail)
    if texts:
        return replace(item, caption=tree.folder / texts[0])
    name = shown(posixpath.basename(stem_of(image)))
    wanted = " or ".join(f"{name}{suffix}" for suffix in tree.text_suffixes)
    near = tree.other_spelling(image)
    spelling = f"; {shown(near)} differs in upper and lower case" if near else ""
    looked = f"no {wanted} beside it" if wanted else "in no list"
    return replace(item, reason="no-caption", detail=f"{looked}{spelling}{beside}")


# --- when two kinds of captions disagree ---


@dataclass(frozen=True)
class _Conflict:
    """An image with two captions, and where they stand."""

    image: str
    places: tuple[str, str]
    captions: tuple[str, str]


def _conflicts_of(tree: _Tree, item: SourceItem, place: str, texts: list[str]) -> list[_Conflict]:
    """The texts beside an image that say something else than the caption that was taken, which stands in `place`."""
    one = _first_of(item.caption) if texts else None
    others = [(text, _first_of(tree.folder / text)) for text in texts]
    return [
        _Conflict(item.image, (place, text), (one, other))
        for text, other in others
        if one is not None and other is not None and one != other
    ]


def _undecided(folder: Path, conflicts: list[_Conflict]) -> BadDataError:
    first = conflicts[0]
    said = " and ".join(
        f"{shown(posixpath.basename(place))} says '{caption[:40]}'"
        for place, caption in zip(first.places, first.captions, strict=True)
    )
    kinds = dict.fromkeys(_kind_of(place) for conflict in conflicts for place in conflict.places)
    return BadDataError(
        f"{folder}: {len({conflict.image for conflict in conflicts})} images have two captions that differ: of"
        f" {shown(first.image)} {said}",
        f"say which is meant: {' or '.join(f'-s data.captions={kind}' for kind in kinds)}",
    )


def _first_of(caption: Any) -> str | None:
    """The caption as it would be used; None when it could not be."""
    try:
        return read_caption_file(caption) if isinstance(caption, Path) else choose_caption(caption)[0]
    except CaptionRefused:
        return None


def _kind_of(path: str) -> str:
    suffix = suffix_of(path)
    return suffix.removeprefix(".") if suffix in CAPTION_SUFFIXES else "coco" if suffix == COCO_SUFFIX else "metadata"


# --- when there are none ---


def _no_captions(tree: _Tree, items: list[SourceItem]) -> BadDataError:
    there = Counter(suffix_of(path) or "no suffix" for path in tree.others)
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(there.items())[:8]) or "nothing but images"
    wanted = {
        "auto": "NAME.txt or NAME.caption beside an image, metadata.jsonl, .csv, .tsv or .parquet, COCO captions",
        "txt": "NAME.txt beside an image",
        "caption": "NAME.caption beside an image",
        "metadata": "metadata.jsonl, .csv, .tsv or .parquet in any folder",
        "coco": "COCO captions: a .json with images and annotations",
    }[tree.pairing.captions]
    message = (
        f"{tree.folder}: none of {len(tree.images)} images has a caption: looked for {wanted} (data.captions ="
        f' "{tree.pairing.captions}"). What lies there: {found}'
    )
    if items:
        first = max(items, key=lambda item: item.detail.count(";"))  # what is told beside the plain "none"
        message += f". {shown(first.image)}: {first.detail}"
    ways = ["give each image its caption in one of these ways"]
    if lists := [path for path in tree.others if suffix_of(path) in LIST_SUFFIXES and not is_metadata(path)]:
        ways.insert(0, f"give the list itself as SOURCE: {tree.folder / lists[0]}")
    if tree.pairing.captions != "auto":
        ways.append("or take what is there: -s data.captions=auto")
    if all("/" in image for image in tree.images):
        ways.append("or, where the folders' names are the captions: -s data.captions=folder")
    return BadDataError(message, "; ".join(ways))


def _without(kind: str) -> str:
    return f"or leave {kind} unread: -s data.captions=txt"


def _json_keys(path: Path) -> list[str]:
    """The keys of a small JSON object, or of the first one in a list; none for anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            return []
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return []
    first = value[0] if isinstance(value, list) and value else value
    return [str(key) for key in first] if isinstance(first, dict) else []
