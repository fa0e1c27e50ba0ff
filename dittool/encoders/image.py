"""Reference images → features: one CLS token and a grid of patch tokens.

The encoder's own config says how large a patch is and how many register tokens stand between CLS and the patches.
Tokens come as [CLS, registers, patches in row-major order]; taking the wrong slice would shift the grid without any
error. So only architectures whose tokens are known to stand so are taken (image_kinds.py), and what their config says
is held against their weights.

B batch · H W pixels · C width · N patches
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.encoders.builtin import OURS, THEIRS, built_in, builtin_image_model, plugin_encoder
from dittool.encoders.cards import ImageCard
from dittool.encoders.image_kinds import IMAGE_KINDS
from dittool.encoders.interfaces import ImageEncoder, ImageFeatures
from dittool.encoders.pretrained import (
    frozen,
    in_fp32,
    load_transformer,
    require_model_type,
    revision_of,
    to_cpu,
    to_device,
)
from dittool.errors import BadDataError
from dittool.geometry import SIDE_MULTIPLE, encoder_input_size

BUILT_IN = {  # name → a DINO with weights that nobody trained
    "builtin:dinov3": builtin_image_model,
}
_PIXELS_AT_ONCE = 16 << 20  # sixteen images of 1024²


class DinoEncoder:
    """A frozen image encoder: a DINO, or one of the others in `IMAGE_KINDS`. Sees the whole bucketed image, never a
    crop of it.
    """

    def __init__(self, model: Any, name: str, revision: str, dtype: str, talk: Talk = SILENT) -> None:
        self._talk, self._kind = talk, IMAGE_KINDS[model.config.model_type]
        self.patch_size = _patch_size(self._kind.patch_size(model.config), name)
        self.registers = _register_tokens(model, name)
        self.width = self._kind.width(model.config)
        network = frozen(model, dtype)  # training mode would jitter positions
        self._model, self._device, self._dtype = network.model, network.device, network.dtype
        self.card = ImageCard(name, revision, network.weights, dtype, self.width, self.patch_size, self.registers)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """pixels: (B, H, W, 3) uint8, bucketed images, any number of one size.

        Raises `BadDataError` when a side is no multiple of the patch size and cannot be a bucket's, when the tokens do
        not fill the grid, or when they are not finite, in fp32 either.
        """
        at_once = max(1, _PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))
        tokens = torch.cat([self._tokens(pixels[start : start + at_once]) for start in range(0, len(pixels), at_once)])
        return ImageFeatures(tokens[:, 0].clone(), tokens[:, 1 + self.registers :])

    def _tokens(self, pixels: np.ndarray) -> Tensor:
        """(B, 1 + registers + N, C) float32, on the CPU."""
        x = self.preprocess(to_device(torch.from_numpy(np.ascontiguousarray(pixels)), self._device))
        tokens = to_cpu(self._forward(x))
        if not torch.isfinite(tokens).all() and self._dtype != torch.float32:
            self._talk.warn(
                f"{self.card.id}: features of {len(tokens)} images are not all finite in {self.card.dtype};"
                " computed again in fp32"
            )
            with in_fp32(self._model, self._dtype):
                tokens = to_cpu(self._forward(x))
        if broken := int((~torch.isfinite(tokens)).flatten(1).any(dim=1).sum()):
            raise BadDataError(
                f"{self.card.id}: features of {broken} of {len(tokens)} images are not finite, in fp32 either",
                "the encoder's weights are damaged: fetch them again, or name another encoder with -s"
                " encoders.image=NAME",
            )
        return tokens

    def preprocess(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, 3, H', W') float32, normalised, at the encoder's own size: resized, never
        cropped.
        """
        height, width = pixels.shape[1:3]
        target = encoder_input_size(width, height, self.patch_size)
        if target != (width, height) and SIDE_MULTIPLE % self.patch_size == 0:
            raise BadDataError(
                f"{self.card.id}: an image of {width}x{height} is not a bucket's: its sides are no multiples of the"
                f" patch size {self.patch_size}",
                "bring it into a bucket first (dittool.data.source.images.fit_to_bucket)",
            )
        x = pixels.permute(0, 3, 1, 2).float() / 255
        if target != (width, height):
            # bicubic overshoots at edges
            x = F.interpolate(x, size=target[::-1], mode="bicubic", antialias=True).clamp(0, 1)
        return (x - x.new_tensor(self._kind.mean)[:, None, None]) / x.new_tensor(self._kind.std)[:, None, None]

    def _forward(self, x: Tensor) -> Tensor:
        tokens = self._kind.tokens(self._model, x.to(self._model.dtype), self.patch_size)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        if tokens.shape[1] != 1 + self.registers + rows * columns:
            raise BadDataError(
                f"{self.card.id}: {tokens.shape[1]} tokens for an input of {x.shape[3]}x{x.shape[2]}, but CLS,"
                f" {self.registers} registers and a grid of {rows}×{columns} are {1 + self.registers + rows * columns}",
                "the encoder's config does not describe its tokens: check patch_size and num_register_tokens",
            )
        return tokens


def _patch_size(size: Any, name: str) -> int:
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1 or min(sides) < 1:
        raise BadDataError(
            f"{name}: patch_size {size} in its config, only square patches can be used", "name another encoder"
        )
    return int(sides.pop())


def _register_tokens(model: Any, name: str) -> int:
    """How many register tokens the model puts between CLS and the patches: what its weights have, which its config
    must confirm.
    """
    weights = getattr(getattr(model, "embeddings", None), "register_tokens", None)
    found = 0 if weights is None else int(weights.shape[1])
    stated = int(getattr(model.config, "num_register_tokens", 0) or 0)
    if stated != found:
        raise BadDataError(
            f"{name}: its config says {stated} register tokens, its weights have {found}: the patches would be looked"
            " for in the wrong place",
            "restore the config.json that belongs to these weights: fetch both again",
        )
    return found


def load_image_encoder(name: str, dtype: str, talk: Talk = SILENT) -> ImageEncoder:
    """A built-in encoder, a plugin's (made from name and dtype), or a hub id or a local folder of one in `IMAGE_KINDS`.

    `talk` is told when images had to be computed again in fp32.

    Raises `WeightsMissingError`, `UsageError` for any other architecture, `BadDataError` for damaged weights.
    """
    if name.startswith(THEIRS):
        theirs: ImageEncoder = plugin_encoder("image", name)(name, dtype)
        return theirs
    if name.startswith(OURS):
        return DinoEncoder(built_in("image", name, BUILT_IN)(name), name, "1", dtype, talk)
    model_type = require_model_type("image", name, {kind: IMAGE_KINDS[kind].called for kind in IMAGE_KINDS})
    import transformers

    model = load_transformer("image", name, dtype, getattr(transformers, IMAGE_KINDS[model_type].model_class))
    return DinoEncoder(model, name, revision_of(name), dtype, talk)
