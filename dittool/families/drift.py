"""The one-step generator on latents of images in classes ("Drifting Models"): `model.arch = "drift"`.

    train/loop.py → this file → objective/drift.py → models/drift_dit.py

Beside model, average and optimizer a run carries the queues of real samples and the frozen encoder whose maps its
fields are computed in. Runs are judged by what they draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dittool.audit.specimens.generator import GeneratorNetwork
from dittool.config.drift_schema import DriftConfig
from dittool.config.load import changed, config_to_dict
from dittool.console import Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import require_few_passes
from dittool.encoders.cards import FeatureWidths
from dittool.encoders.drift_features import DriftFeatures, Encoder, SeededEncoder
from dittool.families.drift_data import ClassSamples, LatentEvaluation, LatentStream, require_fitting
from dittool.families.drift_groups import (
    DriftLoss,
    Groups,
    batch_size,
    drift_loss,
    figures,
    inputs,
    require_equal_shares,
)
from dittool.families.family import BatchBytes, BatchKind, Conclusion, Evaluated, Family, Forward
from dittool.families.feature_encoder import FeatureEncoder, train_feature_encoder
from dittool.families.latent_mae import load_encoder, restored
from dittool.families.synthetic import write_class_noise
from dittool.models.build import build_generator
from dittool.models.drift_dit import DriftDiT
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.preview import draw_classes

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks


@dataclass
class DriftData:
    """The shards of a run, its queues, and what its fields are computed in."""

    config: DriftConfig
    folder: Path
    provenance: Provenance
    classes: list[str]
    stream: LatentStream
    ranks: Ranks
    evaluation: LatentEvaluation
    encoder: FeatureEncoder | None = None  # trained for these features before the first step; None: not trained so
    mae: Mapping[str, Any] | None = None  # of another run: architecture and weights
    features: DriftFeatures | None = None  # from `begin` on


def build(config: DriftConfig, _widths: FeatureWidths) -> DriftDiT:
    return build_generator(config)


def open_data(config: DriftConfig, folder: Path, ranks: Ranks) -> DriftData:
    """Raises `BadDataError` for shards that the model does not fit, `UsageError` when groups do not divide among the
    processes.
    """
    require_equal_shares(config, ranks)
    shards = ShardSet.open(folder)
    refs, held = shards.split(TRAIN), shards.split(HOLDOUT)
    require_fitting(config, shards)
    real = config.drift.positives + config.drift.unconditional
    require_few_passes(batch_size(config) // config.drift.generated * real, "real samples", len(refs))
    provenance = Provenance.of(shards, refs, config)
    stream = LatentStream(config, shards, refs, provenance.norm, ranks.device)
    judged = ClassSamples(shards, held, provenance.norm, config.train.seed, partial=True) if held else stream.samples
    evaluation = LatentEvaluation(config, judged)
    return DriftData(config, folder, provenance, shards.classes, stream, ranks, evaluation)


def begin(data: DriftData, saved: Mapping[str, Any], talk: Talk) -> dict[str, float]:
    """Fills the queues, or brings them back, and freezes the encoder of the features. A trained one comes from the
    checkpoint, unless a resumed run asks for another one.
    """
    config, trained = data.config, {}
    if saved:
        data.stream.restore(saved["queues"])
    else:
        data.stream.fill()
    if config.drift.encoder == "trained":
        kept = saved.get("feature_encoder")
        if kept is not None and saved["config"]["feature_encoder"] == config_to_dict(config)["feature_encoder"]:
            data.encoder = FeatureEncoder.from_checkpoint(kept, config, data.ranks)
        else:
            data.encoder = train_feature_encoder(config, data.stream.samples, data.evaluation, data.ranks, talk)
            talk.note(data.encoder.line)
            trained = {f"feature_encoder_{name}": value for name, value in data.encoder.figures.items()}
    if config.drift.encoder_run is not None:
        kept = saved.get("mae")
        if kept is not None and saved["config"]["drift"]["encoder_run"] == config.drift.encoder_run:
            data.mae = kept
        else:
            data.mae = load_encoder(Path(config.drift.encoder_run), data.provenance, config.model.channels)
    data.features = DriftFeatures(config.drift.features, _frozen(data)).to(data.ranks.device)
    return trained


def _frozen(data: DriftData) -> Encoder:
    """The encoder whose maps the fields are computed in."""
    if data.mae is not None:
        return restored(data.mae)
    return SeededEncoder(data.config.model.channels) if data.encoder is None else data.encoder.encoder


def batches(data: DriftData, first: int, end: int) -> Iterator[Groups]:
    return data.stream.batches(first, end, data.ranks)


def loss(data: DriftData, model: Forward, groups: Groups) -> DriftLoss:
    assert data.features is not None  # since `begin`
    return drift_loss(data.config, model, groups, data.features)


def state(data: DriftData) -> dict[str, object]:
    """The sample numbers in the queues, the names of the classes, and the encoder where one was trained, so that a run
    needs no other one's files.
    """
    encoder = {} if data.encoder is None else {"feature_encoder": data.encoder.to_checkpoint()}
    mae = {} if data.mae is None else {"mae": data.mae}
    return {"queues": data.stream.state(), "classes": data.classes, **encoder, **mae}


def evaluate(data: DriftData, model: DriftDiT, device: torch.device) -> Evaluated:
    return Evaluated(data.evaluation.figures(model, device))


def draw(data: DriftData, model: DriftDiT, step: int, path: Path) -> None:
    """A row of images for each class."""
    draw_classes(OneStepPipeline(model, data.config, data.provenance, data.classes, step), path)


def conclude(data: DriftData, _figures: Mapping[str, float]) -> Conclusion:
    return Conclusion({"encoder": None if data.encoder is None else data.encoder.figures})


def kinds(data: DriftData) -> list[BatchKind[Groups]]:
    """One: all samples have one size."""
    model = data.config.model
    tokens = model.cells[0] * model.cells[1] // model.patch_size**2
    example = next(data.stream.batches(0, 1, data.ranks))
    train, name = data.config.train, data.provenance.card.buckets[0]
    fresh = data.config.drift.pushed / train.accumulate
    return [
        BatchKind(name, len(data.stream.samples), batch_size(data.config), tokens, model.registers, fresh, 1.0, example)
    ]


def largest_batch(data: DriftData) -> BatchBytes:
    """Of the groups with their real samples; a reading process hands over the new ones of a step."""
    drift, latent = data.config.drift, _latent_bytes(data.config)
    groups = batch_size(data.config) // drift.generated // data.ranks.count
    used = groups * (drift.generated + drift.positives + drift.unconditional) * latent
    return BatchBytes(used, drift.pushed * latent)


def _latent_bytes(config: DriftConfig) -> int:
    return math.prod(config.model.cells) * config.model.channels * 4  # fp32


def _cheap_begin(config: DriftConfig) -> DriftConfig:
    """With a feature encoder of the same size that is hardly trained; with the seeded one where another run is to give
    its own and is not there.
    """
    run = config.drift.encoder_run
    if run is not None and not Path(run).exists():
        return changed(config, {"drift.encoder": "seeded", "drift.encoder_run": None}, "dit bench")
    trained = config.drift.encoder == "trained"
    return changed(config, {"feature_encoder.steps": 1}, "dit train --dry-run") if trained else config


FAMILY = Family(
    build=build,
    device_bytes=lambda data: data.stream.queues.nbytes,
    known_widths=lambda _config: FeatureWidths(),
    open_data=open_data,
    begin=begin,
    batches=batches,
    loss=loss,
    inputs=inputs,
    fewest=lambda config: config.drift.generated,
    figures=figures,
    state=state,
    evaluate=evaluate,
    draw=draw,
    conclude=conclude,
    largest_batch=largest_batch,
    kinds=kinds,
    pipeline=OneStepPipeline.load,
    noise=write_class_noise,
    cheap_begin=_cheap_begin,
    specimen=GeneratorNetwork,
    batch_bytes=lambda config, _widths: config.drift.pushed * _latent_bytes(config),
    codec=lambda config: config.encoders.vae,
)
