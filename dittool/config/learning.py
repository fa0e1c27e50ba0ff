"""What training does and drawing does not: the sections `[repa]` and `[tread]`."""

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


class Tread(Section):
    """Routing: a share of the tokens skips the middle blocks in training: docs/training.md."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the tokens that skip; 0: no routing, 0.5 in its paper
    # the blocks that they skip, counted from 1; by default all but about the first 14th and the last seventh
    first: Positive | None = None
    last: Positive | None = None

    @model_validator(mode="after")
    def _acts(self) -> Tread:
        given = [key for key in ("first", "last") if getattr(self, key) is not None]
        require((self.share > 0 or not given, f"{', '.join(given)} has no effect with share = 0"))
        return self

    def blocks(self, depth: int) -> tuple[int, int]:
        """First and last of the blocks that are skipped, of a network of this depth: 3 to 24 of 28, as in the paper."""
        first = min(self.first or 1 + max(round(depth / 14), 1), depth)
        last = min(self.last or depth - max(round(depth / 7), 1), depth)
        return first, max(first, last)
