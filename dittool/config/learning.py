"""What training does beside the flow's loss, and drawing does not: the section `[repa]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dittool.config.values import Positive, Section, Share, require


class Repa(Section):
    """Alignment of a block's tokens with the reference's stored patches, where the reference is dropped:
    docs/training.md.
    """

    weight: Annotated[float, Field(ge=0)] = 0.0  # of 1 − cosine beside the loss; 0: no alignment, 0.5 in its paper
    block: Positive | None = None  # whose tokens, counted from 1; by default two sevenths down, as 8 of 28 there
    until: Annotated[Share, Field(gt=0)] | None = None  # share of train.steps after which it ends; by default never

    @model_validator(mode="after")
    def _acts(self) -> Repa:
        given = [key for key in ("block", "until") if getattr(self, key) is not None]
        require((self.weight > 0 or not given, f"{', '.join(given)} has no effect with weight = 0"))
        return self
