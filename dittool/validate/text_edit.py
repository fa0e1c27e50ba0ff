"""Third test: one word of a caption exchanged, nothing else. Does the picture change, and into what the word says?

Captions of the judged samples that hold a word of a `validate.edits` pair are drawn from text alone, three times: as
they are, with the word exchanged from the same noise, and as they are from other noise.

    sensitivity = mean distance (original, edited) / mean distance (original, other noise)

It says that the text is looked at, not that it is understood. Where captions follow the demo's wording, a checker that
reads pixels says the latter: the share of edited captions whose edited attributes show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dittool.console import SILENT, Talk
from dittool.data.shards.read import ShardSet
from dittool.demo.checker import ATTRIBUTES, parse_caption, shows
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.seeding import derive_seed
from dittool.storage import write_atomic
from dittool.validate.metrics import Metric
from dittool.validate.pictures import strip_png, thumb
from dittool.validate.samples import Subject, bucket_batches, draw, noise_of


@dataclass(frozen=True)
class Edit:
    """A caption and what it became."""

    subject: Subject
    caption: str
    edited: str
    words: tuple[str, str]  # the pair that was exchanged
    number: int  # of the pair in `validate.edits`, from 1


@dataclass(frozen=True)
class EditedImage:
    """One edit, drawn."""

    edit: Edit
    change: float  # distance original – edited
    change_of_seed: float  # distance original – other noise
    changed: tuple[str, ...]  # attributes that the edit changed; none: the checker does not read these captions
    shown: bool | None  # those attributes show in the edited picture; None: no checker
    original_shown: bool | None  # what they were shows in the original picture
    file: str  # original, edited, other noise
    pictures: dict[str, Image.Image]  # small: original, edited, other


@dataclass(frozen=True)
class TextEdits:
    """All edits of the test."""

    images: list[EditedImage]
    distance: Metric

    @property
    def sensitivity(self) -> float | None:
        """None without edits, or for a model that draws one and the same picture from any noise."""
        of_seed = sum(image.change_of_seed for image in self.images)
        return sum(image.change for image in self.images) / of_seed if of_seed > 0 else None

    @property
    def edit_shown(self) -> float | None:
        return _share([image.shown for image in self.images])

    def to_json(self) -> dict[str, Any]:
        checked = [image for image in self.images if image.shown is not None]
        return {
            "pairs": len(self.images),
            "sensitivity": self.sensitivity,
            "distance": self.distance.name,
            "mean_change": _mean([image.change for image in self.images]),
            "mean_change_of_seed": _mean([image.change_of_seed for image in self.images]),
            "checked": len(checked),
            "edit_shown": self.edit_shown,
            "unedited_shown": _share([image.original_shown for image in self.images]),
            "edit_shown_by_attribute": {
                name: _share([image.shown for image in checked if name in image.changed])
                for name in ATTRIBUTES
                if any(name in image.changed for image in checked)
            },
            "per_pair": [
                {
                    "id": image.edit.subject.ref.id,
                    "caption": image.edit.caption,
                    "edited": image.edit.edited,
                    "words": list(image.edit.words),
                    "change": image.change,
                    "change_of_seed": image.change_of_seed,
                    "shown": image.shown,
                    "unedited_shown": image.original_shown,
                    "file": image.file,
                }
                for image in self.images
            ],
        }


def find_edits(shards: ShardSet, subjects: Sequence[Subject], pairs: Sequence[Sequence[str]], limit: int) -> list[Edit]:
    """At most `limit` edits (0: all) of the subjects' captions, spread evenly over captions and pairs; only where a
    word of the pair occurs.
    """
    found = []
    for subject in subjects:
        caption = shards.read_record(subject.ref).caption
        edits = [(number, pair, exchange(caption, pair)) for number, pair in enumerate(pairs, start=1)]
        found += [
            Edit(subject, caption, edited, (pair[0], pair[1]), number)
            for number, pair, edited in edits
            if edited is not None
        ]
    return sorted(found, key=lambda edit: derive_seed("edit", edit.subject.ref.id, *edit.words))[: limit or None]


def exchange(caption: str, pair: Sequence[str]) -> str | None:
    """The caption with each whole word of the pair replaced by the other, its case kept; None when neither occurs."""
    other = {pair[0].lower(): pair[1], pair[1].lower(): pair[0]}
    anywhere = re.compile(
        rf"(?<!\w)({'|'.join(re.escape(word) for word in sorted(other, key=len, reverse=True))})(?!\w)", re.IGNORECASE
    )
    edited, count = anywhere.subn(lambda match: _in_case_of(match[0], other[match[0].lower()]), caption)
    return edited if count and edited != caption else None


def _in_case_of(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def edit_captions(
    pipeline: Pipeline, edits: Sequence[Edit], distance: Metric, folder: Path, talk: Talk = SILENT
) -> TextEdits:
    """Draws every edit three times. Writes one strip an edit into `folder`. Raises `BadDataError` for a model that
    draws NaN.
    """
    images = []
    with talk.progress("text", len(edits), "edit") as task:
        for bucket, batch in bucket_batches(edits, lambda edit: edit.subject.ref):
            images += _edit_batch(pipeline, bucket, batch, distance, folder)
            task.advance(len(batch))
    return TextEdits(images, distance)


def _edit_batch(
    pipeline: Pipeline, bucket: Bucket, edits: list[Edit], distance: Metric, folder: Path
) -> list[EditedImage]:
    ids = [edit.subject.ref.id for edit in edits]
    same, other = noise_of(pipeline, bucket, ids), noise_of(pipeline, bucket, ids, "other noise")
    prompts = [edit.caption for edit in edits] + [edit.edited for edit in edits] + [edit.caption for edit in edits]
    text, mask = pipeline.encode_prompts(prompts)
    grid = pipeline.reference_grid(bucket)
    pixels = draw(pipeline, Conditions(text, mask, None, None, grid), torch.cat([same, same, other]))
    original, edited, reseeded = np.split(pixels, 3)
    changes, changes_of_seed = distance.measure(edited, original), distance.measure(reseeded, original)

    images = []
    for i, edit in enumerate(edits):
        changed = _changed_attributes(edit)
        shown = _all_show(edited[i], edit.edited, changed)
        original_shown = _all_show(original[i], edit.caption, changed)
        file = f"{edit.subject.ref.id}_edit{edit.number}.png"
        write_atomic(folder / file, strip_png([original[i], edited[i], reseeded[i]]))
        pictures = {"original": thumb(original[i]), "edited": thumb(edited[i]), "other": thumb(reseeded[i])}
        images.append(EditedImage(edit, changes[i], changes_of_seed[i], changed, shown, original_shown, file, pictures))
    return images


def _changed_attributes(edit: Edit) -> tuple[str, ...]:
    before, after = parse_caption(edit.caption), parse_caption(edit.edited)
    if before is None or after is None:
        return ()
    return tuple(name for name in ATTRIBUTES if getattr(before, name) != getattr(after, name))


def _all_show(pixels: np.ndarray, caption: str, attributes: Sequence[str]) -> bool | None:
    if not attributes:
        return None
    found = shows(pixels, caption)
    return all(found[name] for name in attributes)


def _share(answers: Sequence[bool | None]) -> float | None:
    known = [answer for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
