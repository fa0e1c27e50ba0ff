"""Loading pretrained weights from a local folder or a hub id, whole or not at all, and saying exactly what is missing
when they are not there.

The libraries are content with less than we are: a tensor that a file lacks is drawn at random with a warning, and a
damaged file raises whatever its reader raises. Here each of these is one `DitError` that names the weights, the reason,
and the command that helps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dittool.ckpt.safetensors_file import check_safetensors
from dittool.devices import device_of_choice
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import BadDataError, DitError, UsageError, WeightsMissingError, from_os_error
from dittool.nearest import did_you_mean
from dittool.shell import quoted
from dittool.storage import read_json
from dittool.whereabouts import find

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_SUBSTITUTES = {
    "image": ("facebook/dinov2-large", "patch 14"),
    "text": ("google/t5-v1_1-base", "width 768"),
    "vae": ("madebyollin/taef1", "16 channels, a small approximation of the Flux VAE"),
}
_BUILTIN = {"image": "builtin:dinov3", "text": "builtin:words", "vae": "builtin:dct"}
_WEIGHT_FILES = {"image": "model", "text": "model", "vae": "diffusion_pytorch_model"}
_SHOWN = 5

Loaded = TypeVar("Loaded")


def load_pretrained(kind: str, name: str, load: Callable[[bool], Loaded]) -> Loaded:
    """Loads from this disk when the weights are there, else from the hub; every way of not getting them is one
    `WeightsMissingError`.

    Args:
        kind: "image", "text" or "vae": which key of `[encoders]` named the weights.
        name: hub id or local folder.
        load: called with `local_files_only`. Its `DitError`s pass.

    Raises `WeightsMissingError`, and `BadDataError` naming the file when weights in a local folder are cut short or
    damaged.
    """
    local = Path(name).expanduser()
    if not local.exists() and (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".safetensors")
    ):
        raise WeightsMissingError(
            f"encoders.{kind}: {name}: no such folder or file", did_you_mean(local, "check the path, or name a hub id")
        )
    return _load_folder(kind, name, local, load) if local.exists() else _load_hub(kind, name, load)


def _load_folder(kind: str, name: str, local: Path, load: Callable[[bool], Loaded]) -> Loaded:
    files, absent = _weight_files(kind, local)
    if absent:
        raise WeightsMissingError(
            f"encoders.{kind}: {local}: {len(absent)} of {len(files) + len(absent)} parts are missing, the first is"
            f" {absent[0].name}",
            "fetch the rest: run the same download again",
        )
    for file in files:
        check_safetensors(file)
    try:
        return load(True)
    except Exception as error:
        _pass_on(error)
        raise WeightsMissingError(
            f"encoders.{kind}: cannot load '{name}': {_first_line(error)}", _folder_hint(kind)
        ) from error


def _load_hub(kind: str, name: str, load: Callable[[bool], Loaded]) -> Loaded:
    snapshot = _snapshot(name)
    try:
        for file in _weight_files(kind, snapshot)[0] if snapshot else []:
            check_safetensors(file)
        return load(True)
    except BadDataError as error:
        raise _damaged_copy(kind, name, error.message) from error
    except Exception as error:
        _pass_on(error)
        # those are how the libraries say that it is not here
        if not isinstance(error, (OSError, ValueError, KeyError)):
            raise _damaged_copy(kind, name, _first_line(error)) from error
    if refusal := _hub_refusal(name):
        raise WeightsMissingError(f"encoders.{kind}: cannot load '{name}': {refusal}", _hub_hint(kind, name))
    try:
        return load(False)
    except Exception as error:
        _pass_on(error)
        raise WeightsMissingError(
            f"encoders.{kind}: cannot load '{name}': {_first_line(error)}", _hub_hint(kind, name)
        ) from error


def _damaged_copy(kind: str, name: str, why: str) -> WeightsMissingError:
    return WeightsMissingError(
        f"encoders.{kind}: the copy of '{name}' on this disk is damaged: {why}",
        _hub_hint(kind, name, "--force-download"),
    )


def place_of_weights(name: str) -> str:
    """A card's id; of a local folder in a project that was moved, where it is now. Callers compare the weights'
    hash.
    """
    if not name.startswith(("/", ".", "~")):
        return name
    return str(find(name, Path.cwd()) or name)


def location_of(name: str) -> str:
    """What to hand to `from_pretrained`: the folder, with `~` spelled out, or the hub id."""
    local = Path(name).expanduser()
    return str(local) if local.exists() else name


def torch_cached(name: str) -> Path:
    """Where torch keeps a published file of weights, be it there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def revision_of(name: str) -> str:
    """The hub's commit of the weights that were loaded, "local" for a folder."""
    if Path(name).expanduser().exists():
        return "local"
    snapshot = _snapshot(name)
    return snapshot.name if snapshot else "unknown"


def load_transformer(kind: str, name: str, dtype: str, model_class: Any) -> nn.Module:
    """A network of transformers with all of its weights. `model_class`: whose `from_pretrained` builds it.

    Raises `WeightsMissingError`, and `BadDataError` for damaged weights.
    """
    model, info = load_pretrained(
        kind,
        name,
        lambda local: model_class.from_pretrained(
            location_of(name), dtype=DTYPES[dtype], local_files_only=local, output_loading_info=True
        ),
    )
    require_all_loaded(kind, name, info)
    return model


def require_all_loaded(kind: str, name: str, info: Mapping[str, Any]) -> None:
    """Refuses a model of which tensors were not in the file: the library filled them with random numbers.

    Args:
        info: the second result of `from_pretrained(…, output_loading_info=True)`.
    """
    if missing := sorted(info["missing_keys"]):
        raise WeightsMissingError(
            f"encoders.{kind}: '{name}' lacks {len(missing)} of the model's tensors, the first:"
            f" {', '.join(missing[:_SHOWN])}",
            "the weights belong to another architecture than config.json says, or were cut: fetch them again",
        )
    if registers := [key for key in info["unexpected_keys"] if "register" in key]:
        raise BadDataError(
            f"encoders.{kind}: '{name}' has the tensor {registers[0]}, but its config.json describes a model without"
            " register tokens",
            "restore the config.json that belongs to these weights: fetch both again",
        )


def require_model_type(kind: str, name: str, known: Mapping[str, str]) -> str:
    """The `model_type` of a model of transformers. Refuses one that is not of the known architectures, by its config
    alone. `known` maps `model_type` to what people call it.
    """
    ensure_torchvision()
    import transformers

    quiet(transformers)
    source = location_of(name)
    config = load_pretrained(
        kind, name, lambda local: transformers.AutoConfig.from_pretrained(source, local_files_only=local)
    )
    found = str(getattr(config, "model_type", "") or "nothing")
    if found not in known:
        raise UsageError(
            f"encoders.{kind}: '{name}' is of the type '{found}', not one of {', '.join(known)}",
            f"name {' or '.join(dict.fromkeys(known.values()))}, for example -s"
            f" encoders.{kind}={_SUBSTITUTES[kind][0]}",
        )
    return found


def quiet(library: Any) -> None:
    """Keeps the load reports and bars of transformers or diffusers off the terminal: what matters in them is an
    error of ours.
    """
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class FrozenNetwork:
    """A network for inference, where it runs, and in what its parameters are."""

    model: Any  # the library's class: its inputs and outputs differ from one to the next
    weights: str  # `weights_hash`
    dtype: torch.dtype
    device: torch.device


def frozen(model: nn.Module, dtype: str) -> FrozenNetwork:
    """The network on the device of choice, its parameters in `dtype` ("fp32" or "bf16"), never in training mode.

    Buffers stay as they are: DINOv3's rotary frequencies in bf16 would misplace the far patches of a large image.
    """
    _cast(model, DTYPES[dtype])
    model.eval().requires_grad_(False)
    weights, device = weights_hash(model), device_of_choice()
    return FrozenNetwork(model.to(device), weights, DTYPES[dtype], device)


@contextmanager
def in_fp32(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Computes in fp32 for a while, then goes back to `dtype`. bf16 → fp32 → bf16 gives every weight back bit by
    bit.
    """
    _cast(model, torch.float32)
    try:
        yield
    finally:
        _cast(model, dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers: the same weights give the same hash
    anywhere.

    Goes tensor by tensor: nothing is copied for a model on the CPU, one tensor at a time for one on a GPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. Through pinned memory, so that a GPU copies while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_cpu(tensor: Tensor) -> Tensor:
    """A device's tensor on the CPU in float32. It travels in its own dtype, through pinned memory: several times
    faster than pageable.
    """
    if tensor.device.type == "cuda":
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        tensor = pinned
    return tensor.float()


def _weight_files(kind: str, local: Path) -> tuple[list[Path], list[Path]]:
    """The `.safetensors` files that a library would read from a folder: those that are there, and those that its
    index names in vain.
    """
    folder = local / "vae" if kind == "vae" and (local / "vae").is_dir() else local
    in_one_file, index = (
        folder / f"{_WEIGHT_FILES[kind]}.safetensors",
        folder / f"{_WEIGHT_FILES[kind]}.safetensors.index.json",
    )
    if in_one_file.is_file():
        return [in_one_file], []
    files = [folder / part for part in _parts_of(index)] if index.is_file() else []
    return [file for file in files if file.is_file()], [file for file in files if not file.is_file()]


def _parts_of(index: Path) -> list[str]:
    content = read_json(index)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(part, str) and Path(part).name == part for part in parts.values())
    ):
        raise BadDataError(f"{index}: no weight_map of file names", "fetch the file again")
    return sorted(set(parts.values()))


def _pass_on(error: Exception) -> None:
    """Lets through what is not about missing weights: errors that already say what to do, a full disk, exhausted
    memory.
    """
    if isinstance(error, (DitError, MemoryError)) or (isinstance(error, OSError) and from_os_error(error)):
        raise error


def _folder_hint(kind: str) -> str:
    files = f"config.json and {_WEIGHT_FILES[kind]}.safetensors" + (
        " and the tokenizer's files" if kind == "text" else ""
    )
    return f"the folder must hold {files}, as save_pretrained writes them and hf download fetches them"


def _hub_hint(kind: str, name: str, option: str = "") -> str:
    substitute, remark = _SUBSTITUTES[kind]
    parts = " --include 'vae/*'" if kind == "vae" and name.startswith("black-forest-labs/") else ""
    fetch = f"hf download {quoted(name)}{parts} {option}".rstrip()
    others = f"ungated and usable at once: -s encoders.{kind}={substitute} ({remark}); " if substitute != name else ""
    return (
        f"fetch it where there is a network: {fetch}; {others}a stand-in without weights: -s"
        f" encoders.{kind}={_BUILTIN[kind]}"
    )


def _snapshot(name: str) -> Path | None:
    """The folder of the hub's cache in which this repository's files lie, named by their commit; None when nothing
    was fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for place in ("config.json", "vae/config.json"):
        try:
            cached = try_to_load_from_cache(name, place)
        except HFValidationError:
            return None
        if isinstance(cached, str):
            return Path(cached).parents[place.count("/")]
    return None


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
    """The library's own words, with its kind of error where they alone say little (`KeyError: 'weight'`)."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, OSError) and line else f"{type(error).__name__}: {line}"
