"""diffusers' autoencoders as codecs: images ↔ latents. What is stored is the posterior's mode, unscaled.

Channels, stride, scale and shift are the autoencoder's own, read from its config: 16 channels at stride 8 for Flux, 32
at stride 32 for DC-AE. FLUX.2 packs 2×2 cells of 32 channels and norms them by statistics of its own: 128 at stride 16.

B batch · H W pixels · C latent channels · h w = H/stride, W/stride
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.encoders.cards import VaeCard
from dittool.encoders.interfaces import signed, to_pixels
from dittool.encoders.pretrained import (
    frozen,
    to_cpu,
    to_device,
)
from dittool.errors import BadDataError, UsageError

_PIXELS_AT_ONCE = 2 << 20  # two images of 1024²: a convolution at full size holds about a gigabyte for each
Batch = TypeVar("Batch", np.ndarray, Tensor)


class _Kind(NamedTuple):
    """What differs between diffusers' autoencoders."""

    latents: Callable[[Any], Tensor]  # of what `encode` gives back; nothing random in any of them
    stages: str  # the config's key with one entry a resolution: the sides halve between each two
    packed: bool = False  # latents go to the model with patch_size² cells as channels of one, normed by its `bn`


AUTOENCODERS = {
    "AutoencoderKL": _Kind(lambda output: output.latent_dist.mode(), "block_out_channels"),
    "AutoencoderTiny": _Kind(lambda output: output.latents, "encoder_block_out_channels"),
    "AutoencoderKLFlux2": _Kind(lambda output: output.latent_dist.mode(), "block_out_channels", packed=True),
    "AutoencoderDC": _Kind(lambda output: output.latent, "encoder_block_out_channels"),
}


class PretrainedCodec:
    """One of diffusers' autoencoders, in fp32 (half precision overflows in the Flux and SDXL decoders)."""

    def __init__(self, model: Any, name: str, revision: str) -> None:
        config, self._kind = model.config, AUTOENCODERS[type(model).__name__]
        self._pack = _cells_packed(config, name) if self._kind.packed else 1
        self.channels = int(config.latent_channels) * self._pack**2
        self.stride = 2 ** (len(config[self._kind.stages]) - 1) * self._pack
        network = frozen(model, "fp32")
        self._model, self._device = network.model, network.device
        # packed latents are normed as they are stored: the statistics are the autoencoder's own, one a channel
        scale = 1.0 if self._kind.packed else float(config.scaling_factor)
        shift = 0.0 if self._kind.packed else float(config.get("shift_factor") or 0.0)
        self.card = VaeCard(name, revision, network.weights, "fp32", self.channels, self.stride, scale, shift)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> Tensor:
        """Any number of images of one size. Raises `BadDataError` when the stride does not divide a side or the
        latents are not finite.
        """
        height, width = pixels.shape[1:3]
        if height % self.stride or width % self.stride:
            raise BadDataError(
                f"{self.card.id}: an image of {width}x{height} has no whole latent at stride {self.stride}",
                f"choose buckets whose sides are multiples of {self.stride}, or another autoencoder",
            )
        latents = torch.cat([self._encode(part) for part in _parts(pixels, _images_at_once(height, width))])
        expected = (len(pixels), self.channels, height // self.stride, width // self.stride)
        if tuple(latents.shape) != expected:
            raise BadDataError(
                f"{self.card.id}: latents of {tuple(latents.shape)} where its config promises {expected}",
                "the config does not describe the model: fetch both again",
            )
        return self._finite(latents, "latents")

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Raises `BadDataError` when the pixels are not finite: they would come out black without a word."""
        self._finite(latents, "latents to decode")
        count = _images_at_once(*(side * self.stride for side in latents.shape[2:]))
        return np.concatenate([self._decode(part) for part in _parts(latents, count)])

    def _encode(self, pixels: np.ndarray) -> Tensor:
        x = signed(to_device(torch.from_numpy(np.ascontiguousarray(pixels)), self._device))
        latents = self._kind.latents(self._model.encode(x))
        if self._kind.packed:
            mean, deviation = self._norm()
            latents = (F.pixel_unshuffle(latents, self._pack) - mean) / deviation
        return to_cpu(latents)

    def _decode(self, latents: Tensor) -> np.ndarray:
        latents = to_device(latents.float(), self._device)
        if self._kind.packed:
            mean, deviation = self._norm()
            latents = F.pixel_shuffle(latents * deviation + mean, self._pack)
        return to_pixels(self._finite(self._model.decode(latents).sample, "pixels"))

    def _norm(self) -> tuple[Tensor, Tensor]:
        """(mean, deviation) of each channel of packed latents, (C, 1, 1), from the autoencoder's batch norm."""
        norm = self._model.bn
        return norm.running_mean[:, None, None], (norm.running_var + norm.eps).sqrt()[:, None, None]

    def _finite(self, values: Tensor, what: str) -> Tensor:
        if broken := int((~torch.isfinite(values)).flatten(1).any(dim=1).sum()):
            raise BadDataError(
                f"{self.card.id}: {what} of {broken} of {len(values)} images are not finite, in fp32",
                "its weights are damaged, or the latents are: check the files with dit inspect-ckpt, or name another"
                " with -s encoders.vae=NAME",
            )
        return values


def autoencoder_class(config: dict[str, Any], where: str) -> Any:
    """diffusers' class that a config asks for. Raises `UsageError` when it is none of `AUTOENCODERS`."""
    import diffusers

    wanted = config.get("_class_name")
    if wanted not in AUTOENCODERS:
        raise UsageError(
            f"encoders.vae: '{where}' is {f'of the class {wanted}' if wanted else 'no model of diffusers'}, not one of"
            f" {', '.join(AUTOENCODERS)}",
            "name an autoencoder for images, for example -s encoders.vae=madebyollin/taef1",
        )
    return getattr(diffusers, wanted)


def _cells_packed(config: Any, name: str) -> int:
    """How many cells along one side become channels of one. Raises `BadDataError` for cells that are not square."""
    rows, columns = config.patch_size
    if rows != columns:
        raise BadDataError(f"{name}: patch_size {config.patch_size} in its config is not square", "name another")
    return int(rows)


def _images_at_once(height: int, width: int) -> int:
    return max(1, _PIXELS_AT_ONCE // (height * width))


def _parts(batch: Batch, count: int) -> list[Batch]:
    return [batch[start : start + count] for start in range(0, len(batch), count)]
