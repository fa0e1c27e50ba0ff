"""How to sample: `[sample]` of a configuration and the shift of its `[flow]`, as one value.

A field's default, its range and its words stand in `config.schema.Sample`; the options of `dit sample`, the keywords of
`Pipeline` and the settings inside a picture all follow it.
"""

from __future__ import annotations

from collections.abc import Mapping

from dittool.config.schema import Config, PositiveFloat, Sample


class SampleSettings(Sample):
    """What the solver and the guidance are told. Raises pydantic's ValidationError for a value that cannot be."""

    shift: PositiveFloat  # of the time grid: `flow.shift`

    @classmethod
    def of(cls, config: Config) -> SampleSettings:
        """A run's own."""
        return cls(**config.sample.model_dump(), shift=config.flow.shift)

    def changed(self, changes: Mapping[str, object]) -> SampleSettings:
        """These with other values for some fields."""
        return SampleSettings.model_validate({**self.model_dump(), **changes})

    def to_json(self) -> dict[str, object]:
        """In the order that pictures have always been written with: the interval, which came later, is last."""
        return {**self.model_dump(exclude={"guidance_interval"}), "guidance_interval": self.guidance_interval}
