"""What stands in an exported pipeline for what there is more of in `dit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from dittool.errors import UsageError

# the transformers, whose classes are in transformer/
DiT = nn.Module
DriftDiT = nn.Module


@dataclass(frozen=True)
class SampleSettings:
    """How to draw. `dit sample --help` says what each is."""

    solver: str  # "euler", "heun" or "ab2"
    steps: int
    cfg_text: float  # guidance scales: of the prompt
    cfg_dino: float  # of the reference
    guidance: str  # how the two combine: "additive", "nested" or "joint"
    guidance_interval: tuple[float, float]  # times t with guidance; 1 is noise, 0 the image
    guidance_parallel: float
    guidance_norm: float | None
    guidance_momentum: float
    cfg_weak: float
    weak_routed: float
    shift: float | str  # of the time grid

    def changed(self, changes: Mapping[str, Any]) -> SampleSettings:
        """These with other values for some fields. Raises `UsageError` for what is none."""
        known = [field.name for field in fields(self)]
        if strangers := [name for name in changes if name not in known]:
            raise UsageError(f"{', '.join(strangers)}: no setting of this pipeline", f"there are {', '.join(known)}")
        return SampleSettings(**{**asdict(self), **changes})
