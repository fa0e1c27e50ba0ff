"""Checkpoints written byte by byte, as torch and safetensors write them and as somebody hostile might."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from pathlib import Path


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def pt(path: Path, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A `.pt` with this pickle and these storages."""
    members = {
        "a/data.pkl": program,
        "a/version": b"3\n",
        **{f"a/data/{key}": data for key, data in (storages or {}).items()},
    }
    return archive(path, members)


def legacy(
    path: Path,
    content: bytes,
    storages: dict[str, bytes] | None = None,
    magic: object = 0x1950A86A20F9469CFC6C,
    version: object = 1001,
    machine: object = None,
    keys: object = None,
) -> Path:
    """A `.pt` as PyTorch wrote it before 1.6, with this pickle and these storages of four-byte numbers."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if machine is None else machine
    keys = list(storages or {}) if keys is None else keys
    head = b"".join(pickle.dumps(part, 2) for part in (magic, version, machine))
    data = b"".join(struct.pack("<q", len(data) // 4) + data for data in (storages or {}).values())
    path.write_bytes(head + content + pickle.dumps(keys, 2) + data)
    return path


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = (
        value.to_bytes(255, "little", signed=True)
        if value.bit_length() > 64
        else value.to_bytes(9, "little", signed=True)
    )
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(location) + number(count) + b"tQ"


def tensor(store: bytes, offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + store
        + number(offset)
        + numbers(*shape)
        + numbers(*stride)
        + b"\x89"
        + hooks
        + b"tR"
    )


FOUR_FLOATS = {"0": bytes(16)}


def honest_members() -> dict[str, bytes]:
    return {
        "a/data.pkl": program(b"}" + text("w") + tensor(storage()) + b"s"),
        "a/version": b"3\n",
        "a/data/0": bytes(16),
    }


def rewritten(raw: bytes, signature: bytes, offset: int, form: str, value: int, which: int = 0) -> bytes:
    """The archive's bytes with one field of its `which`-th header of a kind changed."""
    position = [match.start() for match in re.finditer(re.escape(signature), raw)][which] + offset
    return raw[:position] + struct.pack(form, value) + raw[position + struct.calcsize(form) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def safetensors(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int = 0, end: int = 8, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
