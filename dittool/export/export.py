"""From a checkpoint to a folder for others: whole under its name, or not there at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dittool.ckpt.exported import DIFFUSERS, PLAIN, exported_weights
from dittool.ckpt.files import run_folder
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.errors import UsageError, listed
from dittool.export.card import About, Picture, cell, write_card
from dittool.export.diffusers_folder import write_folder
from dittool.export.torch_programs import PROGRAMS, write_programs
from dittool.export.weights import LARGEST_FILE, choose_weights, in_precision, write_weights
from dittool.families.family import family_of
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.picture_file import write_picture
from dittool.storage import TEMPORARY_PREFIX, output_folder, sync_folder

SAFETENSORS, IN_DIFFUSERS, PROGRAMS_ALONE = "safetensors", "diffusers", "torch-export"
_MOST_PICTURES = 6
# what an export may hold, at the top
_OURS = (*PROGRAMS, "nulls.safetensors", "README.md", "model_index.json", "scheduler", "transformer", "samples")


@dataclass(frozen=True)
class ExportRequest:
    """What `dit export` was asked for."""

    checkpoint: Path
    out: Path  # a folder
    form: str = IN_DIFFUSERS  # or SAFETENSORS or PROGRAMS_ALONE
    weights: str = "ema"  # or "model", or the relative width of an average
    dtype: str = "fp32"
    largest_file: int = LARGEST_FILE  # bytes of a file of weights; above it there are several
    prompts: Sequence[str] = ()  # to draw pictures for the card from
    licence: str | None = None  # of the weights, as the hub names it
    repository: str | None = None  # on the hub, that the card names
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
    if request.form == PROGRAMS_ALONE and (request.dtype != "fp32" or request.prompts):
        raise UsageError(
            "--format torch-export: programs compute in fp32 and draw no pictures", "leave --dtype and --prompt out"
        )
    chosen = choose_weights(request.checkpoint, request.weights)
    tensors = in_precision(chosen, request.dtype, talk)
    config = config_from_dict(chosen.described["config"], str(request.checkpoint))
    with _whole_folder(request.out) as folder:
        pipeline = family_of(config).pipeline(request.checkpoint)
        parts = pipeline.for_diffusers() if request.form == IN_DIFFUSERS else None
        if request.form == PROGRAMS_ALONE:
            pipeline.model.load_state_dict(tensors)
            write_programs(folder, pipeline, talk)
        else:
            prefix, place = (parts.prefix, DIFFUSERS) if parts else ("", PLAIN)
            named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
            write_weights(folder / place, named, chosen.metadata, request.largest_file, talk)
        if parts:
            write_folder(folder, parts, {card.kind: card for card in pipeline.data.card.encoders})
        about = About(
            name=(request.repository or request.out.name).rpartition("/")[2],
            config=config,
            data=pipeline.data,
            classes=chosen.described.get("classes", ()),
            step=chosen.described["step"],
            weights=chosen.name,
            dtype=request.dtype,
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            kind=parts.kind if parts else None,
            run=run_folder(request.checkpoint),
            programs=request.form == PROGRAMS_ALONE,
            pictures=_pictures(folder, config, request.prompts, talk),
            licence=request.licence,
            repository=request.repository,
        )
        write_card(folder, about)
        _warn_of_local_encoders(pipeline.data, talk)
    files = tuple(sorted(path for path in request.out.rglob("*") if path.is_file()))
    return Exported(request.out, files, chosen.name, chosen.described["step"])


def _pictures(folder: Path, config: AnyConfig, prompts: Sequence[str], talk: Talk) -> list[Picture]:
    """Drawn with the exported weights: of each prompt, or of a generator's first classes."""
    weights = exported_weights(folder)
    if weights is None:  # programs alone
        return []
    pipeline = family_of(config).pipeline(weights)
    words = list(pipeline.classes[:_MOST_PICTURES]) if isinstance(pipeline, OneStepPipeline) else list(prompts)
    drawn = []
    with talk.progress("pictures", len(words), "image") as task:
        for number, text in enumerate(words):
            (image,) = pipeline(text, seed=0)
            path = output_folder(folder / "samples") / f"picture_{number}.png"
            write_picture(path, image)
            drawn.append(Picture(path.relative_to(folder).as_posix(), cell(text)))
            task.advance()
    return drawn


def _warn_of_local_encoders(data: Provenance, talk: Talk) -> None:
    for card in data.card.encoders:
        if card.revision == "local":
            talk.warn(
                f"the {card.kind} encoder is '{card.id}', a folder or file of this disk: who loads the export needs it"
                " at the same place; its path stands in the card and in model_index.json"
            )


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
    known = exported_weights(out) is not None or any((out / name).is_file() for name in PROGRAMS)
    if not known or strangers:
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
