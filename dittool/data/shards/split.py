"""Which samples are held out, a function of the bytes of an image, its own or that of which it is a near copy; and so
which shard holds which samples.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from dittool.console import SILENT, Talk
from dittool.data.records import REFUSED, Record
from dittool.data.shards.index import HOLDOUT, STEMS, TRAIN
from dittool.errors import BadDataError
from dittool.seeding import derive_seed, unit_interval

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


@dataclass(frozen=True)
class SetPlan:
    """All shards of a set, whoever writes them."""

    records: list[Record]  # those that are taken, in the order in which they lie in the shards of a bucket
    shards: list[ShardPlan]
    joining: list[Record]  # left out: near copies of images on both sides of the hold-out
    beyond_limit: int  # records that the limit left out
    holdout: float  # share
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({record.cls for record in self.records if record.cls}))


def plan_set(
    records: list[Record], share: float, size: int, limit: int | None = None, seed: int = 0, talk: Talk = SILENT
) -> SetPlan:
    """Which samples stand in which shard. Raises `BadDataError` where none is left to train on.

    Args:
        share: of images that are held out.
        size: samples in a shard.
        seed: of the order of samples, and so of which ones `limit` takes.
    """
    kept, joining = without_joining(records, share)
    # readers that go through a tar in order see it shuffled
    kept.sort(key=lambda record: derive_seed("shard order", seed, record.id))
    chosen = kept[:limit]
    shards = plan_shards(chosen, held_out(chosen, share, talk), size)
    return SetPlan(chosen, shards, joining, len(kept) - len(chosen), share, seed)


def plan_shards(records: list[Record], held: set[str], size: int) -> list[ShardPlan]:
    """A bucket's training samples, then its held-out ones, `size` samples to a shard."""
    members: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        members[record.bucket, HOLDOUT if record.id in held else TRAIN].append(record)
    order = sorted(members, key=lambda key: (key[0], key[1] == HOLDOUT))
    return [
        ShardPlan(bucket, split, start // size, members[bucket, split][start : start + size])
        for bucket, split in order
        for start in range(0, len(members[bucket, split]), size)
    ]
