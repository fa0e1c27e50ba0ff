"""The codec behind a name in `encoders.vae`: built in, from the hub or a folder, or a single file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dittool.encoders.builtin import OURS, THEIRS, BlockDCT, built_in, plugin_encoder
from dittool.encoders.codec import PretrainedCodec, autoencoder_class
from dittool.encoders.interfaces import LatentCodec
from dittool.encoders.pretrained import load_pretrained, location_of, quiet, require_all_loaded
from dittool.encoders.single_file import load_single_file
from dittool.encoders.torchvision_remedy import ensure_torchvision

BUILT_IN: dict[str, Callable[[str], LatentCodec]] = {
    "builtin:dct": BlockDCT,
}


def load_codec(name: str) -> LatentCodec:
    """A built-in codec, a plugin's (made from name), a hub id or a local folder (its `vae` subfolder where it has one),
    or a single `.safetensors` file.

    Raises `WeightsMissingError`, `UsageError` for a class that is none of `AUTOENCODERS`, `BadDataError` and
    `UnsafeFileError` for damaged files.
    """
    if name.startswith(OURS):
        return built_in("vae", name, BUILT_IN)(name)
    if name.startswith(THEIRS):
        theirs: LatentCodec = plugin_encoder("vae", name)(name)
        return theirs
    ensure_torchvision()
    import diffusers

    quiet(diffusers)
    local = Path(name).expanduser()
    if local.is_file():
        return PretrainedCodec(load_single_file(local), name, "local")
    (model, info), commit = load_pretrained("vae", name, lambda local_only: _from_pretrained(name, local_only))
    require_all_loaded("vae", name, info)
    return PretrainedCodec(model, name, commit or "local")


def _from_pretrained(name: str, local_only: bool) -> tuple[Any, str | None]:
    """((model, loading info), commit on the hub). The autoencoder of a pipeline lies in its `vae` folder, one of
    its own at the top.
    """
    from diffusers import AutoencoderKL

    source = location_of(name)
    folders = ["vae", None]
    if Path(source).is_dir():
        folders = ["vae"] if (Path(source) / "vae").is_dir() else [None]
    for folder in folders:
        try:
            config, _, commit = AutoencoderKL.load_config(
                source,
                subfolder=folder,
                local_files_only=local_only,
                return_unused_kwargs=True,
                return_commit_hash=True,
            )
        except OSError:
            if folder is folders[-1]:
                raise
            continue
        # One commit for the config and the weights, even when the repository changes between the two.
        pinned = {"revision": commit} if commit else {}
        options = {
            "subfolder": folder,
            "local_files_only": local_only,
            "low_cpu_mem_usage": False,
            "output_loading_info": True,
            **pinned,
        }
        return autoencoder_class(config, name).from_pretrained(source, **options), commit
    raise AssertionError("folders is never empty")
