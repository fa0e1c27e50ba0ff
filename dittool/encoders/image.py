"""Reference images → DINO features: one CLS token and a grid of patch tokens.

The encoder's own config says how large a patch is and how many register tokens stand between CLS and the patches.
Tokens come as [CLS, registers, patches in row-major order]; taking the wrong slice would shift the grid without any error.

B batch · H W pixels · C width · N patches
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.encoders.pretrained import DTYPES, device_of_choice, load_pretrained, weights_hash
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import BadDataError

_MEAN = (0.485, 0.456, 0.406)  # ImageNet, as in every DINO release
_STD = (0.229, 0.224, 0.225)


def input_size(width: int, height: int, patch_size: int) -> tuple[int, int]:
    """(width, height) at which an encoder sees a bucket: each side at the nearest multiple of the patch size."""
    return round(width / patch_size) * patch_size, round(height / patch_size) * patch_size


def patch_grid(width: int, height: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of an encoder's patches for a bucket."""
    input_width, input_height = input_size(width, height, patch_size)
    return input_height // patch_size, input_width // patch_size


@dataclass(frozen=True)
class ImageFeatures:
    cls: Tensor  # (B, C)
    patches: Tensor  # (B, N, C)


class ImageEncoder:
    """A frozen DINO vision transformer. Sees the whole bucketed image, never a crop of it."""

    def __init__(self, model: Any, name: str, revision: str, dtype: str) -> None:
        self._device = device_of_choice()
        self._model = model.to(self._device, DTYPES[dtype]).eval().requires_grad_(False)  # training mode would jitter positions
        config = model.config
        self.patch_size = int(config.patch_size)
        self.registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self.width = int(config.hidden_size)
        self.card = {
            "id": name, "revision": revision, "weights": weights_hash(model), "dtype": dtype,
            "width": self.width, "patch_size": self.patch_size, "registers": self.registers,
        }  # fmt: skip

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """pixels: (B, H, W, 3) uint8, bucketed images. Raises `BadDataError` when the tokens do not fill the grid."""
        height, width = pixels.shape[1:3]
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        input_width, input_height = input_size(width, height, self.patch_size)
        if (input_width, input_height) != (width, height):
            x = F.interpolate(x, size=(input_height, input_width), mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - x.new_tensor(_MEAN)[:, None, None]) / x.new_tensor(_STD)[:, None, None]
        tokens = self._model(pixel_values=x.to(self._model.dtype)).last_hidden_state.float()  # (B, 1 + registers + N, C)
        rows, columns = patch_grid(width, height, self.patch_size)
        patches = tokens[:, 1 + self.registers :]
        if patches.shape[1] != rows * columns:
            raise BadDataError(
                f"{self.card['id']}: {patches.shape[1]} patch tokens for {width}x{height}, but its grid is {rows}×{columns} = {rows * columns}",
                "the encoder's config does not describe its tokens: check patch_size and num_register_tokens",
            )
        return ImageFeatures(tokens[:, 0].cpu(), patches.cpu())


def load_image_encoder(name: str, dtype: str) -> ImageEncoder:
    """A built-in encoder, a hub id or a local folder. Raises `WeightsMissingError`."""
    ensure_torchvision()
    if name.startswith("builtin:"):
        from dittool.encoders.builtin import builtin_image_model

        return ImageEncoder(builtin_image_model(name), name, "1", dtype)
    from transformers import AutoModel

    model = load_pretrained("image", name, lambda local: AutoModel.from_pretrained(name, dtype=DTYPES[dtype], local_files_only=local))
    return ImageEncoder(model, name, str(getattr(model.config, "_commit_hash", None) or "local"), dtype)
