"""Finding the images of a source by the ends of their paths, for lists that were written for another place.

A list means the images beside it where these are there. Where none of its paths is, it was written for another folder:
Flickr's captions.txt names the images in Images/, kohya's metadata the path from where the program ran, COCO says no
folder at all. Then a path means the image whose path ends with it, and no image where several do.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dittool.data.source.item import SourceItem, shown, stem_of

_ROWS_TRIED = 1000  # of a list, to find out from which folder its paths begin


class ImagesByName:
    """The images of a source, by the ends of their paths."""

    def __init__(self, images: Iterable[str]) -> None:
        self.images = frozenset(images)
        self._by_last_part: dict[str, list[str]] = defaultdict(list)
        for image in sorted(self.images):
            self._by_last_part[posixpath.basename(image)].append(image)
            self._by_last_part[posixpath.basename(stem_of(image))].append(image)

    def meant(self, list_path: str, name: str) -> list[str]:
        """The images that a relative path in a list may stand for, of which the suffix may be left out: the one beside
        the list; else those below the list's folder; else those anywhere whose folder the list's name speaks of
        (captions_train2017.json, train2017/); else those anywhere.
        """
        folder = posixpath.dirname(list_path)
        if (beside := posixpath.join(folder, name)) in self.images:
            return [beside]
        candidates = self._by_last_part.get(posixpath.basename(name), ())
        found = [image for image in candidates if f"/{image}".endswith(f"/{name}")]
        found = found or [image for image in candidates if f"/{stem_of(image)}".endswith(f"/{name}")]
        below = [image for image in found if image.startswith(f"{folder}/")] if folder else found
        found = below or found
        if len(found) > 1:
            title = posixpath.basename(stem_of(list_path)).lower()
            found = [image for image in found if _speaks_of(title, image)] or found
        return found


@dataclass(frozen=True)
class Placed:
    """The items of a list with the images that they mean."""

    items: list[SourceItem]
    example: str = ""  # where they are not those of its paths: one of them, in words


def placed(items: Sequence[SourceItem], list_path: str, images: ImagesByName) -> Placed:
    """The images that the items of a list mean: where one of its images lies where it says, those of its paths."""
    unchanged = Placed(list(items))
    if any(item.image in images.images for item in items):
        return unchanged
    names = [_relative(item.image, posixpath.dirname(list_path)) for item in items]
    tried = [name for name in names if name][:_ROWS_TRIED]
    deepest = max((name.count("/") for name in tried), default=0)
    for dropped in range(deepest + 1):  # folders at the front that are not in the source
        if any(images.meant(list_path, end) for name in tried if (end := _without_first(name, dropped))):
            break
    else:
        return unchanged
    shorter = [_without_first(name, dropped) for name in names]
    found = [_with_image(item, list_path, name, images) for item, name in zip(items, shorter, strict=True)]
    both = ((name, item.image) for name, item in zip(names, found, strict=True) if item.image in images.images)
    return Placed(found, next((f"{shown(name)} is {shown(image)}" for name, image in both), ""))


def _with_image(item: SourceItem, list_path: str, name: str, images: ImagesByName) -> SourceItem:
    meant = images.meant(list_path, name) if name else []
    if len(meant) > 1:
        both = f"{shown(name)} may be {shown(meant[0])} and {shown(meant[1])}"
        return replace(item, reason="two-images", detail=both)
    if not meant:
        return item
    has_own_name = item.name != stem_of(item.image)
    return replace(item, image=meant[0], name=item.name if has_own_name else stem_of(meant[0]))


def _relative(image: str, folder: str) -> str:
    """The path in the list, with '/' for the backslashes of Windows; "" for an address, and where it leads out."""
    if "://" in image:
        return ""
    name = posixpath.normpath((image.removeprefix(f"{folder}/") if folder else image).replace("\\", "/"))
    return "" if not image or name.startswith(("/", "..")) else name


def _without_first(name: str, folders: int) -> str:
    return "/".join(name.split("/")[folders:])


def _speaks_of(title: str, image: str) -> bool:
    return any(len(part) > 2 and part.lower() in title for part in image.split("/")[:-1])
