"""How far two images are apart: LPIPS, SSIM, PSNR and plain pixel distance, each under its own name.

LPIPS ("The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924) needs the weights of
an AlexNet that its package does not ship. They are taken from where the user says, or from torchvision's cache, and
never downloaded.

Images are (B, H, W, 3) uint8.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dittool.ckpt.load import load_weights
from dittool.console import SILENT, Talk
from dittool.encoders.pretrained import device_of_choice
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import to_signed
from dittool.errors import BadDataError, UsageError, WeightsMissingError
from dittool.validate.torchvision_cache import ALEXNET, cached_file, cached_weights

BACKBONE_VARIABLE = "DIT_LPIPS_BACKBONE"
HIGHEST_PSNR = 100.0  # dB, stands for equal images: infinity has no place in JSON
SMALLEST_SIDE = 32  # pixels that AlexNet's strides leave something of
_BATCH = 8  # image pairs through AlexNet at once

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
    """Which share of the way from `ceiling` (0) to `floor` (1) a value has come, within [−1, 1].

    `floor` is the best that can be had, `ceiling` what a model reaches that does not look at its conditions, whichever
    of the two is the larger number. None when the floor is not better than the ceiling: then there is no way to go and
    nothing is measured.
    """
    way = ceiling - floor if lower_is_better else floor - ceiling
    come = ceiling - value if lower_is_better else value - ceiling
    return max(-1.0, min(1.0, come / way)) if way > 0 else None


def find_lpips(named: str | Path | None, smallest_side: int, talk: Talk = SILENT) -> Metric | None:
    """LPIPS when its backbone is at hand: the file that is named, that of `DIT_LPIPS_BACKBONE`, or torchvision's cache;
    else None.

    Raises `WeightsMissingError` when a file was named, here or in the environment, and cannot serve, and `UsageError`
    when one was named for images of which AlexNet's strides leave nothing.
    """
    named = named or os.environ.get(BACKBONE_VARIABLE)
    if smallest_side < SMALLEST_SIDE:
        reason = f"LPIPS needs images of at least {SMALLEST_SIDE} pixels a side, a bucket here has {smallest_side}"
        if named:
            raise UsageError(
                reason, f"leave out --lpips-backbone, validate.lpips_backbone and {BACKBONE_VARIABLE} to use SSIM"
            )
        talk.note(f"SSIM is measured instead of LPIPS: {reason}")
        return None
    if named:
        return load_lpips(Path(named).expanduser())
    cached = cached_file(ALEXNET)
    if not cached.is_file():
        talk.note(
            "no AlexNet weights here, so SSIM is measured instead of LPIPS; name a file with --lpips-backbone or"
            f" {BACKBONE_VARIABLE}"
        )
        return None
    weights = cached_weights(ALEXNET, "SSIM is measured instead of LPIPS", talk)
    return None if weights is None else _lpips(weights, cached)


def load_lpips(path: Path) -> Metric:
    """LPIPS with AlexNet from a file with `features.N.weight|bias`, and its heads from there too when it has
    `linN.weight`.

    Raises `WeightsMissingError` when the file is missing, unreadable or of another network, `UnsafeFileError` when it
    could do harm.
    """
    try:
        return _lpips(load_weights(path), path)
    except BadDataError as error:
        raise WeightsMissingError(f"LPIPS backbone: {error.message}", _LPIPS_HINT) from error


def _lpips(weights: dict[str, Tensor], path: Path) -> Metric:
    ensure_torchvision()
    import lpips

    # `pnet_rand` keeps the package from downloading; its random weights are all replaced below, and the global
    # generator is given back.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's about an argument that the package still passes
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    _fill(model, weights, path)
    device = device_of_choice()
    model = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def measure(results: np.ndarray, truths: np.ndarray) -> list[float]:
        values: list[float] = []
        for start in range(0, len(results), _BATCH):
            rows = slice(start, start + _BATCH)
            values += model(to_signed(results[rows]).to(device), to_signed(truths[rows]).to(device)).flatten().tolist()
        return values

    return Metric("lpips-alex", "LPIPS", True, measure)


_LPIPS_HINT = (
    "name AlexNet's weights (torchvision's file, or a .safetensors with its features.N.* tensors), or leave the option"
    " out to use SSIM"
)


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Copies every backbone weight, and the heads that are there, into the package's model."""
    state, problems = {}, []
    for name, parameter in model.named_parameters():
        wanted = _name_in_file(name)
        found = weights.get(wanted)
        if found is None and wanted.startswith("lin"):
            continue  # the package ships the heads
        if found is None or found.shape != parameter.shape or not torch.isfinite(found).all():
            shape = (
                "missing"
                if found is None
                else "not finite"
                if found.shape == parameter.shape
                else f"of shape {tuple(found.shape)}"
            )
            problems.append(f"{wanted} is {shape}, AlexNet's is {tuple(parameter.shape)}")
        else:
            state[name] = found.float()
    if problems:
        raise WeightsMissingError(
            f"LPIPS backbone: {path}: {problems[0]}; {len(problems)} tensors do not fit", _LPIPS_HINT
        )
    model.load_state_dict(state, strict=False)  # all of the backbone is in it, see above


def _name_in_file(parameter: str) -> str:
    """`net.slice2.3.weight` → `features.3.weight`; `lin0.model.1.weight` → `lin0.weight`."""
    if backbone := re.fullmatch(r"net\.slice\d+\.(\d+\.\w+)", parameter):
        return f"features.{backbone[1]}"
    return re.sub(r"\.model\.\d+\.", ".", parameter)
