"""Rows 49 to 56: tars, arrays and safetensors that are cut, forged or made to run something. Nothing here may be
loaded, run or left unnoticed.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

import dittool
from dittool.untrusted.tar import tar_members

BLOCK = 512


@pytest.fixture
def readers(desk, tiny_shards):
    """`readers(shards)`: what each command that reads shards says of them, by its name; a training that starts is a
    tiny one.
    """
    options = [part for override in tiny_shards.overrides for part in ("-s", override)]

    def read(shards):
        return {
            "verify": desk.run("shard", "--verify", "--out", shards),
            "audit": desk.run("audit", shards),
            "train": desk.run("train", "--preset", "demo", "--data", shards, "--out", desk.root / "run", *options),
        }

    return read


@pytest.fixture
def refused(readers, one_error):
    """`refused(shards, code, "word")`: verify and train end with this code and say the word, the audit fails, and
    no run was begun.
    """

    def check(shards, code, *words):
        read = readers(shards)
        for name in ("verify", "train"):
            one_error(read[name], code, *words)
        assert read["audit"].code in (1, code), read["audit"].err
        assert not list(shards.parent.glob("run/checkpoints/*"))

    return check


def first_tar(shards):
    return min(shards.glob("bucket_*/shard-*.tar"))


def write_tar(path, members, **changes):
    """A tar of (name, bytes); `changes` are set on each member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if changes.get("type") else len(raw)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(raw))
    return path


def members_of(path):
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


# --- rows 49 to 53: tars ---


@pytest.mark.row(49)
def test_a_tar_cut_between_two_members_is_noticed_by_every_command(shards, refused):
    path = first_tar(shards)
    path.write_bytes(path.read_bytes()[: tar_members(path)[5].offset - BLOCK])
    refused(shards, 3, path.name, "the index says")


@pytest.mark.row(49)
def test_without_an_index_the_missing_end_is_noticed(older_shards, refused):
    path = first_tar(older_shards)
    path.write_bytes(path.read_bytes()[: tar_members(path)[5].offset - BLOCK])
    refused(older_shards, 3, path.name, "without the two zero blocks")


@pytest.mark.row(49)
def test_cut_at_every_block_a_tar_is_refused_with_and_without_its_index(desk, shards, one_error):
    path = first_tar(shards)
    raw = path.read_bytes()
    closing = len(raw.rstrip(b"\0"))
    for end in range(0, closing + BLOCK, BLOCK):
        path.write_bytes(raw[:end])
        one_error(desk.run("shard", "--verify", "--out", shards, "-q"), 3, path.name)
        with pytest.raises(dittool.errors.BadDataError, match=path.name):
            tar_members(path)
    path.write_bytes(raw)
    assert desk.run("shard", "--verify", "--out", shards, "-q").code == 0


@pytest.mark.row(49)
def test_a_tar_that_is_gone_is_missed(shards, refused):
    path = first_tar(shards)
    path.unlink()
    refused(shards, 3, path.name, "missing")


def damaged(raw, kind):
    """A tar with one fault."""
    raw = bytearray(raw)
    if kind == "garbage":
        raw[:] = b"no tar at all " * 1000
    elif kind == "no end":
        raw = raw[: -(-len(raw.rstrip(b"\0")) // BLOCK) * BLOCK]
    elif kind == "bad checksum":
        raw[0] ^= 1
    elif kind in ("huge size", "negative size"):
        raw[124:136] = b"77777777777\0" if kind == "huge size" else b"\xff" * 12  # base 256: minus one
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw[:BLOCK])
    elif kind == "one zero block":
        raw = bytes(BLOCK) + raw
    return bytes(raw)


@pytest.mark.row(50)
@pytest.mark.parametrize("kind", ["garbage", "no end", "bad checksum", "huge size", "one zero block"])
def test_a_damaged_tar_is_refused_with_its_place(older_shards, refused, kind):
    path = first_tar(older_shards)
    path.write_bytes(damaged(path.read_bytes(), kind))
    refused(older_shards, 3, f"{path}: damaged tar at byte ")


@pytest.mark.row(50)
@pytest.mark.parametrize("raw", [b"", bytes(10240)], ids=["no bytes", "only zeros"])
def test_a_set_of_empty_tars_is_no_data(desk, tmp_path, refused, raw):
    (tmp_path / "shards/bucket_128x128").mkdir(parents=True)
    (tmp_path / "shards/bucket_128x128/shard-000000.tar").write_bytes(raw)
    refused(tmp_path / "shards", 3)


@pytest.mark.row(51)
def test_a_member_twice_is_refused(older_shards, refused):
    path = first_tar(older_shards)
    members = members_of(path)
    write_tar(path, [*members[:5], members[2], *members[5:]])
    refused(older_shards, 3, path.name, f"'{members[2][0]}' is there twice")


@pytest.mark.row(51)
def test_members_of_one_sample_that_are_not_adjacent_are_refused(older_shards, refused):
    path = first_tar(older_shards)
    members = members_of(path)
    write_tar(path, [*members[:3], *members[5:], *members[3:5]])
    refused(older_shards, 3, path.name, "not adjacent")


@pytest.mark.row(52)
@pytest.mark.parametrize(
    "name", ["../../etc/x.npy", "/abs.npy", "a/../b.npy", "a\nb.npy", "..\\x.npy", "\x1b[2J.npy", "noextension"]
)
def test_member_names_that_lead_elsewhere_are_unsafe_and_nothing_is_written(desk, tmp_path, refused, name):
    before = set(tmp_path.rglob("*"))
    write_tar(tmp_path / "shards/bucket_128x128/shard-000000.tar", [(name, b"abc")])
    refused(tmp_path / "shards", 4, "shard-000000.tar")
    new = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert new <= {"shards", "run"} and not list(tmp_path.glob("run/**/*.npy"))


KINDS = {
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "folder": tarfile.DIRTYPE,
}


@pytest.mark.row(52)
@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_no_files_are_unsafe(desk, tmp_path, refused, kind):
    write_tar(
        tmp_path / "shards/bucket_128x128/shard-000000.tar", [("a.npy", b"")], type=KINDS[kind], linkname="/etc/passwd"
    )
    refused(tmp_path / "shards", 4, "not a regular file")


@pytest.mark.row(53)
def test_no_code_of_ours_extracts_an_archive():
    folder = Path(dittool.__file__).parent
    for path in [*folder.rglob("*.py"), *(folder.parent / "commands").glob("*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {function.attr for function in calls if isinstance(function, ast.Attribute)}
        assert not called & {"extract", "extractall", "unpack_archive", "extractfile"}, path


@pytest.mark.row(53)
@pytest.mark.parametrize("kind", ["negative size", "pax loop", "long name"])
def test_headers_that_have_made_readers_loop_are_refused_at_once(older_shards, refused, kind):
    path = first_tar(older_shards)
    if kind == "negative size":
        path.write_bytes(damaged(path.read_bytes(), kind))
        refused(older_shards, 3, "not an octal number")
        return
    raw = b"13 size=-512\n" * 4 if kind == "pax loop" else b"n" * 5000
    write_tar(path, [("a.npy", raw), *members_of(path)])
    header = bytearray(path.read_bytes())
    header[156:157] = b"x" if kind == "pax loop" else b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    path.write_bytes(header)
    refused(older_shards, 3 if kind == "pax loop" else 4, path.name)


# --- row 54: addresses that are commands ---


@pytest.mark.row(54)
@pytest.mark.parametrize("address", ["pipe:touch {}", "pipe:cat {}", "http://127.0.0.1:9/x.tar", "s3://bucket/x.tar"])
def test_addresses_instead_of_folders_run_nothing_and_fetch_nothing(desk, tmp_path, one_error, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    touched = tmp_path / "touched"
    address = address.format(touched)
    one_error(
        desk.run("train", "--preset", "demo", "--data", address, "--out", "run"),
        4,
        "from a folder, not from an address",
    )
    one_error(desk.run("shard", "--verify", "--out", address), 4, "from a folder, not from an address")
    assert desk.run("audit", address).code == 2
    assert not touched.exists() and not list(tmp_path.glob("run/**/*.pt"))


@pytest.mark.row(54)
def test_addresses_inside_an_index_run_nothing(desk, shards, readers):
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0]["path"] = f"pipe:touch {shards.parent / 'touched'}"
    (shards / "index.json").write_text(json.dumps(index))
    assert {name: outcome.code for name, outcome in readers(shards).items()} == {"verify": 4, "audit": 4, "train": 4}
    assert not (shards.parent / "touched").exists()


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
    one_error(
        desk.run("train", "--preset", "demo", "--data", shards, "--out", desk.root / "run", "--init", path, *options),
        code,
        "weights.safetensors",
    )
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
