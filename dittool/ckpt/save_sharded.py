"""Saving a checkpoint in parts: the first process makes a place that nothing counts as a checkpoint, each process
writes its part there, the first one writes the index and gives the folder its name; the sidecar comes last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dittool.ckpt.files import (
    FINAL_NAME,
    Sidecar,
    again_after_failure,
    already_saved,
    discard,
    saving_errors_explained,
    sidecar_path,
    step_name,
)
from dittool.ckpt.plain_state import require_state
from dittool.ckpt.sharded import Part, write_index
from dittool.storage import TEMPORARY_PREFIX, output_folder, require_free, sync_folder, write_json


def sharded_path(checkpoints: Path, step: int, final: bool) -> Path:
    """The folder of a checkpoint in parts."""
    return (checkpoints / (FINAL_NAME if final else step_name(step))).with_suffix("")


def place_of_parts(path: Path) -> Path:
    """Where the parts of a checkpoint are while they are written."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


def begin_sharded(path: Path, step: int, needed: int) -> Path | None:
    """Makes the place of the parts, empty; or returns the valid checkpoint of this step that is there already. Raises
    `StorageError` where `needed` bytes are not free.
    """
    output_folder(path.parent)
    if (kept := already_saved(path, step)) is not None:
        return kept
    place = place_of_parts(path)
    discard(place)
    require_free(path.parent, needed, f"the checkpoint of step {step}", again_after_failure(path))
    with saving_errors_explained(path, needed):
        place.mkdir()
    return None


def take_place(place: Path, path: Path) -> None:
    """Gives a complete folder its name, in place of what has it and does not count."""
    discard(path)
    os.replace(place, path)
    sync_folder(path.parent)


def end_sharded(
    path: Path, content: Mapping[str, Any], parts: list[Part], summary: dict[str, Any] | None = None
) -> None:
    """Writes the index beside the parts, gives their folder its name, and then the sidecar.

    Args:
        content: what the checkpoint holds, with a `TensorSpec` in place of every tensor.

    Raises `StorageError`, TypeError for content that is not plain, `BadDataError` where a part is not there.
    """
    require_state(content)
    place = place_of_parts(path)
    with saving_errors_explained(path, sum(part.bytes for part in parts)):
        written = write_index(place, content, parts)
        take_place(place, path)
        said = Sidecar(path.name, written.bytes, written.sha256, content["step"], summary)
        write_json(sidecar_path(path), asdict(said))
