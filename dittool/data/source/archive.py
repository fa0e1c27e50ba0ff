"""WebDataset tars of images with captions as a source: one .tar, or a folder of them. Read by byte range, never
extracted.

A sample is what lies under one key, the text before a member's first dot: one image (KEY.jpg, .png …) with its caption
in KEY.txt or KEY.caption, which is one caption however many lines it has, or else in KEY.json: text, a list of texts,
or an object with a caption under a usual key, or the one that `data.caption_column` names. A .json beside a text is
metadata and not looked at. An image's path is written NAME.tar/KEY.jpg; a key has the folders before it, where the tar
was made of a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dittool.data.source.captions import LARGEST_CAPTION, LARGEST_JSON, CaptionRefused, read_caption
from dittool.data.source.columns import read_caption_json
from dittool.data.source.folder import Walked
from dittool.data.source.images import LARGEST_FILE, ImageRefused
from dittool.data.source.item import (
    AUTO,
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Pairing,
    Source,
    SourceItem,
    shown,
    stem_of,
    suffix_of,
)
from dittool.errors import BadDataError, DitError
from dittool.untrusted.tar import Member, group_samples, tar_members

TAR_SUFFIX = ".tar"
_IMAGE_ENDINGS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_TEXTS, _JSON = tuple(suffix.removeprefix(".") for suffix in CAPTION_SUFFIXES), "json"
_TARS_IN_MEMORY = 64


@dataclass(frozen=True)
class TarMember:
    """The bytes [offset, offset + size) of a tar."""

    tar: Path
    name: str  # KEY.SUFFIX
    offset: int
    size: int
    pairing: Pairing = AUTO  # which key of a .json holds the caption

    def read(self) -> bytes:
        """Raises OSError."""
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def tar_source(path: Path, pairing: Pairing = AUTO) -> Source:
    """The samples of one tar; an item's name is its key. Raises `BadDataError` for a damaged tar, `UnsafeFileError`
    for an unsafe one.
    """
    items, ignored = _samples_of(path, path.name, pairing)
    return Source("tar", path.parent, items, dict(ignored))


def tars_source(folder: Path, tars: Sequence[str], walked: Walked, pairing: Pairing = AUTO) -> Source:
    """The samples of a folder's tars (relative paths); an item's name is TAR/KEY, because many sets count their
    keys anew in each tar.
    """
    items = list(walked.problems)
    ignored = walked.ignored + Counter(suffix_of(path) or "no suffix" for path in walked.files if path not in tars)
    for tar in tars:
        found, others = _samples_of(folder / tar, tar, pairing)
        items += [replace(item, name=f"{stem_of(tar)}/{item.name}") for item in found]
        ignored += others
    return Source("tar", folder, items, dict(ignored))


def image_in_tar(path: Path) -> bool:
    """Whether the path leads into a tar: `some.tar/KEY.jpg`, with a file called some.tar."""
    return tar_of(path) is not None


def read_image_member(path: Path) -> bytes:
    """The bytes of the image at `some.tar/KEY.jpg`. Raises `ImageRefused`."""
    tar = tar_of(path) or path.parent
    try:
        status = tar.stat()
        member = _members_by_name(tar, status.st_size, status.st_mtime_ns).get(path.relative_to(tar).as_posix())
        if member is None:
            raise ImageRefused("no-image", "no such member in the tar", str(path))
        if member.size > LARGEST_FILE:
            raise ImageRefused(
                "too-large", f"{member.size:,} bytes, an image file has at most {LARGEST_FILE:,}", str(path)
            )
        return member.read()
    except ImageRefused:
        raise
    except OSError as error:
        raise ImageRefused("unreadable", f"the tar cannot be read: {error.strerror}", str(path)) from error
    except DitError as error:  # it was whole when it was listed
        raise ImageRefused("unreadable", error.message, str(path)) from error


def read_caption_member(member: TarMember) -> tuple[str, int]:
    """The caption in a .txt or .json member, and how many further ones there are. Raises `CaptionRefused`."""
    is_json = member.name.endswith(f".{_JSON}")
    largest = LARGEST_JSON if is_json else LARGEST_CAPTION
    if member.size > largest:
        raise CaptionRefused(
            "caption-too-long",
            f"{member.name} has {member.size:,} bytes, at most {largest:,} are read",
            str(member.tar),
        )
    try:
        raw = member.read()
    except OSError as error:
        raise CaptionRefused(
            "caption-unreadable", f"the tar cannot be read: {error.strerror}", str(member.tar)
        ) from error
    return read_caption_json(raw, member.pairing) if is_json else (read_caption(raw), 0)


def _samples_of(path: Path, shown_as: str, pairing: Pairing) -> tuple[list[SourceItem], Counter[str]]:
    """One item a sample, images written `shown_as`/KEY.jpg; and what other members there are, by suffix."""
    items: list[SourceItem] = []
    ignored: Counter[str] = Counter()
    endings = {pairing.captions} & set(_TEXTS) or set(_TEXTS)
    samples, strangers = _checked_samples(path)
    ignored.update(strangers)
    for key, members in samples.items():
        images = _ending_in(members, _IMAGE_ENDINGS)
        texts = _ending_in(members, endings) or _ending_in(members, {_JSON} if endings == set(_TEXTS) else set())
        ignored.update(
            f".{suffix.rpartition('.')[2]}" for suffix in members if suffix not in images and suffix not in texts
        )
        item = SourceItem(key, f"{shown_as}/{key}.{images[0]}" if images else "")
        if texts:
            member = members[texts[0]]
            item = replace(item, caption=TarMember(path, f"{key}.{texts[0]}", member.offset, member.size, pairing))
        which = ': data.captions = "txt" or "caption"' if set(texts) == set(_TEXTS) else ""
        problems = (
            (not images, "no-image", f"no image among its members: {_names(members)}"),
            (len(images) > 1, "two-images", f"{_names(images)}: a key ends at the first dot, so both belong to it"),
            (
                not texts,
                "no-caption",
                f"no {' or '.join(f'{shown(key)}.{ending}' for ending in (*_TEXTS, _JSON))} in the tar",
            ),
            (len(texts) > 1, "two-captions", f"{_names(texts)} both belong to it{which}"),
        )
        reason, detail = next(((reason, detail) for holds, reason, detail in problems if holds), ("", ""))
        items.append(replace(item, reason=reason, detail=detail))
    return items, ignored


def _ending_in(members: dict[str, Member], endings: frozenset[str] | set[str]) -> list[str]:
    """The suffixes that are one of `endings`; when none is, those that end in one (KEY.v1.jpg)."""
    return [suffix for suffix in members if suffix in endings] or [
        suffix for suffix in members if suffix.rpartition(".")[2] in endings
    ]


def _names(suffixes: Sequence[str] | dict[str, Member]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes)


def _checked_samples(path: Path) -> tuple[dict[str, dict[str, Member]], Counter[str]]:
    """The tar's samples, and what belongs to none. Raises `BadDataError` or `UnsafeFileError` that say what to do with
    a source.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise BadDataError(f"{path}: not a regular file", "give a .tar file, or a folder of them")
    try:
        members = tar_members(path, of_folder=True)
        samples = group_samples(path, [member for member in members if member.suffix], adjacent=False)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error
    except DitError as error:  # its own hint is about the shards that `dit shard` makes
        hint = (
            "a source tar holds KEY.jpg and KEY.txt, also in folders, each once, and no links: copy it again, or make"
            " it again, or take it out"
        )
        raise type(error)(error.message, hint) from error
    if not members:
        raise BadDataError(f"{path}: the tar is empty", "copy it again, or take it out of the source")
    strangers = [member.key.rpartition("/")[2] for member in members if not member.suffix]
    return samples, Counter("no suffix" if name and "." not in name else "hidden" for name in strangers)


def tar_of(path: Path) -> Path | None:
    """The tar that a path leads into."""
    return next((parent for parent in path.parents if parent.suffix.lower() == TAR_SUFFIX and parent.is_file()), None)


@lru_cache(maxsize=_TARS_IN_MEMORY)
def _members_by_name(path: Path, size: int, modified: int) -> dict[str, TarMember]:
    """The tar's members; `size` and `modified` tell a tar that was replaced from the one that was read before."""
    return {
        f"{m.key}.{m.suffix}": TarMember(path, f"{m.key}.{m.suffix}", m.offset, m.size)
        for m in tar_members(path, of_folder=True)
    }
