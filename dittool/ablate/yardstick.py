"""How good a run has become, measured for all rows of a plan in one way, whatever they train with.

A rectified flow: loss(mode, t) of its averaged weights on held-out samples, at the quantiles of one density of
timesteps (logit-normal, no shift) and with the noise that belongs to each sample's id. The run's own
`flow.timestep_sampling`, `flow.shift` and shares of dropout have no say. Other families: what they evaluate by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dittool.config.architectures import AnyConfig
from dittool.config.schema import Config
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError
from dittool.objective.flow import MODES, timesteps
from dittool.sampling.pipeline import Pipeline
from dittool.storage import write_atomic
from dittool.validate.mode_losses import QUANTILES, sample_losses
from dittool.validate.samples import choose


@dataclass(frozen=True)
class Measured:
    """Losses of a run; lower is better."""

    ids: list[str]  # of the samples; one "" where a family has figures of the whole alone
    columns: list[str]  # `both 0.3`: mode and timestep; or the names of figures
    losses: np.ndarray  # (samples, columns)

    def save(self, path: Path) -> None:
        write_atomic(path, lambda file: np.savez(file, ids=self.ids, columns=self.columns, losses=self.losses))

    @staticmethod
    def read(path: Path) -> Measured:
        """Raises `BadDataError` for a file that `save` did not write."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return Measured(file["ids"].tolist(), file["columns"].tolist(), file["losses"])
        except (KeyError, ValueError, OSError) as error:
            raise BadDataError(f"{path}: no losses of a run ({error})", "remove it: it is measured again") from error


def measure(config: AnyConfig, checkpoint: Path, figures: Mapping[str, float], data: Path, samples: int) -> Measured:
    """Measures the end of a run on at most so many samples.

    Args:
        figures: of its last evaluation, the one that the family goes by first.

    Raises `BadDataError` for losses that are not finite.
    """
    if not isinstance(config, Config):
        first = dict(list(figures.items())[:1])
        return _finite(Measured([""], list(first), np.array([list(first.values())], dtype=np.float64)), checkpoint)
    shards = ShardSet.open(data)
    refs = [subject.ref for subject in choose(shards, samples)[1]]
    times = timesteps(torch.tensor(QUANTILES), "logit_normal", 1.0)
    losses = sample_losses(Pipeline.load(checkpoint), shards, refs, times)
    columns = [f"{mode} {float(t):.2f}" for mode in MODES for t in times]
    table = losses.flatten(start_dim=1).double().numpy()
    return _finite(Measured([ref.id for ref in refs], columns, table), checkpoint)


def _finite(measured: Measured, checkpoint: Path) -> Measured:
    if not measured.losses.size or not np.isfinite(measured.losses).all():
        raise BadDataError(f"{checkpoint}: its losses are not finite", "lower the rate of this row")
    return measured
