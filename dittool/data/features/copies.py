"""Thumbnails of all images, and then the near copies among them: they decide together on a side of the hold-out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dittool.console import Talk
from dittool.data.features.parts import Part
from dittool.data.features.passes import take_thumbnails
from dittool.data.features.pipeline import Refusal, decoded, decoders, loaded_ahead
from dittool.data.features.refusals import refused_while_decoding
from dittool.data.features.sides import LARGEST_GROUP
from dittool.data.features.store import FeatureStore
from dittool.data.records import Record

_BATCH = 256  # images that are decoded for nothing else, at a time


def make_thumbnails(
    store: FeatureStore, records: Sequence[Record], part: Part, source: Path, talk: Talk
) -> list[Record]:
    """This part's share of the thumbnails that the images of these records lack. Returns the records of images that
    cannot be decoded, refused.
    """
    unseen = store.without_thumbnail(records)
    images = list({record.image_sha256: record for record in records if record.image_sha256 in unseen}.values())
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    batches = [batch for number, batch in enumerate(batches) if part.takes(number)]
    refusals: dict[str, Refusal] = {}  # image → why
    if not batches:
        return []
    with talk.progress("thumbnails", sum(map(len, batches)), "image") as task, decoders(images) as pool:
        for batch, loaded in loaded_ahead(batches, decoded, source, pool):
            store.add_thumbnails(take_thumbnails(batch, loaded, unseen))
            pairs = zip(batch, loaded, strict=True)
            refusals |= {record.image_sha256: item for record, item in pairs if isinstance(item, Refusal)}
            task.advance(len(batch))
    return [
        refused_while_decoding(record, found.reason, found.detail)
        for record in records
        if record.used and (found := refusals.get(record.image_sha256))
    ]


def with_near_copies(store: FeatureStore, records: list[Record], part: Part, talk: Talk) -> list[Record]:
    """The records with the near copies among them, when the thumbnails of all are there."""
    if lacking := store.without_thumbnail(records):
        if part.is_everything:
            talk.warn(f"near copies are not looked for yet: {len(lacking)} images could not be decoded again")
        return records
    found = store.look_for_near_copies()
    if found.too_many:
        talk.warn(
            f"{found.too_many} pairs of near copies may stand on two sides of the hold-out: a group has at most"
            f" {LARGEST_GROUP} images"
        )
    if found.unfinished:
        talk.warn(f"{found.unfinished} images look so much alike that not all of them were compared with each other")
    return store.merge_records(records)
