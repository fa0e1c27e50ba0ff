"""The image encoders that are read, by the `model_type` of their configs: what each expects of pixels, how large a
patch is, and how its tokens come to stand as [CLS, registers, patches in row-major order].

Others average, crop or pool their tokens, or let them stand in another order; taking the wrong ones would fit every
shape and mean something else. So only those are taken whose tokens are known.

B batch · H W pixels · C width · N patches
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dittool.errors import BadDataError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in every DINO release
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # SigLIP: pixels in [−1, 1]


def _as_they_stand(model: Any, x: Tensor, _patch: int) -> Tensor:
    """(B, 3, H, W) → (B, 1 + registers + N, C): behind the final norm."""
    return model(pixel_values=x).last_hidden_state


def _of_siglip(model: Any, x: Tensor, _patch: int) -> Tensor:
    """(B, 3, H, W) → (B, 1 + N, C): it has no CLS token; the vector that its head pools stands for one."""
    return _with_pooled(model(pixel_values=x, interpolate_pos_encoding=True))


def _of_siglip2(model: Any, x: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) → (B, 1 + N, C): the kind that takes patches of any grid, each row by row with its colours last."""
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    cells = x.unflatten(2, (rows, patch)).unflatten(4, (columns, patch))  # (B, 3, rows, patch, columns, patch)
    patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, N, patch·patch·3)
    shapes = torch.tensor([[rows, columns]] * len(x), device=x.device)
    everywhere = torch.ones(patches.shape[:2], dtype=torch.int32, device=x.device)
    return _with_pooled(model(pixel_values=patches, pixel_attention_mask=everywhere, spatial_shapes=shapes))


def _with_pooled(output: Any) -> Tensor:
    if output.pooler_output is None:
        raise BadDataError(
            "a SigLIP without its pooling head (vision_use_head = false) gives no vector for the whole image",
            "name one with its head, or a DINO",
        )
    return torch.cat([output.pooler_output[:, None], output.last_hidden_state], dim=1)


@dataclass(frozen=True)
class ImageKind:
    """One architecture."""

    called: str
    model_class: str  # of transformers
    tokens: Callable[[Any, Tensor, int], Tensor]  # (model, pixels (B, 3, H, W), patch size) → (B, 1 + registers + N, C)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: Callable[[Any], object]  # of a config, in pixels
    width: Callable[[Any], int]  # C of a config


def _vit(called: str, model_class: str = "AutoModel") -> ImageKind:
    return ImageKind(called, model_class, _as_they_stand, *_IMAGENET, _patch_size, _width)


def _patch_size(config: Any) -> object:
    return config.patch_size


def _width(config: Any) -> int:
    return int(config.hidden_size)


def _convnext_patch(config: Any) -> int:
    """A stem of stride 4, and stages that each halve the sides once more."""
    return 4 * 2 ** (len(config.hidden_sizes) - 1)


def _convnext_width(config: Any) -> int:
    return int(config.hidden_sizes[-1])


_SIGLIP = ImageKind("a SigLIP or SigLIP2", "SiglipVisionModel", _of_siglip, *_HALF, _patch_size, _width)
_NAFLEX = ImageKind("a SigLIP2 of any grid", "Siglip2VisionModel", _of_siglip2, *_HALF, _patch_size, _width)
IMAGE_KINDS: dict[str, ImageKind] = {  # by model_type
    "dinov3_vit": _vit("a DINOv3 ViT"),
    # CLS is the mean of the last stage's cells, which stand behind it
    "dinov3_convnext": ImageKind(
        "a DINOv3 ConvNeXt", "AutoModel", _as_they_stand, *_IMAGENET, _convnext_patch, _convnext_width
    ),
    "dinov2": _vit("a DINOv2"),
    "dinov2_with_registers": _vit("a DINOv2"),
    "siglip": _SIGLIP,  # SigLIP2's releases of one resolution are of this type, too
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
}
