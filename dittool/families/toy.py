"""The drifting objective on points of the plane: `model.arch = "drift-toy"`. Its data are its configuration: real
points are drawn anew for each group.

    train/loop.py → this file → objective/drift.py → models/toy_generator.py
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dittool.audit.specimens.generator import ToyNetwork
from dittool.config.drift_schema import ToyConfig
from dittool.config.load import config_to_dict
from dittool.data.provenance import Provenance
from dittool.encoders.cards import FeatureWidths
from dittool.families.drift_groups import (
    DriftLoss,
    Groups,
    drift_loss,
    figures,
    group_generator,
    group_numbers,
    inputs,
    require_equal_shares,
)
from dittool.families.family import Conclusion, Evaluated, Family, Forward
from dittool.models.build import build_toy
from dittool.models.drift_dit import ClassConditions
from dittool.models.toy_generator import ToyGenerator
from dittool.objective.toy import ToyFigures, faults, floor, judge, real_points
from dittool.seeding import derive_seed
from dittool.storage import write_atomic

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks

_POINTS = 2000  # that are judged


@dataclass(frozen=True)
class ToyData:
    """A run's configuration, which says all of its data."""

    config: ToyConfig
    ranks: Ranks
    folder: None = None

    @cached_property
    def provenance(self) -> Provenance:
        return Provenance.of_toy(config_to_dict(self.config)["toy"])


def open_data(config: ToyConfig, _folder: Path, ranks: Ranks) -> ToyData:
    require_equal_shares(config, ranks)
    return ToyData(config, ranks)


def batches(data: ToyData, first: int, end: int) -> Iterator[Groups]:
    for step in range(first, end):
        for micro in range(data.config.train.accumulate):
            yield _groups(data.config, group_numbers(data.config, step, micro, data.ranks))


def _groups(config: ToyConfig, numbers: range) -> Groups:
    drift, made = config.drift, []
    for number in numbers:
        generator = group_generator(config.train.seed, number)
        noise = torch.randn(drift.generated, config.model.noise, generator=generator)
        made.append((noise, real_points(config.toy.distribution, drift.positives, generator)))
    noise, positives = (torch.stack(parts) for parts in zip(*made, strict=True))
    labels = torch.zeros(len(made), dtype=torch.int64)
    return Groups(
        ids=[f"group {number}" for number in numbers],
        weight=1 / config.train.accumulate,
        labels=labels,
        alpha=torch.ones(len(made)),
        noise=noise,
        style=labels[:, None, None].expand(-1, drift.generated, 0),
        positives=positives,
        unconditional=positives[:, :0],
    )


def loss(data: ToyData, model: Forward, groups: Groups) -> DriftLoss:
    """Points are their own features."""
    return drift_loss(data.config, model, groups, lambda points: {"raw": points[:, None]})


def points(data: ToyData, model: ToyGenerator, device: torch.device) -> Tensor:
    """(2000, 2), always from the same noise."""
    generator = torch.Generator().manual_seed(derive_seed("toy evaluation"))
    noise = torch.randn(_POINTS, data.config.model.noise, generator=generator)
    none = torch.zeros(_POINTS, dtype=torch.int64, device=device)
    with torch.inference_mode():
        return model(noise.to(device), torch.ones(_POINTS, device=device), ClassConditions(none, none[:, None])).cpu()


def evaluate(data: ToyData, model: ToyGenerator, device: torch.device) -> Evaluated:
    """Energy distance, mode share, spread and stray points."""
    found = judge(data.config.toy.distribution, points(data, model, device))
    return Evaluated({f"eval_{name}": value for name, value in vars(found).items()})


def conclude(data: ToyData, found: Mapping[str, float]) -> Conclusion:
    """Whether the points of an evaluation pass for real ones."""
    if not found:
        return Conclusion({"faults": None})
    name = data.config.toy.distribution
    wrong = faults(name, ToyFigures(**{key.removeprefix("eval_"): value for key, value in found.items()}), floor(name))
    return Conclusion({"faults": wrong}, f"does not pass: {'; '.join(wrong)}" if wrong else "passes for real points")


def draw(data: ToyData, model: ToyGenerator, step: int, path: Path) -> None:
    """Real points beside drawn ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = points(data, model, data.ranks.device)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    real = real_points(data.config.toy.distribution, len(drawn), torch.Generator().manual_seed(0))
    for axis, title, cloud in zip(axes, ("real", f"one evaluation, step {step}"), (real, drawn), strict=True):
        axis.scatter(*cloud.T.numpy(), s=2, alpha=0.5, linewidths=0)
        axis.set(title=title, aspect="equal", xlim=(-5, 5), ylim=(-4, 4))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def state(_data: ToyData) -> dict[str, object]:
    """The keys of every checkpoint of the drifting objective."""
    return {"queues": {}, "classes": []}


FAMILY = Family(
    build=lambda config, _widths: build_toy(config),
    known_widths=lambda _config: FeatureWidths(),
    open_data=open_data,
    batches=batches,
    loss=loss,
    inputs=inputs,
    fewest=lambda config: config.drift.generated,
    figures=figures,
    state=state,
    evaluate=evaluate,
    draw=draw,
    conclude=conclude,
    specimen=ToyNetwork,
)
