"""The figures that papers print, of a set of drawn images against a reference set.

| test | figure | network | formula |
| --- | --- | --- | --- |
| fid, fid-clean | FID | Inception 2015, resized as TensorFlow 1 did, or antialiased | Fréchet distance |
| fd-dinov2 | FD-DINOv2 | DINOv2 ViT-L/14 | Fréchet distance |
| kid | KID | Inception 2015 | unbiased MMD², k = (x·y/F + 1)³, mean over 100 subsets of 1000 |
| cmmd | CMMD | CLIP ViT-L/14-336 | 1000 × MMD², σ = 10, each image also against itself, as its authors' code has it |
| precision-recall | precision, recall | Inception 2015 | balls to the 3rd neighbour, as ADM's evaluator |
| clip | CLIP score | CLIP ViT-L/14-336 | 100 × mean of max(cos, 0) of image and caption |

Each stands with the number of images, the reference set, how the images were drawn, a standard error and a 95%
interval (`distances.Resampled`). Fréchet distances and CMMD are too large on few images; what they would be of
infinitely many, as far as few can tell, is `at_infinity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dittool.errors import BadDataError
from dittool.validate.figures.distances import (
    Resampled,
    frechet_resampled,
    gaussian_kernel,
    mean_resampled,
    polynomial_kernel,
    share_inside,
    squared_mmd_resampled,
    subset_mmds,
)
from dittool.validate.figures.image_sets import TEXTS, ImageSet

NETWORK_OF = {
    "fid": "inception",
    "fid-clean": "inception-clean",
    "fd-dinov2": "dinov2",
    "cmmd": "clip",
    "kid": "inception",
    "precision-recall": "inception",
    "clip": "clip-crop",
}
FIGURE_TESTS = tuple(NETWORK_OF)
NEIGHBOURS = 3  # of precision and recall
CMMD_VARIANCE, CMMD_SCALE = 10.0**2, 1000  # σ²; arXiv 2401.09603, section 4
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

_SCALES = {"cfg_text": "text", "cfg_dino": "reference", "alpha": "scale"}
_TITLES = {
    "fid": "FID",
    "fid-clean": "FID, clean resizing",
    "fd-dinov2": "FD-DINOv2",
    "cmmd": "CMMD",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "clip": "CLIP score",
}


@dataclass(frozen=True)
class Figure:
    """One number with what it takes to compare it."""

    name: str
    value: float
    error: float  # standard error
    interval: tuple[float, float]  # 95%
    at_infinity: (
        float | None
    )  # extrapolated to infinitely many images; None: no bias to speak of, or none that is known
    lower_is_better: bool
    images: int
    reference: Mapping[str, object] | None  # name, sha256, images
    sampling: Mapping[str, object] | None  # how the images were drawn, where it is known
    network: Mapping[str, object] = field(default_factory=dict)  # weights and resizing; of given features their name
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def drawn_with(self) -> str:
        """Guidance and steps for a table; a dash where they are not known."""
        how = self.sampling or {}
        scales = [f"{label} {how[key]}" for key, label in _SCALES.items() if key in how and _acts(key, how)]
        steps = [f"{how['steps']} {how.get('solver', 'steps')}"] if "steps" in how else []
        return ", ".join(scales + steps) or "–"

    @property
    def against(self) -> str:
        """The reference set for a table."""
        if self.reference is None:
            return "their captions"
        count = self.reference["images"]
        return f"{self.reference['name']} ({'statistics' if count is None else f'{count:,}'})"

    def __str__(self) -> str:
        beyond = "" if self.at_infinity is None else f", {self.at_infinity:.4g} extrapolated to infinitely many"
        return f"{self.title} {self.value:.4g} ± {self.error:.2g} of {self.images:,} images{beyond}"

    def to_json(self) -> dict[str, object]:
        return {
            "value": self.value,
            "error": self.error,
            "interval": list(self.interval),
            "at_infinity": self.at_infinity,
            "lower_is_better": self.lower_is_better,
            "images": self.images,
            "reference": self.reference,
            "sampling": self.sampling,
            **self.network,
            **self.details,
        }


@dataclass(frozen=True)
class SetFigures:
    """All figures of one set of drawn images."""

    figures: list[Figure]

    def to_json(self) -> dict[str, object]:
        return {figure.name: figure.to_json() for figure in self.figures}


def figure_rows(figures: Sequence[Figure]) -> list[tuple[str, str, str, str, str, str, str]]:
    """For a table: figure, value, 95%, N → ∞, images, reference, how they were drawn."""
    return [
        (
            figure.title,
            f"{figure.value:.4g}",
            f"{figure.interval[0]:.4g} to {figure.interval[1]:.4g}",
            "–" if figure.at_infinity is None else f"{figure.at_infinity:.4g}",
            f"{figure.images:,}",
            figure.against,
            figure.drawn_with,
        )
        for figure in figures
    ]


FIGURE_COLUMNS = ("figure", "value", "95%", "N → ∞", "N", "reference", "drawn with")


def networks_of(tests: Sequence[str]) -> list[str]:
    """The networks whose features some tests need, and `TEXTS`."""
    wanted = dict.fromkeys(NETWORK_OF[test] for test in tests)
    return [*wanted, *([TEXTS] if "clip" in tests else [])]


def measure_figures(tests: Sequence[str], drawn: ImageSet, reference: ImageSet | None) -> list[Figure]:
    """The figures of some of `FIGURE_TESTS`. Raises `BadDataError` where a set lacks what a test needs, or widths
    differ.
    """
    figures = []
    for test in FIGURE_TESTS:
        if test in tests:
            figures += _measure(test, drawn, reference)
    return figures


def _measure(test: str, drawn: ImageSet, reference: ImageSet | None) -> list[Figure]:
    network = NETWORK_OF[test]
    x = drawn.rows(network)
    if test == "clip":
        cosines = torch.cosine_similarity(x.double(), _paired(x, drawn), dim=1).clamp_min(0)
        return [_figure("clip", mean_resampled(100 * cosines), drawn, None, network, lower=False)]
    if reference is None:
        raise BadDataError(f"{test}: no reference set", "name one: --reference F.npz")
    if test in ("fid", "fid-clean", "fd-dinov2"):
        only_statistics = network == "inception" and network not in reference.features
        y = reference.statistics if only_statistics and reference.statistics else reference.rows(network)
        _require_same_width(x.shape[1], len(y.mean) if not isinstance(y, torch.Tensor) else y.shape[1], test)
        return [_figure(test, frechet_resampled(x, y), drawn, reference, network, biased=True)]
    y = reference.rows(network)
    _require_same_width(x.shape[1], y.shape[1], test)
    if test == "cmmd":
        found = squared_mmd_resampled(x, y, gaussian_kernel(CMMD_VARIANCE), biased=True)
        scaled = Resampled(CMMD_SCALE * found.value, tuple(CMMD_SCALE * value for value in found.without))
        return [_figure("cmmd", scaled, drawn, reference, network, biased=True)]
    if test == "kid":
        return [_kid(x, y, drawn, reference)]
    pairs = {"precision": share_inside(x, y, NEIGHBOURS), "recall": share_inside(y, x, NEIGHBOURS)}
    details = {"neighbours": NEIGHBOURS}
    return [_figure(name, found, drawn, reference, network, details, lower=False) for name, found in pairs.items()]


def _kid(x: torch.Tensor, y: torch.Tensor, drawn: ImageSet, reference: ImageSet) -> Figure:
    """Its error is that of all images; the spread over subsets, which papers print, stands beside it."""
    size = min(KID_SUBSET_SIZE, len(x), len(y))
    subsets = subset_mmds(x, y, polynomial_kernel, size, 1 if size == len(x) == len(y) else KID_SUBSETS)
    mean, spread = float(torch.tensor(subsets).mean()), float(torch.tensor(subsets).std(correction=0))
    found = squared_mmd_resampled(x, y, polynomial_kernel)
    shift = mean - found.value  # intervals lie around the figure that is printed
    moved = Resampled(mean, tuple(value + shift for value in found.without))
    details = {"subsets": len(subsets), "subset_size": size, "spread_of_subsets": spread, "of_all_images": found.value}
    return _figure("kid", moved, drawn, reference, "inception", details)


def _within_0_and_1(interval: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, interval[0]), min(1.0, interval[1])


def _acts(scale: str, how: Mapping[str, object]) -> bool:
    """Whether a scale had a condition to guide by."""
    return scale != "cfg_dino" or how.get("conditions") != "captions alone"


def _paired(x: torch.Tensor, drawn: ImageSet) -> torch.Tensor:
    if TEXTS not in drawn.features:
        raise BadDataError(
            f"{drawn.name}: no captions of its images are known, which a CLIP score needs",
            "dit sample --prompts writes them beside its .npz; or leave the test out",
        )
    return drawn.features[TEXTS].double()


def _require_same_width(first: int, second: int, test: str) -> None:
    if first != second:
        raise BadDataError(
            f"{test}: the drawn images have {first} features each, the reference has {second}",
            "features of one network are compared: make both by the same",
        )


def _figure(
    name: str,
    found: Resampled,
    drawn: ImageSet,
    reference: ImageSet | None,
    network: str,
    details: Mapping[str, object] | None = None,
    lower: bool = True,
    biased: bool = False,
) -> Figure:
    against = None
    if reference is not None:
        against = {"name": reference.name, "sha256": reference.sha256, "images": reference.images}
    return Figure(
        name,
        found.value,
        found.error,
        _within_0_and_1(found.interval) if name in ("precision", "recall") else found.interval,
        found.at_infinity if biased else None,
        lower,
        drawn.images or 0,
        against,
        drawn.sampling,
        drawn.networks.get(network, {"network": f"{network}, as given"}),
        details or {},
    )
