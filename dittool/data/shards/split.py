"""Which samples are held out, a function of the bytes of an image, its own or that of which it is a near copy; and so
which shard holds which samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dittool.console import Talk
from dittool.data.records import REFUSED, Record
from dittool.data.shards.index import HOLDOUT, STEMS, TRAIN
from dittool.errors import BadDataError
from dittool.seeding import unit_interval

JOINS_BOTH = "joins-both-sides"  # the reason of a record that is left out


def without_joining(records: list[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(the records, those that are left out: near copies of an image in training and of one that is held out)."""
    kept, joining = [], []
    for record in records:
        sides = {_is_held_out(image, share): image for image in record.sides_with}
        if len(sides) < 2:
            kept.append(record)
            continue
        detail = f"a near copy of image {sides[False][:12]}… in training and of {sides[True][:12]}… in the hold-out"
        joining.append(replace(record, status=REFUSED, reason=JOINS_BOTH, detail=detail))
    return kept, joining


def _is_held_out(image: str, share: float) -> bool:
    return unit_interval("holdout", image) < share


def held_out(records: list[Record], share: float, talk: Talk) -> set[str]:
    """Ids of the hold-out. The bytes of one image decide, its own or that of which it is a near copy: a rule that
    looked at the others could move it when the set grows.
    """
    held = {record.id for record in records if _is_held_out((*record.sides_with, record.image_sha256)[0], share)}
    if len(held) == len(records):
        raise BadDataError(
            f"a hold-out share of {share:g} leaves none of {len(records)} images for training",
            "lower --holdout or add images",
        )
    if share > 0 and not held:
        talk.warn(
            f"a hold-out share of {share:g} holds out none of {len(records)} images; validation will use training"
            " images. Raise --holdout"
        )
    return held


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be."""

    bucket: str
    split: str
    number: int
    records: list[Record]

    @property
    def path(self) -> str:
        return f"bucket_{self.bucket}/{STEMS[self.split]}-{self.number:06d}.tar"


def plan_shards(records: list[Record], held: set[str], size: int) -> list[ShardPlan]:
    """A bucket's training samples, then its held-out ones, `size` samples to a shard."""
    plans = []
    for bucket in sorted({record.bucket for record in records}):
        for split in (TRAIN, HOLDOUT):
            members = [
                record for record in records if record.bucket == bucket and (record.id in held) == (split == HOLDOUT)
            ]
            plans += [
                ShardPlan(bucket, split, start // size, members[start : start + size])
                for start in range(0, len(members), size)
            ]
    return plans
