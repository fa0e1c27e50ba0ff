"""The fixed evaluation loss: the same hold-out samples, timesteps and noise every time, so that two values can be
compared.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from dittool.config.schema import Config
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.read import SampleRef, ShardSet
from dittool.data.shards.stream import collate
from dittool.models.dit import DiT
from dittool.objective.flow import MODES, flow_loss, timesteps
from dittool.seeding import derive_seed

QUANTILES = tuple(i / 10 for i in range(1, 10))  # of the training distribution of timesteps
_LARGEST_SET = 64  # hold-out samples
_BATCH = 16


class Evaluation:
    """Hold-out samples in memory, ready to be judged again and again."""

    def __init__(self, shards: ShardSet, refs: list[SampleRef], norm: LatentNorm, config: Config) -> None:
        patch_size = shards.card.image.patch_size
        by_bucket = defaultdict(list)
        for ref in refs[:_LARGEST_SET]:
            by_bucket[ref.bucket].append(shards.read(ref, config.model.patches))
        self._batches = []
        for samples in by_bucket.values():
            for start in range(0, len(samples), _BATCH):
                part = samples[start : start + _BATCH]
                latents, conditions = collate(part, norm, patch_size)
                noise = torch.stack(
                    [
                        torch.randn(
                            latents.shape[1:],
                            generator=torch.Generator().manual_seed(derive_seed("evaluation", sample.ref.id)),
                        )
                        for sample in part
                    ]
                )
                self._batches.append((latents, conditions, noise))
        self._timesteps = timesteps(torch.tensor(QUANTILES), config.flow.timestep_sampling, config.flow.shift)

    @torch.inference_mode()
    def loss(self, model: DiT, device: torch.device) -> float:
        """Mean velocity error with both conditions kept, over all samples and nine timestep quantiles."""
        total, count = 0.0, 0
        for latents, conditions, noise in self._batches:
            latents, noise = latents.to(device), noise.to(device)
            conditions = conditions.map(lambda tensor: tensor.to(device))
            both = torch.full((len(latents),), MODES.index("both"))
            for t in self._timesteps:
                loss = flow_loss(model, latents, noise, t.to(device).expand(len(latents)), conditions, both)
                total, count = total + float(loss.per_sample.sum()), count + len(latents)
        return total / count
