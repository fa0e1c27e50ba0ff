"""Few images stand there twice, and every bucket fills a batch.

## What it checks
Equal images, by the hash of their bytes, equal latents and near copies by their latents, within the training split; the
number of training samples in each bucket against the batch size of `--preset` (without one, against 8).

## Why it matters
Duplicates are learned by heart. A bucket smaller than a batch repeats its images within one batch, which then means
less than its size.

## Example
Five images of 1344x704 with a batch size of 8 are a warning.

## Fix
Remove duplicates from the source; add images of the rare shapes, choose fewer buckets, or a smaller batch.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from dittool.audit.data_view import DataView
from dittool.audit.near_latents import Coarse, coarse, near_pairs
from dittool.audit.rule import Finding, passed, warned
from dittool.audit.subject import Data
from dittool.data.records import LATENT
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import TRAIN

CODE, NAME, SEVERITY, SCOPE, SINCE = "D9", "balance", "warning", ("data",), "0.1"

_USUAL_BATCH = 8


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    batch = (subject.expected.config.train.batch_size if subject.expected else None) or _USUAL_BATCH
    training = [ref for ref in data.refs if ref.split == TRAIN]
    if not training:
        return warned(f"all {len(data.refs)} samples are held out: 0 to train on", "dit shard --holdout 0.05")
    sizes = Counter(ref.bucket for ref in training)
    findings = []
    if small := {name: count for name, count in sizes.items() if count < batch}:
        shown = ", ".join(f"{name} {count}" for name, count in sorted(small.items()))
        evidence = f"{len(small)} of {len(sizes)} buckets hold fewer training samples than a batch of {batch}: {shown}"
        findings += warned(evidence, "add images of these shapes, choose fewer buckets or a smaller batch")
    latents, near = _latents(data)
    for what, hashes in (("images", _image_hashes(data, training)), ("latents", latents)):
        extra = sum(count - 1 for count in hashes.values())
        if extra:
            findings += warned(
                f"{extra} of {sum(hashes.values())} {what} are copies of others",
                "remove duplicates from the source folder",
            )
    if near and not findings:
        findings += warned(
            f"{len(near)} training latents are near copies of others, as '{near[0]}': pictures saved again",
            "remove the copies from the source folder, or keep them: they weigh more than others",
        )
    spread = f"{len(sizes)} buckets of {min(sizes.values())} to {max(sizes.values())}"
    return findings or passed(f"{len(training)} training samples, no two alike; {spread}, batch {batch}")


def _image_hashes(data: DataView, refs: list[SampleRef]) -> Counter[tuple[str, bool]]:
    """By the image's bytes; a prepared mirror image is no copy."""
    records = (data.record(ref) for ref in refs)
    return Counter((record.image_sha256, record.flipped) for record in records if record.image_sha256)


def _latents(data: DataView) -> tuple[Counter[str], list[str]]:
    """Hashes of latents, and ids of those that are near copies of an earlier one, which is not equal."""
    hashes: Counter[str] = Counter()
    first: list[Coarse] = []
    for ref in data.spread(LATENT):
        if ref.split != TRAIN:
            continue
        latent = data.array(ref, LATENT)
        digest = hashlib.blake2b(latent.tobytes(), digest_size=16).hexdigest()
        if latent.ndim == 3 and not hashes[digest] and not data.record(ref).flipped:
            first.append(coarse(ref.id, ref.bucket, latent))
        hashes[digest] += 1
    return hashes, sorted({max(pair) for pair in near_pairs(first, first)})
