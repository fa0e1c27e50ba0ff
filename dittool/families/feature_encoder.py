"""Trains the small encoder whose frozen maps the drifting objective compares samples in, before the generator's first
step.

It sees the run's training latents and nothing else: it fills in patches that were hidden from it and, with
`feature_encoder.labels`, names their classes. All that is random is a function of the run's seed. A checkpoint keeps
the weights, so that no run trains it twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.config.drift_schema import DriftConfig
from dittool.console import SILENT, Talk
from dittool.data.shards.read_ahead import read_ahead
from dittool.encoders.drift_features import LatentEncoder
from dittool.families.drift_data import ClassSamples, LatentEvaluation
from dittool.seeding import derive_seed

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks

_PATCH = 2  # cells along one side of what is hidden at once
_NOISE = 0.3  # largest deviation of the noise on its inputs: drawn samples are not clean either
_WARMUP = 20  # steps


@dataclass(frozen=True)
class FeatureEncoder:
    """A trained encoder and what it can do."""

    encoder: LatentEncoder
    figures: dict[str, float]

    @property
    def line(self) -> str:
        named = f", the class of {self.figures['accuracy']:.0%} named" if "accuracy" in self.figures else ""
        return (
            f"feature encoder: on the evaluation's latents {self.figures['filled_in']:.0%} of the variance of hidden"
            f" patches filled in{named}"
        )

    def to_checkpoint(self) -> dict[str, object]:
        return {"weights": self.encoder.state_dict(), "figures": self.figures}

    @staticmethod
    def from_checkpoint(saved: dict[str, Any], config: DriftConfig, ranks: Ranks) -> FeatureEncoder:
        encoder = blank_encoder(config).to(ranks.device)
        encoder.load_state_dict(saved["weights"])
        return FeatureEncoder(encoder, saved["figures"])


def blank_encoder(config: DriftConfig) -> LatentEncoder:
    """With its first weights, which the run's seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "feature encoder"))
        return LatentEncoder(config.model.channels, config.feature_encoder.width, config.model.classes)


def train_feature_encoder(
    config: DriftConfig, samples: ClassSamples, judged: LatentEvaluation, ranks: Ranks, talk: Talk = SILENT
) -> FeatureEncoder:
    """Trained on `samples`; its figures are those on the real latents of `judged`.

    Every process trains, and all of them go on with the first one's weights.
    """
    wanted = config.feature_encoder
    encoder = blank_encoder(config).to(ranks.device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=wanted.lr, weight_decay=0.01)
    with talk.progress("feature encoder", wanted.steps, "step") as task:
        for step, (_, labels, latents) in enumerate(_batches(config, samples)):
            generator = torch.Generator().manual_seed(derive_seed(config.train.seed, "feature encoder", step))
            loss = _loss(encoder, latents, labels, wanted.masked, wanted.labels, generator, ranks.device)
            for group in optimizer.param_groups:
                group["lr"] = (
                    wanted.lr * min(1, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / wanted.steps)) / 2
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            task.advance()
    ranks.take_from_first(encoder)
    encoder.eval().requires_grad_(False)
    return FeatureEncoder(encoder, _figures(encoder, judged, config, ranks.device))


def _batches(config: DriftConfig, samples: ClassSamples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`feature_encoder.steps` batches of (numbers (B,), labels (B,), latents (B, C, h, w)), in the shuffled passes
    of the run's seed.
    """
    wanted = config.feature_encoder
    return read_ahead(_Batched(samples, wanted.batch_size), range(wanted.steps), config.train.workers)


@dataclass(frozen=True)
class _Batched:
    """Batch n of the stream of samples."""

    samples: ClassSamples
    size: int

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        of_batch = [self.samples[position] for position in range(number * self.size, (number + 1) * self.size)]
        numbers, labels, latents = zip(*of_batch, strict=True)
        return torch.tensor(numbers), torch.tensor(labels), torch.stack(latents)


def _loss(
    encoder: LatentEncoder,
    latents: Tensor,
    labels: Tensor,
    masked: float,
    name_classes: bool,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Mean square error of what was hidden, and cross-entropy of the class."""
    deviation = _NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noisy = latents + deviation * torch.randn(latents.shape, generator=generator)
    hidden = hidden_patches(latents, masked, generator)
    latents, noisy, hidden, labels = (each.to(device) for each in (latents, noisy, hidden, labels))
    loss = _error(encoder.filled_in(noisy, hidden), latents, hidden)
    return loss + F.cross_entropy(encoder.class_logits(noisy), labels) if name_classes else loss


def hidden_patches(latents: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, 1, h, w) bool: each patch of 2×2 cells hidden with probability `share`."""
    rows, columns = latents.shape[2:]
    coarse = torch.rand(len(latents), 1, -(-rows // _PATCH), -(-columns // _PATCH), generator=generator) < share
    return coarse.repeat_interleave(_PATCH, dim=2).repeat_interleave(_PATCH, dim=3)[:, :, :rows, :columns]


def _error(filled: Tensor, latents: Tensor, hidden: Tensor) -> Tensor:
    """Mean square over hidden cells."""
    return ((filled - latents).square() * hidden).sum() / (hidden.sum() * latents.shape[1]).clamp_min(1)


@torch.no_grad()
def _figures(
    encoder: LatentEncoder, judged: LatentEvaluation, config: DriftConfig, device: torch.device
) -> dict[str, float]:
    """Share of the variance of hidden patches that is filled in, and of classes that are named, on samples as they
    are.
    """
    latents, labels = judged.real, judged.labels
    hidden = hidden_patches(
        latents, config.feature_encoder.masked, torch.Generator().manual_seed(derive_seed("feature encoder figures"))
    )
    latents, hidden = latents.to(device), hidden.to(device)
    left = _error(encoder.filled_in(latents, hidden), latents, hidden) / _error(
        latents.mean(dim=0), latents, hidden
    ).clamp_min(1e-12)
    figures = {"filled_in": 1 - float(left)}
    if config.feature_encoder.labels:
        figures["accuracy"] = float((encoder.class_logits(latents).argmax(dim=1).cpu() == labels).float().mean())
    return figures
