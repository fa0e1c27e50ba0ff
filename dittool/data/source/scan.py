"""From a source to records: each input judged once, used or refused with a reason, in an order that does not depend on
the machine.

The scan reads every file (its hash is the record's identity) and its header; pixels are decoded later, by
`load_pixels`, when an encoder wants them. What only decoding can find, such as a cut-off body, is refused then. With
`flip = "prepared"` each used image is followed by its flipped variant (flip.py): the same bytes under a second id.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dittool.config.features import Keep
from dittool.console import SILENT, Talk
from dittool.data.records import REFUSED, UNKNOWN_WORDS, USED, Record, safe_key
from dittool.data.source.captions import FURTHER, CaptionRefused
from dittool.data.source.containers import not_read_here, read_picture
from dittool.data.source.filters import filtered
from dittool.data.source.flip import NOT_FLIPPED, with_flips
from dittool.data.source.images import ImageRefused, decode_image, fit_to_bucket, read_header
from dittool.data.source.item import AUTO, CAPTION_SUFFIXES, Pairing, Source, SourceItem, shown
from dittool.data.source.seen import Seen
from dittool.data.source.several import LEFT_OUT, captions_of
from dittool.data.source.sources import list_source, source_root
from dittool.geometry import Bucket, crop_box, nearest_bucket

_REPEATS = re.compile(r"\d+_.")
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
_OF_LOOSE_IMAGES = ("folder", "metadata", "coco")  # kinds of sources
DUPLICATE = "duplicate-of"  # the flag is DUPLICATE:ID


class Share(Protocol):
    """One part's share of a listing."""

    def mine(self, items: list[SourceItem]) -> list[SourceItem]: ...

    def exchange(self, seen: Seen) -> None:
        """Gives the others what `seen` was told, and takes what they have."""


def scan(
    source: Path,
    buckets: Sequence[Bucket],
    talk: Talk = SILENT,
    flip: Literal["none", "prepared"] = "none",
    pairing: Pairing = AUTO,
    seen: Seen | None = None,
    share: Share | None = None,
    keep: Keep | None = None,
) -> list[Record]:
    """A record for every input of `source` (what `list_source` takes), used or refused, in the order of their names;
    ids are unique.

    Inputs that `seen` knows are not read again; with a `share` of the listing this process reads that first, and then
    only what the other parts have not read. Used records with the same bytes as an earlier one stay used and are
    flagged. With `flip = "prepared"` the flipped variant of a used record stands behind it; one whose caption cannot be
    flipped is flagged with the reason instead.
    `keep` refuses what does not pass its filters. Raises as `list_source` does.
    """
    listed = list_source(source, pairing)
    _tell(source, listed, talk)
    records = []
    with talk.progress("scan", len(listed.items), "image") as task:
        if share is not None and seen is not None:
            for _ in _in_threads(share.mine(listed.items), listed.root, buckets, seen, pairing):
                task.advance()
            share.exchange(seen)
        for record in _in_threads(listed.items, listed.root, buckets, seen, pairing):
            records.append(record)
            task.advance()
    records = filtered(_with_duplicates_flagged(records), keep)
    return with_flips(records) if flip == "prepared" else records


def _tell(source: Path, listed: Source, talk: Talk) -> None:
    """Where the captions stand, and what was passed over."""
    if listed.ignored:
        talk.note(
            f"{source}: not looked at: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(listed.ignored.items()))
        )
    counted = ", ".join(
        f"{len(images)} in {place} (as {shown(images[0])})" for place, images in listed.answered.items()
    )
    if listed.kind == "classes":
        count = len({item.cls for item in listed.items if item.cls})
        talk.note(
            f"{source}: its {count} folders are taken as classes and their names as captions, as data.captions asks"
        )
        if {item.cls.lower() for item in listed.items if item.cls} <= _SPLITS:
            talk.warn(f"{source}: its folders are called as splits are; if they are, give one of them as SOURCE")
        if count == 1 and all("/" in item.image.partition("/")[2] for item in listed.items if item.cls):
            only = next(item.cls for item in listed.items if item.cls)
            talk.warn(
                f"{source}: all images lie in folders of {shown(only)}, which becomes every caption: give it as SOURCE"
            )
        if any(_REPEATS.match(item.cls) for item in listed.items):
            talk.warn(
                f"{source}: numbers before its folders' names, as kohya's repeats, are taken as words of the caption"
            )
        if texts := sum(listed.ignored.get(suffix, 0) for suffix in CAPTION_SUFFIXES):
            talk.warn(f"{source}: {texts} captions in texts are not read, because data.captions asks for folder names")
    elif len(listed.answered) > 1:
        talk.warn(f"{source}: captions stand in several kinds of places: {counted}; data.captions limits them to one")
    elif counted:
        talk.note(f"{source}: captions: {counted}")
    for path, example in listed.elsewhere.items():
        talk.note(f"{source}: the paths in {shown(path)} were written for another folder: {example}")
    if linked := listed.ignored.get("linked folder"):
        talk.warn(f"{source}: {linked} linked folders are not followed; give their images a real folder, or a manifest")
    for suffix, count in not_read_here(listed.ignored):
        if listed.kind in _OF_LOOSE_IMAGES:
            talk.warn(
                f"{source}: {count} {suffix} files beside the images are not read; give them a folder of their own"
            )


FLAGS = {  # → what they say in words
    "icc-converted": "colours brought to sRGB",
    "icc-ignored": "profile unusable, or colours named by number: taken as they stand",
    "exif-rotated": "turned upright",
    "alpha-composited": "transparent, shown over white",
    "cmyk-converted": "inks shown as colours",
    "16-bit-reduced": "to 8 bits a channel",
    "first-frame-only": "of an animation",
    "no-end-chunk": "the file lacks its end",
    "upscaled": "smaller than its bucket",
    "duplicate-of": "the same file as another image",
    "near-copy-of": "another image, saved again",
    "further-captions": "that were not taken",
    "captions-left-out": "of several, that cannot be used",
    "not-flipped": "has no mirrored variant",
    "unknown-words": "that the tokenizer lacks",
    "bucket-from-manifest": "the bucket that its list asks for, not the nearest",
    "bucket-hint-unused": "its list asks for a bucket that there is not",
}


@dataclass(frozen=True)
class ScanSummary:
    """Counts of inputs, as `dit embed --json` prints them. Flipped variants are no inputs; where they are prepared,
    those that are used and the inputs without one sum to `used`.
    """

    total: int  # used + refused
    used: int
    refused: int
    reasons: dict[str, int]  # refused, by reason
    buckets: dict[str, int]  # used, by bucket
    flags: dict[str, int]  # used, by flag
    further_captions: int  # not taken, because an image had several
    flipped: int  # variants that are used
    not_flipped: dict[str, int]  # used inputs without a variant, by reason
    unknown_words: int  # that the text encoder's tokenizer lacks, as far as they are known
    examples: dict[str, str]  # of each reason and flag: the first record that has it, with what it says

    def rows_of_reasons(self) -> list[tuple[str, int, str]]:
        """(reason, images refused for it, the first of them)."""
        return [(reason, count, self.examples[reason]) for reason, count in sorted(self.reasons.items())]

    def rows_of_flags(self) -> list[tuple[str, int, str]]:
        """(flag and what it says, used images that have it, the first of them)."""
        said = {flag: f"{flag}: {FLAGS[flag]}" if flag in FLAGS else flag for flag in self.flags}
        return [(said[flag], count, self.examples[flag]) for flag, count in sorted(self.flags.items())]


def summary(records: Sequence[Record]) -> ScanSummary:
    inputs = [record for record in records if not record.flipped]
    flips = [record for record in records if record.flipped]
    used = [record for record in inputs if record.used]
    reasons = Counter(record.reason for record in inputs if not record.used)
    flags = [flag.partition(":")[::2] for record in used for flag in record.flags]  # (flag, what it says)
    not_flipped = Counter(reason for flag, reason in flags if flag == NOT_FLIPPED)
    names = {record.name for record in used}
    # an encoder refused the variant alone
    not_flipped.update(record.reason for record in flips if not record.used and record.name in names)
    return ScanSummary(
        total=len(inputs),
        used=len(used),
        refused=reasons.total(),
        reasons=_sorted(reasons),
        buckets=_sorted(Counter(record.bucket for record in used)),
        flags=_sorted(Counter(flag for flag, _ in flags)),
        further_captions=sum(int(count) for flag, count in flags if flag == FURTHER),
        flipped=sum(record.used for record in flips),
        not_flipped=_sorted(not_flipped),
        unknown_words=sum(int(count) for flag, count in flags if flag == UNKNOWN_WORDS),
        examples=_examples(inputs),
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _examples(records: Sequence[Record]) -> dict[str, str]:
    """Reason or flag → the first record that has it, with what it says in words."""
    found: dict[str, str] = {}
    for record in records:
        if not record.used:
            found.setdefault(record.reason, f"{shown(record.name)}: {record.detail}")
        for flag, _, value in (flag.partition(":") for flag in record.flags if record.used):
            found.setdefault(flag, f"{shown(record.name)}: {value}" if value else shown(record.name))
    return found


def load_pixels(record: Record, source: Path) -> np.ndarray:
    """`bucketed` of `load_upright`. Raises as that does."""
    return bucketed(record, load_upright(record, source))


def bucketed(record: Record, upright: np.ndarray) -> np.ndarray:
    """What the encoders see of a used record, mirrored for a flipped one: (bucket height, bucket width, 3) uint8."""
    pixels = fit_to_bucket(upright, Bucket.from_name(record.bucket))[0]
    return np.ascontiguousarray(pixels[:, ::-1]) if record.flipped else pixels


def load_upright(record: Record, source: Path) -> np.ndarray:
    """The whole image of a used record: (H, W, 3) uint8. `source` is what was scanned.

    Raises `ImageRefused`: with reason `changed` when the file is not the one that was scanned, else for what decoding
    found.
    """
    path = source_root(source) / record.image
    raw = read_picture(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != record.image_sha256:
        raise ImageRefused(
            "changed", f"its sha256 is {found[:12]}…, at the scan it was {record.image_sha256[:12]}…", str(path)
        )
    try:
        return decode_image(raw).pixels
    except ImageRefused as refused:
        raise ImageRefused(refused.reason, refused.detail, str(path)) from refused


def _in_threads(
    items: list[SourceItem], root: Path, buckets: Sequence[Bucket], seen: Seen | None, pairing: Pairing
) -> Iterator[Record]:
    # Threads are enough: reading and hashing let go of the interpreter, and a header takes microseconds.
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        try:
            yield from pool.map(lambda item: _known_or_judged(item, root, buckets, seen, pairing), items)
        except BaseException:  # an interrupt does not wait for the rest of the folder
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _known_or_judged(
    item: SourceItem, root: Path, buckets: Sequence[Bucket], seen: Seen | None, pairing: Pairing
) -> Record:
    if seen is None:
        return _judge(item, root, buckets, pairing)
    if (judged := seen.judged(item)) is not None:
        return judged
    files = seen.files(item, root)  # before they are read: what changes meanwhile is read again the next time
    record = seen.record(item, files) or _judge(item, root, buckets, pairing)
    seen.add(record, files)
    return record


def _judge(item: SourceItem, root: Path, buckets: Sequence[Bucket], pairing: Pairing) -> Record:
    record = Record(safe_key(item.name), item.name, item.image, REFUSED, item.reason, item.detail, cls=item.cls)
    if item.reason:
        return record
    try:
        raw = read_picture(root / item.image)
        record = replace(record, image_sha256=hashlib.sha256(raw).hexdigest())
        header = read_header(raw)
        record = replace(record, width=header.width, height=header.height)
        captions = captions_of(item.caption, pairing)
    except (ImageRefused, CaptionRefused) as refused:
        return replace(record, reason=refused.reason, detail=refused.detail)
    bucket, flags = _choose_bucket(item, header.width, header.height, buckets)
    crop = crop_box(header.width, header.height, bucket)
    if crop[2] - crop[0] < bucket.width:
        flags.append("upscaled")
    counts = ((FURTHER, captions.further), (LEFT_OUT, captions.left_out))
    flags += [f"{flag}:{count}" for flag, count in counts if count]
    record = replace(record, status=USED, caption=captions.first, captions=captions.kept)
    return replace(record, bucket=bucket.name, crop=crop, flags=(*header.flags, *flags))


def _choose_bucket(item: SourceItem, width: int, height: int, buckets: Sequence[Bucket]) -> tuple[Bucket, list[str]]:
    """The nearest bucket, unless the manifest names another one that exists."""
    nearest = nearest_bucket(width, height, buckets)
    named = next((bucket for bucket in buckets if bucket.name == item.bucket_hint), None)
    if item.bucket_hint and named is None:
        return nearest, ["bucket-hint-unused"]
    return (nearest, []) if named in (None, nearest) else (named, ["bucket-from-manifest"])


def _with_duplicates_flagged(records: list[Record]) -> list[Record]:
    first: dict[str, str] = {}  # hash of the image → id of the first used record that has it
    flagged = []
    for record in records:
        if record.used and (original := first.setdefault(record.image_sha256, record.id)) != record.id:
            record = replace(record, flags=(*record.flags, f"{DUPLICATE}:{original}"))
        flagged.append(record)
    return flagged
