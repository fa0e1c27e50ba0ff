"""The velocity error on the hold-out: the same samples of all buckets, timesteps and noise every time, so that two
values can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from dittool.config.schema import Config
from dittool.data.choice import representative
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import collate
from dittool.devices import as_in_training, in_parts
from dittool.families.family import Evaluated
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT
from dittool.objective.flow import MODES, flow_loss, shift_at, timesteps
from dittool.seeding import derive_seed
from dittool.validate.mode_losses import QUANTILES

_LARGEST, _BATCH = 64, 16  # hold-out samples, and those judged at once
_MEDIAN = 0.5

LatentsConditionsNoise = tuple[Tensor, Conditions, Tensor]


class FlowEvaluation:
    """The losses of some held-out samples."""

    def __init__(self, shards: ShardSet, refs: Sequence[SampleRef], norm: LatentNorm, config: Config) -> None:
        patch_size = shards.card.image.patch_size
        by_bucket = defaultdict(list)
        for ref in representative(refs, _LARGEST, "evaluation"):
            by_bucket[ref.bucket].append(shards.read(ref, config.model.patches))
        self._batches: list[LatentsConditionsNoise] = []
        for samples in by_bucket.values():
            for start in range(0, len(samples), _BATCH):
                part = samples[start : start + _BATCH]
                latents, conditions = collate(part, norm, patch_size)
                noise = [_noise(sample.ref.id, latents.shape[1:]) for sample in part]
                self._batches.append((latents, conditions, torch.stack(noise)))
        self._precision = config.train.precision
        self._flow = config.flow

    @torch.inference_mode()
    def loss(self, model: DiT, device: torch.device) -> float:
        """Mean velocity error with both conditions kept, over all samples and nine timestep quantiles."""
        found = [
            self._errors(model, device, batch, quantile, "both") for batch in self._batches for quantile in QUANTILES
        ]
        return sum(found) / (self._samples * len(QUANTILES))

    @torch.inference_mode()
    def losses(self, model: DiT, device: torch.device) -> Evaluated:
        """`eval_loss` as above; beside it, with both conditions at each quantile, and at the median with what is
        kept of them.
        """
        cases = [(quantile, "both") for quantile in QUANTILES]
        cases += [(_MEDIAN, mode) for mode in MODES if mode != "both"]
        of_all, sums = 0.0, defaultdict[tuple[float, str], float](float)
        for batch in self._batches:
            for quantile, mode in cases:
                found = self._errors(model, device, batch, quantile, mode)
                sums[quantile, mode] += found
                of_all += found if mode == "both" else 0.0
        parts = {f"eval_loss_q{100 * q:.0f}": sums[q, "both"] / self._samples for q in QUANTILES}
        parts |= {f"eval_loss_{mode}": sums[_MEDIAN, mode] / self._samples for mode in MODES}
        return Evaluated({"eval_loss": of_all / (self._samples * len(QUANTILES))}, parts)

    @property
    def _samples(self) -> int:
        return sum(len(latents) for latents, _, _ in self._batches)

    def _errors(
        self, model: DiT, device: torch.device, batch: LatentsConditionsNoise, quantile: float, mode: str
    ) -> float:
        """Sum over the samples of a batch, at a quantile of the timesteps, with the conditions that a mode keeps."""
        latents, conditions, noise = batch
        times = timesteps(
            torch.tensor(QUANTILES), self._flow.timestep_sampling, shift_at(self._flow.shift, latents)
        )  # (9,)
        t = times[QUANTILES.index(quantile)].to(device)

        def of(rows: slice) -> float:
            x, epsilon = latents[rows].to(device), noise[rows].to(device)
            modes = torch.full((len(x),), MODES.index(mode))
            with as_in_training(device, self._precision):
                part = conditions.map(lambda value: value[rows].to(device))
                loss = flow_loss(model, x, epsilon, t.expand(len(x)), part, modes)
            return float(loss.per_sample.sum())

        return sum(in_parts(of, len(latents), len(latents)))


def _noise(sample: str, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(derive_seed("evaluation", sample)))
