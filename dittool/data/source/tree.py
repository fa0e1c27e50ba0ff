"""The files below a folder of captioned images, as looking for captions needs them: which are images, which texts lie
beside them, and which could be lists.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from dittool.data.source.by_name import ImagesByName
from dittool.data.source.captions import LARGEST_JSON
from dittool.data.source.coco import COCO_SUFFIX
from dittool.data.source.folder import Walked
from dittool.data.source.item import CAPTION_SUFFIXES, IMAGE_SUFFIXES, Pairing, nfc, shown, stem_of, suffix_of
from dittool.data.source.lists import LIST_SUFFIXES

_NAMED = 3  # files that a message names


@dataclass
class Tree:
    """The files below the source's folder, as looking for captions needs them."""

    folder: Path
    walked: Walked
    pairing: Pairing

    @cached_property
    def images(self) -> list[str]:
        return self.walked.having(*IMAGE_SUFFIXES)

    @cached_property
    def by_name(self) -> ImagesByName:
        return ImagesByName(self.images)

    @cached_property
    def _names_of_images(self) -> frozenset[str]:
        """Paths of images after NFC, with and without suffix."""
        return frozenset(nfc(name) for image in self.images for name in (stem_of(image), image))

    def is_beside_image(self, path: str) -> bool:
        """Whether a file is called like an image: a.json, a.jpg.json."""
        return nfc(stem_of(path)) in self._names_of_images

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
        found = defaultdict(list)
        for path in self.others:
            if suffix_of(path) in LIST_SUFFIXES or (suffix_of(path) == COCO_SUFFIX and not self.is_beside_image(path)):
                found[posixpath.dirname(path)].append(path)
        return found

    def texts_of(self, image: str) -> list[str]:
        """The texts beside an image, .txt first."""
        beside = [path for path in self.by_stem.get(nfc(stem_of(image)), ()) if path in self.text_files]
        return sorted(beside, key=lambda path: (CAPTION_SUFFIXES.index(suffix_of(path)), path))

    def other_spelling(self, image: str) -> str | None:
        """A text whose name differs from the image's in upper and lower case only."""
        return self._by_folded_stem.get(nfc(stem_of(image)).casefold())

    @cached_property
    def _text_of_last_stem(self) -> dict[str, str]:
        return {
            nfc(posixpath.basename(stem_of(path))): path for path in reversed(self.others) if path in self.text_files
        }

    def text_elsewhere(self, image: str) -> str | None:
        """A text that is called like the image and lies in another folder."""
        return self._text_of_last_stem.get(nfc(posixpath.basename(stem_of(image))))

    def neighbours(self, image: str, read: set[str]) -> str:
        """What lies beside an image and is none of the lists that are read, in words; "" when nothing does."""
        twins = [*self.by_stem.get(nfc(stem_of(image)), ()), *self.by_stem.get(nfc(image), ())]  # a.json, a.jpg.json
        twins = [path for path in twins if suffix_of(path) not in LIST_SUFFIXES]
        lists = [path for path in self.lists_in.get(posixpath.dirname(image), []) if path not in read]
        return ", ".join(self._described(path) for path in [*twins, *lists][:_NAMED])

    def lists_above(self, image: str, read: set[str]) -> str:
        """JSON in the folders above an image's that is none of the lists that are read, in words; "" without any."""
        folders = [folder.as_posix() for folder in PurePosixPath(image).parents[1:]]
        found = [path for folder in folders for path in self.lists_in.get("" if folder == "." else folder, ())]
        unread = [path for path in found if path not in read and suffix_of(path) == COCO_SUFFIX]
        return ", ".join(self._described(path) for path in unread[:_NAMED])

    def _described(self, path: str) -> str:
        name = shown(posixpath.basename(path))
        keys = _json_keys(self.folder / path) if suffix_of(path) == COCO_SUFFIX else []
        return f"{name} (with {', '.join(shown(key)[:40] for key in keys[:8])})" if keys else name


@lru_cache(maxsize=256)  # many images have the same list above them
def _json_keys(path: Path) -> list[str]:
    """The keys of a small JSON object, or of the first one in a list; none for anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            return []
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return []
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and first and all(isinstance(said, dict) for said in first.values()):
        first = next(iter(first.values()))  # image → what is said of it
    return [str(key) for key in first] if isinstance(first, dict) else []
