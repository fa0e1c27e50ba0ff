"""The feature encoder of drifting runs, trained for itself: `model.arch = "latent-mae"`. A run of a one-step generator
takes it from its checkpoint: `drift.encoder = "mae"`.

    train/loop.py → this file → models/latent_mae.py

What is hidden of a sample, and the noise on it, is a function of (seed, place in the endless stream of samples).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.audit.specimens.generator import MaeNetwork
from dittool.ckpt.files import newest_checkpoint
from dittool.ckpt.load import require_fit
from dittool.ckpt.sharded import is_sharded
from dittool.ckpt.to_draw import load_to_draw
from dittool.config.architectures import of_kind
from dittool.config.drift_schema import MaeConfig
from dittool.config.load import config_from_dict
from dittool.data.provenance import Provenance
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.data.shards.read_ahead import read_ahead
from dittool.data.shards.stream import require_few_passes
from dittool.devices import as_in_training, in_parts
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError, UsageError
from dittool.families.drift_data import ClassSamples, require_fitting
from dittool.families.family import BatchBytes, BatchKind, Evaluated, Family, Forward
from dittool.families.synthetic import write_class_noise
from dittool.models.build import build_mae
from dittool.models.latent_mae import LatentMAE, LatentMAEConfig
from dittool.seeding import derive_seed

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks

_LARGEST_EVALUATION, _EVALUATION_BATCH = 256, 64  # latents, and those looked at at once


@dataclass(frozen=True)
class Masked:
    """This process's share of one micro-batch."""

    ids: list[str]  # B
    weight: float
    latents: Tensor  # (B, C, H, W), normalised
    noisy: Tensor  # (B, C, H, W), what the encoder sees of them
    hidden: Tensor  # (B, 1, H, W) bool
    labels: Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> Masked:
        tensors = {name: getattr(self, name) for name in ("latents", "noisy", "hidden", "labels")}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


@dataclass(frozen=True)
class MaeLoss:
    mean: Tensor  # ()
    per_sample: Tensor  # (B,)
    filled: Tensor  # () mean square error of hidden cells
    named: Tensor  # () share of classes that are named


@dataclass(frozen=True)
class MaeData:
    config: MaeConfig
    folder: Path
    provenance: Provenance
    samples: ClassSamples
    real: Tensor  # (n, C, H, W) that it is evaluated on
    labels: Tensor  # (n,)
    ranks: Ranks


@dataclass(frozen=True)
class _Batches:
    """Micro-batch n of the run, this process's share of it."""

    data: MaeData

    def __getitem__(self, number: int) -> Masked:
        config, ranks, samples = self.data.config, self.data.ranks, self.data.samples
        size = _batch_size(config) // ranks.count
        first = (number * ranks.count + ranks.rank) * size
        numbers, labels, latents = zip(*(samples[place] for place in range(first, first + size)), strict=True)
        clean = torch.stack(latents)
        generators = [_generator(config.train.seed, place) for place in range(first, first + size)]
        hidden = torch.cat([hidden_patches(clean[:1], config.mae.patch_size, config.mae.masked, g) for g in generators])
        noise = torch.stack(
            [
                config.mae.noise * torch.rand((), generator=g) * torch.randn(clean.shape[1:], generator=g)
                for g in generators
            ]
        )
        ids = [samples.id(each) for each in numbers]
        return Masked(ids, 1 / config.train.accumulate, clean, clean + noise, hidden, torch.tensor(labels))


def _generator(seed: int, place: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "latent mae", place))


def hidden_patches(latents: Tensor, patch: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, 1, H, W) bool: of each latent the same number of patches of patch × patch cells is hidden."""
    rows, columns = latents.shape[2:]
    grid = -(-rows // patch), -(-columns // patch)
    count = max(1, round(share * grid[0] * grid[1]))
    order = torch.rand(len(latents), grid[0] * grid[1], generator=generator).argsort(dim=1).argsort(dim=1)
    coarse = (order < count).unflatten(1, grid)[:, None]
    return coarse.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)[:, :, :rows, :columns]


def open_data(config: MaeConfig, folder: Path, ranks: Ranks) -> MaeData:
    """Raises `BadDataError` for shards that the encoder does not fit, `UsageError` when a batch does not divide among
    the processes.
    """
    if _batch_size(config) % ranks.count:
        raise UsageError(
            f"train.batch_size {_batch_size(config)} does not divide into {ranks.count} processes",
            f"set train.batch_size to a multiple of {ranks.count}",
        )
    shards = ShardSet.open(folder)
    refs, held = shards.split(TRAIN), shards.split(HOLDOUT)
    require_fitting(config, shards)
    require_few_passes(_batch_size(config), "samples", len(refs))
    provenance = Provenance.of(shards, refs, config)
    samples = ClassSamples(shards, refs, provenance.norm, config.train.seed)
    judged = ClassSamples(shards, held, provenance.norm, config.train.seed, partial=True) if held else samples
    numbers = judged.representative(_LARGEST_EVALUATION, "evaluation")
    labels = torch.tensor([judged.label(number) for number in numbers])
    return MaeData(config, folder, provenance, samples, judged.latents(torch.tensor(numbers)), labels, ranks)


def batches(data: MaeData, first: int, end: int) -> Iterator[Masked]:
    train = data.config.train
    return read_ahead(_Batches(data), range(first * train.accumulate, end * train.accumulate), train.workers)


def inputs(batch: Masked) -> tuple[Tensor, Tensor]:
    return batch.noisy, batch.hidden


def loss(data: MaeData, model: Forward, batch: Masked) -> MaeLoss:
    """Mean square error of hidden cells, and cross-entropy of the class."""
    filled, logits = model(*inputs(batch))
    errors = _errors(filled.float(), batch.latents, batch.hidden)  # (B,)
    named = F.cross_entropy(logits.float(), batch.labels, reduction="none")
    per_sample = errors + data.config.mae.class_weight * named
    right = (logits.argmax(dim=1) == batch.labels).float().mean()
    return MaeLoss(per_sample.mean(), per_sample.detach(), errors.mean().detach(), right)


def figures(losses: Sequence[MaeLoss], ranks: Ranks) -> dict[str, float]:
    return {
        f"loss_{name}" if name == "filled" else name: float(
            ranks.mean(torch.stack([getattr(each, name) for each in losses]).mean())
        )
        for name in ("filled", "named")
    }


@torch.inference_mode()
def evaluate(data: MaeData, model: LatentMAE, device: torch.device) -> Evaluated:
    """Share of the variance of hidden cells that is filled in, and of classes that are named."""
    keys, generator = data.config, torch.Generator().manual_seed(derive_seed("latent mae evaluation"))
    hidden = hidden_patches(data.real, keys.mae.patch_size, keys.mae.masked, generator)

    def both(rows: slice) -> Tensor:
        with as_in_training(device, keys.train.precision):
            filled, logits = model(data.real[rows].to(device), hidden[rows].to(device))
        right = (logits.argmax(dim=1).cpu() == data.labels[rows]).float()
        return torch.stack([_errors(filled.float().cpu(), data.real[rows], hidden[rows]), right], dim=1)

    found = torch.cat(in_parts(both, len(data.real), _EVALUATION_BATCH)).mean(dim=0)
    guessed = _errors(data.real.mean(dim=0).expand_as(data.real), data.real, hidden).mean().clamp_min(1e-12)
    named = {"eval_named": float(found[1])} if keys.mae.class_weight else {}
    return Evaluated({"eval_filled_in": 1 - float(found[0] / guessed), **named})


def kinds(data: MaeData) -> list[BatchKind[Masked]]:
    """One: all samples have one size."""
    size, cells = _batch_size(data.config), math.prod(data.config.model.cells)
    example = _Batches(data)[0]
    name = data.provenance.card.buckets[0]
    return [BatchKind(name, len(data.samples), size, cells, 0, size, 1.0, example)]


def largest_batch(data: MaeData) -> BatchBytes:
    size = 2 * _batch_size(data.config) // data.ranks.count * _latent_bytes(data.config)
    return BatchBytes(size, size)


def load_encoder(place: Path, data: Provenance, channels: int) -> dict[str, Any]:
    """What a drifting run keeps of a trained encoder (`restored` makes it): its architecture and its averaged weights.

    Args:
        place: a run's folder or a checkpoint.
        data: those of the drifting run, whose latents must be those that the encoder knows.

    Raises `UsageError` where none is there or it is of another family, `BadDataError` for other latents, and what
    reading a checkpoint raises.
    """
    if not place.exists():
        raise UsageError(
            f"drift.encoder_run: {place}: no such run or checkpoint",
            "train one with: dit train --preset drift-mae, or name yours with -s drift.encoder_run=FOLDER",
        )
    is_run = place.is_dir() and not is_sharded(place)
    path = newest_checkpoint(place / "checkpoints").path if is_run else place
    content = load_to_draw(path)
    what = "drift.encoder_run names a trained feature encoder"
    config = of_kind(
        config_from_dict(content["config"], str(path)),
        str(path),
        what,
        MaeConfig,
        instead="dit train --preset drift-mae",
    )
    theirs = Provenance.from_json(content["data"], str(path))
    if config.model.channels != channels or (theirs.norm, theirs.card.vae) != (data.norm, data.card.vae):
        raise BadDataError(
            f"{path}: trained on latents of '{theirs.card.vae.id}' with other values than this run's, of"
            f" '{data.card.vae.id}' (codec, scale and shift must be equal)",
            "train an encoder on these shards: dit train --preset drift-mae",
        )
    architecture = asdict(build_mae(config).config)
    saved = {"architecture": architecture, "weights": content["ema"]}
    require_fit(content["ema"], restored(saved, weights=False).state_dict(), f"{path}: ema")
    return saved


def restored(saved: Mapping[str, Any], weights: bool = True) -> LatentMAE:
    """The encoder of `load_encoder`, with its weights."""
    with torch.device("meta"):  # no first weights are drawn: the run's random state stays as it is
        encoder = LatentMAE(LatentMAEConfig(**saved["architecture"]))
    if weights:
        encoder.load_state_dict(saved["weights"], assign=True)
    return encoder.eval().requires_grad_(False)


def _errors(filled: Tensor, latents: Tensor, hidden: Tensor) -> Tensor:
    """(B,) mean square over hidden cells."""
    total = ((filled - latents).square() * hidden).sum(dim=(1, 2, 3))
    return total / (hidden.sum(dim=(1, 2, 3)) * latents.shape[1])


def _batch_size(config: MaeConfig) -> int:
    assert config.train.batch_size is not None  # the schema refuses tokens_per_batch
    return config.train.batch_size


def _latent_bytes(config: MaeConfig) -> int:
    return math.prod(config.model.cells) * config.model.channels * 4  # fp32


FAMILY = Family(
    build=lambda config, _widths: build_mae(config),
    known_widths=lambda _config: FeatureWidths(),
    open_data=open_data,
    batches=batches,
    loss=loss,
    inputs=inputs,
    figures=figures,
    evaluate=evaluate,
    largest_batch=largest_batch,
    kinds=kinds,
    noise=write_class_noise,
    specimen=MaeNetwork,
    batch_bytes=lambda config, _widths: _latent_bytes(config),
)
