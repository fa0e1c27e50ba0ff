"""Second test: an image's noise with another image's reference. Does the result follow the reference?

For a pair (A, B) of one bucket the model draws from A's noise with B as its only condition: a caption that contradicts
the reference would leave no right answer. The result goes through the image encoder, and its features are compared with
A's and B's as stored.

    d(x, y) = 1 − cos(x, y) of the CLS tokens, and the mean of it over the patches at the same places
    margin  = (d(result, A) − d(result, B)) / (d(result, A) + d(result, B))

The margin of a pair is the mean of both: −1 is A, +1 is B, 0 neither.

The margin is relative because features share a large common part, those of an untrained encoder most of all: all
distances are then small, while their ratio still tells. A model that does not look at its reference is as often nearer
to A as to B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dittool.data.records import Record
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.read import Sample
from dittool.geometry import Bucket
from dittool.seeding import derive_seed
from dittool.storage import output_folder, write_atomic
from dittool.validate.pictures import strip_png, thumb
from dittool.validate.samples import Trial, bucket_batches, draw, noise_of, stored_conditions

_EXACT_UP_TO = 12  # pairs whose 2^n sign patterns are all counted; beyond, a sample of them
_SIGN_PATTERNS = 9999
_SAME = 1e-6  # a result this near to both A and B tells nothing


@dataclass(frozen=True)
class SwappedPair:
    """One pair of the test."""

    noise_of: Record  # A
    reference: Record  # B
    margin: float  # −1 … +1: the mean of the two that follow
    margin_cls: float
    margin_patches: float
    file: str  # A, B, result
    pictures: dict[str, Image.Image]  # small: original, reference, result

    @property
    def closer(self) -> bool:
        return self.margin > 0


@dataclass(frozen=True)
class Swap:
    """All pairs of the test."""

    pairs: list[SwappedPair]

    @property
    def share_closer(self) -> float | None:
        return sum(pair.closer for pair in self.pairs) / len(self.pairs) if self.pairs else None

    def to_json(self) -> dict[str, object]:
        margins = [pair.margin for pair in self.pairs]
        return {
            "pairs": len(margins),
            "closer_to_source": self.share_closer,
            "mean_margin": _mean(margins),
            "p_value": sign_flip_p(margins) if margins else None,
            "mean_margin_cls": _mean([pair.margin_cls for pair in self.pairs]),
            "mean_margin_patches": _mean([pair.margin_patches for pair in self.pairs]),
            "per_pair": [
                {
                    "noise_of": pair.noise_of.id,
                    "reference": pair.reference.id,
                    "margin": pair.margin,
                    "margin_cls": pair.margin_cls,
                    "margin_patches": pair.margin_patches,
                    "closer": pair.closer,
                    "file": pair.file,
                }
                for pair in self.pairs
            ],
        }


def swap_references(trial: Trial) -> Swap:
    """Draws every subject that has a partner from its own noise and the partner's reference alone.

    Writes one strip a pair into `dino_swap/`. Raises `BadDataError` for shards that cannot be read and a model that
    draws NaN.
    """
    paired = [(subject.ref, subject.partner) for subject in trial.subjects if subject.partner is not None]
    pairs, folder = [], output_folder(trial.folder / "dino_swap")
    with trial.talk.progress("swap", len(paired), "pair") as task:
        for bucket, batch in bucket_batches(paired, lambda pair: pair[0]):
            pairs += _swap_batch(trial, bucket, batch, folder)
            task.advance(len(batch))
    return Swap(pairs)


def sign_flip_p(margins: Sequence[float]) -> float:
    """The chance of a mean margin at least this high if each pair were as likely to fall the other way (one-sided
    permutation test).

    All 2^n sign patterns for up to 12 pairs, beyond that 9,999 drawn ones with the observed one added, always the same.
    """
    values = np.asarray(margins, dtype=np.float64)
    if len(values) <= _EXACT_UP_TO:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    else:
        drawn = np.random.Generator(np.random.PCG64(derive_seed("sign flips", len(values)))).integers(
            0, 2, (_SIGN_PATTERNS, len(values))
        )
        signs = np.concatenate([np.ones((1, len(values))), 2.0 * drawn - 1])
    sums = signs @ values
    return float(np.mean(sums >= values.sum() - 1e-12 * np.abs(values).sum()))


def margins_between(
    results: tuple[Tensor, Tensor], originals: tuple[Tensor, Tensor], references: tuple[Tensor, Tensor]
) -> Tensor:
    """Margins (2, B), −1 … +1, of CLS tokens and of patches, from (CLS (B, C), patches (B, N, C)) of results,
    originals (A), references (B).
    """
    parts = []
    for result, original, reference in zip(results, originals, references, strict=True):
        to_a, to_b = _distance(result, original), _distance(result, reference)
        total = to_a + to_b
        parts.append(torch.where(total > _SAME, (to_a - to_b) / total.clamp_min(_SAME), torch.zeros_like(total)))
    return torch.stack(parts)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """1 − cos along the last axis, mean over the patches where there are any: (B, C) or (B, N, C) → (B,)."""
    distances = (1 - F.cosine_similarity(x.double(), y.double(), dim=-1)).clamp_min(0)  # (B,) or (B, N)
    return distances.reshape(len(distances), -1).mean(dim=1)


def _swap_batch(
    trial: Trial, bucket: Bucket, batch: list[tuple[SampleRef, SampleRef]], folder: Path
) -> list[SwappedPair]:
    """Pairs (A, B) of one bucket."""
    pipeline, shards = trial.pipeline, trial.shards
    originals = [shards.read(a) for a, _ in batch]
    references = [shards.read(b) for _, b in batch]
    conditions = replace(stored_conditions(pipeline, references), text=None, text_mask=None)
    if not pipeline.config.model.patches:
        conditions = replace(conditions, patches=None)
    results = draw(pipeline, conditions, noise_of(pipeline, bucket, [a.id for a, _ in batch]))
    seen = pipeline.reference_from_pixels(results)
    features = (
        torch.stack([reference.cls for reference in seen]),
        torch.stack([reference.patches for reference in seen]),
    )
    of_cls, of_patches = margins_between(features, _features(originals), _features(references)).tolist()

    shown = pipeline.codec.decode(
        torch.from_numpy(np.stack([sample.latent for sample in originals + references]).astype(np.float32))
    )
    pairs = []
    for i, (a, b) in enumerate(batch):
        original, reference = shown[i], shown[len(batch) + i]
        file = f"{a.id}__{b.id}.png"
        write_atomic(folder / file, strip_png([original, reference, results[i]]))
        pictures = {"original": thumb(original), "reference": thumb(reference), "result": thumb(results[i])}
        records = shards.read_record(a), shards.read_record(b)
        pairs.append(SwappedPair(*records, (of_cls[i] + of_patches[i]) / 2, of_cls[i], of_patches[i], file, pictures))
    return pairs


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _features(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Stored CLS tokens (B, C) and patches (B, N, C)."""
    cls = np.stack([sample.cls for sample in samples])
    patches = np.stack([sample.patches for sample in samples if sample.patches is not None])  # all were asked for
    return torch.from_numpy(cls.astype(np.float32)), torch.from_numpy(patches.astype(np.float32))
