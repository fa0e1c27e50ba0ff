"""Rows 49 to 54: tars that are cut, forged or lead elsewhere, and addresses that are commands. Nothing here may be
run or left unnoticed.
"""

from __future__ import annotations

import ast
import json
import tarfile
from pathlib import Path

import pytest

import dittool
from dittool.untrusted.tar import tar_members
from tests.faults.files import first_tar, members_of, write_tar

BLOCK = 512


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
@pytest.mark.parametrize("address", ["pipe:touch {}", "pipe:cat {}", "ftp://127.0.0.1:9/x.tar", "file:///x.tar"])
def test_addresses_instead_of_folders_run_nothing_and_fetch_nothing(desk, tmp_path, one_error, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    touched = tmp_path / "touched"
    address = address.format(touched)
    one_error(
        desk.run("train", "--preset", "demo", "--no-audit", "--data", address, "--out", "run"),
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
