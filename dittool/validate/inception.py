"""What Inception v3 sees in pictures, where torchvision's weights for it are in the cache."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.console import SILENT, Talk
from dittool.encoders.pretrained import device_of_choice
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import to_signed
from dittool.validate.set_metrics import Features
from dittool.validate.torchvision_cache import INCEPTION, cached_weights

_SIDE = 299  # pixels that the network was trained at
_BATCH = 16


def find_inception(talk: Talk = SILENT) -> Features | None:
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
        for start in range(0, len(pixels), _BATCH):
            images = to_signed(pixels[start : start + _BATCH]).to(device)  # [−1, 1], as these weights want it
            parts.append(model(F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)).cpu())
        return torch.cat(parts)

    return features
