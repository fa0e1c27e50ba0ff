"""How good a run has become, measured in one way for all rows of a plan, whatever they train with: sample by sample
where the family can (`Family.losses`), else by the first figure that it evaluates by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dittool.config.architectures import AnyConfig
from dittool.errors import BadDataError
from dittool.families.family import family_of
from dittool.storage import write_atomic


@dataclass(frozen=True)
class Measured:
    """Losses of a run; lower is better."""

    ids: list[str]  # of the samples; one "" where a family has figures of all together alone
    columns: list[str]  # `both 0.30`: mode and timestep; or the name of the figure
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
    if (found := family_of(config).losses(checkpoint, data, samples)) is not None:
        ids, columns, losses = found
        measured = Measured(ids, columns, losses.double().numpy())
    else:
        name, value = next(iter(figures.items()), ("", np.nan))
        measured = Measured([""], [name], np.array([[value]], dtype=np.float64))
    if not np.isfinite(measured.losses).all():
        raise BadDataError(f"{checkpoint}: its losses are not finite", "lower the rate of this row")
    return measured
