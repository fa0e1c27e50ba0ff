"""Columns of lists: what the usual names of the image's path and the caption are, and one row as an item.

A name counts in any case, with spaces or hyphens for underscores. Any other column is read when the configuration
names it (`data.image_column`, `data.caption_column`). The same rules hold for the header of a table and for the keys of
a line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dittool.config.values import kind_named
from dittool.data.source.captions import LARGEST_JSON, CaptionRefused, KindedTexts, caption_in, choose_caption
from dittool.data.source.item import AUTO, Pairing, SourceItem, shown, stem_of
from dittool.errors import listed

# The first that is there is read.
PATH_COLUMNS = (
    *("image_path", "file_name", "filename", "path", "filepath", "file_path", "image_file_name", "image_filename"),
    *("image_file", "image_name", "image", "img_path", "img_name", "img", "file"),
)
# Of these every one that is there is read, and they must agree …
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
# … and of these, which are as often something else, where none of those is there.
OTHER_CAPTION_COLUMNS = ("description", "sentence", "sentences", "alt_text", "alt", "comment")
_ID_COLUMN, _BUCKET_COLUMN = "image_id", "aspect_bucket"
_ADDRESS_COLUMNS = ("url", "image_url", "img_url", "image_link")  # of LAION's tables, and others like them
SCORE = "filtered:scores"  # as filters.py calls its reasons
_LONGEST_LISTING = 20  # columns that a message names

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
Row = dict[str, Any]  # column → value
_EMPTY: tuple[object, ...] = (None, "", [])  # in a column of several


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    why: str


@dataclass(frozen=True)
class Columns:
    """Which columns of a list are read, by the names that they have there; "" where there is none."""

    path: str
    captions: tuple[str, ...]
    id: str
    bucket: str
    scores: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        columns = (self.path, *self.captions, self.id, self.bucket, *self.scores)
        return list(dict.fromkeys(column for column in columns if column))


@lru_cache(maxsize=1024)
def columns_of(present: tuple[str, ...], pairing: Pairing) -> Columns:
    """The columns that are read of those that are there."""
    by_name: dict[str, list[str]] = {}
    for column in present:
        by_name.setdefault(_folded(column), []).append(column)

    def all_of(names: Sequence[str]) -> list[str]:
        return [column for name in names for column in by_name.get(name, ())]

    def named(column: str) -> list[str]:
        return [column] if column in present else by_name.get(_folded(column), [])[:1]

    paths = named(pairing.image_column) if pairing.image_column else all_of(PATH_COLUMNS)
    if given := pairing.caption_columns or tuple(filter(None, [pairing.caption_column])):
        captions = [column for name in given for column in named(name)]
    else:
        path = paths[:1]
        captions = [column for column in all_of(CAPTION_COLUMNS) or all_of(OTHER_CAPTION_COLUMNS) if column not in path]
    ids, buckets = all_of([_ID_COLUMN]), all_of([_BUCKET_COLUMN])
    scores = tuple(column for name, _, _ in pairing.scores for column in named(name))
    return Columns("".join(paths[:1]), tuple(captions), "".join(ids[:1]), "".join(buckets[:1]), scores)


def captions_in(row: Row, captions: tuple[str, ...], pairing: Pairing) -> object:
    """What stands in the caption columns of a row, not checked yet: where several are named, each with its kind. Raises
    `CaptionRefused`: nothing does, or columns that are one caption by their names differ.
    """
    if not pairing.caption_columns:
        return caption_in(row, captions)
    by_name = {_folded(column): column for column in captions}
    found = [
        (kind_named(name), value)
        for name in pairing.caption_columns
        if (column := name if name in row else by_name.get(_folded(name))) and (value := row.get(column)) not in _EMPTY
    ]
    if not found:
        raise CaptionRefused("no-caption", f"nothing under {' or '.join(pairing.caption_columns)} in it")
    return KindedTexts(tuple(found))


def read_caption_json(raw: bytes, pairing: Pairing = AUTO) -> tuple[str, int]:
    """`choose_caption` of a `.json` file's bytes: text, a list of texts, or an object with a caption under a usual key.
    Raises `CaptionRefused`.
    """
    return choose_caption(caption_value_of_json(raw, pairing))


def caption_value_of_json(raw: bytes, pairing: Pairing) -> object:
    """What a `.json` file's bytes say of an image's captions, not checked yet. Raises `CaptionRefused`."""
    if len(raw) > LARGEST_JSON:
        raise CaptionRefused(
            "caption-too-long", f"{len(raw):,} bytes, a .json with a caption has at most {LARGEST_JSON:,}"
        )
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CaptionRefused(
            "caption-not-utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CaptionRefused("caption-not-json", f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        return value
    captions = columns_of(tuple(value), pairing).captions
    if not captions:
        keys = listed([shown(key)[:60] for key in value], _LONGEST_LISTING) or "none"
        raise CaptionRefused("no-caption", f"no caption in it; its keys are {keys}: name one with data.caption_column")
    return captions_in(value, captions, pairing)


def what_is_missing(
    columns: Columns, present: Sequence[str], pairing: Pairing, kind: str = "column"
) -> tuple[str, str]:
    """(what is wrong, what to do) when the path or the caption column is not there; ("", "") when both are."""
    found = listed([shown(str(name))[:60] for name in present], _LONGEST_LISTING) or "none"
    for there, what, key, given, usual in (
        (columns.path, "image paths", "data.image_column", pairing.image_column, PATH_COLUMNS),
        (
            *(columns.captions, "captions", "data.caption_column"),
            pairing.caption_column or ", ".join(pairing.caption_columns),
            (*CAPTION_COLUMNS, *OTHER_CAPTION_COLUMNS),
        ),
    ):
        if not there:
            looked_for = f"{given}, which {key} names" if given else ", ".join(usual)
            return (
                f"no {kind} of {what}: looked for {looked_for}; its {kind}s are {found}",
                f"name the {kind} that holds them: -s {key}=NAME" + _how_to_fetch(present),
            )
    return "", ""


def _how_to_fetch(present: Sequence[str]) -> str:
    """What to do with a list of addresses, as LAION's tables are; "" for other lists."""
    addresses = [shown(str(name)) for name in present if _folded(str(name)) in _ADDRESS_COLUMNS]
    if not addresses:
        return ""
    return (
        f"; or, where {addresses[0]} holds addresses, which are not followed, fetch the pictures and give their folder:"
        f" img2dataset --url_list LIST --url_col {addresses[0]} --output_format webdataset --output_folder FOLDER"
    )


def row_item(where: str, row: Row | BadRow, pairing: Pairing, folder: str | None = None) -> SourceItem:
    """One row of a list as an item; `where` names it, FILE:NUMBER.

    Args:
        folder: for a list inside of a source, the folder that it lies in, relative to the source: paths are relative to
            it and stay inside, and an image is called by its path. None for a list that is itself the source.
    """
    if isinstance(row, BadRow):
        return SourceItem(where, reason="bad-line", detail=row.why)
    present = tuple(row)
    columns = columns_of(present, pairing)
    if not columns.path:
        return SourceItem(where, reason="bad-line", detail=what_is_missing(columns, present, pairing, "key")[0])
    image, hint = row[columns.path], row.get(columns.bucket)
    if isinstance(image, int) and not isinstance(image, bool):  # a number that names a file
        image = str(image)
    if not isinstance(image, str) or not image:
        return SourceItem(where, reason="bad-line", detail=f"{columns.path} is missing or not text")
    item = SourceItem(stem_of(image), image, bucket_hint=hint if isinstance(hint, str) else "")
    if _ADDRESS.match(image):
        detail = "addresses are not followed: fetch the pictures first (img2dataset does)"
        return replace(item, reason="no-image", detail=detail)
    if folder is not None:
        inside = posixpath.normpath(image)
        if os.path.isabs(image) or ".." in inside.split("/"):  # it travels with the folder, and so must what it lists
            return replace(item, reason="outside-source", detail=f"{columns.path} leads out of the folder")
        image = posixpath.join(folder, inside)
        item = replace(item, name=stem_of(image), image=image)
    elif columns.id:
        name = row[columns.id]
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        if not isinstance(name, str) or not name:
            return SourceItem(where, reason="bad-line", detail=f"{columns.id} is missing or not text")
        item = replace(item, name=name)
    reason, detail = score_refusal(row, pairing)
    if reason:
        return replace(item, reason=reason, detail=detail)
    try:
        return replace(item, caption=captions_in(row, columns.captions, pairing))
    except CaptionRefused as refused:
        detail = refused.detail
        if not columns.captions:
            detail = what_is_missing(columns, present, pairing, "key")[0]
        elif refused.reason == "two-captions":
            detail += ": name the one that is meant with data.caption_column"
        return replace(item, reason=refused.reason, detail=detail)


def score_refusal(row: Row, pairing: Pairing) -> tuple[str, str]:
    """(reason, detail) of a row whose scores are not those that are kept; ("", "") of one that passes."""
    for name, least, most in pairing.scores:
        column = next((column for column in row if column == name or _folded(column) == _folded(name)), name)
        said = row.get(column)
        try:
            value = float(said) if isinstance(said, (int, float, str)) else math.nan
        except ValueError:
            value = math.nan
        if math.isnan(value):
            return SCORE, f"{name} is no number: {str(said)[:40]!r}"
        if not least <= value <= most:
            return SCORE, f"{name} is {value:g}, kept are {least:g} to {most:g}"
    return "", ""


def merged_rows(items: Sequence[tuple[SourceItem, bool]]) -> list[SourceItem]:
    """Items of a list's rows, those of rows that repeat a path joined to one with several captions. The flag says that
    a row has a name of its own and stands alone.
    """
    merged: list[SourceItem] = []
    by_path: dict[str, int] = {}  # path → place in `merged`
    for item, stands_alone in items:
        if item.image and not stands_alone and item.image in by_path:
            place = by_path[item.image]
            merged[place] = _with_further_caption(merged[place], item)
            continue
        by_path.setdefault(item.image, len(merged))
        merged.append(item)
    return merged


def _with_further_caption(first: SourceItem, again: SourceItem) -> SourceItem:
    """An image's item with the caption of one more row. A row without a caption adds none."""
    if again.reason:
        return first
    if first.reason:  # the first row had no caption
        return again
    if isinstance(first.caption, KindedTexts) and isinstance(again.caption, KindedTexts):
        return replace(first, caption=KindedTexts((*first.caption.values, *again.caption.values)))
    texts = first.caption if isinstance(first.caption, list) else [first.caption]
    return replace(first, caption=[*texts, *(again.caption if isinstance(again.caption, list) else [again.caption])])


def _folded(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())
