"""Captions that the model was trained on beside captions that it never saw: do the pictures show what they say?

A model can learn each caption as one sign, and draw none of a combination that it has not met. Where a checker knows
captions that no data set holds, both kinds are drawn, from the caption alone and from caption and reference, from the
same number of scenes each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats

from dittool.console import SILENT, Talk
from dittool.data.source.images import fit_to_bucket
from dittool.errors import BadDataError
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.seeding import derive_seed
from dittool.validate.pictures import thumb
from dittool.validate.text_edit import AskedScene, CaptionChecker

_BATCH = 16
ALONE, WITH_REFERENCE = "text_only", "both"


@dataclass(frozen=True)
class Share:
    """Of so many pictures, how many are right."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95%."""
        found = stats.binomtest(self.right, self.of).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def to_json(self) -> dict[str, object]:
        return {"share": self.value, "interval": list(self.interval), "right": self.right, "of": self.of}


# "known" or "new" → `ALONE` or `WITH_REFERENCE` → attribute, or "all" of them → share
Shares = dict[str, dict[str, dict[str, Share]]]


def shares_to_json(shares: Shares) -> dict[str, object]:
    """With the interval of each share."""
    return {
        kind: {
            conditions: {name: share.to_json() for name, share in columns.items()}
            for conditions, columns in part.items()
        }
        for kind, part in shares.items()
    }


def shares_from_json(tree: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]], path: Path) -> Shares:
    """Reads back what `shares_to_json` made. Raises `BadDataError` for anything else."""
    try:
        return {
            kind: {
                conditions: {name: Share(int(one["right"]), int(one["of"])) for name, one in columns.items()}
                for conditions, columns in part.items()
            }
            for kind, part in tree.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadDataError(
            f"{path}: no shares of drawn scenes ({error!r})", "remove it: they are drawn again"
        ) from error


def pooled(several: Sequence[Shares]) -> Shares:
    """Of pictures of several runs together."""
    return {
        kind: {
            conditions: {
                name: Share(sum(one[kind][conditions][name].right for one in several), share.of * len(several))
                for name, share in columns.items()
            }
            for conditions, columns in part.items()
        }
        for kind, part in several[0].items()
    }


@dataclass(frozen=True)
class DrawnScene:
    """A scene that was asked for, and what the checker saw."""

    scene: AskedScene
    conditions: str  # ALONE or WITH_REFERENCE
    shown: Mapping[str, bool]  # by attribute
    picture: Image.Image  # small

    @property
    def right(self) -> bool:
        return all(self.shown.values())


@dataclass(frozen=True)
class Captions:
    """All that were drawn."""

    drawn: Sequence[DrawnScene]
    attributes: tuple[str, ...]

    def of(self, known: bool, conditions: str) -> list[DrawnScene]:
        return [one for one in self.drawn if one.scene.known == known and one.conditions == conditions]

    def share(self, known: bool, conditions: str, attribute: str = "") -> Share | None:
        """Of the pictures that show an attribute; without one, all that their captions say. None: nothing drawn."""
        chosen = self.of(known, conditions)
        right = sum(one.shown[attribute] if attribute else one.right for one in chosen)
        return Share(right, len(chosen)) if chosen else None

    def shares(self) -> Shares:
        """All of them."""

        def columns(known: bool, conditions: str) -> dict[str, Share]:
            found = {name or "all": self.share(known, conditions, name) for name in (*self.attributes, "")}
            return {name: share for name, share in found.items() if share}

        return {
            kind: {conditions: columns(known, conditions) for conditions in (ALONE, WITH_REFERENCE)}
            for kind, known in (("known", True), ("new", False))
        }

    def to_json(self) -> dict[str, object]:
        return shares_to_json(self.shares())


def draw_captions(
    pipeline: Pipeline, checker: CaptionChecker, scenes: Sequence[AskedScene], talk: Talk = SILENT
) -> Captions:
    """Draws each scene from its caption alone, and from its caption and itself as the reference, from one noise.

    Raises `BadDataError` for a model that draws NaN.
    """
    drawn: list[DrawnScene] = []
    buckets = [pipeline.bucket_of(scene.pixels) for scene in scenes]
    with talk.progress("captions", 2 * len(scenes), "picture") as task:
        for bucket in sorted(set(buckets), key=lambda bucket: bucket.name):
            members = [scene for scene, its in zip(scenes, buckets, strict=True) if its == bucket]
            for start in range(0, len(members), _BATCH):
                batch = members[start : start + _BATCH]
                for conditions in (ALONE, WITH_REFERENCE):
                    pixels = _draw(pipeline, bucket, batch, conditions)
                    drawn += [
                        DrawnScene(scene, conditions, checker.shows(picture, scene.caption), thumb(picture))
                        for scene, picture in zip(batch, pixels, strict=True)
                    ]
                    task.advance(len(batch))
    return Captions(drawn, checker.attributes)


def _draw(pipeline: Pipeline, bucket: Bucket, scenes: Sequence[AskedScene], conditions: str) -> np.ndarray:
    """Pixels (B, H, W, 3) uint8."""
    text, mask = pipeline.encode_prompts([scene.caption for scene in scenes])
    cls = patches = None
    if conditions == WITH_REFERENCE:
        fitted = np.stack([fit_to_bucket(scene.pixels, bucket)[0] for scene in scenes])
        references = pipeline.reference_from_pixels(fitted)
        cls = torch.stack([reference.cls for reference in references])
        if pipeline.config.model.patches:
            patches = torch.stack([reference.patches for reference in references])
    given = Conditions(text, mask, cls, patches, pipeline.reference_grid(bucket))
    noise = pipeline.noise(bucket, [derive_seed("validate", "caption", scene.name) for scene in scenes])
    return pipeline.decode_drawn(pipeline.latents(given, noise))
