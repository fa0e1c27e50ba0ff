"""First test: an image drawn again from its own caption and reference. How near does it come?

Held-out images and images of the training set answer different questions, so the split stands in the results and in
every file's name.

    floor     the codec's round trip of the stored latent: no model of these latents comes nearer
    ceiling   the same noise with the caption and reference of another image of the bucket: what not looking at the
              conditions gives

Truth is the image that was embedded, when its file is still there with the same bytes; else the decoded stored latent,
and the floor is then perfect by construction.

Two checks go with it, since figures against a wrong picture look like any others. Stored latents are unscaled and
decoded as they are, while what the model draws goes back through the normalisation first: the stored latent, fed in as
if the model had drawn it, must give the floor. And the originals, encoded again, must give the stored latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dittool.data.records import Record
from dittool.data.shards.read import Sample
from dittool.data.source.images import ImageRefused
from dittool.data.source.scan import load_pixels
from dittool.geometry import Bucket
from dittool.sampling.pipeline import Pipeline
from dittool.storage import output_folder, write_atomic
from dittool.validate.metrics import PSNR, SSIM, Metric, gap_closed, pixel_rms
from dittool.validate.pictures import difference, strip_png, thumb
from dittool.validate.samples import Subject, Trial, bucket_batches, draw, noise_of, stored_conditions

FROM_PIXELS, FROM_LATENT = "pixels", "decoded latent"


@dataclass(frozen=True)
class Distances:
    """One metric of one image, or its mean over images."""

    value: float  # result against truth
    floor: float  # codec round trip against truth
    ceiling: float | None  # drawn with another image's conditions; None: no other image in the bucket

    def gap_closed(self, metric: Metric) -> float | None:
        return (
            None if self.ceiling is None else gap_closed(self.value, self.floor, self.ceiling, metric.lower_is_better)
        )

    def to_json(self, metric: Metric) -> dict[str, float | None]:
        return {
            "value": self.value,
            "floor": self.floor,
            "ceiling": self.ceiling,
            "gap_closed": self.gap_closed(metric),
        }


@dataclass(frozen=True)
class ReconstructedImage:
    """One image of the test."""

    record: Record
    truth: str  # "pixels" or "decoded latent"
    distances: dict[str, Distances]  # by metric name
    # pixel distance between the codec round trip and the same latent on the way of the model's results
    truth_as_result: float
    # of the stored latent against the original encoded again, relative; None: the original is not there
    latent_error: float | None
    file: str  # truth, result, difference, codec round trip, drawn with other conditions
    pictures: dict[str, Image.Image]  # small: truth, result, difference


@dataclass(frozen=True)
class Reconstruction:
    """All images of the test."""

    images: list[ReconstructedImage]
    metrics: list[Metric]  # the first one decides
    split: str

    @property
    def metric(self) -> Metric:
        return self.metrics[0]

    def mean(self, metric: Metric) -> Distances:
        """Mean distances. Value and floor over all images, the ceiling over those that have one."""
        rows = [image.distances[metric.name] for image in self.images]
        ceilings = [row.ceiling for row in rows if row.ceiling is not None]
        return Distances(
            float(np.mean([row.value for row in rows])),
            float(np.mean([row.floor for row in rows])),
            float(np.mean(ceilings)) if ceilings else None,
        )

    def gap_closed(self, metric: Metric) -> float | None:
        """The share of the gap that is closed on average, over the images that have a ceiling."""
        rows = [row for image in self.images if (row := image.distances[metric.name]).ceiling is not None]
        if not rows:
            return None
        value, floor, ceiling = (
            float(np.mean([getattr(row, name) for row in rows])) for name in ("value", "floor", "ceiling")
        )
        return gap_closed(value, floor, ceiling, metric.lower_is_better)

    @property
    def checks(self) -> dict[str, float | None]:
        """Means over the images: both are near 0 unless figures and pictures of this test mean nothing."""
        errors = [image.latent_error for image in self.images if image.latent_error is not None]
        return {
            "truth_as_result": float(np.mean([image.truth_as_result for image in self.images])),
            "stored_latents": float(np.mean(errors)) if errors else None,
        }

    def to_json(self) -> dict[str, object]:
        mean = self.mean(self.metric)
        return {
            "metric": self.metric.name,
            "mean": mean.value,
            "floor_vae_roundtrip": mean.floor,
            "ceiling_shuffled": mean.ceiling,
            "gap_closed": self.gap_closed(self.metric),
            "images": len(self.images),
            "split": self.split,
            "truth": {kind: sum(image.truth == kind for image in self.images) for kind in (FROM_PIXELS, FROM_LATENT)},
            "checks": self.checks,
            "metrics": {
                metric.name: {**self.mean(metric).to_json(metric), "gap_closed": self.gap_closed(metric)}
                for metric in self.metrics
            },
            "per_image": [
                {
                    "id": image.record.id,
                    "name": image.record.name,
                    "bucket": image.record.bucket,
                    "caption": image.record.caption,
                    "truth": image.truth,
                    "file": image.file,
                    **{metric.name: image.distances[metric.name].to_json(metric) for metric in self.metrics},
                }
                for image in self.images
            ],
        }


def reconstruct(trial: Trial) -> Reconstruction:
    """Draws every subject from its own conditions and from its partner's, and measures both against the truth.

    Writes one strip a subject into `reconstruction/`. Raises `BadDataError` for shards that cannot be read and a model
    that draws NaN.
    """
    metrics = [*([trial.perceptual] if trial.perceptual else []), SSIM, PSNR]
    images, folder = [], output_folder(trial.folder / "reconstruction")
    with trial.talk.progress("reconstruction", len(trial.subjects), "image") as task:
        for bucket, batch in bucket_batches(trial.subjects, lambda subject: subject.ref):
            images += _reconstruct_batch(trial, bucket, batch, metrics, folder)
            task.advance(len(batch))
    return Reconstruction(images, metrics, trial.split)


def _reconstruct_batch(
    trial: Trial, bucket: Bucket, batch: list[Subject], metrics: list[Metric], folder: Path
) -> list[ReconstructedImage]:
    pipeline, shards = trial.pipeline, trial.shards
    noise = noise_of(pipeline, bucket, [subject.ref.id for subject in batch])
    samples = [shards.read(subject.ref, pipeline.config.model.patches) for subject in batch]
    records = [shards.read_record(subject.ref) for subject in batch]
    # (B, C, h, w), unscaled
    latents = torch.from_numpy(np.stack([sample.latent for sample in samples]).astype(np.float32))
    round_trips = pipeline.codec.decode(latents)
    truths, kinds = originals_of(shards.source, records, round_trips)
    as_results = pixel_rms(pipeline.decode(pipeline.data.norm.apply(latents)), round_trips)
    latent_errors = _relative_error(latents, pipeline.codec.encode(truths))
    results = _drawn_from(pipeline, samples, noise)

    others = results.copy()
    if partners := {i: subject.partner for i, subject in enumerate(batch) if subject.partner is not None}:
        theirs = [shards.read(partner, pipeline.config.model.patches) for partner in partners.values()]
        others[list(partners)] = _drawn_from(pipeline, theirs, noise[list(partners)])

    measured = {
        m.name: (m.measure(results, truths), m.measure(round_trips, truths), m.measure(others, truths)) for m in metrics
    }
    images = []
    for i, record in enumerate(records):
        distances = {
            name: Distances(v[i], f[i], c[i] if i in partners else None) for name, (v, f, c) in measured.items()
        }
        difference_picture = difference(results[i], truths[i])
        file = f"{trial.split}_{record.id}.png"
        write_atomic(
            folder / file,
            strip_png(
                [truths[i], results[i], difference_picture, round_trips[i], *([others[i]] if i in partners else [])]
            ),
        )
        pictures = {"truth": thumb(truths[i]), "result": thumb(results[i]), "difference": thumb(difference_picture)}
        latent_error = latent_errors[i] if kinds[i] == FROM_PIXELS else None
        images.append(ReconstructedImage(record, kinds[i], distances, as_results[i], latent_error, file, pictures))
    return images


def _drawn_from(pipeline: Pipeline, samples: list[Sample], noise: torch.Tensor) -> np.ndarray:
    """One image for each sample's stored features: exactly what training saw."""
    return draw(pipeline, stored_conditions(pipeline, samples), noise)


def _relative_error(stored: torch.Tensor, expected: torch.Tensor) -> list[float]:
    """|stored − expected| / |expected| of each latent (B, C, h, w)."""
    return ((stored - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)).tolist()


def originals_of(source: Path, records: list[Record], round_trips: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """What each result is compared with, and what that is: the bucketed original where it still has the bytes that
    were embedded.
    """
    truths, kinds = round_trips.copy(), [FROM_LATENT] * len(records)
    for i, record in enumerate(records):
        try:
            truths[i], kinds[i] = load_pixels(record, source), FROM_PIXELS
        except ImageRefused:  # moved, changed or on another machine: counted in the results under "truth"
            continue
    return truths, kinds
