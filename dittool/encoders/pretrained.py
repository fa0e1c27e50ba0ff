"""Loading pretrained weights from a local folder or a hub id, and saying exactly what is missing when they are not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dittool.errors import WeightsMissingError

_SUBSTITUTES = {
    "image": "facebook/dinov2-large (ungated)",
    "text": "google/t5-v1_1-base (ungated, smaller)",
    "vae": "a local folder or a single ae.safetensors",
}
_BUILTIN = {"image": "builtin:dinov3", "text": "builtin:words", "vae": "builtin:dct"}

Loaded = TypeVar("Loaded")


def load_pretrained(kind: str, name: str, load: Callable[[], Loaded]) -> Loaded:
    """Runs `load` and turns every way in which weights can be missing into one `WeightsMissingError`.

    Args:
        kind: "image", "text" or "vae": which key of `[encoders]` named the weights.
        name: hub id or local path.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise WeightsMissingError(f"encoders.{kind}: {name}: no such folder or file", "check the path, or name a hub id")
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsMissingError(
            f"encoders.{kind}: cannot load '{name}': {reason}",
            f"fetch it once with `hf download {name}` (gated ones need `hf auth login` and accepted terms); without it: "
            f"-s encoders.{kind}={_SUBSTITUTES[kind]}, or the stand-in -s encoders.{kind}={_BUILTIN[kind]}",
        ) from error


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers: the same weights give the same hash anywhere."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def device_of_choice() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
