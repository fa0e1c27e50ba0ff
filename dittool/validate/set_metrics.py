"""Optional: how the model's pictures as a set compare with the images of the data, without asking which picture belongs
to which.

Captions of samples are drawn from text alone; what the image encoder sees in the results stands against what it saw in
the images.

    mmd-dino   squared maximum mean discrepancy between CLS tokens (Gretton et al., JMLR 2012, eq. 3, unbiased), × 1000
               k(x, y) = exp(−‖x − y‖² / (2σ²)) on tokens of length 1, σ² half the median squared distance between the
               data's own tokens

It is made like CMMD (arXiv 2401.09603), in the features of this run's image encoder instead of CLIP's: its values
compare with each other on one data set, never with published CMMD. On few images it is mostly noise, so its spread
stands beside it:

    error    standard error of the value, by leaving out one image and its picture at a time (jackknife)
    chance   between which values 95% of such figures lie where both sets are real: the data's own images, split at
             random into two sets. A value inside says that these pictures cannot be told from the data by this figure,
             on so many images, and no more
    other    the same figure between other images of the data and these: one such split, the one that is there

The drawn pictures share their captions with the images, so theirs may be lower; all may be below 0, as the estimate is
unbiased.

    fid-torchvision   Fréchet distance between Gaussians fitted to Inception's pooled features (arXiv 1706.08500, eq. 6)

That one is measured only where torchvision's Inception weights lie in the cache. Published FIDs use another set of
weights, so it has its own name. Without those weights there is no FID and nothing takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dittool.data.shards.columns import SampleRef
from dittool.data.shards.read import ShardSet
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.seeding import derive_seed
from dittool.validate.figures.distances import frechet, gaussian_kernel, squared_mmd
from dittool.validate.perceptual import PooledFeatures
from dittool.validate.samples import Trial, bucket_batches, draw, noise_of

FEWEST = 16  # images of each kind: with fewer, all figures are noise
_SPLITS = 400


@dataclass(frozen=True)
class SetMetrics:
    """Distances between the set of drawn pictures and the data, and what two sets of the data have between them."""

    images: int
    mmd_dino: float
    mmd_dino_error: float  # its standard error
    mmd_dino_chance: tuple[float, float]  # least and most between two sets of real images, of 95% of random splits
    mmd_dino_other_images: float | None  # None: too few other images
    fid_torchvision: float | None  # None: Inception's weights are not in the cache

    def to_json(self) -> dict[str, object]:
        return {
            "images": self.images,
            "drawn_from": "captions",
            "mmd_dino": self.mmd_dino,
            "mmd_dino_error": self.mmd_dino_error,
            "mmd_dino_chance": list(self.mmd_dino_chance),
            "mmd_dino_other_images": self.mmd_dino_other_images,
            "fid_torchvision": self.fid_torchvision,
        }

    @property
    def distinguishable(self) -> bool:
        """Whether the pictures are further from the data than two sets of the data are from each other by chance."""
        return self.mmd_dino > self.mmd_dino_chance[1]

    def __str__(self) -> str:
        low, high = self.mmd_dino_chance
        said = "further from the data than that" if self.distinguishable else "not to be told from the data"
        value = f"mmd_dino {self.mmd_dino:.3g} ± {self.mmd_dino_error:.2g}"
        return (
            f"{self.images} pictures as a set: {value}; real sets are {low:.3g} to {high:.3g} apart by chance, so they"
            f" are {said}"
        )


def measure_set(
    trial: Trial, refs: Sequence[SampleRef], others: Sequence[SampleRef], inception: PooledFeatures | None
) -> SetMetrics | None:
    """Draws the captions of `refs` and compares with their images; `others` are further images of the data.

    None for fewer than `FEWEST` samples. Raises `BadDataError` for shards that cannot be read and a model that draws
    NaN.
    """
    pipeline, shards, talk = trial.pipeline, trial.shards, trial.talk
    if len(refs) < FEWEST:
        talk.note(f"no set metrics: {len(refs)} images, at least {FEWEST} are needed")
        return None
    drawn, pooled_drawn, pooled_real, ordered = [], [], [], []
    with talk.progress("set", len(refs), "image") as task:
        for bucket, batch in bucket_batches(refs, lambda ref: ref):
            pixels = _draw_captions(pipeline, shards, bucket, batch)
            drawn.append(torch.stack([reference.cls for reference in pipeline.reference_from_pixels(pixels)]))
            if inception is not None:
                latents = np.stack([shards.read(ref, patches=False).latent for ref in batch]).astype(np.float32)
                pooled_drawn.append(inception(pixels))
                pooled_real.append(inception(pipeline.codec.decode(torch.from_numpy(latents))))
            ordered += batch
            task.advance(len(batch))
    real, seen = _stored_cls(shards, ordered), torch.cat(drawn)
    width = bandwidth(real)
    further = _stored_cls(shards, others) if others else real[:0]
    other = mmd(further, real, width) if len(others) >= FEWEST else None
    fid = frechet(torch.cat(pooled_drawn), torch.cat(pooled_real)) if inception is not None else None
    error, chance = mmd_error(seen, real, width), mmd_by_chance(torch.cat([real, further]), len(real), width)
    found = SetMetrics(len(real), mmd(seen, real, width), error, chance, other, fid)
    talk.note(str(found))
    return found


def bandwidth(features: Tensor) -> float:
    """σ² for `mmd`: half the median squared distance between different rows of the data (B, F). It does not depend
    on the model.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return max(float(torch.pdist(unit).square().median()) / 2, 1e-12)


def mmd(first: Tensor, second: Tensor, variance: float) -> float:
    """1000 × the unbiased squared MMD between rows of (B, F) and (B', F), each scaled to length 1, with a Gaussian
    kernel of σ² = `variance`.
    """
    return 1000 * squared_mmd(first, second, gaussian_kernel(variance))


def mmd_error(first: Tensor, second: Tensor, variance: float) -> float:
    """Standard error of `mmd` of rows that belong together, (B, F) and (B, F): jackknife over the pairs, B ≥ 3."""
    count = len(first)
    left = torch.zeros(count, dtype=torch.float64)  # of the estimate without pair i
    for part in (first, second):
        kernel = gaussian_kernel(variance)(part, part)
        rows = kernel.sum(dim=1) - kernel.diagonal()
        left += (rows.sum() - 2 * rows) / ((count - 1) * (count - 2))
    kernel = gaussian_kernel(variance)(first, second)
    left -= 2 * (kernel.sum() - kernel.sum(dim=0) - kernel.sum(dim=1) + kernel.diagonal()) / (count - 1) ** 2
    return float(1000 * (left.var(correction=0) * (count - 1)).sqrt())


def mmd_by_chance(features: Tensor, size: int, variance: float) -> tuple[float, float]:
    """Between which values 95% of `mmd` lie for two sets of `size` rows each out of one distribution, from random
    splits of (B, F), always the same.

    Where fewer than 2·size rows are there, halves are compared and their values scaled: the spread falls as 1 / size.
    """
    half = min(size, len(features) // 2)
    shuffled = np.random.Generator(np.random.PCG64(derive_seed("splits", len(features))))
    orders = torch.from_numpy(np.stack([shuffled.permutation(len(features)) for _ in range(_SPLITS)]))
    kernel = gaussian_kernel(variance)(features, features)
    in_x, in_y = (
        torch.zeros(len(orders), len(features), dtype=torch.float64).scatter_(1, part, 1.0)
        for part in orders.split(half, dim=1)[:2]
    )
    within = sum(
        ((members @ kernel) * members).sum(dim=1) - members @ kernel.diagonal() for members in (in_x, in_y)
    ) / (half * (half - 1))
    values = 1000 * (within - 2 * ((in_x @ kernel) * in_y).sum(dim=1) / half**2) * half / size
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _draw_captions(pipeline: Pipeline, shards: ShardSet, bucket: Bucket, refs: Sequence[SampleRef]) -> np.ndarray:
    text, mask = pipeline.encode_prompts([shards.read_record(ref).caption for ref in refs])
    grid = pipeline.reference_grid(bucket)
    return draw(
        pipeline, Conditions(text, mask, None, None, grid), noise_of(pipeline, bucket, [ref.id for ref in refs], "set")
    )


def _stored_cls(shards: ShardSet, refs: Sequence[SampleRef]) -> Tensor:
    # (B, C)
    return torch.from_numpy(np.stack([shards.read(ref, patches=False).cls for ref in refs]).astype(np.float32))
