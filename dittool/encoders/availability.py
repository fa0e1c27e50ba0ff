"""Which weights a preset needs, which of them are on this disk, and how to get the others: half of `dit doctor`."""

from __future__ import annotations

from pathlib import Path

from dittool.encoders.known import is_gated
from dittool.machine import BITES, NOTE, OK, Finding
from dittool.shell import command_line

_IN_A_PIPELINE = ("black-forest-labs/", "Alpha-VLLM/")  # whose autoencoder is one folder of much more


def weights(names: dict[str, str], have_shards: bool) -> list[Finding]:
    """A finding for each encoder of `[encoders]`. Nothing is fetched, and no network is asked.

    Args:
        names: by "image", "text", "vae".
        have_shards: features are there, so that only drawing needs the encoders.
    """
    return [_of_one(kind, name, have_shards) for kind, name in names.items()]


def _of_one(kind: str, name: str, have_shards: bool) -> Finding:
    check = f"weights: {kind}"
    if name.startswith("builtin:"):
        return Finding(check, OK, f"{name}: built in, nothing to fetch")
    if name.startswith("plugin:"):
        return Finding(check, OK, f"{name}: of another package, which knows what it needs")
    if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        there = Path(name).expanduser().exists()
        what = f"{name}: a {'path' if there else 'path that is not there'}"
        remedy = "" if there else f"check it, or name a hub id: -s encoders.{kind}=NAME"
        return Finding(check, OK if there else BITES, what, remedy)
    if _is_cached(kind, name):
        return Finding(check, OK, f"{name}: in the hub's cache")
    return _missing(check, kind, name, have_shards)


def _missing(check: str, kind: str, name: str, have_shards: bool) -> Finding:
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    gated, parts = is_gated(name), ["--include", "vae/*"] if kind == "vae" and name.startswith(_IN_A_PIPELINE) else []
    fetch = f"{command_line('hf', 'download', name, *parts)}"
    what = f"{name}: not on this disk" + (", and gated" if gated else "")
    if HF_HUB_OFFLINE:
        what += "; HF_HUB_OFFLINE forbids to fetch it"
    remedy = f"where there is a network: {fetch}"
    if gated:
        account = "" if get_token() else " and run: hf auth login"
        remedy = f"accept its terms on https://huggingface.co/{name}{account}; then {remedy}"
        remedy += "; without an account: --preset nano-open or base-open"
    cannot = bool(HF_HUB_OFFLINE or (gated and not get_token()))
    return Finding(check, BITES if cannot and not have_shards else NOTE, what, remedy)


def _is_cached(kind: str, name: str) -> bool:
    """Whether config and weights lie in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    stems = ("vae/diffusion_pytorch_model", "diffusion_pytorch_model") if kind == "vae" else ("model",)
    files = [f"{stem}{ending}" for stem in stems for ending in (".safetensors", ".safetensors.index.json")]
    files += [] if kind == "vae" else ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:
        return False
