"""What a folder of diffusers says of a model beside its weights: `dit export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass

from dittool.sampling.drawing import DrawingFacts
from dittool.sampling.one_step_drawing import OneStepFacts


@dataclass(frozen=True)
class DiffusersParts:
    """Plain values, as JSON holds them."""

    kind: str  # the sources are export/loaded/transformer_KIND.py and pipeline_KIND.py
    prefix: str  # of the names of its tensors in there
    architecture: Mapping[str, object]  # the fields of the network's configuration
    facts: Mapping[str, object]  # what its pipeline has to know
    sample: Mapping[str, object] | None = None  # how its pipeline draws, where that can be chosen
    shift: float | None = None  # of its scheduler, where it has one


def parts(
    kind: str,
    prefix: str,
    architecture: object,
    facts: DrawingFacts | OneStepFacts,
    sample: Mapping[str, object] | None = None,
) -> DiffusersParts:
    """Of a network whose configuration is the dataclass `architecture`. A shift that is a number becomes the
    scheduler's.
    """
    assert is_dataclass(architecture) and not isinstance(architecture, type)
    shift = None if sample is None else sample["shift"] if isinstance(sample["shift"], float) else 1.0
    rest = sample and {key: value for key, value in sample.items() if key != "shift" or isinstance(value, str)}
    return DiffusersParts(kind, prefix, asdict(architecture), asdict(facts), rest, shift)
