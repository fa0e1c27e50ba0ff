"""Several captions of an image, each with its kind: which of them are kept.

Where nobody asks for several, the first is taken (captions.py). Named columns or fields are kinds, kept in the order in
which they are named; of a list in one of them, and of texts that no column tells apart, all are kept where
`data.several_captions` asks for all, and of a text each line only where it asks for lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dittool.config.values import PLAIN_KIND
from dittool.data.source.archive import ArchiveMember, caption_value_in, read_caption_member
from dittool.data.source.captions import (
    CaptionRefused,
    KindedTexts,
    caption_text,
    check_caption,
    choose_caption,
    read_caption_file,
    read_text_bytes,
)
from dittool.data.source.item import Pairing

MOST_CAPTIONS = 64  # of one image
LEFT_OUT = "captions-left-out"  # the flag is LEFT_OUT:N, N the captions that cannot be used


@dataclass(frozen=True)
class Chosen:
    """The captions of an image."""

    first: str
    kept: tuple[tuple[str, str], ...] = ()  # (kind, text) of each; none where one is all that is asked for
    further: int = 0  # not taken
    left_out: int = 0  # that cannot be used, beside some that can


def captions_of(caption: object, pairing: Pairing) -> Chosen:
    """Those that an item's caption gives: a file, a member of an archive, or what stands in a list. Raises
    `CaptionRefused` where none can be used.
    """
    if pairing.keeps_several:
        return _several(_value_of(caption, pairing), pairing)
    if isinstance(caption, Path):
        return Chosen(read_caption_file(caption))
    first, further = read_caption_member(caption) if isinstance(caption, ArchiveMember) else choose_caption(caption)
    return Chosen(first, further=further)


def _value_of(caption: object, pairing: Pairing) -> object:
    if isinstance(caption, Path):
        return _texts(caption_text(read_text_bytes(caption)), pairing)
    if isinstance(caption, ArchiveMember):
        value = caption_value_in(caption)
        return value if caption.is_json else _texts(value, pairing)
    return caption


def _texts(text: object, pairing: Pairing) -> object:
    """A text's lines where these are asked for, without the empty ones; else the text."""
    if not isinstance(text, str) or pairing.several != "lines":
        return text
    return [line for line in text.splitlines() if line.strip()] or text


def _several(value: object, pairing: Pairing) -> Chosen:
    given = value.values if isinstance(value, KindedTexts) else ((PLAIN_KIND, value),)
    texts: list[tuple[str, object]] = []
    further = 0
    for kind, of_kind in given:
        listed = of_kind if isinstance(of_kind, list) else [of_kind]
        kept = listed if pairing.several != "first" else listed[:1]
        texts += [(kind, text) for text in kept]
        further += len(listed) - len(kept)
    found: dict[tuple[str, str], None] = {}
    refusals: list[CaptionRefused] = []
    for kind, text in texts:
        try:
            found[kind, check_caption(text)] = None
        except CaptionRefused as refused:
            refusals.append(refused)
    if not found:
        raise refusals[0] if refusals else CaptionRefused("empty-caption", "the list of captions is empty")
    captions = tuple(found)
    further += max(len(captions) - MOST_CAPTIONS, 0)
    return Chosen(captions[0][1], captions[:MOST_CAPTIONS], further, len(refusals))
