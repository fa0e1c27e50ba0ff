"""No image is both trained on and held out.

## What it checks
The hashes of the images' bytes, and of their latents, in the training split and in the hold-out: no value may stand in
both. No latent of the hold-out may be a near copy of one in training, as of a picture that was saved again in another
format or at another size. There must be a hold-out. Of a huge set a sample is compared.

## Why it matters
Validation on images that were trained on measures memory. Real runs of this recipe claimed a hold-out and validated on
training shards. A picture that was saved again under another name has other bytes, and nearly the same latent.

## Example
One image under two names fails: "1 images stand in both splits, the first is 'cat' in training and 'cat-copy' in the
hold-out". A JPEG of it fails as "1 held-out latents are near copies of ones in training".

## Fix
A set that `dit shard` made: `dit embed` with the same source looks for near copies and keeps the features, then make
the shards again with `dit shard`; what is still named, remove from the source. A set of another program: take the named
samples out of its tars there, remove index.json, and index it again.
"""

from __future__ import annotations

import hashlib

from dittool.audit.data_view import DataView
from dittool.audit.near_latents import Coarse, coarse, near_pairs
from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.subject import DERIVED, Data
from dittool.data.records import LATENT
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.shell import quoted

CODE, NAME, SEVERITY, SCOPE, SINCE = "D5", "holdout", "error", ("data",), "0.1"

_MOST_HELD = 20_000  # held-out latents that are compared with those of training
_NAMED = 3  # pairs


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
            _how_to_hold_out(data),
        )
    findings = []
    latents, coarse_latents = _latents(data)
    for what, hashes in (("image", _image_hashes(data)), ("latent", latents)):
        shared = sorted(hashes[TRAIN].keys() & hashes[HOLDOUT].keys())
        if shared:
            one, other = hashes[TRAIN][shared[0]], hashes[HOLDOUT][shared[0]]
            evidence = (
                f"{len(shared)} {what}s stand in both splits, the first is '{one}' in training and '{other}' in the"
                " hold-out"
            )
            findings += failed(evidence, _how_to_separate(data))
    pairs = near_pairs(coarse_latents[HOLDOUT], coarse_latents[TRAIN])
    if pairs and not findings:
        named = ", ".join(f"'{held}' of '{trained}'" for held, trained in pairs[:_NAMED])
        count = len({held for held, _ in pairs})
        findings += failed(
            f"{count} held-out latents are near copies of ones in training: {named}", _how_to_separate(data)
        )
    compared = f"{len(coarse_latents[HOLDOUT])} held-out latents compared with {len(coarse_latents[TRAIN])}"
    return findings or passed(
        f"{counts[HOLDOUT]} held out, {counts[TRAIN]} for training; no image, no latent and no near copy in both"
        f" ({compared})"
    )


def _is_of_another_program(data: DataView) -> bool:
    return data.card is not None and data.card.claimed


def _how_to_hold_out(data: DataView) -> str:
    if _is_of_another_program(data):
        return f"remove its index.json, then: dit shard --index {quoted(data.folder)} --preset P --holdout 0.05"
    return "dit shard --holdout 0.05"


def _how_to_separate(data: DataView) -> str:
    if _is_of_another_program(data):
        return (
            "write the tars again without these held-out samples, with the program that made them; remove index.json,"
            f" then: dit shard --index {quoted(data.folder)} --preset P"
        )
    return (
        "dit embed with the same source and preset (it looks for near copies and keeps the features), then dit shard"
        " again; what is still named after that, remove from the source first"
    )


def _image_hashes(data: DataView) -> dict[str, dict[str, str]]:
    """By split: hash of the image's bytes → a sample's id."""
    found: dict[str, dict[str, str]] = {TRAIN: {}, HOLDOUT: {}}
    for ref in data.refs:
        if sha := data.record(ref).image_sha256:
            found[ref.split][sha] = ref.id
    return found


def _latents(data: DataView) -> tuple[dict[str, dict[str, str]], dict[str, list[Coarse]]]:
    """By split: hash of the latent → a sample's id, and what is compared of it. All of the hold-out; of a huge training
    split a sample.
    """
    found: dict[str, dict[str, str]] = {TRAIN: {}, HOLDOUT: {}}
    compared: dict[str, list[Coarse]] = {TRAIN: [], HOLDOUT: []}
    held = [ref for ref in data.refs if ref.split == HOLDOUT]
    every = -(-len(held) // _MOST_HELD)
    for number, ref in enumerate([*held, *(ref for ref in data.spread(LATENT) if ref.split == TRAIN)]):
        latent = data.array(ref, LATENT)
        found[ref.split][hashlib.blake2b(latent.tobytes(), digest_size=16).hexdigest()] = ref.id
        if latent.ndim == 3 and (ref.split == TRAIN or number % every == 0):
            compared[ref.split].append(coarse(ref.id, ref.bucket, latent))
    return found, compared
