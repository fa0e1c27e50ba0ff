"""What drawing needs of a checkpoint, or of what was exported from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dittool.ckpt.exported import METADATA
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.opened import Opened, is_weights_alone, open_checkpoint
from dittool.ckpt.weights import weights_of
from dittool.errors import BadDataError


def load_to_draw(path: Path) -> dict[str, Any]:
    """`config`, `ema` (of an export its weights, and `weights`, which these are), `step`, `data`, and `classes` of a
    generator, from a checkpoint, a `.safetensors` file or the index of several.

    Raises `UnsafeFileError` and `BadDataError`.
    """
    if not is_weights_alone(path):
        return load_checkpoint(path, require=(*METADATA, "ema"), only=(*METADATA, "ema", "classes", "format_version"))
    opened = open_checkpoint(path)
    named = {"weights": opened.metadata["weights"]} if "weights" in opened.metadata else {}
    return {**_described(opened, path), **named, "ema": weights_of(opened)}


def _described(opened: Opened, path: Path) -> dict[str, Any]:
    metadata = opened.metadata
    if missing := [key for key in METADATA if key not in metadata]:
        raise BadDataError(
            f"{path}: bare weights: its metadata do not hold {', '.join(missing)}",
            "name the checkpoint itself, or export it again: dit export CHECKPOINT --out FOLDER",
        )
    try:
        described = {key: json.loads(metadata[key]) for key in (*METADATA, "classes") if key in metadata}
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{path}: its metadata are no JSON: {error}", "export the checkpoint again") from error
    if wrong := [key for key, kind in _KINDS.items() if not isinstance(described.get(key, kind()), kind)]:
        raise BadDataError(f"{path}: its metadata hold no {' and no '.join(wrong)}", "export the checkpoint again")
    return described


_KINDS: dict[str, type] = {"config": dict, "step": int, "classes": list}  # what `data` must be, `Provenance` knows
