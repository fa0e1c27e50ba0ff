"""`.npz` files from strangers: arrays of numbers in a zip, none unpickled, each read when it is asked for.

A stored array, as `numpy.savez` writes it, is mapped, so it may be larger than memory; a deflated one is unfolded, so
it has at most `_LARGEST_UNFOLDED` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dittool.errors import BadDataError, UnsafeFileError, listed
from dittool.untrusted.npy import parse_npy
from dittool.untrusted.zip_members import ZipMember, map_zip_member, read_zip_member, zip_members

_LARGEST_UNFOLDED = 4 << 30
_MOST_ARRAYS = 1000
_HINT = "numpy.savez of plain arrays of numbers writes a file that is read here"


@dataclass(frozen=True)
class Npz:
    """The arrays of one file."""

    path: Path
    members: dict[str, ZipMember]  # by the name of the array

    def __contains__(self, name: str) -> bool:
        return name in self.members

    @property
    def described(self) -> str:
        """The names of the arrays, for a message."""
        return listed([f"'{name}'" for name in self.members]) or "nothing"

    def array(self, name: str) -> np.ndarray:
        """Read only. Raises OSError, `BadDataError` for what is no plain array of numbers."""
        member = self.members[name]
        if member.deflated and member.size > _LARGEST_UNFOLDED:
            raise BadDataError(
                f"{self.path}: '{name}' unfolds to {member.size:,} bytes, packed arrays have at most"
                f" {_LARGEST_UNFOLDED:,}",
                "save it unpacked: numpy.savez, which is mapped and may have any size",
            )
        read = read_zip_member if member.deflated else map_zip_member
        try:
            return parse_npy(read(self.path, member), f"{self.path}: '{name}'")
        except BadDataError as error:
            raise BadDataError(error.message, _HINT) from error


def open_npz(path: Path) -> Npz:
    """The arrays that a file names. Raises OSError, `BadDataError` and `UnsafeFileError`."""
    members = zip_members(path)
    if len(members) > _MOST_ARRAYS:
        raise UnsafeFileError(
            f"{path}: {len(members):,} arrays, an .npz has at most {_MOST_ARRAYS:,}", "do not use this file"
        )
    return Npz(path, {member.name.removesuffix(".npy"): member for member in members if member.name.endswith(".npy")})
