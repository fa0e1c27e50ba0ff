"""Weights that torchvision has downloaded before: taken from its cache when they are there, bit for bit, and never
fetched.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.storage import file_sha256

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's own names; what follows the last dash begins the file's sha256
INCEPTION = "inception_v3_google-0cc3c7bd.pth"


def cached_file(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def cached_weights(name: str, otherwise: str, talk: Talk = SILENT) -> dict[str, Tensor] | None:
    """The tensors of a published file in the cache. None when it is not there, or not the published one;
    `otherwise` says what happens then.
    """
    path = cached_file(name)
    if not path.is_file():
        return None
    digest, published = file_sha256(path), name.split("-")[-1].removesuffix(".pth")
    if not digest.startswith(published):
        talk.note(f"{otherwise}: {path}: its sha256 begins with {digest[:8]}, the published file's with {published}")
        return None
    # Known to the bit, so it may be of the old container format that files from strangers are refused for.
    return torch.load(path, map_location="cpu", weights_only=True)
