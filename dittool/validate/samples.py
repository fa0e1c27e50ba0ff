"""What a validation judges: a trial, its samples, whose conditions they are exchanged with, how a batch is drawn.

The choice is a function of the ids, the noise of a sample is a function of its id: two checkpoints of a run are judged
on the same images from the same noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import Sample, ShardSet
from dittool.data.shards.stream import collate
from dittool.errors import BadDataError
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.seeding import derive_seed
from dittool.validate.metrics import Metric

Item = TypeVar("Item")

_BATCH = 16  # samples in memory at once: at a megapixel, one of them has 17 MB of patch features in fp32


@dataclass(frozen=True)
class Subject:
    """A sample that is judged."""

    ref: SampleRef
    partner: SampleRef | None  # another of its bucket; None: it is alone there


@dataclass(frozen=True)
class Trial:
    """What every test of one validation works on."""

    pipeline: Pipeline  # the model that is judged
    shards: ShardSet
    split: str  # that the subjects are of
    subjects: list[Subject]
    limit: int  # at most so many images, pairs and edits; 0: all
    folder: Path  # of this validation; each test's pictures go into a folder of their own in it
    perceptual: Metric | None = None  # LPIPS, where it can run
    talk: Talk = SILENT


def choose(shards: ShardSet, limit: int, split: str | None = None) -> tuple[str, list[Subject]]:
    """At most `limit` samples (0: all) of a split, and the split's name: the hold-out, or what was trained on when
    nothing is held out.

    Prepared mirror images are not judged. Each subject has a partner of the same bucket, never itself: the next of
    those chosen in the bucket, and the last one's is the first. One that is alone takes a sample that was not chosen,
    be it of the training split.

    Raises `BadDataError` when the split is empty.
    """
    split = split or (HOLDOUT if shards.split(HOLDOUT) else TRAIN)
    chosen = list(islice(_in_order(shards, shards.split(split)), limit or None))
    if not chosen:
        raise BadDataError(
            f"{shards.folder}: no sample to judge the model by in the split '{split}'",
            "make shards with: dit embed IMAGES, then dit shard --holdout 0.05; or judge another split with --split",
        )
    same_bucket = defaultdict(list)
    for ref in chosen:
        same_bucket[ref.bucket].append(ref)
    return split, [Subject(ref, _partner(shards, ref, same_bucket[ref.bucket])) for ref in chosen]


def _in_order(shards: ShardSet, refs: Iterable[SampleRef]) -> Iterator[SampleRef]:
    """Those that are no mirror images, in an order that follows from their ids. Records are read as they are needed."""
    ordered = sorted(refs, key=lambda ref: derive_seed("validate", ref.id))
    return (ref for ref in ordered if not shards.read_record(ref).flipped)


def _partner(shards: ShardSet, ref: SampleRef, chosen: list[SampleRef]) -> SampleRef | None:
    if len(chosen) > 1:
        return chosen[(chosen.index(ref) + 1) % len(chosen)]
    return next(
        _in_order(shards, (other for other in shards.samples if other.bucket == ref.bucket and other.id != ref.id)),
        None,
    )


def bucket_batches(items: Sequence[Item], ref_of: Callable[[Item], SampleRef]) -> Iterator[tuple[Bucket, list[Item]]]:
    """The items bucket by bucket, at most 16 at once."""
    for name in sorted({ref_of(item).bucket for item in items}):
        members = [item for item in items if ref_of(item).bucket == name]
        for start in range(0, len(members), _BATCH):
            yield Bucket.from_name(name), members[start : start + _BATCH]


def normalised_samples(pipeline: Pipeline, samples: Sequence[Sample]) -> tuple[Tensor, Conditions]:
    """Latents (B, C, h, w) and features of samples of one bucket: exactly what training saw."""
    return collate(samples, pipeline.data.norm, pipeline.image_patch_size)


def stored_conditions(pipeline: Pipeline, samples: Sequence[Sample]) -> Conditions:
    """The stored features alone."""
    return normalised_samples(pipeline, samples)[1]


def noise_of(pipeline: Pipeline, bucket: Bucket, ids: Sequence[str], purpose: str = "noise") -> Tensor:
    """(B, C, H, W), N(0, 1): the noise that belongs to each id. Another purpose is another seed."""
    return pipeline.noise(bucket, [derive_seed("validate", purpose, sample_id) for sample_id in ids])


def draw(pipeline: Pipeline, conditions: Conditions, noise: Tensor) -> np.ndarray:
    """Pixels (B, H, W, 3) uint8 with the run's own sampling settings. Raises `BadDataError` when the model draws
    NaN or infinity.
    """
    return pipeline.decode_drawn(pipeline.latents(conditions, noise))
