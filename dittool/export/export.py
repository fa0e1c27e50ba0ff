"""From a checkpoint to a folder for others: whole under its name, or not there at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dittool.ckpt.exported import DIFFUSERS, PLAIN, exported_weights
from dittool.config.load import config_from_dict
from dittool.console import SILENT, Talk
from dittool.errors import UsageError, listed
from dittool.export.diffusers_folder import write_folder
from dittool.export.weights import LARGEST_FILE, choose_weights, in_precision, write_weights
from dittool.families.family import family_of
from dittool.storage import TEMPORARY_PREFIX, output_folder, sync_folder

SAFETENSORS, IN_DIFFUSERS = "safetensors", "diffusers"
FORMATS = (IN_DIFFUSERS, SAFETENSORS)
_OURS = ("README.md", "model_index.json", "scheduler", "transformer", "samples")  # what an export may hold, at the top


@dataclass(frozen=True)
class ExportRequest:
    """What `dit export` was asked for."""

    checkpoint: Path
    out: Path  # a folder
    form: str = IN_DIFFUSERS  # one of FORMATS
    weights: str = "ema"  # or "model", or the relative width of an average
    dtype: str = "fp32"
    largest_file: int = LARGEST_FILE  # bytes of a file of weights; above it there are several
    force: bool = False  # replace an export that stands there


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[Path, ...]
    weights: str
    step: int

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def export(request: ExportRequest, talk: Talk = SILENT) -> Exported:
    """Writes the folder. Raises `UsageError`, `BadDataError`, `UnsafeFileError`, and `StorageError` with nothing left
    behind.
    """
    require_place(request.out, request.checkpoint, request.force)
    chosen = choose_weights(request.checkpoint, request.weights)
    tensors = in_precision(chosen, request.dtype, talk)
    with _whole_folder(request.out) as folder:
        if request.form == IN_DIFFUSERS:
            config = config_from_dict(chosen.described["config"], str(request.checkpoint))
            pipeline = family_of(config).pipeline(request.checkpoint)
            parts = pipeline.for_diffusers()
            named = {f"{parts.prefix}{name}": tensor for name, tensor in tensors.items()}
            write_weights(folder / DIFFUSERS, named, chosen.metadata, request.largest_file, talk)
            write_folder(folder, parts, {card.kind: card for card in pipeline.data.card.encoders})
        else:
            write_weights(folder / PLAIN, tensors, chosen.metadata, request.largest_file, talk)
    files = tuple(sorted(path for path in request.out.rglob("*") if path.is_file()))
    return Exported(request.out, files, chosen.name, chosen.described["step"])


def require_place(out: Path, checkpoint: Path, force: bool) -> None:
    """Raises `UsageError` unless `out` can become an export: nothing is there, or an earlier one that may go."""
    if out.suffix.lower() == ".safetensors":
        raise UsageError(
            f"--out {out}: an export is a folder", f"--out {out.with_suffix('')}; one file: dit inspect-ckpt --export"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    if out.resolve() in checkpoint.resolve().parents:
        raise UsageError(f"--out {out}: the checkpoint {checkpoint} lies in it", "name another folder")
    strangers = [path.name for path in sorted(out.iterdir()) if not _is_ours(path)]
    if exported_weights(out) is None or strangers:
        found = f"it holds {listed(strangers or os.listdir(out), 3)}"
        raise UsageError(f"--out {out}: a folder that dit export did not write: {found}", "name a new folder")
    if not force:
        raise UsageError(
            f"--out {out}: an export stands there already", "name a new folder, or replace it with --force"
        )


def _is_ours(path: Path) -> bool:
    weights, sources = path.name.startswith(PLAIN.stem), path.name.startswith("pipeline_") and path.suffix == ".py"
    return path.name in _OURS or weights or sources


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when all of it is written, in the place of an earlier export."""
    output_folder(out.parent)
    made = out.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    made.mkdir()
    try:
        yield made
        if out.exists():
            before = out.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
            os.replace(out, before)
            os.replace(made, out)
            shutil.rmtree(before)
        else:
            os.replace(made, out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    sync_folder(out.parent)
