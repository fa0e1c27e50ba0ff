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


def load_pretrained(kind: str, name: str, load: Callable[[bool], Loaded]) -> Loaded:
    """Loads from this disk when the weights are there, else from the hub; every way of not getting them is one `WeightsMissingError`.

    Args:
        kind: "image", "text" or "vae": which key of `[encoders]` named the weights.
        name: hub id or local path.
        load: called with `local_files_only`.
    """
    local = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not local.exists():
        raise WeightsMissingError(f"encoders.{kind}: {name}: no such folder or file", "check the path, or name a hub id")
    try:
        return load(True)
    except (OSError, ValueError, KeyError) as error:
        reason = _first_line(error) if local.exists() else _hub_refusal(name)
    if not reason:
        try:
            return load(False)
        except (OSError, ValueError, KeyError) as error:
            reason = _first_line(error)
    raise WeightsMissingError(
        f"encoders.{kind}: cannot load '{name}': {reason}",
        f"fetch it where there is a network: hf download {name}; without it: -s encoders.{kind}={_SUBSTITUTES[kind]}, "
        f"or the stand-in -s encoders.{kind}={_BUILTIN[kind]}",
    )


def _hub_refusal(name: str) -> str:
    """Why the hub will not give this repository to us, found out with one request; empty when it will."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if HF_HUB_OFFLINE:
        return "it is not on this disk, and HF_HUB_OFFLINE forbids to fetch it"
    try:
        HfApi().auth_check(name)
    except GatedRepoError:
        return "it is not on this disk, and it is gated: accept its terms on the hub, then run hf auth login"
    except RepositoryNotFoundError:
        return "it is not on this disk, and the hub has no such public repository"
    except HFValidationError:
        return "there is no such folder, and it is no hub id either"
    except Exception as error:  # whatever the hub's HTTP library raises; which library that is changes with its version
        return f"it is not on this disk, and the hub cannot be reached ({_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
