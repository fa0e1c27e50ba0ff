"""What `dit export` writes, as files: where the weights of a folder lie, and what stands in them beside tensors.

    safetensors   FOLDER/model.safetensors
    diffusers     FOLDER/transformer/diffusion_pytorch_model.safetensors

Either may be in several files with an index. The metadata of each file hold what drawing needs (`METADATA`), so of a
folder nothing else is read: its source files never.
"""

from __future__ import annotations

from pathlib import Path

from dittool.ckpt.load import INDEX_ENDING

PLAIN, DIFFUSERS = Path("model.safetensors"), Path("transformer/diffusion_pytorch_model.safetensors")
METADATA = ("config", "step", "data")  # and `classes` of a generator; JSON


def exported_weights(folder: Path) -> Path | None:
    """The weights of an exported folder, a file or the index of several; None: it is no such folder."""
    files = (folder / place for place in (DIFFUSERS, PLAIN))
    both = (one for file in files for one in (file, file.with_name(file.name + INDEX_ENDING)))
    return next((one for one in both if one.is_file()), None)


def export_folder(weights: Path) -> Path | None:
    """The exported folder that these weights belong to; None: to none."""
    names = {place.name for place in (PLAIN, DIFFUSERS)}
    if weights.name.removesuffix(INDEX_ENDING) not in names:
        return None
    return weights.parent.parent if weights.parent.name == DIFFUSERS.parent.name else weights.parent
