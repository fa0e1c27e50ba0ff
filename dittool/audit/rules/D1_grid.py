"""Every sample has as many patches as its bucket's grid has cells, a latent of the bucket's size, and the widths of the
identity card.

## What it checks
For samples spread over the whole set: the number of patches equals rows × columns of the encoder's grid for the
sample's bucket, or of its 2×2 means where patches are stored pooled; the latent's height and width are the bucket's
over the codec's stride, 8 where no card says it; channels and feature widths are the card's and the same in all
samples. In a set without a card one patch size, 14 or 16, must explain all samples.

## Why it matters
Features of an old grid, cut or padded to the count of a new one, load and train; only the pictures never come right.

## Example
A sample of 512x512 with 37 × 37 patches, beside a card that says patch 16, fails: "1369 patches, bucket 512x512 has
1024 (patch 16)".

## Fix
Embed again with the encoder of the card, or shard the features that belong to it.
"""

from __future__ import annotations

from collections import Counter

from dittool.audit.data_view import NO_PATCHES, DataView
from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Data
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT
from dittool.data.shards.columns import SampleRef
from dittool.encoders.cards import ImageCard, TextCard, VaeCard
from dittool.geometry import Bucket

CODE, NAME, SEVERITY, SCOPE, SINCE = "D1", "grid", "error", ("data",), "0.1"

_AXES = {"CLS": 1, "patches": 2, "latent": 3, "text": 2}
_USUAL_STRIDE = 8
_KNOWN_PATCH_SIZES = (16, 14)  # DINOv3, DINOv2
_FIX = "embed these images again with dit embed, then dit shard"


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    refs = data.spread(*data.features)
    image, codec = data.encoder(ImageCard), data.encoder(VaeCard)
    sizes = {image.patch_size} if image else set(_KNOWN_PATCH_SIZES)
    widths: Counter[tuple[int, ...]] = Counter()
    faults = []
    for ref in refs:
        cls, latent, text = (data.array(ref, feature) for feature in (IMAGE_CLS, LATENT, TEXT))
        patches = data.array(ref, IMAGE_PATCHES) if data.has_patches else None
        given = {"CLS": cls, "latent": latent, "text": text} | ({} if patches is None else {"patches": patches})
        if any(array.ndim != _AXES[name] for name, array in given.items()):
            faults.append(f"{ref.id}: axes {', '.join(f'{array.shape} of {name}' for name, array in given.items())}")
            continue
        stride = codec.stride if codec else _USUAL_STRIDE
        bucket = data.bucket(ref) or Bucket(latent.shape[2] * stride, latent.shape[1] * stride)
        widths[(len(cls), len(cls) if patches is None else patches.shape[1], latent.shape[0], text.shape[1])] += 1
        if latent.shape[1:] != (bucket.height // stride, bucket.width // stride):
            faults.append(
                f"{ref.id}: latent of {latent.shape[1]}×{latent.shape[2]}, bucket {bucket.name} over {stride} has"
                f" {_grid(bucket, stride)}"
            )
        if patches is None:
            continue
        fitting = {size for size in sizes if data.patch_count(bucket, size) == len(patches)}
        if not fitting:
            wanted = " or ".join(f"{data.patch_count(bucket, size)} (patch {size})" for size in sorted(sizes))
            faults.append(f"{ref.id}: {len(patches)} patches, bucket {bucket.name} has {wanted}")
        sizes = fitting or sizes
    faults += _width_faults(data, widths, refs)
    if faults:
        return failed(f"{len(faults)} faults in {len(refs)} samples: {'; '.join(faults[:3])}", _FIX)
    buckets = len({ref.bucket for ref in refs})
    width, _, channels, text_width = next(iter(widths))
    figures = f"widths image {width}, text {text_width}, channels {channels}"
    what = f"patch {min(sizes)}" if data.has_patches else "their latents"
    without = "" if data.has_patches else f"; {NO_PATCHES}"
    return passed(f"{len(refs)} of {len(data.refs)} samples in {buckets} buckets fit {what}; {figures}{without}")


def _width_faults(data: DataView, widths: Counter, refs: list[SampleRef]) -> list[str]:
    if len(widths) > 1:
        return [
            f"{len(widths)} different widths (CLS, patches, channels, text) among {len(refs)} samples: {dict(widths)}"
        ]
    if data.card is None:
        return []
    image, codec, text = data.card.find(ImageCard), data.card.find(VaeCard), data.card.find(TextCard)
    width = image and image.width
    card = (width, width, codec and codec.channels, text and text.width)
    found = next(iter(widths), card)
    return [f"widths (CLS, patches, channels, text) are {found}, the card says {card}"] if found != card else []


def _grid(bucket: Bucket, stride: int) -> str:
    return f"{bucket.height // stride}×{bucket.width // stride}"
