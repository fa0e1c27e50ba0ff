"""Third test: one word of a caption exchanged, nothing else. Does the picture change, and into what the word says?

Captions of the judged samples that hold a word of a `validate.edits` pair are drawn from text alone, three times: as
they are, with the word exchanged from the same noise, and as they are from other noise.

    sensitivity = mean distance (original, edited) / mean distance (original, other noise)

It says that the text is looked at, not that it is understood. A checker that reads pixels, handed in by the caller,
says the latter where captions follow a wording that it knows: the share of edited captions whose edits show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.sampling.pipeline import Pipeline
from dittool.seeding import derive_seed
from dittool.storage import output_folder, write_atomic
from dittool.validate.metrics import PIXEL_RMS, Metric
from dittool.validate.pictures import strip_png, thumb
from dittool.validate.samples import Subject, Trial, bucket_batches, draw, noise_of


@dataclass(frozen=True)
class AskedScene:
    """A picture that a model is to draw, made for the purpose: no data set holds it."""

    name: str  # its noise is a function of it
    caption: str
    pixels: np.ndarray  # (H, W, 3) uint8: as the reference, and for the size
    known: bool  # whether training has seen the caption, with other pictures


@dataclass(frozen=True)
class CaptionChecker:
    """What reads drawn pictures back, where captions follow a wording that it knows."""

    attributes: tuple[str, ...]  # that such a caption names, in the report's order
    parse: Callable[[str], Mapping[str, str] | None]  # a caption's attributes; None: of another wording
    shows: Callable[[np.ndarray, str], Mapping[str, bool]]  # (H, W, 3) uint8, caption → whether each attribute shows
    scenes: Callable[[int], Sequence[AskedScene]] | None = None  # so many of captions known and as many of new ones

    def changed(self, edit: Edit) -> tuple[str, ...]:
        """The attributes in which the captions differ; none where it cannot read both."""
        before, after = self.parse(edit.caption), self.parse(edit.edited)
        if before is None or after is None:
            return ()
        return tuple(name for name in self.attributes if before[name] != after[name])

    def shows_all(self, attributes: Sequence[str], pixels: np.ndarray, caption: str) -> bool:
        """Whether a picture shows what its caption says of all these attributes."""
        found = self.shows(pixels, caption)
        return all(found[name] for name in attributes)


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
    attributes: tuple[str, ...] = ()  # that the checker reads

    @property
    def sensitivity(self) -> float | None:
        """None without edits, or for a model that draws one and the same picture from any noise."""
        of_seed = sum(image.change_of_seed for image in self.images)
        return sum(image.change for image in self.images) / of_seed if of_seed > 0 else None

    @property
    def edit_shown(self) -> float | None:
        return _share([image.shown for image in self.images])

    @property
    def shown_by_attribute(self) -> dict[str, float]:
        """The same of the edits that change one attribute, by its name."""
        found = {name: _share([one.shown for one in self.images if name in one.changed]) for name in self.attributes}
        return {name: share for name, share in found.items() if share is not None}

    def to_json(self) -> dict[str, object]:
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
            "edit_shown_by_attribute": self.shown_by_attribute,
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


def find_edits(trial: Trial, pairs: Sequence[Sequence[str]]) -> list[Edit]:
    """At most `trial.limit` edits of the subjects' captions, spread evenly over captions and pairs; only where a
    word of the pair occurs.
    """
    found = []
    for subject in trial.subjects:
        caption = trial.shards.read_record(subject.ref).caption
        edits = [(number, pair, exchange(caption, pair)) for number, pair in enumerate(pairs, start=1)]
        found += [
            Edit(subject, caption, edited, (pair[0], pair[1]), number)
            for number, pair, edited in edits
            if edited is not None
        ]
    return sorted(found, key=lambda edit: derive_seed("edit", edit.subject.ref.id, *edit.words))[: trial.limit or None]


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


def edit_captions(trial: Trial, edits: Sequence[Edit], checker: CaptionChecker | None) -> TextEdits:
    """Draws every edit three times. Writes one strip an edit into `text_manip/`. Raises `BadDataError` for a model that
    draws NaN.
    """
    distance, folder = trial.perceptual or PIXEL_RMS, output_folder(trial.folder / "text_manip")
    images = []
    with trial.talk.progress("text", len(edits), "edit") as task:
        for bucket, batch in bucket_batches(edits, lambda edit: edit.subject.ref):
            images += _edit_batch(trial.pipeline, bucket, batch, distance, checker, folder)
            task.advance(len(batch))
    return TextEdits(images, distance, checker.attributes if checker else ())


def _edit_batch(
    pipeline: Pipeline,
    bucket: Bucket,
    edits: list[Edit],
    distance: Metric,
    checker: CaptionChecker | None,
    folder: Path,
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
        changed = checker.changed(edit) if checker else ()
        shown = original_shown = None
        if checker and changed:
            shown = checker.shows_all(changed, edited[i], edit.edited)
            original_shown = checker.shows_all(changed, original[i], edit.caption)
        file = f"{edit.subject.ref.id}_edit{edit.number}.png"
        write_atomic(folder / file, strip_png([original[i], edited[i], reseeded[i]]))
        pictures = {"original": thumb(original[i]), "edited": thumb(edited[i]), "other": thumb(reseeded[i])}
        images.append(EditedImage(edit, changes[i], changes_of_seed[i], changed, shown, original_shown, file, pictures))
    return images


def _share(answers: Sequence[bool | None]) -> float | None:
    known = [answer for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
