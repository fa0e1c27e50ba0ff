"""Networks that compare pictures, two of them or sets of them: LPIPS (AlexNet) and Inception, where their weights are.

LPIPS ("The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924) needs the weights of
an AlexNet that its package does not ship; Inception v3 gives the features of a Fréchet distance. Weights are taken from
where the user says, or bit for bit from torchvision's cache, and never downloaded.

Images are (B, H, W, 3) uint8.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.ckpt.weights import load_weights
from dittool.console import SILENT, Talk
from dittool.devices import device_of_choice
from dittool.encoders.interfaces import to_signed
from dittool.encoders.pretrained import torch_cached
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import BadDataError, UsageError, WeightsMissingError
from dittool.storage import file_sha256
from dittool.validate.metrics import Metric

# torchvision's own names; what follows the last dash begins the file's sha256
ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "inception_v3_google-0cc3c7bd.pth"
BACKBONE_VARIABLE = "DIT_LPIPS_BACKBONE"
SMALLEST_SIDE = 32  # pixels that AlexNet's strides leave something of
_LPIPS_BATCH = 8  # image pairs through AlexNet at once
_INCEPTION_BATCH, _INCEPTION_SIDE = 16, 299  # images at once; pixels a side that the network was trained at
_LPIPS_HINT = (
    "name AlexNet's weights (torchvision's file, or a .safetensors with its features.N.* tensors), or leave the option"
    " out to use SSIM"
)

PooledFeatures = Callable[[np.ndarray], Tensor]  # pixels (B, H, W, 3) uint8 → (B, 2048)


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
    cached = torch_cached(ALEXNET)
    if not cached.is_file():
        talk.note(
            "no AlexNet weights here, so SSIM is measured instead of LPIPS; name a file with --lpips-backbone or"
            f" {BACKBONE_VARIABLE}"
        )
        return None
    weights = cached_weights(ALEXNET, "SSIM is measured instead of LPIPS", talk)
    return None if weights is None else _lpips(weights, cached)


def lpips_file(named: str | Path | None) -> Path | None:
    """The file that `find_lpips` would take; None where there is none."""
    named = named or os.environ.get(BACKBONE_VARIABLE)
    found = Path(named).expanduser() if named else torch_cached(ALEXNET)
    return found if found.is_file() else None


def load_lpips(path: Path) -> Metric:
    """LPIPS with AlexNet from a file with `features.N.weight|bias`, and its heads from there too when it has
    `linN.weight`.

    Raises `WeightsMissingError` when the file is missing, unreadable or of another network, `UnsafeFileError` when it
    could do harm.
    """
    try:
        return _lpips(dict(load_weights(path)), path)
    except (BadDataError, UsageError) as error:
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
        for start in range(0, len(results), _LPIPS_BATCH):
            rows = slice(start, start + _LPIPS_BATCH)
            values += model(to_signed(results[rows]).to(device), to_signed(truths[rows]).to(device)).flatten().tolist()
        return values

    return Metric("lpips-alex", "LPIPS", True, measure)


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


def find_inception(talk: Talk = SILENT) -> PooledFeatures | None:
    """Pixels (B, H, W, 3) uint8 → pooled features (B, 2048); None when the weights are not in torchvision's cache."""
    weights = cached_weights(INCEPTION, "no FID is measured", talk)
    if weights is None:
        return None
    ensure_torchvision()
    from torchvision.models import inception_v3

    with torch.random.fork_rng(devices=[]):
        model = inception_v3(weights=None, transform_input=False, init_weights=False)
    model.load_state_dict(weights)
    model.fc = nn.Identity()  # the features before the classes
    device = device_of_choice()
    model = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def features(pixels: np.ndarray) -> Tensor:
        parts = []
        for start in range(0, len(pixels), _INCEPTION_BATCH):
            images = to_signed(pixels[start : start + _INCEPTION_BATCH]).to(device)  # [−1, 1], as these weights want it
            parts.append(
                model(F.interpolate(images, (_INCEPTION_SIDE, _INCEPTION_SIDE), mode="bilinear", antialias=True)).cpu()
            )
        return torch.cat(parts)

    return features


def cached_weights(name: str, otherwise: str, talk: Talk = SILENT) -> dict[str, Tensor] | None:
    """The tensors of a published file in the cache. None when it is not there, or not the published one;
    `otherwise` says what happens then.
    """
    path = torch_cached(name)
    if not path.is_file():
        return None
    digest, published = file_sha256(path), name.split("-")[-1].removesuffix(".pth")
    if not digest.startswith(published):
        talk.note(f"{otherwise}: {path}: its sha256 begins with {digest[:8]}, the published file's with {published}")
        return None
    # Known to the bit, so it may be of the old container format that files from strangers are refused for.
    return torch.load(path, map_location="cpu", weights_only=True)
