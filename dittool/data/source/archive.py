"""Tars and zips of images with captions as a source: one archive, or those of a folder. Read by byte range, never
extracted.

A sample is what lies under one key: one image (KEY.jpg, .png …) with its caption in KEY.txt or KEY.caption, which is
one caption however many lines it has, or else in KEY.json: text, a list of texts, or an object with a caption under a
usual key, or the one that `data.caption_column` names. A .json beside a text is metadata and not looked at. In a tar,
which is WebDataset's, a key ends at the first dot; in a zip, which is a folder that was packed, at the last one. An
image's path is written NAME.tar/KEY.jpg; a key has the folders before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dittool.data.source.captions import LARGEST_CAPTION, LARGEST_JSON, CaptionRefused, caption_text, read_caption
from dittool.data.source.columns import caption_value_of_json, read_caption_json
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
from dittool.untrusted.tar import group_samples, tar_members
from dittool.untrusted.zip_members import ZipMember, read_zip_member, zip_members

TAR_SUFFIX, ZIP_SUFFIX = ".tar", ".zip"
ARCHIVE_SUFFIXES = (TAR_SUFFIX, ZIP_SUFFIX)
_IMAGE_ENDINGS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_TEXTS, _JSON = tuple(suffix.removeprefix(".") for suffix in CAPTION_SUFFIXES), "json"
_ARCHIVES_IN_MEMORY = 64
_OF_A_MAC = "__MACOSX/"  # where its archiver keeps what is no file of the folder


@dataclass(frozen=True)
class ArchiveMember:
    """A file in a tar or a zip."""

    archive: Path
    name: str  # KEY.SUFFIX
    size: int
    place: int | ZipMember  # in a tar its bytes are [place, place + size)
    pairing: Pairing = AUTO  # which key of a .json holds the caption

    @property
    def is_json(self) -> bool:
        return self.name.endswith(f".{_JSON}")

    def read(self) -> bytes:
        """Raises OSError, and `BadDataError` for a damaged member of a zip."""
        if isinstance(self.place, ZipMember):
            return read_zip_member(self.archive, self.place)
        with self.archive.open("rb") as file:
            file.seek(self.place)
            return file.read(self.size)


Sample = dict[str, ArchiveMember]  # suffix without its dot → member


def archive_source(path: Path, pairing: Pairing = AUTO) -> Source:
    """The samples of one archive; an item's name is its key. Raises `BadDataError` for a damaged one,
    `UnsafeFileError` for an unsafe one.
    """
    items, ignored = samples_of(path, path.name, pairing)
    return Source(suffix_of(path.name).removeprefix("."), path.parent, items, dict(ignored))


def read_image_member(archive: Path, name: str) -> bytes:
    """The bytes of the image that the archive holds under this name. Raises `ImageRefused`."""
    path = archive / name
    try:
        status = archive.stat()
        member = _members_by_name(archive, status.st_size, status.st_mtime_ns).get(name)
        if member is None:
            raise ImageRefused("no-image", f"no such member in the {suffix_of(archive.name)[1:]}", str(path))
        if member.size > LARGEST_FILE:
            raise ImageRefused(
                "too-large", f"{member.size:,} bytes, an image file has at most {LARGEST_FILE:,}", str(path)
            )
        return member.read()
    except ImageRefused:
        raise
    except OSError as error:
        raise ImageRefused("unreadable", f"the archive cannot be read: {error.strerror}", str(path)) from error
    except DitError as error:  # it was whole when it was listed
        raise ImageRefused("unreadable", error.message, str(path)) from error


def read_caption_member(member: ArchiveMember) -> tuple[str, int]:
    """The caption in a .txt or .json member, and how many further ones there are. Raises `CaptionRefused`."""
    raw = _read_text(member)
    return read_caption_json(raw, member.pairing) if member.is_json else (read_caption(raw), 0)


def caption_value_in(member: ArchiveMember) -> object:
    """What stands in a .txt or .json member, not checked yet. Raises `CaptionRefused`."""
    raw = _read_text(member)
    return caption_value_of_json(raw, member.pairing) if member.is_json else caption_text(raw)


def _read_text(member: ArchiveMember) -> bytes:
    largest = LARGEST_JSON if member.is_json else LARGEST_CAPTION
    if member.size > largest:
        raise CaptionRefused(
            "caption-too-long",
            f"{member.name} has {member.size:,} bytes, at most {largest:,} are read",
            str(member.archive),
        )
    try:
        return member.read()
    except OSError as error:
        raise CaptionRefused(
            "caption-unreadable", f"the archive cannot be read: {error.strerror}", str(member.archive)
        ) from error
    except BadDataError as error:
        raise CaptionRefused("caption-unreadable", error.message, str(member.archive)) from error


def samples_of(path: Path, shown_as: str, pairing: Pairing) -> tuple[list[SourceItem], Counter[str]]:
    """One item a sample, images written `shown_as`/KEY.jpg; and what other members there are, by suffix."""
    items: list[SourceItem] = []
    ignored: Counter[str] = Counter()
    endings = {pairing.captions} & set(_TEXTS) or set(_TEXTS)
    samples, strangers = _checked_samples(path)
    ends = "a key ends at the first dot" if _is_tar(path) else "both have the same name before their suffix"
    ignored.update(strangers)
    for key, members in samples.items():
        images = _ending_in(members, _IMAGE_ENDINGS)
        texts = _ending_in(members, endings) or _ending_in(members, {_JSON} if endings == set(_TEXTS) else set())
        ignored.update(
            f".{suffix.rpartition('.')[2]}" for suffix in members if suffix not in images and suffix not in texts
        )
        if not images and not texts and not _is_tar(path):  # in a folder it would be passed over, too
            continue
        item = SourceItem(key, f"{shown_as}/{key}.{images[0]}" if images else "")
        if texts:
            item = replace(item, caption=replace(members[texts[0]], pairing=pairing))
        which = ': data.captions = "txt" or "caption"' if set(texts) == set(_TEXTS) else ""
        problems = (
            (not images, "no-image", f"no image among its members: {_names(members)}"),
            (len(images) > 1, "two-images", f"{_names(images)}: {ends}, so both belong to it"),
            (
                not texts,
                "no-caption",
                f"no {' or '.join(f'{shown(key)}.{ending}' for ending in (*_TEXTS, _JSON))} in it",
            ),
            (len(texts) > 1, "two-captions", f"{_names(texts)} both belong to it{which}"),
        )
        reason, detail = next(((reason, detail) for holds, reason, detail in problems if holds), ("", ""))
        items.append(replace(item, reason=reason, detail=detail))
    return items, ignored


def _ending_in(members: Sample, endings: frozenset[str] | set[str]) -> list[str]:
    """The suffixes that are one of `endings`; when none is, those that end in one (KEY.v1.jpg)."""
    return [suffix for suffix in members if suffix in endings] or [
        suffix for suffix in members if suffix.rpartition(".")[2] in endings
    ]


def _names(suffixes: Sequence[str] | Sample) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes)


def _checked_samples(path: Path) -> tuple[dict[str, Sample], Counter[str]]:
    """The archive's samples, and what belongs to none. Raises `BadDataError` or `UnsafeFileError` that say what to do
    with a source.
    """
    kind = suffix_of(path.name)[1:]
    if not path.is_file():  # a pipe would wait for ever
        raise BadDataError(f"{path}: not a regular file", f"give a .{kind} file, or a folder of them")
    try:
        samples, strangers = _samples_of_tar(path) if _is_tar(path) else _samples_of_zip(path)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error
    except DitError as error:  # its own hint may be about the shards that `dit shard` makes
        hint = (
            f"a source {kind} holds KEY.jpg and KEY.txt, also in folders, each once, and no links: copy it again, or"
            " make it again, or take it out"
        )
        raise type(error)(error.message, hint) from error
    if not samples and not strangers:
        raise BadDataError(f"{path}: the {kind} is empty", "copy it again, or take it out of the source")
    return samples, strangers


def _is_tar(path: Path) -> bool:
    return suffix_of(path.name) == TAR_SUFFIX


def _samples_of_tar(path: Path) -> tuple[dict[str, Sample], Counter[str]]:
    members = tar_members(path, of_folder=True)
    groups = group_samples(path, [member for member in members if member.suffix], adjacent=False)
    samples = {
        key: {suffix: ArchiveMember(path, f"{key}.{suffix}", m.size, m.offset) for suffix, m in group.items()}
        for key, group in groups.items()
    }
    names = [member.key.rpartition("/")[2] for member in members if not member.suffix]
    return samples, Counter("no suffix" if name and "." not in name else "hidden" for name in names)


def _samples_of_zip(path: Path) -> tuple[dict[str, Sample], Counter[str]]:
    samples: dict[str, Sample] = {}
    strangers: Counter[str] = Counter()
    for member in zip_members(path):
        hidden = member.name.startswith(_OF_A_MAC) or any(part.startswith(".") for part in member.name.split("/"))
        suffix = suffix_of(member.name).removeprefix(".")
        if hidden or not suffix:
            strangers["hidden" if hidden else "no suffix"] += 1
            continue
        sample = samples.setdefault(stem_of(member.name), {})
        if suffix in sample:
            raise BadDataError(f"{path}: '{member.name}' is there twice but for its capitals", "rename one of them")
        sample[suffix] = ArchiveMember(path, f"{stem_of(member.name)}.{suffix}", member.size, member)
    return samples, strangers


@lru_cache(maxsize=_ARCHIVES_IN_MEMORY)
def _members_by_name(path: Path, size: int, modified: int) -> dict[str, ArchiveMember]:
    """The archive's members; `size` and `modified` tell one that was replaced from the one that was read before."""
    samples, _ = _samples_of_tar(path) if _is_tar(path) else _samples_of_zip(path)
    return {member.name: member for sample in samples.values() for member in sample.values()}
