"""A `.safetensors` file: checked by its header, read by the library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from dittool.ckpt.file_kind import open_regular, other_kind, require_bools
from dittool.errors import BadDataError
from dittool.untrusted.safetensors_header import SafetensorsHeader, read_header


def check_safetensors(path: Path) -> SafetensorsHeader:
    """The header of a `.safetensors` file after every check that needs no tensor. Raises `BadDataError` and
    `UnsafeFileError`.
    """
    with open_regular(path) as file:
        head = file.read(64)
        if head.startswith(b"PK\x03\x04"):
            raise BadDataError(
                f"{path}: a zip archive, as torch.save writes, and not a safetensors file", "rename it to end in .pt"
            )
        if (other := other_kind(head)) or not head:
            raise BadDataError(
                f"{path}: {other or 'an empty file'}, not a safetensors file",
                "name another file, or fetch this one again",
            )
        file.seek(0)
        header = read_header(file, path)
        for name, spec in header.tensors.items():
            if spec.dtype == "bool":
                require_bools(file, header.offsets[name], spec.bytes, f"tensor {name!r:.200}", path)
    return header


def load_safetensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a file that passed `check_safetensors`: of these names, or all."""
    with safetensors_errors_explained(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


@contextmanager
def safetensors_errors_explained(path: Path) -> Iterator[None]:
    """Inside, what the library raises is a `BadDataError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # SafetensorError is not a common base of what torch raises while copying
        raise BadDataError(
            f"{path}: safetensors cannot read it: {error}", "the file is damaged; fetch or export it again"
        ) from error
