"""Which images go to one side of the hold-out together, and how that is remembered.

    near_copies.jsonl       one line each time that near copies were looked for:
                            {"compared": rows of thumbnails.rows that were there, "sides": {IMAGE: [IMAGE, …]}}

An image's bytes decide on which side it is (shards/split.py). Near copies that arrive together form a group, and the
bytes of one of them, the one with the lowest sha256, decide for all. An image that arrives later goes with those that
it resembles and moves none of them; one that resembles images of several groups names them all, and `dit shard` leaves
it out where they stand on two sides. So that this holds, what was decided is remembered: rows that were compared before
are older, and keep what their line says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dittool.data.embed_again import embed_again
from dittool.data.features.near_copies import differences, perceptual_hashes, proposed_pairs
from dittool.data.features.thumbnails import read_thumbnails
from dittool.data.records import Record
from dittool.errors import BadDataError
from dittool.shell import command_line
from dittool.storage import append_durably, read_json_lines

NEAR_COPY = "near-copy-of"  # the flag is NEAR_COPY:ID
LARGEST_GROUP = 256  # images: chains of pictures that resemble the next one must not swallow a set


@dataclass(frozen=True)
class Sides:
    """What was decided so far."""

    compared: int = 0  # thumbnails, from the first one
    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # image → images whose bytes decide for it


@dataclass(frozen=True)
class Compared:
    """What looking for near copies found."""

    images: int  # compared for the first time
    grouped: int  # of them, those that go with another one
    too_many: int  # pairs that were not joined, because a group would have become too large
    unfinished: int  # images whose hash begins like so many others that not all of them were compared


def read_sides(path: Path) -> Sides:
    """Raises `BadDataError` for a file that this program did not write."""
    compared = 0
    of: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_json_lines(path) if path.exists() else [], start=1):
        try:
            compared = int(line["compared"])
            of |= {image: tuple(map(str, images)) for image, images in line["sides"].items()}
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadDataError(
                f"{path}: line {number} does not say which images go together ({error!r})",
                f"near copies are looked for anew after: {command_line('rm', path)} && {embed_again(path.parent)}",
            ) from error
    return Sides(compared, of)


def look_for_near_copies(thumbnails: Path, path: Path) -> Compared:
    """Compares the thumbnails that came since the last time with all, and adds a line to the file at `path`."""
    rows, before = read_thumbnails(thumbnails), read_sides(path)
    if before.compared >= len(rows):
        return Compared(0, 0, 0, 0)
    is_new = np.arange(len(rows)) >= before.compared
    proposed = proposed_pairs(perceptual_hashes(rows["pixels"]), is_new)
    pairs = proposed.pairs
    apart = _differences_of(rows, pairs)
    closest_first = np.argsort(apart, kind="stable")
    pairs = pairs[closest_first[: int((apart <= 1).sum())]]
    groups = _Groups(rows["image"], np.unique(pairs), before)
    for one, other in pairs.tolist():
        groups.join(one, other)
    sides = groups.sides()
    append_durably(path, json.dumps({"compared": len(rows), "sides": sides}).encode() + b"\n")
    return Compared(int(is_new.sum()), len(sides), groups.too_many, proposed.unfinished)


def with_sides(records: Iterable[Record], sides: Mapping[str, tuple[str, ...]]) -> list[Record]:
    """The records with what was decided for their images: `sides_with`, and a flag that names the image that an
    image goes with.
    """
    records = list(records)
    id_of: dict[str, str] = {}  # image → id of the first used record of it
    first_with: dict[str, str] = {}  # image that decides → first image that goes with it
    for record in records:
        if record.used:
            id_of.setdefault(record.image_sha256, record.id)
            for image in sides.get(record.image_sha256, ()):
                first_with.setdefault(image, record.image_sha256)

    def decided(record: Record) -> Record:
        with_images = sides.get(record.image_sha256, ()) if record.used else ()
        others = [image if image in id_of else first_with[image] for image in with_images]
        other = next((image for image in others if image != record.image_sha256), None)
        flags = tuple(flag for flag in record.flags if not flag.startswith(f"{NEAR_COPY}:"))
        flags += (f"{NEAR_COPY}:{id_of[other]}",) if other else ()
        return replace(record, sides_with=with_images, flags=flags)

    return [decided(record) for record in records]


def _differences_of(rows: np.ndarray, pairs: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """(M, 2) numbers of rows → (M,), reading few thumbnails at a time."""
    found = [
        differences(rows["pixels"][part[:, 0]], rows["pixels"][part[:, 1]])
        for part in (pairs[start : start + chunk] for start in range(0, len(pairs), chunk))
    ]
    return np.concatenate([np.empty(0), *found])


class _Groups:
    """Images that came now, joined where they resemble each other, with the older ones that they resemble."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, before: Sides) -> None:
        """`images`: (N, 32) uint8 sha256 of each row; `rows`: those that are in a pair, in order."""
        self.too_many = 0
        self._image_of = {row: images[row].tobytes().hex() for row in rows.tolist()}
        # the first row of an image says whether it is older: of two parts that made it, each may have added one
        first_row = {image: row for row, image in reversed(self._image_of.items())}
        self._is_older = {image: row < before.compared for image, row in first_row.items()}
        self._before = before
        self._parent: dict[str, str] = {}  # image that came now → another of its group
        self._members: dict[str, int] = {}  # root of a group → images in it, older ones too
        self._older: dict[str, set[str]] = {}  # root of a group → images that decide for older ones that it resembles
        self._size_with: dict[str, int] = {}  # image that decides → older images for which it does
        for decisive in before.of.values():
            for image in decisive:
                self._size_with[image] = self._size_with.get(image, 1) + 1

    def join(self, one: int, other: int) -> None:
        """Rows of two near copies. The closest pairs come first."""
        first, second = self._image_of[one], self._image_of[other]
        first_is_old, second_is_old = self._is_older[first], self._is_older[second]
        if first == second or (first_is_old and second_is_old):
            return
        if first_is_old or second_is_old:
            root = self._root(second if first_is_old else first)
            decisive = set(self._decisive(first if first_is_old else second)) - self._older[root]
            size = self._members[root] + sum(self._size_with.get(image, 1) for image in decisive)
            if self._fits(size):
                self._older[root] |= decisive
                self._members[root] = size
            return
        root, joined = self._root(first), self._root(second)
        size = self._members[root] + self._members[joined]
        if root != joined and self._fits(size):
            self._parent[joined] = root
            self._older[root] |= self._older[joined]
            self._members[root] = size

    def sides(self) -> dict[str, list[str]]:
        """Image that came now and goes with another → images whose bytes decide for it."""
        groups: dict[str, list[str]] = {}
        for image in self._parent:
            groups.setdefault(self._root(image), []).append(image)
        found: dict[str, list[str]] = {}
        for root, images in groups.items():
            decisive = sorted(self._older[root]) or [min(images)]
            if len(images) > 1 or self._older[root]:
                found |= {image: decisive for image in images if decisive != [image]}
        return found

    def _decisive(self, image: str) -> tuple[str, ...]:
        return self._before.of.get(image, (image,))

    def _root(self, image: str) -> str:
        self._members.setdefault(image, 1)
        self._older.setdefault(image, set())
        while (above := self._parent.setdefault(image, image)) != image:
            self._parent[image] = self._parent[above]
            image = above
        return image

    def _fits(self, size: int) -> bool:
        self.too_many += size > LARGEST_GROUP
        return size <= LARGEST_GROUP
