"""Features are finite, vary, and lie where raw features lie.

## What it checks
In samples spread over the set: no NaN and no infinity; nothing near float16's limit; no constant latent, CLS or
patches; CLS tokens differ between images and are not the mean of the patches; latents have the spread that raw ones of
their codec have, and not mean 0 and deviation 1 in every channel, so they were not normalised already; the index's
statistics are those of its samples.

## Why it matters
A float16 decoder overflows into NaN, a fallback extractor averages tokens into a wrong CLS, statistics summed in
float16 overflow: each trains, and each spoils the run.

## Example
Latents stored as (z − shift)·scale would be normalised again in training; with Flux's scale they fail: "latents have a
deviation of 0.36 under the codec's scale, 0.45 to 2.2 is usual: normalised already?"

## Fix
Embed again, in fp32 if values overflowed: `-s encoders.dtype="fp32"`. Latents are stored as the codec makes them;
training normalises them by `data.latent_scaling`.
"""

from __future__ import annotations

import numpy as np

from dittool.audit.data_view import DataView
from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.subject import Data
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT
from dittool.data.shards.columns import SampleRef
from dittool.encoders.cards import VaeCard

CODE, NAME, SEVERITY, SCOPE, SINCE = "D6", "values", "error", ("data",), "0.1"

_FIX = 'embed these images again; if values overflowed, with -s encoders.dtype="fp32"'
_NEAR_OVERFLOW = 30_000  # float16 ends at 65,504
_SAME = 0.01  # relative distance below which two vectors are the same
_PLAUSIBLE_STD = (0.45, 2.2)  # of latents under their codec's own scale and shift
_STANDARD = 0.1  # from mean 0 and deviation 1, in all of at least so many channels: no codec's own are so
_FEWEST_CHANNELS, _FEWEST_SAMPLES = 4, 16
_STATISTICS_TOLERANCE = 0.02  # of the channels' global deviation


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    refs = data.spread(*data.features)
    bad, constant, pooled = [], [], 0
    kinds: dict[tuple[int, ...], _Kind] = {}
    for ref in refs:
        arrays = {feature.name: data.array(ref, feature).astype(np.float64) for feature in data.features}
        # NaN compares false
        if wrong := [name for name, array in arrays.items() if not np.abs(array).max(initial=0) <= _NEAR_OVERFLOW]:
            bad.append(f"{ref.id} ({', '.join(wrong)})")
            continue
        shaped = ((arrays[feature.name], len(feature.axes)) for feature in data.features)
        if any(array.ndim != axes or not array.size for array, axes in shaped):
            continue  # rule D1 speaks of these
        constant += [f"{ref.id} ({name})" for name, array in arrays.items() if name != TEXT.name and np.ptp(array) == 0]
        cls = arrays[IMAGE_CLS.name]
        if data.has_patches:
            mean = arrays[IMAGE_PATCHES.name].mean(axis=0)
            pooled += cls.shape == mean.shape and np.linalg.norm(cls - mean) < _SAME * np.linalg.norm(cls)
        latent = arrays[LATENT.name]
        kinds.setdefault((len(cls), len(latent)), _Kind()).add(cls, latent)
    if not kinds and not bad:
        return skipped("no sample has the axes that its features have; see rule D1")
    seen = max(kinds.values(), key=lambda kind: len(kind.cls_tokens), default=_Kind())
    faults = []
    if bad:
        faults.append(
            f"{len(bad)} of {len(refs)} samples hold NaN, infinity or values over {_NEAR_OVERFLOW:,}:"
            f" {', '.join(bad[:3])}"
        )
    if pooled > len(refs) / 2:
        faults.append(f"in {pooled} of {len(refs)} samples CLS is the mean of the patches")
    if len(seen.cls_tokens) > 1 and not bad and _all_alike(seen.cls_tokens):
        faults.append(f"the CLS tokens of all {len(seen.cls_tokens)} samples are alike")
    if not bad:
        faults += _range_faults(data, seen) or _standardised(data, seen)
        faults += _statistics_faults(data, refs, seen)
    if faults:
        return [finding for fault in faults for finding in failed(fault, _FIX)]
    if constant:
        return warned(
            f"{len(constant)} constant features, first {', '.join(constant[:3])}: pictures of one colour?",
            "look at these images",
        )
    latents = f"latents of mean {seen.mean.mean():.3g}, deviation {seen.std:.3g}"
    return passed(f"{len(refs)} of {len(data.refs)} samples: all finite, none constant; {latents}")


class _Kind:
    """Samples of the same widths: their CLS tokens, and mean and deviation of their latents, channel by channel, in
    float64.
    """

    def __init__(self) -> None:
        self.cls_tokens: list[np.ndarray] = []
        self.count, self._sum, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, cls: np.ndarray, latent: np.ndarray) -> None:
        self.cls_tokens.append(cls)
        flat = latent.reshape(len(latent), -1)
        self.count += flat.shape[1]
        self._sum, self._squares = self._sum + flat.sum(axis=1), self._squares + np.square(flat).sum(axis=1)

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self.count

    @property
    def channel_std(self) -> np.ndarray:
        return np.sqrt(np.maximum(self._squares / self.count - np.square(self.mean), 0))

    @property
    def std(self) -> float:
        return float(np.sqrt(np.square(self.channel_std).mean()))


def _all_alike(tokens: list[np.ndarray]) -> bool:
    stacked = np.stack(tokens)
    return np.linalg.norm(stacked - stacked.mean(axis=0)) < 1e-3 * np.linalg.norm(stacked)


def _range_faults(data: DataView, seen: _Kind) -> list[str]:
    codec = data.encoder(VaeCard)
    if codec is None or codec.scale == 1.0:
        return []  # this codec publishes no scale
    std = seen.std * codec.scale
    low, high = _PLAUSIBLE_STD
    if low <= std <= high:
        return []
    return [
        f"latents have a deviation of {std:.2g} under the codec's scale, {low} to {high} is usual: normalised already?"
    ]


def _standardised(data: DataView, seen: _Kind) -> list[str]:
    mean, std = np.abs(seen.mean), seen.channel_std
    enough = len(std) >= _FEWEST_CHANNELS and len(seen.cls_tokens) >= _FEWEST_SAMPLES
    if not enough or mean.max() > _STANDARD or np.abs(std - 1).max() > _STANDARD:
        return []
    codec = data.encoder(VaeCard)
    card = f"the card of {codec.id} says scale {codec.scale:g}, shift {codec.shift:g}" if codec else "no card says so"
    return [
        f"all {len(std)} channels of the latents have mean 0 (within {mean.max():.2g}) and deviation 1"
        f" ({std.min():.2g} to {std.max():.2g}), and {card}: normalised already, so they cannot be decoded?"
    ]


def _statistics_faults(data: DataView, refs: list[SampleRef], seen: _Kind) -> list[str]:
    if data.index is None or len(refs) < len(data.refs):
        return []
    recorded = data.index.statistics
    faults = []
    for name, listed, found in (
        ("latent_mean", recorded.latent_mean, seen.mean),
        ("latent_std", recorded.latent_std, seen.channel_std),
    ):
        distance = np.abs(np.asarray(listed, dtype=np.float64) - found).max() if len(listed) == len(found) else np.inf
        if not distance <= _STATISTICS_TOLERANCE * seen.std:
            faults.append(f"{name} in the index is up to {distance:.2g} away from that of its samples")
    return faults
