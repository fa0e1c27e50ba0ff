"""What `dit validate` does and what a verdict needs: the section `[validate]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dittool.config.values import Counted, Positive, PositiveFloat, Section, Share, require


class Thresholds(Section):
    """What a GO needs. A criterion without a threshold is shown and does not decide."""

    lpips: PositiveFloat | None = None  # reconstruction, at most; judged only where LPIPS can run
    gap_closed: Share | None = None  # reconstruction between ceiling (0) and codec floor (1), at least
    swap_closer: Share | None = None  # share of pairs nearer to the swapped-in reference, at least
    edit_shown: Share | None = None  # share of edited captions whose edit a checker sees, at least
    edit_shown_least: Share | None = None  # the same, of the attribute whose edits show least often, at least
    edit_shown_shape: Share | None = None  # the same, of edits of the shape, at least
    known_captions: Share | None = None  # share of trained captions, drawn alone, whose pictures show all, at least
    new_captions: Share | None = None  # the same of captions that no training picture had
    sensitivity: PositiveFloat | None = None  # change under an edit over change under another seed, at least
    swap_p: Share | None = None  # chance of the swap margins without any influence of the reference, at most
    loss_ratio: PositiveFloat | None = None  # loss on held-out over training samples, at most
    # least and most, median of the run's log
    grad_norm: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        low, high = self.grad_norm or (0, 1)
        require((low < high, f"grad_norm [{low:g}, {high:g}] is empty: the least comes first"))
        return self


class Validate(Section):
    every: Counted = 0  # steps between judgements during training, on the EMA weights; 0: none
    limit: Counted = 100  # images, pairs and edits; 0: all that there are
    set_images: Positive = 500  # images drawn for the set metrics, which run when they are named: --tests …,set_metrics
    # words to exchange in captions
    edits: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(default=[])
    lpips_backbone: str | None = None  # AlexNet weights for LPIPS; else DIT_LPIPS_BACKBONE, else torchvision's cache
    thresholds: Thresholds = Thresholds()
