"""Rows 55 and 56: arrays and safetensors that are cut, forged or made to run something."""

from __future__ import annotations

import io
import json
import pickle
import struct

import numpy as np
import pytest

from tests.faults.files import write_tar

# --- row 55: arrays ---


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (__import__("os").mkdir, (str(self.mark),))


def npy(header, body=b""):
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


def saved(array, save=np.save):
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def hostile_arrays(mark):
    plain = saved(np.zeros((64,), np.float16))
    return {
        "object": saved(np.array([Payload(mark)], dtype=object)),
        "raw pickle": pickle.dumps(Payload(mark)),
        "structured": saved(np.array([(Payload(mark),)], dtype=[("a", object)])),
        "zip": saved(np.zeros(3), np.savez),
        "empty": b"",
        "terabytes": npy("{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000,), }", b"\0" * 4),
        "bool shape": npy("{'descr': '<f2', 'fortran_order': False, 'shape': (True,), }", b"\0" * 2),
        "cut": plain[:-1],
        "trailing": plain + b"\0",
        "long header": b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b"{}",
        "code": npy("__import__('os')", b""),
    }


@pytest.mark.row(55)
@pytest.mark.parametrize("kind", list(hostile_arrays("x")))
def test_an_array_that_is_no_plain_array_stops_packing_and_runs_nothing(desk, one_error, kind):
    done = desk.embed().lost_nothing()
    mark = desk.root / "executed"
    path = done.folder / "vae_latents/scene-0002.npy"
    path.write_bytes(hostile_arrays(mark)[kind])
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "vae_latents/scene-0002.npy")
    assert desk.run("audit", done.folder).code == 1
    one_error(desk.run("shard", "--verify", "--out", desk.root / "shards"), 3, "unfinished")
    assert not mark.exists()
    path.unlink()
    desk.embed().lost_nothing()
    assert desk.run("shard", done.folder, "--out", desk.root / "shards").code == 0


@pytest.mark.row(55)
@pytest.mark.parametrize("kind", ["object", "raw pickle", "terabytes", "cut"])
def test_such_an_array_inside_a_shard_is_refused_by_name(desk, tmp_path, readers, kind):
    mark = tmp_path / "executed"
    members = [
        ("a.json", b"{}"),
        *((f"a.{suffix}.npy", hostile_arrays(mark)[kind]) for suffix in ("dinov3", "dinov3_patches", "vae", "t5h")),
    ]
    write_tar(tmp_path / "shards/bucket_128x128/shard-000000.tar", members)
    read = readers(tmp_path / "shards")
    assert {name: outcome.code for name, outcome in read.items()} == {"verify": 1, "audit": 1, "train": 3}
    assert "a.dinov3.npy" in read["verify"].out.replace("\n", "") and not mark.exists()


# --- row 56: safetensors ---


def safetensors(header, body=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = b"\0" * 8
HOSTILE = {  # what → (file, exit code)
    "empty": (b"", 3),
    "no header": (EIGHT[:4], 3),
    "header of 2^63": (safetensors(b"{}", length=2**63), 3),
    "header of 2^64 - 1": (safetensors(b"{}", length=2**64 - 1), 3),
    "header past the end": (safetensors(b"{}", length=100), 3),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), 4),
    "not JSON": (safetensors(b"{no}"), 4),
    "not an object": (safetensors(b"[1]"), 4),
    "5,000 deep": (safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000), 4),
    "leading spaces": (safetensors(b"   " + json.dumps({"a": tensor()}).encode(), EIGHT), 4),
    "a name twice": (
        safetensors(f'{{"a": {json.dumps(tensor())}, "a": {json.dumps(tensor("I32"))}}}'.encode(), EIGHT),
        4,
    ),
    "a key twice inside": (
        safetensors(b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT),
        4,
    ),
    "a name that climbs": (safetensors({"../../etc/x": tensor()}, EIGHT), 4),
    "an absolute name": (safetensors({"/etc/x": tensor()}, EIGHT), 4),
    "no name": (safetensors({"": tensor()}, EIGHT), 4),
    "a name that steers": (safetensors({"\x1b[2J": tensor()}, EIGHT), 4),
    "overlap": (safetensors({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12), 4),
    "hole": (safetensors({"a": tensor(offsets=(8, 16))}, EIGHT * 2), 4),
    "trailing bytes": (safetensors({"a": tensor()}, EIGHT + b"PK\3\4"), 4),
    "cut": (safetensors({"a": tensor()}, EIGHT[:5]), 3),
    "shape that does not fit": (safetensors({"a": tensor(shape=(3,))}, EIGHT), 4),
    "overflowing shape": (safetensors({"a": tensor(shape=(2**62, 4))}, EIGHT), 4),
    "negative": (safetensors({"a": tensor(shape=(-2,))}, EIGHT), 4),
    "end before begin": (safetensors({"a": tensor(offsets=(8, 0))}, EIGHT), 4),
    "unknown dtype": (safetensors({"a": tensor("F31")}, EIGHT), 3),
    "metadata that is no text": (safetensors({"__metadata__": {"a": 1}, "a": tensor()}, EIGHT), 4),
    "true as a size": (safetensors({"a": tensor("F64", shape=(True,))}, EIGHT), 4),
}


@pytest.mark.row(56)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_safetensors_file_is_refused_by_every_command(desk, one_error, shards, tiny_shards, what):
    raw, code = HOSTILE[what]
    path = desk.root / "weights.safetensors"
    path.write_bytes(raw)
    for arguments in (("inspect-ckpt", path), ("audit", path)):
        line = one_error(desk.run(*arguments), code, "weights.safetensors")
        assert line.isprintable()
    options = [part for override in tiny_shards.overrides for part in ("-s", override)]
    command = ("train", "--preset", "demo", "--no-audit", "--data", shards, "--out", desk.root / "run", "--init", path)
    one_error(desk.run(*command, *options), code, "weights.safetensors")
    assert not list((desk.root / "run").rglob("*.pt"))


@pytest.mark.row(56)
def test_nan_in_a_safetensors_file_is_reported_by_name(desk):
    path = desk.root / "weights.safetensors"
    path.write_bytes(
        safetensors({"sound": tensor(), "sick": tensor(offsets=(8, 16))}, EIGHT + struct.pack("<ff", 1.0, float("nan")))
    )
    inspected = desk.run("inspect-ckpt", path, "--json")
    assert inspected.code == 0 and json.loads(inspected.out)["non_finite"] == ["sick"]
    audited = desk.run("audit", path)
    assert audited.code == 1 and "sick" in audited.out
