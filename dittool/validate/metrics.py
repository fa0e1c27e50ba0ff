"""How far two images are apart: SSIM, PSNR and plain pixel distance, each under its own name. LPIPS, which needs a
network's weights, is in perceptual.py.

Images are (B, H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HIGHEST_PSNR = 100.0  # dB, stands for equal images: infinity has no place in JSON

Measure = Callable[[np.ndarray, np.ndarray], list[float]]


@dataclass(frozen=True)
class Metric:
    """One way to compare images."""

    name: str  # in results.json
    title: str  # for people
    lower_is_better: bool
    measure: Measure  # two batches of equal shape → one number a pair


def psnr(results: np.ndarray, truths: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB: 10·log10(255² / mean squared error), at most `HIGHEST_PSNR`."""
    errors = np.square(results.astype(np.float64) - truths).mean(axis=(1, 2, 3))
    return [min(HIGHEST_PSNR, 10 * math.log10(255**2 / error)) if error > 0 else HIGHEST_PSNR for error in errors]


def ssim(results: np.ndarray, truths: np.ndarray) -> list[float]:
    """Structural similarity with the Gaussian window of its paper (Wang et al. 2004), mean over the colour
    channels; 1 for equal images.
    """
    from skimage.metrics import structural_similarity

    settings = {
        "channel_axis": 2,
        "data_range": 255,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    return [
        float(structural_similarity(result, truth, **settings)) for result, truth in zip(results, truths, strict=True)
    ]


def pixel_rms(results: np.ndarray, truths: np.ndarray) -> list[float]:
    """Root of the mean squared difference, in shares of the whole range: 0 for equal images, 1 for black against
    white.
    """
    return np.sqrt(np.square((results.astype(np.float64) - truths) / 255).mean(axis=(1, 2, 3))).tolist()


PSNR = Metric("psnr", "PSNR", False, psnr)
SSIM = Metric("ssim", "SSIM", False, ssim)
PIXEL_RMS = Metric("pixel-rms", "pixel distance", True, pixel_rms)


def gap_closed(value: float, floor: float, ceiling: float, lower_is_better: bool) -> float | None:
    """Which share of the gap from `ceiling` (0) to `floor` (1) a value has come, within [−1, 1].

    `floor` is the best that can be had, `ceiling` what a model reaches that does not look at its conditions, whichever
    of the two is the larger number. None when the floor is not better than the ceiling: then there is no gap to close.
    """
    gap = ceiling - floor if lower_is_better else floor - ceiling
    closed = ceiling - value if lower_is_better else value - ceiling
    return max(-1.0, min(1.0, closed / gap)) if gap > 0 else None
