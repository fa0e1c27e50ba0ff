"""What the content of a set says, for the rules that judge by it: where patches lie over the latent, and which features
of a sample belong together.

Samples whose patches fill no grid that is known, or that hold no numbers, are left out: rules D1 and D6 speak of those.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dittool.audit.data_view import DataView
from dittool.data.alignment import Observed, observe, underneath
from dittool.data.crops import Sketch, sketch
from dittool.data.pairing import FeaturePair
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT
from dittool.data.shards.columns import SampleRef
from dittool.encoders.cards import ImageCard
from dittool.geometry import Bucket, patch_grid

_STRIDE = 8  # of the latent where no card says it
_MOST_ALIGNED, _ALIGNED_CELLS = 256, 32_768  # images; patches of all together: 1024 wide they take 260 MB
_FEWEST_PATCHES = 16  # of an image, to say where they lie
MOST_SKETCHED, _FEWEST_SKETCHED_SIDE = 96, 5  # images; rows and columns of patches, to show a window
_MOST_PAIRED, PAIRED_CELLS = 400, 64  # images, and patches of each
_MOST_CAPTIONED = 2000
_MOST_WORDS = 500
LOOK = (4, 4)  # grid on which two pictures are compared to see whether they are alike
_WORDS = re.compile(r"[^\W\d_]{3,}")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Image:
    """The features of one sample that show places of its image."""

    patches: np.ndarray  # (N, C)
    latent: np.ndarray  # (channels, h, w)
    grid: tuple[int, int]  # of the patches, before any pooling
    bucket: Bucket


def observed(data: DataView) -> list[Observed]:
    """What `align` needs of at most 256 images spread over the set. On a grid of a few patches every arrangement looks
    like some other one, so such images are left out.
    """
    refs = _spread(data, _MOST_ALIGNED)
    cells = _ALIGNED_CELLS // len(refs)
    seen = [
        observe(
            image.patches,
            image.latent,
            image.grid,
            (image.bucket.width, image.bucket.height),
            cells,
            number,
            data.patch_storage,
        )
        for number, image in enumerate(read_image(data, ref) for ref in refs)
        if image is not None and len(image.patches) >= _FEWEST_PATCHES
    ]
    return _usual(seen, lambda image: (image.features.shape[1], image.targets.shape[2]))


def sketched(data: DataView) -> list[Sketch]:
    """What `own_windows` needs of at most 96 images spread over the set."""
    seen = [
        sketch(image.patches, image.latent, image.grid, data.patch_storage)
        for image in (read_image(data, ref) for ref in _spread(data, MOST_SKETCHED))
        if image is not None and min(image.grid) >= _FEWEST_SKETCHED_SIDE
    ]
    return _usual(seen, lambda one: (one.features.shape[1], one.maps.shape[0]))


def paired_images(data: DataView) -> tuple[list[FeaturePair], list[FeaturePair]]:
    """Of at most 400 images chosen by hash: patches beside the latent under them, CLS tokens beside patches."""
    patches_latents, cls_patches = [], []
    for ref in data.chosen(_MOST_PAIRED, "pairs", IMAGE_CLS, IMAGE_PATCHES, LATENT):
        image, cls = read_image(data, ref), data.array(ref, IMAGE_CLS)
        if image is None or cls.ndim != 1 or not _finite(cls):
            continue
        kind = f"{ref.bucket} {image.patches.shape} {image.latent.shape}"
        look = _look(image.latent)
        cells = _cells(len(image.patches))
        below = underneath(image.latent, image.grid, data.patch_storage)[cells]
        patches = image.patches.astype(np.float32)
        patches_latents.append(FeaturePair(ref.id, kind, patches[cells], below, look))
        cls_patches.append(
            FeaturePair(ref.id, kind, cls[None].astype(np.float32), patches.mean(axis=0, keepdims=True), look)
        )
    return _usual(patches_latents, _widths), _usual(cls_patches, _widths)


def captioned_images(data: DataView) -> list[FeaturePair]:
    """Of at most 2,000 images chosen by hash: the mean of the caption's tokens beside the CLS token."""
    pairs = []
    for ref in data.chosen(_MOST_CAPTIONED, "captions", IMAGE_CLS, LATENT, TEXT):
        cls, latent, text = (data.array(ref, feature) for feature in (IMAGE_CLS, LATENT, TEXT))
        if (cls.ndim, latent.ndim, text.ndim) != (1, 3, 2) or not all(map(_finite, (cls, latent, text))):
            continue
        mask = data.mask(ref)
        tokens = text if mask is None or len(mask) != len(text) or not mask.any() else text[mask]
        mean = tokens.astype(np.float32).mean(axis=0, keepdims=True)
        caption = " ".join(data.record(ref).caption.casefold().split())
        pairs.append(FeaturePair(ref.id, "", mean, cls[None].astype(np.float32), _look(latent), caption))
    return _usual(pairs, _widths)


@dataclass(frozen=True)
class TellingWords:
    """The words of captions that could distinguish images: in three captions at least, and in half of them at most."""

    words: tuple[str, ...]  # the most frequent first
    share: float  # of captions that hold two of them

    @staticmethod
    def of(captions: Sequence[str]) -> TellingWords:
        held = [set(_WORDS.findall(caption)) for caption in captions]
        counts = Counter(word for some in held for word in some)
        telling = {word: count for word, count in counts.items() if 3 <= count <= len(held) / 2}
        share = sum(len(some & telling.keys()) >= 2 for some in held) / max(len(held), 1)
        return TellingWords(tuple(sorted(telling, key=lambda word: (-telling[word], word))), share)

    def in_caption(self, caption: str) -> np.ndarray:
        """(1, words) float32: 1 for each of the first 500 that the caption holds."""
        held = set(_WORDS.findall(caption))
        return np.array([[word in held for word in self.words[:_MOST_WORDS]]], np.float32)


def read_image(data: DataView, ref: SampleRef) -> Image | None:
    """None for a sample without a grid that is known, or with values that are no numbers."""
    patches, latent = data.array(ref, IMAGE_PATCHES), data.array(ref, LATENT)
    if (patches.ndim, latent.ndim) != (2, 3) or not (_finite(patches) and _finite(latent)):
        return None
    bucket = data.bucket(ref) or Bucket(latent.shape[2] * _STRIDE, latent.shape[1] * _STRIDE)
    encoder = data.encoder(ImageCard)
    for size in (encoder.patch_size if encoder else 0, 16, 14):
        if size and data.patch_count(bucket, size) == len(patches):
            return Image(patches, latent, patch_grid(bucket.width, bucket.height, size), bucket)
    return None


def _spread(data: DataView, most: int) -> list[SampleRef]:
    refs = data.spread(IMAGE_PATCHES, LATENT)
    count = min(len(refs), most)
    return [refs[i * len(refs) // count] for i in range(count)]


def _look(latent: np.ndarray) -> np.ndarray:
    return underneath(latent, LOOK)


def _cells(patches: int) -> np.ndarray:
    """The same ones for all images of so many patches."""
    chosen = np.random.default_rng(patches).choice(patches, min(patches, PAIRED_CELLS), replace=False)
    return np.sort(chosen)


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())


def _widths(sample: FeaturePair) -> tuple[int, ...]:
    return sample.inputs.shape[1], sample.targets.shape[1], *sample.appearance.shape


def _usual(items: list[Item], widths_of: Callable[[Item], tuple[int, ...]]) -> list[Item]:
    """Those of the widths that most have."""
    if not items:
        return items
    usual = Counter(map(widths_of, items)).most_common(1)[0][0]
    return [item for item in items if widths_of(item) == usual]
