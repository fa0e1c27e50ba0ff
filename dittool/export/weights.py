"""Which of a checkpoint's weights leave, in which precision, in how many files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from dittool.ckpt.exported import METADATA
from dittool.ckpt.load import FORMAT_VERSION, INDEX_ENDING, load_checkpoint, non_finite_tensors
from dittool.ckpt.opened import is_weights_alone
from dittool.ckpt.to_draw import load_to_draw
from dittool.ckpt.write import write_safetensors
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, UsageError, listed
from dittool.models.alignment import drawing_weights
from dittool.storage import write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_FILE = 5_000_000_000  # bytes of a file of weights, as diffusers writes them


@dataclass(frozen=True)
class ChosenWeights:
    """A model's tensors for drawing, and what a checkpoint says beside them."""

    tensors: Mapping[str, Tensor]
    name: str  # "ema", "model" or "average 0.05"
    described: Mapping[str, Any]  # `config`, `step`, `data`, and `classes` of a generator

    @property
    def metadata(self) -> dict[str, str]:
        """Of the files: what drawing needs, so that each of them says what it is."""
        told = {key: json.dumps(value) for key, value in self.described.items()}
        return {"format": "pt", "format_version": str(FORMAT_VERSION), "weights": self.name, **told}


def choose_weights(checkpoint: Path, wanted: str) -> ChosenWeights:
    """The weights of a checkpoint, or of an export, that `--weights` asks for: "ema", "model", or the relative width of
    an average that the run has followed.

    Raises `UsageError` for a name that is none of the file's, `BadDataError` and `UnsafeFileError`.
    """
    if is_weights_alone(checkpoint):
        content = load_to_draw(checkpoint)
        held = content.get("weights", "ema")
        there, wanted = {held: content["ema"]}, held if wanted == "ema" else wanted
    else:
        weights = ("ema", "model", "snapshots")
        only = (*METADATA, *weights, "classes", "format_version")
        content = load_checkpoint(checkpoint, require=(*METADATA, *weights[:2]), only=only, lazily=weights)
        averages = content.get("snapshots", {}).get("weights", {})
        there = {"ema": content["ema"], "model": content["model"], **averages}
    if wanted not in there:
        hint = f"this checkpoint has {listed(list(there))}"
        raise UsageError(f"--weights {wanted}: not in {checkpoint}", f"{hint}; for another length: dit average RUN")
    described = {key: content[key] for key in (*METADATA, "classes") if key in content}
    name = f"average {wanted}" if wanted.replace(".", "").isdecimal() else wanted
    return ChosenWeights(drawing_weights(there[wanted]), name, described)


def in_precision(chosen: ChosenWeights, dtype: str, talk: Talk = SILENT) -> dict[str, Tensor]:
    """The tensors in "fp32", "bf16" or "fp16". Raises `BadDataError` where that makes a finite number infinite."""
    cast = {
        name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for name, tensor in chosen.tensors.items()
    }
    broken, before = non_finite_tensors(cast), set(non_finite_tensors(chosen.tensors))
    if overflown := [name for name in broken if name not in before]:
        raise BadDataError(
            f"{len(overflown)} tensors overflow in {dtype}: {listed(overflown)}", "export with --dtype bf16 or fp32"
        )
    if broken:
        talk.warn(f"{len(broken)} of the exported tensors hold NaN or infinity: {listed(broken)}")
    return cast


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], largest: int, talk: Talk = SILENT
) -> None:
    """The tensors as `path`, or, above `largest` bytes, as parts beside it with an index, which is written last.

    Raises OSError and `StorageError` with no file half-written.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{path.stem}{{suffix}}{path.suffix}", max_shard_size=largest
    )
    written: dict[str, str] = {}  # file → its SHA-256
    with talk.progress("weights", len(split.filename_to_tensors), "file") as task:
        for name, held in split.filename_to_tensors.items():
            part = {one: tensors[one] for one in held}
            written[name] = write_safetensors(path.with_name(name), part, metadata).sha256
            task.advance()
    if split.is_sharded:
        index = path.with_name(path.name + INDEX_ENDING)
        told = {"total_size": split.metadata["total_size"], "sha256": written}
        write_json(index, {"metadata": told, "weight_map": split.tensor_to_filename})
