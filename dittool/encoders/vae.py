"""Images ↔ latents. What is stored is the posterior's mode, unscaled; scale and shift travel in the identity card.

B batch · H W pixels · C latent channels · h w = H/stride, W/stride
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dittool.encoders.pretrained import device_of_choice, load_pretrained, weights_hash
from dittool.encoders.torchvision_remedy import ensure_torchvision


class LatentCodec(Protocol):
    """What embed, sample and validate need of an autoencoder."""

    card: dict[str, Any]
    channels: int
    stride: int

    def encode(self, pixels: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 → (B, C, h, w) float32, unscaled."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) unscaled → (B, H, W, 3) uint8."""
        ...


class KLCodec:
    """diffusers' AutoencoderKL, in fp32 (half precision overflows in the Flux and SDXL decoders)."""

    def __init__(self, model: Any, name: str, revision: str) -> None:
        self._device = device_of_choice()
        self._model = model.to(self._device, torch.float32).eval().requires_grad_(False)
        config = model.config
        self.channels = int(config.latent_channels)
        self.stride = 2 ** (len(config.block_out_channels) - 1)
        self.card = {
            "id": name, "revision": revision, "weights": weights_hash(model), "dtype": "fp32", "channels": self.channels, "stride": self.stride,
            "scale": float(config.scaling_factor), "shift": float(config.shift_factor or 0.0),
        }  # fmt: skip

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> Tensor:
        count = _images_at_once(*pixels.shape[1:3])
        return torch.cat([self._model.encode(to_signed(part).to(self._device)).latent_dist.mode().cpu() for part in _parts(pixels, count)])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        count = _images_at_once(*(side * self.stride for side in latents.shape[2:]))
        return np.concatenate([to_pixels(self._model.decode(part.to(self._device)).sample) for part in _parts(latents, count)])


def load_codec(name: str) -> LatentCodec:
    """A built-in codec, a hub id (its `vae` subfolder when it has one), or a local folder. Raises `WeightsMissingError`."""
    if name.startswith("builtin:"):
        from dittool.encoders.builtin import BlockDCT

        return BlockDCT(name)
    ensure_torchvision()
    from diffusers import AutoencoderKL

    local = Path(name).expanduser()
    subfolder = "vae" if not local.exists() or (local / "vae").is_dir() else None
    model = load_pretrained(
        "vae", name, lambda local: AutoencoderKL.from_pretrained(name, subfolder=subfolder, local_files_only=local, low_cpu_mem_usage=False)
    )
    return KLCodec(model, name, str(model.config.get("_commit_hash") or "local"))


_PIXELS_AT_ONCE = 2 << 20  # two images of 1024²: a convolution at full size holds about a gigabyte for each


def _images_at_once(height: int, width: int) -> int:
    return max(1, _PIXELS_AT_ONCE // (height * width))


def _parts(batch: Any, count: int) -> list[Any]:
    return [batch[start : start + count] for start in range(0, len(batch), count)]


def to_signed(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [−1, 1] → (B, H, W, 3) uint8, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
