"""What `results.json` says of its own making, so that others can make it again: what was asked for, what it was made
of (hashes), and what it was made with (versions, device, threads).

    asked       tests, limit, split, backbone, reference, as options; paths seen from the file's folder
    made_of     checkpoint, data, encoders, backbone, reference: SHA-256 of each
    made_with   dit and its sources, Python, libraries, device, threads, platform

Seeds are no part of it: noise is a function of the image's id (`dittool.seeding.derive_seed`), and every other random
choice has a seed that stands in the code.
"""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import dittool
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.repeat import made_with as drawn_with
from dittool.storage import file_sha256

_LIBRARIES = (
    *("torchvision", "numpy", "scipy", "pillow", "transformers", "diffusers", "lpips", "scikit-image"),
    "torch-fidelity",
)


def made_with(device: torch.device) -> dict[str, object]:
    """What rounding and the code's behaviour depend on, beside inputs and settings."""
    return {
        **drawn_with(device),
        "sources": sources_sha256(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }


def made_of(pipeline: Pipeline, checkpoint: Path | None, identity_hash: str, **files: Path | None) -> dict[str, object]:
    """Hashes of what a validation is made of. `files`: further ones by what they are."""
    card = pipeline.data.card
    encoders = {
        name: {"id": one.id, "revision": one.revision, "weights": one.weights}
        for name, one in (("image", card.image), ("text", card.text), ("vae", card.vae))
    }
    return {
        "checkpoint": _hash(checkpoint),
        "data": identity_hash,
        "data_order": pipeline.data.order_hash,
        "encoders": encoders,
        "seeds": 'noise of an image: derive_seed("validate", purpose, its id) of dittool.seeding',
        **{name: _hash(path) for name, path in files.items()},
    }


@lru_cache(maxsize=1)
def sources_sha256() -> str:
    """Of the package's Python files: a version number says nothing of a checkout that was changed."""
    digest = hashlib.sha256()
    root = Path(dittool.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _hash(path: Path | None) -> str | None:
    return file_sha256(path) if path is not None and path.is_file() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
