"""Arrays in a zip from a stranger: those of numpy are read to the bit, what could do harm is refused."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from dittool.errors import BadDataError, UnsafeFileError
from dittool.untrusted import npz
from dittool.untrusted.npz import open_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saves_is_read_to_the_bit(tmp_path, save):
    arrays = {"arr_0": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "mu": np.linspace(0, 1, 5)}
    save(tmp_path / "a.npz", **arrays)
    opened = open_npz(tmp_path / "a.npz")
    assert set(opened.members) == set(arrays) and "mu" in opened and "sigma" not in opened
    for name, array in arrays.items():
        read = opened.array(name)
        assert read.dtype == array.dtype and np.array_equal(read, array) and not read.flags.writeable


def test_a_pickle_inside_is_never_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    np.savez(tmp_path / "a.npz", arr_0=np.array([Harm()], dtype=object))
    with pytest.raises(BadDataError, match="not a plain array of numbers"):
        open_npz(tmp_path / "a.npz").array("arr_0")
    assert not (tmp_path / "harm").exists()


def test_a_damaged_array_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((100, 100), np.float32))
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadDataError, match="checksum"):
        open_npz(path).array("arr_0")


def test_what_unfolds_to_too_much_and_names_that_climb_are_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", arr_0=np.zeros(10000, np.uint8))
    monkeypatch.setattr(npz, "_LARGEST_UNFOLDED", 5000)
    with pytest.raises(BadDataError, match="unfolds to 10,128 bytes"):
        open_npz(tmp_path / "a.npz").array("arr_0")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("../arr_0.npy", b"")
    with pytest.raises(UnsafeFileError):
        open_npz(tmp_path / "b.npz")
