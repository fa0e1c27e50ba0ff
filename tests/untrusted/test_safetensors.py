"""`.safetensors` of others: the header is read by our own strict reader, because the library lets some faults pass."""

from __future__ import annotations

import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from dittool.ckpt.safetensors_file import check_safetensors
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UnsafeFileError
from dittool.untrusted.tensor_spec import TensorSpec
from tests.untrusted.handmade import entry, safetensors
from tests.untrusted.hostile import DUPLICATE, UNSAFE_HEADERS


@pytest.mark.row(56)
def test_honest_safetensors_load(tmp_path):
    tensors = {
        "a": torch.randn(2, 3),
        "b": torch.tensor(True),
        "c": torch.zeros(0),
        "d": torch.randn(4).bfloat16(),
        "e": torch.tensor(1),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"step": "3"})
    header = check_safetensors(tmp_path / "a.safetensors")
    assert header.metadata == {"step": "3"} and header.tensors["a"] == TensorSpec("float32", (2, 3))
    loaded = load_weights(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[name], tensor) for name, tensor in tensors.items()
    )


@pytest.mark.row(56)
@pytest.mark.parametrize("name", UNSAFE_HEADERS)
def test_a_safetensors_header_that_no_writer_makes_is_refused(tmp_path, name):
    header, data, said = UNSAFE_HEADERS[name]
    with pytest.raises(UnsafeFileError, match=said if "|" in said else re.escape(said)):
        load_weights(safetensors(tmp_path / "a.safetensors", header, data))


@pytest.mark.row(56)
def test_the_library_alone_would_have_taken_a_name_twice(tmp_path):
    """The negative control: F32 silently becomes I32."""
    from safetensors.torch import load_file

    assert load_file(safetensors(tmp_path / "a.safetensors", DUPLICATE, bytes(8)))["w"].dtype == torch.int32


@pytest.mark.row(56)
@pytest.mark.parametrize(
    ("header", "data", "length", "said"),
    [
        ({"a": entry()}, bytes(7), None, "cut short"),
        ({"a": entry()}, bytes(8), 2**63, "cut short"),
        ({"a": entry()}, bytes(8), 2**64 - 1, "cut short"),
        ({"a": entry(dtype="F31")}, bytes(8), None, "unknown dtype 'F31'"),
        (b"<!doctype html><html></html>", b"", 0x7079746F64213C3C, "cut short|HTML"),
    ],
)
def test_a_damaged_safetensors_file_gets_one_clear_sentence(tmp_path, header, data, length, said):
    with pytest.raises(BadDataError, match=said):
        load_weights(safetensors(tmp_path / "a.safetensors", header, data, length))


@pytest.mark.row(56)
def test_a_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{")
        file.truncate(100_000_000)
    with pytest.raises(UnsafeFileError, match="header of 99,000,000 bytes"):
        load_weights(path)


def test_a_safetensors_file_under_another_name_is_recognised(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(BadDataError, match="safetensors file under another name"):
        load_weights(tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(BadDataError, match="an empty file"):
        load_weights(tmp_path / "b.safetensors")
