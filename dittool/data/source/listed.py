"""What the lists in a folder of images say: which image has which row, and for which folders each list speaks."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dittool.data.source.captions import caption_or_none
from dittool.data.source.coco import COCO_SUFFIX, coco_captions
from dittool.data.source.item import SourceItem, nfc, shown, stem_of, suffix_of
from dittool.data.source.lists import is_metadata, metadata_items
from dittool.data.source.tree import Tree, by_last_part
from dittool.errors import BadDataError


@dataclass
class Listed:
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
            elif item.reason != "no-caption" and caption_or_none(before.caption) != caption_or_none(item.caption):
                detail = (
                    f"{shown(self.list_of[item.image])} and {shown(path)} caption it differently: give one as SOURCE"
                )
                self.rows[item.image] = replace(before, reason=before.reason or "two-captions", detail=detail)


def lists_of(tree: Tree) -> Listed:
    listed, images = Listed(), frozenset(tree.images)
    if tree.pairing.reads("metadata"):
        for path in filter(is_metadata, tree.others):
            try:
                listed.add(path, metadata_items(tree.folder, path, tree.pairing), images)
            except BadDataError as error:
                raise BadDataError(error.message, f"{error.hint}; {left_unread('metadata')}") from error
            listed.scopes[posixpath.dirname(path)].append(path)
            listed.kind = "metadata"
    if tree.pairing.reads("coco"):
        by_name = by_last_part(tree.images)
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


def left_unread(kind: str) -> str:
    return f"or leave {kind} unread: -s data.captions=txt"
