"""A warm start of a rectified flow: which features the new model will read, what is carried over, what it is worth.

The mapping of tensors is ckpt/warmstart.py; this file knows configurations, encoders and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.warmstart import Meaning, WarmStart, old_feature_widths, warmstart
from dittool.config.schema import Config
from dittool.console import Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.encoders import known
from dittool.encoders.cards import FeatureWidths
from dittool.errors import UsageError
from dittool.families.flow import build, require_features
from dittool.families.flow_evaluation import FlowEvaluation

_OPTIONS = {"text": "--text-dim", "image": "--image-dim", "latent_channels": "--latent-channels"}
_ENCODER_OF = {"text": "text", "image": "image", "latent_channels": "vae"}


@dataclass(frozen=True)
class Start:
    """The carried-over weights, the widths of the features that they read, and the evaluation loss of both starts."""

    result: WarmStart
    widths: FeatureWidths
    loss: float | None  # None: no data were given
    fresh_loss: float | None


def carried_over(
    path: Path,
    weights: Mapping[str, Tensor],
    before: Config | None,
    config: Config,
    data: Path | None,
    given: Mapping[str, int | None],
    talk: Talk,
) -> Start:
    """The weights of `path` in the architecture of `config`.

    Args:
        before: the old model's configuration; None: the file does not hold it.
        data: the shards that the new model will train on, if they are there.
        given: widths of features that were asked for, by their names in `FeatureWidths`.

    Raises `UsageError` when a width is not known, `BadDataError` when nothing can be carried over or the data do not
    belong to `config`.
    """
    shards = None if data is None else ShardSet.open(data)
    if shards is not None:
        require_features(config, shards)
    old_patch = before.model.patch_size if before else config.model.patch_size
    old_widths = old_feature_widths(path, weights, old_patch)
    was = Meaning.of(before, old_widths)
    if before is None:
        talk.warn(
            f"{path}: holds no configuration; its heads ({config.model.heads}) and patch size"
            f" ({config.model.patch_size}) are taken to be the new model's"
        )
    widths = _new_widths(config, shards, given, was, old_widths, path)
    now = Meaning.of(config, widths.to_json())
    for kind, features in now.features.items():
        if why := features.differs(was.features[kind]):
            talk.warn(f"other {kind} features, whose layers start fresh: {why}")
    torch.manual_seed(config.train.seed)
    model = build(config, widths)
    result = warmstart(weights, model.state_dict(), was, now)
    if shards is None:
        return Start(result, widths, None, None)
    trained = shards.split(TRAIN)
    norm = Provenance.of(shards, trained, config).norm
    evaluation = FlowEvaluation(shards, shards.split(HOLDOUT) or trained, norm, config)
    fresh_loss = evaluation.loss(model.eval(), torch.device("cpu"))
    model.load_state_dict(result.weights)
    return Start(result, widths, evaluation.loss(model, torch.device("cpu")), fresh_loss)


def _new_widths(
    config: Config,
    shards: ShardSet | None,
    given: Mapping[str, int | None],
    was: Meaning,
    old_widths: Mapping[str, int],
    path: Path,
) -> FeatureWidths:
    """Widths of the features that the new model reads: as asked for, of its data, of its encoders, or the old model's
    when the encoders are the same. Raises `UsageError` when data and request differ or a width is unknown.
    """
    names = config.encoders
    tables = {
        "text": known.TEXT_WIDTHS.get(names.text),
        "image": known.IMAGE_WIDTHS.get(names.image),
        "latent_channels": known.LATENT_CHANNELS.get(names.vae),
    }
    same = Meaning.of(config, {}).features
    found: dict[str, int] = {}
    for name, option in _OPTIONS.items():
        kind, asked = _ENCODER_OF[name], given[name]
        of_data = None if shards is None else shards.widths.to_json()[name]
        if asked and of_data and asked != of_data:
            raise UsageError(f"{option} {asked}: the data in --data have {of_data}", f"leave {option} out")
        of_old = old_widths.get(name) if not same[kind].differs(was.features[kind]) else None
        if width := asked or of_data or tables[name] or of_old:
            found[name] = width
    if unknown := [option for name, option in _OPTIONS.items() if name not in found]:
        raise UsageError(
            f"{path}: does not say the feature widths that the new model needs, nor do its encoders' names",
            f"name the shards to train on with --data, or give them: {' N '.join(unknown)} N",
        )
    return FeatureWidths(found["text"], found["image"], found["latent_channels"])
