"""What the lists in a folder of images say: which image has which row, and for which folders each list speaks."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dittool.data.source.by_name import Placed
from dittool.data.source.captions import caption_or_none
from dittool.data.source.coco import COCO_SUFFIX, coco_captions
from dittool.data.source.item import SourceItem, shown, suffix_of
from dittool.data.source.lists import is_metadata, metadata_items
from dittool.data.source.text_lists import TEXT_LIST_SUFFIXES
from dittool.data.source.tree import Tree
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
    elsewhere: dict[str, str] = field(default_factory=dict)  # of the source
    kind_of: dict[str, str] = field(default_factory=dict)  # list → what `data.captions` calls its kind

    @property
    def kind(self) -> str:
        """Of the source."""
        kinds = set(self.kind_of.values())
        return "metadata" if "metadata" in kinds else "".join(kinds)

    def governing(self, path: str) -> list[str]:
        """The lists that speak for the folder of a path."""
        found: list[str] = []
        folder = posixpath.dirname(path)
        while True:
            found += self.scopes.get(folder, ())
            if not folder:
                return list(dict.fromkeys(found))
            folder = posixpath.dirname(folder)

    def speaks_for(self, path: str, folders: Iterable[str], kind: str) -> None:
        """A list answers for the images of folders."""
        self.kind_of[path] = kind
        for folder in folders:
            self.scopes[folder].append(path)

    def add(self, path: str, found: Placed, images: frozenset[str]) -> None:
        self.read.add(path)
        if found.example:
            self.elsewhere[path] = found.example
        for item in found.items:
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
    listed = Listed()
    coco = {path for path in _json_of_no_image(tree) if tree.pairing.reads("coco") and _add_coco(listed, tree, path)}
    if tree.pairing.reads("metadata"):
        for path in filter(is_metadata, tree.others):
            found = _items_of(tree, path)
            listed.add(path, found, tree.by_name.images)
            listed.speaks_for(path, {posixpath.dirname(path), *_folders_of(found.items, tree)}, "metadata")
        for path in [path for path in tree.others if path not in coco and _may_be_list(tree, path)]:
            found = _items_of(tree, path)
            if folders := _folders_of(found.items, tree):  # else it lists other images, or is no list
                listed.add(path, found, tree.by_name.images)
                listed.speaks_for(path, folders, "metadata")
    return listed


def _items_of(tree: Tree, path: str) -> Placed:
    try:
        return metadata_items(tree.folder, path, tree.pairing, tree.by_name)
    except BadDataError as error:
        raise BadDataError(error.message, f"{error.hint}; or leave metadata unread: -s data.captions=txt") from error


def _add_coco(listed: Listed, tree: Tree, path: str) -> bool:
    """Adds a file of COCO captions; whether it is one."""
    found = coco_captions(tree.folder, path, tree.by_name)
    if found is None:
        return False
    if found.found:
        listed.add(path, Placed(found.items), tree.by_name.images)
        listed.ignored += Counter({"caption of an image that COCO's file does not list": found.stray})
        listed.speaks_for(path, _folders_of(found.items, tree), "coco")
    else:  # annotations of a part of COCO that is not here
        listed.read.add(path)
        listed.ignored[f"COCO captions without their images ({shown(posixpath.basename(path))})"] += 1
    return True


def _json_of_no_image(tree: Tree) -> list[str]:
    return [path for path in tree.others if suffix_of(path) == COCO_SUFFIX and not tree.is_beside_image(path)]


def _may_be_list(tree: Tree, path: str) -> bool:
    """Whether a file is worth a look: JSON or a text, and not called like an image."""
    return suffix_of(path) in (COCO_SUFFIX, *TEXT_LIST_SUFFIXES) and not tree.is_beside_image(path)


def _folders_of(items: Iterable[SourceItem], tree: Tree) -> set[str]:
    """The folders of the images in the source that a list names."""
    return {posixpath.dirname(item.image) for item in items if item.image in tree.by_name.images}
