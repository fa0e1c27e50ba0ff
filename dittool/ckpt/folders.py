"""Where the weights are in a folder that another program wrote: a pipeline's, a sharded model's, a trainer's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dittool.ckpt.files import list_checkpoints, resolve_checkpoint
from dittool.ckpt.load import INDEX_ENDING, is_named_as_checkpoint
from dittool.ckpt.sharded import is_sharded
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, UnsafeFileError, listed

# A pipeline's or trainer's folders that hold the network, the first that is there; those of an average come before
_NETWORKS = ("transformer", "unet", "dit", "model", "prior", "denoiser", "checkpoint", "checkpoints", "weights")
_AVERAGED = re.compile(r"(^|[_-])ema([_-]|$)", re.IGNORECASE)
_NO_WEIGHTS = re.compile(
    r"optim|sched|random_state|rng|scaler|training_args|sampler|dl_state|discriminator|lora|trainer"
)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})")
_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")  # of the libraries, before others


@dataclass(frozen=True)
class FolderWeights:
    """A file of weights, or an index of several, or the parts of one that has no index."""

    path: Path
    parts: tuple[Path, ...] = ()
    beside: tuple[str, ...] = ()  # what else of weights the folder holds


def weights_in(folder: Path) -> FolderWeights | None:
    """The weights of the network in a folder; None when there are none.

    Raises `BadDataError` when several have equal claims or a part is missing, `UnsafeFileError` for a folder of
    torch.distributed.checkpoint.
    """
    if any(folder.glob("*.distcp")):
        raise UnsafeFileError(
            f"{folder}: refused without loading it: a folder of torch.distributed.checkpoint,"
            " whose .metadata is a pickle",
            "if it is yours, convert it where it was written: python -m torch.distributed.checkpoint.format_utils"
            " dcp_to_torch FOLDER FILE.pt",
        )
    folders = sorted(
        child.name for child in folder.iterdir() if child.is_dir() and not child.is_symlink() and child.name[0] != "."
    )
    wanted = [name for name in folders if _AVERAGED.search(name)] + [name for name in _NETWORKS if name in folders]
    own = None if (folder / "model_index.json").is_file() else _in_this(folder)
    for name in wanted if own is None or not _AVERAGED.search(own.path.name) else ():
        if (own is None or _AVERAGED.search(name)) and (found := weights_in(folder / name)):
            others = [other for other in folders if other != name] + ([own.path.name] if own else [])
            return FolderWeights(found.path, found.parts, (*found.beside, *others))
    return own


def _in_this(folder: Path) -> FolderWeights | None:
    files = sorted(child for child in folder.iterdir() if not child.is_dir() and not child.name.startswith("."))
    indices = [file for file in files if file.name.endswith(INDEX_ENDING)]
    weights = [file for file in files if is_named_as_checkpoint(file) and not _NO_WEIGHTS.search(file.name.lower())]
    whole = [file for file in weights if not _PART.fullmatch(file.stem)]
    if indices or whole:
        chosen = _first([*indices, *whole], folder)
        return FolderWeights(chosen, (), tuple(file.name for file in [*indices, *whole] if file != chosen))
    return _parts(weights, folder) if weights else None


def _first(files: list[Path], folder: Path) -> Path:
    """The averaged one, the one with a library's name, the only one, or the last of a numbered row."""

    def rank(file: Path) -> tuple[bool, bool, int, int]:
        stem = file.name.removesuffix(INDEX_ENDING).rpartition(".")[0]
        known = _NAMES.index(stem) if stem in _NAMES else len(_NAMES)
        return not _AVERAGED.search(stem), known == len(_NAMES), known, ".safetensors" not in file.name

    best = min(map(rank, files))
    equal = [file for file in files if rank(file) == best]
    if len({re.sub(r"\d+", "#", file.name) for file in equal}) > 1:
        raise BadDataError(
            f"{folder}: {len(equal)} files of weights with equal claims: {listed([file.name for file in equal])}",
            f"name one of them, such as {equal[0]}",
        )
    return max(equal, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def _parts(weights: list[Path], folder: Path) -> FolderWeights:
    """The parts of a model that has no index."""
    found: dict[tuple[str, str, str], list[Path]] = {}
    for file in weights:
        if part := _PART.fullmatch(file.stem):
            found.setdefault((part[1], part[2], file.suffix), []).append(file)
    (name, count, suffix), parts = max(found.items(), key=lambda item: item[0][2] == ".safetensors")
    if len(parts) != int(count):
        raise BadDataError(
            f"{folder}: {len(parts)} of {int(count)} parts of {name}{suffix} are there", "copy or download the others"
        )
    return FolderWeights(parts[0], tuple(parts))


def checkpoint_at(target: Path, talk: Talk = SILENT) -> Path:
    """The checkpoint that a file, a run's folder, or a folder of another program's weights means. Raises `UsageError`
    and `BadDataError`.
    """
    runs = (target, target / "checkpoints")
    if is_sharded(target):
        return target
    if target.is_dir() and not any(map(list_checkpoints, runs)) and weights_in(target):
        return target
    return resolve_checkpoint(target, talk=talk, optional=False)
