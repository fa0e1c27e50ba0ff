"""Optional: how the model's pictures as a set compare with the images of the data, without asking which picture belongs to which.

Captions of samples are drawn from text alone; what the image encoder sees in the results stands against what it saw in the images.

    mmd-dino   squared maximum mean discrepancy between CLS tokens (Gretton et al., JMLR 2012, eq. 3, unbiased), × 1000
               k(x, y) = exp(−‖x − y‖² / (2σ²)) on tokens of length 1, σ² half the median squared distance between the data's own tokens

It is made like CMMD (arXiv 2401.09603), in the features of this run's image encoder instead of CLIP's: its values compare with each other on
one data set, never with published CMMD. Beside it stands the same figure for other images of the data: what two sets have between them by
chance. The drawn pictures share their captions with the images, so theirs may be lower; both may be below 0, as the estimate is unbiased.

    fid-torchvision   Fréchet distance between Gaussians fitted to Inception's pooled features (arXiv 1706.08500, eq. 6)

That one is measured only where torchvision's Inception weights lie in the cache. Published FIDs use another set of weights, so it has its
own name. Without those weights there is no FID and nothing takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.data.buckets import Bucket
from dittool.data.shard_set import SampleRef, ShardSet
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.validate.samples import bucket_batches, draw, noise_of

FEWEST = 16  # images of each kind: with fewer, both figures are noise
Features = Callable[[np.ndarray], Tensor]  # pixels (B, H, W, 3) uint8 → (B, F)


@dataclass(frozen=True)
class SetMetrics:
    """Distances between the set of drawn pictures and the data, and what two sets of the data have between them."""

    images: int
    mmd_dino: float
    mmd_dino_other_images: float | None  # None: too few other images
    fid_torchvision: float | None  # None: Inception's weights are not in the cache
    feature_width: int  # of the CLS tokens

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images, "drawn_from": "captions", "mmd_dino": self.mmd_dino, "mmd_dino_other_images": self.mmd_dino_other_images,
            "fid_torchvision": self.fid_torchvision,
        }  # fmt: skip


def measure_set(
    pipeline: Pipeline, shards: ShardSet, refs: Sequence[SampleRef], others: Sequence[SampleRef], inception: Features | None, talk: Talk = SILENT
) -> SetMetrics | None:
    """Draws the captions of `refs` and compares with their images; `others` are further images of the data.

    None for fewer than `FEWEST` samples. Raises `BadDataError` for shards that cannot be read and a model that draws NaN.
    """
    if len(refs) < FEWEST:
        talk.note(f"no set metrics: {len(refs)} images, at least {FEWEST} are needed")
        return None
    drawn, pooled_drawn, pooled_real, ordered = [], [], [], []
    with talk.progress("set", len(refs), "image") as task:
        for bucket, batch in bucket_batches(refs, lambda ref: ref):
            pixels = _draw_captions(pipeline, shards, bucket, batch)
            drawn.append(torch.stack([one.cls for one in pipeline.reference_from_pixels(pixels)]))
            if inception is not None:
                latents = np.stack([shards.read(ref, patches=False).latent for ref in batch]).astype(np.float32)
                pooled_drawn.append(inception(pixels))
                pooled_real.append(inception(pipeline.codec.decode(torch.from_numpy(latents))))
            ordered += batch
            task.advance(len(batch))
    real = _stored_cls(shards, ordered)
    width = bandwidth(real)
    by_chance = mmd(_stored_cls(shards, others), real, width) if len(others) >= FEWEST else None
    fid = frechet(torch.cat(pooled_drawn), torch.cat(pooled_real)) if inception is not None else None
    return SetMetrics(len(ordered), mmd(torch.cat(drawn), real, width), by_chance, fid, real.shape[1])


def bandwidth(features: Tensor) -> float:
    """σ² for `mmd`: half the median squared distance between different rows of the data (B, F). It does not depend on the model."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return max(float(torch.pdist(unit).square().median()) / 2, 1e-12)


def mmd(first: Tensor, second: Tensor, variance: float) -> float:
    """1000 × the unbiased squared MMD between rows of (B, F) and (B', F), each scaled to length 1, with a Gaussian kernel of σ² = `variance`."""
    x, y = (torch.nn.functional.normalize(part.double(), dim=1) for part in (first, second))
    within = [_mean_off_diagonal(_kernel(part, part, variance)) for part in (x, y)]
    return float(1000 * (sum(within) - 2 * _kernel(x, y, variance).mean()))


def frechet(first: Tensor, second: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of rows (B, F) and (B', F)."""
    x, y = first.double(), second.double()
    root, other = _root(torch.cov(x.T)), torch.cov(y.T)
    # The eigenvalues of Σ₁Σ₂ are those of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    between = torch.linalg.eigvalsh(root @ other @ root).clamp_min(0).sqrt().sum()
    apart = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return float(apart + torch.cov(x.T).trace() + other.trace() - 2 * between)


def _kernel(x: Tensor, y: Tensor, variance: float) -> Tensor:
    return torch.exp(-torch.cdist(x, y).square() / (2 * variance))  # (B, B')


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    count = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _draw_captions(pipeline: Pipeline, shards: ShardSet, bucket: Bucket, refs: Sequence[SampleRef]) -> np.ndarray:
    text, mask = pipeline.encode_prompts([shards.read_record(ref).caption for ref in refs])
    grid = pipeline.reference_grid(bucket)
    return draw(pipeline, Conditions(text, mask, None, None, grid), noise_of(pipeline, bucket, [ref.id for ref in refs], "set"))


def _stored_cls(shards: ShardSet, refs: Sequence[SampleRef]) -> Tensor:
    return torch.from_numpy(np.stack([shards.read(ref, patches=False).cls for ref in refs]).astype(np.float32))  # (B, C)
