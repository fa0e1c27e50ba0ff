"""`NAME.safetensors.index.json` and `NAME.bin.index.json`: which file of a folder holds which tensor.

The names of files come from a stranger: each must be a plain name of a file of weights beside the index, and a link may
only lead to where a cache of the Hugging Face hub keeps its files (`snapshots/REVISION/NAME` → `blobs/HASH`).
"""

from __future__ import annotations

import re
from pathlib import Path

from dittool.errors import BadDataError
from dittool.untrusted.bounded_json import read_bounded_json
from dittool.untrusted.refusal import unsafe

_LARGEST = 4 << 20  # bytes; ten thousand tensors take about one megabyte
_FILE = re.compile(r"[A-Za-z0-9][\w.+ -]{0,200}\.(safetensors|bin|pt|pth|ckpt)", re.ASCII)


def read_index(path: Path) -> dict[str, str]:
    """Names of tensors → names of files in the same folder.

    Raises `BadDataError` for what is no such index, `UnsafeFileError` for one that no writer makes.
    """
    index, _ = read_bounded_json(path, _LARGEST, "copy or download it again")
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict):
        raise BadDataError(f"{path}: no index of weights: it has no weight_map", "name a file that ends in .index.json")
    for name, file_name in files.items():
        if not isinstance(file_name, str) or not _FILE.fullmatch(file_name):
            raise unsafe(path, f"tensor {name!r:.100} in the file {file_name!r:.100}")
    return files


def require_beside(path: Path, folder: Path) -> Path:
    """The file in the folder, when it lies there or, by a link, in the folder's cache. Raises `UnsafeFileError`."""
    if path.is_symlink():
        target, home = path.resolve(), folder.resolve()
        in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
        if target.parent != home and not in_cache:
            raise unsafe(path, f"a link that leads out of its folder, to {target}")
    return path
