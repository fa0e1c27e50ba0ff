"""A folder of captioned images as a source: from all that may hold a caption, the one that is meant, or none.

A caption stands in a list (metadata in any folder, COCO captions, a list in JSON or in a text) or in a text beside the
image, NAME.txt or NAME.caption. A list speaks for the folders of its images: an image there that it leaves out is
refused, and no text beside it answers instead. Where a list and a text, or both texts, caption one image and differ,
nothing says which is meant, and that is an error; `data.captions` says it. A folder's name is never a caption here.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from dittool.data.source.by_name import ImagesByName, Placed
from dittool.data.source.captions import caption_or_none
from dittool.data.source.coco import COCO_SUFFIX, coco_captions
from dittool.data.source.folder import Walked, walk
from dittool.data.source.item import (
    IMAGE_SUFFIXES,
    Pairing,
    Source,
    SourceItem,
    nfc,
    shown,
    stem_of,
    suffix_of,
)
from dittool.data.source.listed import Listed, lists_of
from dittool.data.source.lists import LIST_SUFFIXES, is_metadata, metadata_items
from dittool.data.source.tree import Tree
from dittool.errors import BadDataError

_NAMED = 3  # files that a message names


def captioned_source(folder: Path, walked: Walked, pairing: Pairing) -> Source:
    """Every image below the folder, every row of a list and every text without an image, each once.

    Raises `BadDataError` when a list is damaged, when no image has a caption, and when two kinds of captions disagree
    and `pairing` does not say which is meant.
    """
    tree = Tree(folder, walked, pairing)
    listed = lists_of(tree)
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
        raise _undecided(folder, listed, conflicts)
    if tree.images and all(item.reason in ("no-caption", "no-image") for item in items):
        raise _no_captions(tree, [item for item in items if item.reason == "no-caption"])
    ignored = Counter(walked.ignored) + listed.ignored
    illustrated = {nfc(stem_of(image)) for image in tree.images}
    for path in tree.others:
        if path in tree.text_files and not listed.governing(path):
            if nfc(stem_of(path)) not in illustrated and path not in listed.read:
                items.append(SourceItem(path, reason="no-image", detail="a caption with no image beside it"))
        elif path not in listed.read:
            ignored[suffix_of(path) or "no suffix"] += 1
    return Source(listed.kind or "folder", folder, items, dict(ignored), dict(answered), listed.elsewhere)


def file_as_source(path: Path, pairing: Pairing) -> Source:
    """The images below the folder of a JSON (COCO captions, or a list) or a text that list them. Raises
    `BadDataError`.
    """
    folder, images = path.parent, ImagesByName(walk(path.parent).having(*IMAGE_SUFFIXES))
    coco = coco_captions(folder, path.name, images) if path.suffix.lower() == COCO_SUFFIX else None
    found = Placed(coco.items) if coco is not None else metadata_items(folder, path.name, pairing, images)
    items = found.items
    if not items:
        lists = (
            "COCO captions need images (id, file_name) and annotations (image_id, caption); other JSON an image and a"
            " caption in each object, under usual names or those of data.image_column and data.caption_column"
            if path.suffix.lower() == COCO_SUFFIX
            else "a first line that names the columns, or NAME.jpg, a tab and a caption on each line"
        )
        raise BadDataError(
            f"{path}: no list of captions: {lists}",
            "give the folder of the images as SOURCE, or a list as metadata.jsonl, .csv or .parquet",
        )
    if not any(item.image in images.images for item in items):
        raise BadDataError(
            f"{path}: none of its {len(items)} images lies below {folder}",
            "give the folder that holds both as SOURCE",
        )
    elsewhere = {path.name: found.example} if found.example else {}
    return Source("metadata" if coco is None else "coco", folder, items, elsewhere=elsewhere)


# --- an image that no list captions ---


def _without_row(tree: Tree, listed: Listed, image: str, texts: list[str]) -> SourceItem:
    """The item of an image with the text beside it, or refused for having none, or one that may not answer."""
    item, neighbours = SourceItem(stem_of(image), image), tree.neighbours(image, listed.read)
    beside = f"; beside it is {neighbours}" if neighbours else ""
    if above := tree.lists_above(image, listed.read):
        beside += f"; above it is {above}"
    if lists := listed.governing(image):
        return replace(item, reason="no-caption", detail=f"not in {', '.join(map(shown, lists[:_NAMED]))}{beside}")
    if len(texts) > 1 and suffix_of(texts[0]) == suffix_of(texts[1]):
        detail = f"{shown(texts[0])} and {shown(texts[1])} both belong to it"
        return replace(item, reason="two-captions", detail=detail)
    if texts:
        return replace(item, caption=tree.folder / texts[0])
    name = shown(posixpath.basename(stem_of(image)))
    wanted = " or ".join(f"{name}{suffix}" for suffix in tree.text_suffixes)
    near, far = tree.other_spelling(image), tree.text_elsewhere(image)
    spelling = f"; {shown(near)} differs in upper and lower case" if near else ""
    spelling += f"; {shown(far)} is called like it and lies in another folder" if far and not near else ""
    looked = f"no {wanted} beside it" if wanted else "in no list"
    return replace(item, reason="no-caption", detail=f"{looked}{spelling}{beside}")


# --- when two kinds of captions disagree ---


@dataclass(frozen=True)
class _Conflict:
    """An image with two captions, and where they stand."""

    image: str
    places: tuple[str, str]
    captions: tuple[str, str]


def _conflicts_of(tree: Tree, item: SourceItem, place: str, texts: list[str]) -> list[_Conflict]:
    """The texts beside an image that say something else than the caption that was taken, which stands in `place`."""
    one = caption_or_none(item.caption) if texts else None
    others = [(text, caption_or_none(tree.folder / text)) for text in texts]
    return [
        _Conflict(item.image, (place, text), (one, other))
        for text, other in others
        if one is not None and other is not None and one != other
    ]


def _undecided(folder: Path, listed: Listed, conflicts: list[_Conflict]) -> BadDataError:
    first = conflicts[0]
    said = " and ".join(
        f"{shown(posixpath.basename(place))} says '{caption[:40]}'"
        for place, caption in zip(first.places, first.captions, strict=True)
    )
    places = dict.fromkeys(place for conflict in conflicts for place in conflict.places)
    kinds = dict.fromkeys(listed.kind_of.get(place) or suffix_of(place).removeprefix(".") for place in places)
    return BadDataError(
        f"{folder}: {len({conflict.image for conflict in conflicts})} images have two captions that differ: of"
        f" {shown(first.image)} {said}",
        f"say which is meant: {' or '.join(f'-s data.captions={kind}' for kind in kinds)}",
    )


# --- when there are none ---


def _no_captions(tree: Tree, items: list[SourceItem]) -> BadDataError:
    there = Counter(suffix_of(path) or "no suffix" for path in tree.others)
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(there.items())[:8]) or "nothing but images"
    wanted = {
        "auto": (
            "NAME.txt or NAME.caption beside an image, metadata.jsonl, .csv, .tsv or .parquet, captions.txt, COCO"
            " captions and other lists in JSON"
        ),
        "txt": "NAME.txt beside an image",
        "caption": "NAME.caption beside an image",
        "metadata": "metadata.jsonl, .csv, .tsv or .parquet in any folder, captions.txt, lists in JSON",
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
    if all(len(re.findall(r"[^\W\d_]{2,}", posixpath.basename(stem_of(image)))) > 1 for image in tree.images):
        ways.append("names of files are never captions: write each into its NAME.txt")
    if all("/" in image for image in tree.images):
        ways.append("or, where the folders' names are the captions: -s data.captions=folder")
    return BadDataError(message, "; ".join(ways))
