"""No image is both trained on and held out.

## What it checks
The hashes of the images' bytes, and of their latents, in the training split and in the hold-out: no value may stand in
both. There must be a hold-out.

## Why it matters
Validation on images that were trained on measures memory. Real runs of this recipe claimed a hold-out and validated on
training shards. A picture that was saved again under another name has other bytes, and the same latent.

## Example
One image under two names fails: "1 images stand in both splits, the first is 'cat' in training and 'cat-copy' in the
hold-out".

## Fix
Make the shards again with `dit shard`, which decides by the image's bytes; remove re-saved copies from the source.
"""

from __future__ import annotations

import hashlib

from dittool.audit.data_view import DataView
from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.subject import DERIVED, Data
from dittool.data.records import LATENT
from dittool.data.shards.write import HOLDOUT, TRAIN

CODE, NAME, SEVERITY, SCOPE, SINCE = "D5", "holdout", "error", ("data",), "0.1"

_FIX = "remove the copies from the source folder, then dit embed and dit shard again"


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    if subject.kind == DERIVED:
        return skipped("a derived folder: dit shard decides which samples are held out")
    if data.index is None:
        return skipped("no index: which samples are held out is not marked in this set")
    counts = {split: sum(ref.split == split for ref in data.refs) for split in (TRAIN, HOLDOUT)}
    if not counts[HOLDOUT]:
        return warned(
            f"no hold-out: all {counts[TRAIN]} samples are for training, so nothing can be validated",
            "dit shard --holdout 0.05",
        )
    findings = []
    for what, hashes in (("image", _image_hashes(data)), ("latent", _latent_hashes(data))):
        shared = sorted(hashes[TRAIN].keys() & hashes[HOLDOUT].keys())
        if shared:
            one, other = hashes[TRAIN][shared[0]], hashes[HOLDOUT][shared[0]]
            evidence = (
                f"{len(shared)} {what}s stand in both splits, the first is '{one}' in training and '{other}' in the"
                " hold-out"
            )
            findings += failed(evidence, _FIX)
    return findings or passed(
        f"{counts[HOLDOUT]} held out, {counts[TRAIN]} for training; no image and no latent in both"
    )


def _image_hashes(data: DataView) -> dict[str, dict[str, str]]:
    """By split: hash of the image's bytes → a sample's id."""
    found: dict[str, dict[str, str]] = {TRAIN: {}, HOLDOUT: {}}
    for ref in data.refs:
        if sha := data.record(ref).image_sha256:
            found[ref.split][sha] = ref.id
    return found


def _latent_hashes(data: DataView) -> dict[str, dict[str, str]]:
    """By split: hash of the latent → a sample's id. All of the hold-out; of a huge training split a sample."""
    found: dict[str, dict[str, str]] = {TRAIN: {}, HOLDOUT: {}}
    held = [ref for ref in data.refs if ref.split == HOLDOUT]
    for ref in [*held, *(ref for ref in data.spread(LATENT) if ref.split == TRAIN)]:
        found[ref.split][hashlib.blake2b(data.array(ref, LATENT).tobytes(), digest_size=16).hexdigest()] = ref.id
    return found
