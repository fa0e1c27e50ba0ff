"""Files that somebody else made: what is honest loads, everything else is refused before anything in it runs or allocates."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.fit import require_finite, require_fit
from dittool.ckpt.safe_load import check_pt, check_safetensors, load_checkpoint, load_weights, non_finite_tensors
from dittool.ckpt.tensor_spec import TensorSpec
from dittool.errors import BadDataError, UnsafeFileError

# Building files by hand


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def pt(path: Path, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A `.pt` with this pickle and these storages."""
    members = {"a/data.pkl": program, "a/version": b"3\n", **{f"a/data/{key}": data for key, data in (storages or {}).items()}}
    return archive(path, members)


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(255, "little", signed=True) if value.bit_length() > 64 else value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(location) + number(count) + b"tQ"


def tensor(store: bytes, offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + store + number(offset) + numbers(*shape) + numbers(*stride) + b"\x89" + hooks + b"tR"


FOUR_FLOATS = {"0": bytes(16)}


@pytest.fixture
def valid(tmp_path, state) -> Path:
    return save_checkpoint(tmp_path / "valid", state(1))


@pytest.fixture
def tripwire(monkeypatch):
    """Fails the test when anything that a pickle could call is called."""

    def sprung(*_arguments, **_options):
        pytest.fail("the file's code was run")

    for name in ("system", "popen", "execv", "_exit"):
        monkeypatch.setattr(os, name, sprung)
    monkeypatch.setattr("builtins.eval", sprung)
    monkeypatch.setattr("builtins.exec", sprung)


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# Honest files


def everything_honest() -> dict:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    shared = torch.arange(12.0)
    return {
        "model": model.state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "dtypes": [torch.zeros(3, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64)],
        "newer dtypes": [torch.zeros(3, dtype=dtype) for dtype in (torch.uint16, torch.uint64, torch.float8_e4m3fn)],
        "views": (shared[2:5], shared.view(3, 4).T, shared[::2]),
        "empty": [torch.zeros(0), torch.zeros(2, 0, 3), torch.tensor(1.5)],
        "plain": {"text": "é\n", "numbers": [1, -1, 2**70, 0.5, float("inf")], "flags": (True, False, None), 3: "three", "size": torch.Size([2, 3])},
        "dtype": torch.float32,
        "rng": torch.get_rng_state(),
    }


def test_everything_that_torch_save_writes_for_tensors_and_plain_values_passes(tmp_path):
    path = tmp_path / "a.pt"
    saved = everything_honest()
    torch.save(saved, path)
    content = check_pt(path).content
    loaded = load_checkpoint(path)
    assert content["plain"] == loaded["plain"] == saved["plain"]
    assert content["model"]["0.weight"] == TensorSpec("float32", (2, 3))
    assert content["views"][1] == TensorSpec("float32", (4, 3))
    assert [spec.dtype for spec in content["newer dtypes"]] == ["uint16", "uint64", "float8_e4m3fn"]
    assert torch.equal(loaded["views"][1], saved["views"][1])


@pytest.mark.slow
def test_an_archive_of_more_than_65535_members_passes(tmp_path):
    path = tmp_path / "a.pt"
    storages = {str(key): b"\0\0\0\0" for key in range(66_000)}
    body = b"](" + b"".join(tensor(storage(key, 1), shape=(1,)) for key in storages) + b"e"
    pt(path, program(body), storages)
    assert len(check_pt(path).content) == 66_000


def test_a_file_built_by_hand_as_torch_builds_it_loads(tmp_path):
    path = pt(tmp_path / "a.pt", program(b"}" + text("w") + tensor(storage()) + b"s"), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert load_weights(path)["w"].tolist() == [1, 2, 3, 4]


# Code that would run


CALLS = {
    "os.system": Calls(os.system, "touch owned"),
    "eval": Calls(eval, "1"),
    "getattr": Calls(getattr, "text", "upper"),
    "import": Calls(__import__, "os"),
    "a nested call": {"model": {"w": [Calls(print, "x")]}},
    "torch.load": Calls(torch.load, "other.pt"),
}
CALLING = {f"{name}, protocol {protocol}": pickle.dumps(call, protocol) for name, call in CALLS.items() for protocol in range(6)}


@pytest.mark.parametrize("name", CALLING)
def test_57_a_pickle_that_calls_something_is_refused_unread(tmp_path, tripwire, name):
    with pytest.raises(UnsafeFileError, match=r"a\.pt: refused without loading it: (global|a pickle that is not of protocol 2)"):
        load_checkpoint(pt(tmp_path / "a.pt", CALLING[name]))


def test_57_the_refusal_names_the_global(tmp_path):
    path = pt(tmp_path / "a.pt", program(b"cos\nsystem\n" + text("id") + b"\x85R"))
    with pytest.raises(UnsafeFileError, match=r"global os\.system"):
        check_pt(path)


OTHER_CLASS = b"(" + text("storage") + b"ctorch\nSize\n" + text("0") + text("cpu") + number(4) + b"tQ"
OTHER_KIND = b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"
HOSTILE = {
    "a name built at run time": (text("os") + text("system") + b"\x93" + text("id") + b"\x85R", "instruction STACK_GLOBAL"),
    "INST": (b"(" + text("id") + b"ios\nsystem\n", "instruction INST"),
    "OBJ": (b"(cos\nsystem\n" + text("id") + b"o", "global os.system"),
    "OBJ of an allowed global": (b"(ccollections\nOrderedDict\no", "instruction OBJ"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
    "EXT1": (b"\x82\x01", "instruction EXT1"),
    "EXT4": (b"\x84\x01\0\0\0", "instruction EXT4"),
    "text persistent id": (b"Pcmd\n", "instruction PERSID"),
    "persistent id of another kind": (OTHER_KIND, "persistent id"),
    "persistent id that is a number": (number(0) + b"Q", "persistent id"),
    "persistent id with another class": (OTHER_CLASS, "persistent id"),
    "REDUCE of a result": (b"ccollections\nOrderedDict\n)R)R", "call of something that is not a known function"),
    "REDUCE of text": (text("os.system") + text("id") + b"\x85R", "call of something that is not a known function"),
    "REDUCE with surplus arguments": (b"ccollections\nOrderedDict\n" + text("x") + b"\x85R", "collections.OrderedDict with arguments"),
    "BUILD on a dict": (b"}}" + text("__class__") + number(1) + b"sb", "treats another value as a state dict"),
    "BUILD of another attribute": (b"ccollections\nOrderedDict\n)R}" + text("items") + number(1) + b"sb", "other attributes"),
    "a function as a value": (b"ctorch._utils\n_rebuild_tensor_v2\n", "bare torch._utils._rebuild_tensor_v2"),
    "a storage as a value": (storage(), "bare storage"),
    "a module as prefix": (b"ctorch.serialization\nos.system\n", "global torch.serialization.os.system"),
    "a space in the module": (b"ccollections x\nOrderedDict\n", "global collections.x OrderedDict"),
    "an unknown instruction": (b"\xff", "malformed pickle"),
    "escapes in a global": (b"ccollection\\x73\nOrderedDict\n", "global collection\\x73.OrderedDict"),
    "a global cut short": (b"ccollections", "malformed pickle"),
    "an argument cut short": (b"X\xff\xff\xff\x7fab", "malformed pickle"),
    "text that is not UTF-8": (b"X\x01\0\0\0\xff", "malformed pickle"),
    "POP": (b"NN0", "instruction POP"),
    "DUP": (b"N2\x86", "instruction DUP"),
    "old text number": (b"I1\n", "instruction INT"),
    "bytes": (b"C\x01x", "instruction SHORT_BINBYTES"),
    "a set": (b"\x8f", "instruction EMPTY_SET"),
    "an empty stack": (b"R", "takes more from its stack"),
    "values left over": (b"NN", "leaves values on its stack"),
    "an open mark": (b"(N", "leaves values on its stack"),
    "a mark never set": (b"t", "mark that was never set"),
    "a memo never set": (b"h\x05", "memo index 5, which was never set"),
    "a huge memo index": (b"Nr\xff\xff\xff\xff", "memo index 4,294,967,295"),
    "a tuple as key": (b"}))s", "neither text nor a small number"),
    "a key without value": (b"}(" + text("x") + b"u", "key without a value"),
    "APPEND to a dict": (b"}Na", "treats another value as a list"),
    "deep nesting": (b"]" * 70 + b"a" * 69, "nested deeper than 64"),
    "a list inside itself": (b"]q\0h\0a", "nested deeper than 64"),
    "a memo bomb": (b"()q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"t", "unfold to more than"),
    "memory by a constructor": (b"c__builtin__\nbytearray\n" + number(2**40) + b"\x85R", "global __builtin__.bytearray"),
    "memory by a tensor class": (b"ctorch\nFloatTensor\n" + number(2**40) + b"\x85R", "global torch.FloatTensor"),
    "a wide memo bomb": (b"]q\0(" + b"N" * 2000 + b"e](" + b"h\0" * 2000 + b"e\x86", "unfold to more than"),
    "PROTO again": (b"\x80\x02N", "instruction PROTO"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_57_a_hostile_pickle_is_refused_by_name(tmp_path, tripwire, name):
    body, said = HOSTILE[name]
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        load_checkpoint(pt(tmp_path / "a.pt", program(body), FOUR_FLOATS))


def test_57_nothing_may_stand_behind_the_end_of_the_pickle(tmp_path):
    honest = program(b"}" + text("w") + tensor(storage()) + b"s")
    with pytest.raises(UnsafeFileError, match="21 bytes behind the pickle's end"):
        check_pt(pt(tmp_path / "a.pt", honest + b"cos\nsystem\nX\0\0\0\0\x85R.ab", FOUR_FLOATS))


# Memory that would be taken


OVERSIZED = {
    "a storage larger than its file": (tensor(storage(count=2**40), shape=(2**40,)), "storage '0' of 1099511627776 float32 values"),
    "a storage smaller than its file": (tensor(storage(count=2), shape=(2,)), "storage '0' of 2 float32 values"),
    "a storage of negative size": (tensor(storage(count=-1)), "storage '0' of -1"),
    "a storage that is not there": (tensor(storage("1")), "storage '1', which is not in the archive"),
    "a shape beyond the storage": (tensor(storage(), shape=(2**28,)), "tensor of shape (268435456,)"),
    "a stride beyond the storage": (tensor(storage(), shape=(2, 2), stride=(2**40, 1)), "tensor of shape (2, 2)"),
    "an offset beyond the storage": (tensor(storage(), offset=1), "tensor of shape (4,) at 1"),
    "an empty tensor beyond the storage": (tensor(storage(), offset=2**40, shape=(0,)), "at 1099511627776"),
    "one value repeated": (tensor(storage(), shape=(2**40,), stride=(0,)), "tensor of shape (1099511627776,)"),
    "a negative offset": (tensor(storage(), offset=-1), "arguments that torch.save never gives it"),
    "a negative length": (tensor(storage(), shape=(-1,)), "arguments that torch.save never gives it"),
    "a negative stride": (tensor(storage(), stride=(-1,)), "arguments that torch.save never gives it"),
    "strides of another rank": (tensor(storage(), shape=(2, 2)), "arguments that torch.save never gives it"),
    "a length of 600 digits": (tensor(storage(), shape=(2**2000,)), "arguments that torch.save never gives it"),
    "65 dimensions": (tensor(storage(), shape=(1,) * 65, stride=(1,) * 65), "arguments that torch.save never gives it"),
    "a key with a path": (tensor(storage("../0")), "storage with the key '../0'"),
    "an odd device": (tensor(storage(location="cpu;id")), "on the device 'cpu;id'"),
    "two dtypes of one storage": (b"(" + tensor(storage()) + tensor(storage(count=2, kind="LongStorage"), shape=(2,)) + b"t", "with two dtypes"),
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_57_a_tensor_that_its_file_does_not_hold_is_refused_before_memory_is_taken(tmp_path, name):
    body, said = OVERSIZED[name]
    path = pt(tmp_path / "a.pt", program(b"}" + text("w") + body + b"s"), FOUR_FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_57_weights_only_alone_would_have_taken_the_memory(tmp_path):
    """The negative control: the two ways that torch itself leaves open, at a harmless size."""
    path = pt(tmp_path / "a.pt", program(b"c__builtin__\nbytearray\n" + number(2**24) + b"\x85R"))
    assert path.stat().st_size < 500 and len(torch.load(path, weights_only=True)) == 2**24
    path = pt(tmp_path / "b.pt", program(tensor(storage(), shape=(2**50,), stride=(0,))), FOUR_FLOATS)
    assert torch.load(path, weights_only=True).numel() == 2**50


def test_57_a_storage_that_no_tensor_uses_is_refused(tmp_path):
    with pytest.raises(UnsafeFileError, match="storage '1' that no tensor uses"):
        check_pt(pt(tmp_path / "a.pt", program(b"}" + text("w") + tensor(storage()) + b"s"), {**FOUR_FLOATS, "1": b"payload"}))


def test_bools_that_are_neither_0_nor_1_are_refused(tmp_path):
    body = program(b"}" + text("w") + tensor(storage(kind="BoolStorage")) + b"s")
    assert load_checkpoint(pt(tmp_path / "good.pt", body, {"0": b"\0\1\1\0"}))["w"].sum() == 2
    with pytest.raises(UnsafeFileError, match="bools with bytes other than 0 and 1"):
        load_checkpoint(pt(tmp_path / "bad.pt", body, {"0": b"\0\1\2\0"}))


# The archive around it


def honest_members() -> dict[str, bytes]:
    return {"a/data.pkl": program(b"}" + text("w") + tensor(storage()) + b"s"), "a/version": b"3\n", "a/data/0": bytes(16)}


def rewritten(raw: bytes, signature: bytes, offset: int, form: str, value: int, which: int = 0) -> bytes:
    """The archive's bytes with one field of its `which`-th header of a kind changed."""
    position = [match.start() for match in re.finditer(re.escape(signature), raw)][which] + offset
    return raw[:position] + struct.pack(form, value) + raw[position + struct.calcsize(form) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
SPOILT_ARCHIVES = {
    "compressed": (lambda raw: rewritten(raw, CENTRAL, 10, "<H", 8), "is compressed"),
    "compressed by its own header only": (lambda raw: rewritten(raw, LOCAL, 8, "<H", 8), "contradict each other"),
    "encrypted": (lambda raw: rewritten(rewritten(raw, CENTRAL, 8, "<H", 1), LOCAL, 6, "<H", 1), "is encrypted"),
    "odd flags": (lambda raw: rewritten(rewritten(raw, CENTRAL, 8, "<H", 0x20), LOCAL, 6, "<H", 0x20), "flags that torch.save never sets"),
    "sizes that differ": (lambda raw: rewritten(raw, LOCAL, 22, "<I", 7), "contradict each other"),
    "a name that differs": (lambda raw: raw.replace(b"a/data.pkl", b"a/dota.pkl", 1), "contradict each other"),
    "two members at one place": (lambda raw: rewritten(raw, CENTRAL, 42, "<I", 0, which=1), "overlaps another"),
    "a count that is wrong": (lambda raw: rewritten(rewritten(raw, END, 8, "<H", 2), END, 10, "<H", 2), "its end record says 2"),
    "a directory elsewhere": (lambda raw: rewritten(raw, END, 16, "<I", 5), "does not describe this file"),
    "a directory of other things": (lambda raw: raw.replace(CENTRAL, b"PK\x01\x03", 1), "directory is malformed"),
    "a member beyond the end": (lambda raw: rewritten(raw, CENTRAL, 42, "<I", 2**31, which=2), "leaves a gap"),
    "a 64-bit size that is missing": (lambda raw: rewritten(raw, CENTRAL, 24, "<I", 0xFFFFFFFF), "lacks a 64-bit size"),
}


@pytest.mark.parametrize("name", SPOILT_ARCHIVES)
def test_57_an_archive_that_could_be_read_in_two_ways_is_refused(tmp_path, name):
    spoil, said = SPOILT_ARCHIVES[name]
    path = archive(tmp_path / "a.pt", honest_members())
    check_pt(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UnsafeFileError, match=said):
        check_pt(path)


def test_57_the_two_end_records_that_torch_writes_must_agree(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    for offset, form, value in [(8, "<H", 1), (10, "<H", 1), (12, "<I", 46), (16, "<I", 0)]:
        (tmp_path / "a.pt").write_bytes(rewritten(raw, END, offset, form, value))
        with pytest.raises(UnsafeFileError, match="two end records contradict each other"):
            check_pt(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"b/data.pkl": b"x"}, "two root folders, 'a' and 'b'"),
        ({"a/DATA.PKL": b"x"}, "holds 'DATA.PKL' twice"),
        ({"a/../data.pkl": b"x"}, "member with the name"),
        ({"/etc/x": b"x"}, "member with the name"),
        ({"data.pkl": b"x"}, "member with the name"),
        ({"a/x\\y": b"x"}, "member with the name"),
        ({"a/é": b"x"}, "member with the name"),
        ({"a/code/model.py": b"import os"}, "TorchScript"),
        ({"a/constants.pkl": b"x"}, "TorchScript"),
        ({"a/readme": b"x"}, "member 'readme'"),
    ],
)
def test_57_an_archive_with_other_members_is_refused(tmp_path, extra, said):
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        check_pt(archive(tmp_path / "a.pt", {**honest_members(), **extra}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_57_a_member_given_twice_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [*honest_members().items(), ("a/data.pkl", b"x")]:
            file.writestr(name, data)
    with pytest.raises(UnsafeFileError, match=re.escape("holds 'data.pkl' twice")):
        check_pt(path)


def test_57_bytes_before_or_behind_the_archive_are_refused(tmp_path):
    raw = archive(tmp_path / "a.pt", honest_members()).read_bytes()
    for spoilt in (b"#!/bin/sh\n" + raw, raw + b"x", LOCAL + raw):
        (tmp_path / "b.pt").write_bytes(spoilt)
        with pytest.raises((UnsafeFileError, BadDataError)):
            check_pt(tmp_path / "b.pt")


def test_57_a_compressed_archive_is_refused_without_unpacking_it(tmp_path):
    path = archive(tmp_path / "a.pt", {**honest_members(), "a/data/1": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFileError, match="is compressed"):
        check_pt(path)


# What is no checkpoint at all


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(600), "a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "a PNG picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a git-lfs pointer"),
        (b"just some text", "it begins with b'just som'"),
        (LOCAL + bytes(100), "was cut short"),
        (LOCAL, "was cut short"),
    ],
)
def test_57_58_a_file_of_another_kind_gets_one_clear_sentence(tmp_path, content, said):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(BadDataError, match=re.escape(said)) as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "a.pt" in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_57_a_truncated_checkpoint_is_called_so_wherever_it_was_cut(tmp_path, valid):
    raw = valid.read_bytes()
    for length in (4, 100, len(raw) // 2, len(raw) - 1):
        (tmp_path / "a.pt").write_bytes(raw[:length])
        with pytest.raises(BadDataError, match="cut short"):
            load_checkpoint(tmp_path / "a.pt")


def test_57_an_archive_without_a_pickle_is_no_checkpoint(tmp_path):
    with pytest.raises(BadDataError, match=r"without data\.pkl"):
        check_pt(archive(tmp_path / "a.pt", {"a/version": b"3\n"}))


def test_57_the_formats_before_the_archive_are_refused_with_the_way_to_convert_them(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="a bare pickle") as caught:
        load_checkpoint(path)
    assert "torch.save(torch.load(" in caught.value.hint
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    with pytest.raises(UnsafeFileError, match="a tar archive"):
        load_checkpoint(path)


def test_57_folders_pipes_and_missing_files_are_named_and_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path, said in [(tmp_path, "a folder"), (tmp_path / "pipe.pt", "not a regular file"), (tmp_path / "no.pt", "no such file")]:
        with pytest.raises(BadDataError, match=said):
            load_checkpoint(path)


# Checkpoints and weights


def test_a_checkpoint_that_lacks_a_key_or_is_of_a_newer_format_is_refused_with_its_name(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save({"model": {}, "step": 1}, path)
    with pytest.raises(BadDataError, match="lacks ema, rng; it has model, step"):
        load_checkpoint(path, require=("model", "ema", "rng"))
    torch.save({**state(1), "format_version": 2}, path)
    with pytest.raises(BadDataError, match="checkpoint format 2, this dit reads format 1"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(BadDataError, match="holds a list"):
        load_checkpoint(path)


def test_our_checkpoint_gives_its_averaged_weights_and_says_so(valid, state, listener):
    weights = load_weights(valid, talk=listener)
    assert torch.equal(weights["0.weight"], state(1)["ema"]["0.weight"])
    assert torch.equal(load_weights(valid, "model")["0.weight"], state(1)["model"]["0.weight"])
    assert "'ema'" in listener.notes[0] and listener.warnings == []


def test_without_averaged_weights_the_raw_ones_are_taken_with_a_warning(tmp_path, state, listener):
    torch.save({key: value for key, value in state(1).items() if key != "ema"}, tmp_path / "a.pt")
    assert torch.equal(load_weights(tmp_path / "a.pt", talk=listener)["0.weight"], state(1)["model"]["0.weight"])
    assert "no averaged (EMA) weights" in listener.warnings[0]
    with pytest.raises(BadDataError, match="no weights under 'ema'"):
        load_weights(tmp_path / "a.pt", "ema")


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w}, lambda w: OrderedDict(module=w)])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_58_a_foreign_state_dict_is_found_and_its_wrappers_are_taken_off(tmp_path, wrap, prefix):
    torch.save(wrap({f"{prefix}{name}": torch.ones(2) for name in ("a.weight", "b.weight")}), tmp_path / "a.pt")
    assert list(load_weights(tmp_path / "a.pt")) == ["a.weight", "b.weight"]


def test_58_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "a.pt")
    with pytest.raises(BadDataError, match=r"no state dict.*it has epoch, loss"):
        load_weights(tmp_path / "a.pt")


def test_weights_mapped_from_a_file_survive_its_deletion_and_are_private(valid):
    weights = load_weights(valid)
    before = valid.read_bytes()
    weights["0.weight"].zero_()
    assert valid.read_bytes() == before
    valid.unlink()
    assert weights["0.bias"].isfinite().all()


def test_58_weights_of_another_architecture_are_refused_with_counts_and_the_first_ten_differences():
    model = {f"{name}.weight": torch.zeros(2, 2) for name in "abcdefghijklm"}
    require_fit(model, model, "old.pt")
    weights = {**{name: tensor for name, tensor in model.items() if name != "a.weight"}, "b.weight": torch.zeros(3, 2), "z.weight": torch.zeros(1)}
    with pytest.raises(BadDataError) as caught:
        require_fit(weights, model, "old.pt")
    assert caught.value.message.splitlines() == [
        "old.pt: these weights belong to another architecture (1 missing, 1 unexpected, 1 of another shape):",
        "  b.weight: 3×2, the model has 2×2", "  a.weight: missing, the model has 2×2", "  z.weight: unexpected, 1",
    ]  # fmt: skip
    with pytest.raises(BadDataError, match="13 missing") as caught:
        require_fit({}, model, "old.pt")
    assert caught.value.message.count("missing, the model") == 10 and "and 3 more" in caught.value.message


def test_59_tensors_with_nan_are_named_wherever_they_are():
    state = {"model": {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)}, "list": [torch.tensor(float("inf"))], "ints": torch.ones(2).int()}
    state["half"] = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    assert non_finite_tensors(state) == ["model.a", "list.0", "half"]
    with pytest.raises(BadDataError, match=r"init: 1 tensors hold NaN or infinity: a"):
        require_finite(state["model"], "init")


# .safetensors


def safetensors(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int = 0, end: int = 8, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_56_honest_safetensors_load(tmp_path):
    tensors = {"a": torch.randn(2, 3), "b": torch.tensor(True), "c": torch.zeros(0), "d": torch.randn(4).bfloat16(), "e": torch.tensor(1)}
    save_file(tensors, tmp_path / "a.safetensors", {"step": "3"})
    header = check_safetensors(tmp_path / "a.safetensors")
    assert header.metadata == {"step": "3"} and header.tensors["a"] == TensorSpec("float32", (2, 3))
    loaded = load_weights(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


DUPLICATE = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
UNSAFE_HEADERS = {
    "a name twice": (DUPLICATE, bytes(8), "the name 'w' twice"),
    "a key of a tensor twice": (b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "the name 'dtype' twice"),
    "leading spaces": (b"  " + json.dumps({"w": entry()}).encode(), bytes(8), "does not begin with '{'"),
    "a name with a path": ({"../../etc/x": entry()}, bytes(8), "the name '../../etc/x'"),
    "an absolute name": ({"/etc/x": entry()}, bytes(8), "the name '/etc/x'"),
    "no name": ({"": entry()}, bytes(8), "the name ''"),
    "a name with a NUL": ({"a\0b": entry()}, bytes(8), "the name"),
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b' begins at byte 4"),
    "a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), "'b' begins at byte 12"),
    "a late start": ({"a": entry(4, 12)}, bytes(12), "'a' begins at byte 4"),
    "trailing bytes": ({"a": entry()}, bytes(9), "1 bytes behind the last tensor"),
    "bytes that do not fit the shape": ({"a": entry(0, 4)}, bytes(4), "needs 8 bytes and is given 4"),
    "begin after end": ({"a": entry(8, 0)}, bytes(8), "is given -8"),
    "negative": ({"a": entry(shape=(-1,))}, bytes(8), "with the shape"),
    "overflowing": ({"a": entry(shape=(2**62, 2**62))}, bytes(8), "is given 8"),
    "a shape of text": ({"a": {**entry(), "shape": "2"}}, bytes(8), "with the shape"),
    "a shape of truths": ({"a": {**entry(0, 4), "shape": [True]}}, bytes(4), "with the shape"),
    "a surplus key": ({"a": {**entry(), "x": 1}}, bytes(8), "is not described by"),
    "not an object": (b"[]", b"", "does not begin"),
    "not JSON": (b"{nope}", b"", "not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not JSON"),
    "5,000 levels": (b'{"a":' * 5000 + b"1" + b"}" * 5000, b"", "not JSON|is not described by"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b"", "metadata"),
    "bools of 2": ({"a": entry(0, 2, "BOOL")}, b"\x02\x01", "bytes other than 0 and 1"),
}


@pytest.mark.parametrize("name", UNSAFE_HEADERS)
def test_56_a_safetensors_header_that_no_writer_makes_is_refused(tmp_path, name):
    header, data, said = UNSAFE_HEADERS[name]
    with pytest.raises(UnsafeFileError, match=said if "|" in said else re.escape(said)):
        load_weights(safetensors(tmp_path / "a.safetensors", header, data))


def test_56_the_library_alone_would_have_taken_a_name_twice(tmp_path):
    """The negative control: F32 silently becomes I32."""
    from safetensors.torch import load_file

    assert load_file(safetensors(tmp_path / "a.safetensors", DUPLICATE, bytes(8)))["w"].dtype == torch.int32


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
def test_56_a_damaged_safetensors_file_gets_one_clear_sentence(tmp_path, header, data, length, said):
    with pytest.raises(BadDataError, match=said):
        load_weights(safetensors(tmp_path / "a.safetensors", header, data, length))


def test_56_a_huge_header_is_refused_unread(tmp_path):
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


# Fuzzing


def mutated(raw: bytes, random_source: random.Random) -> bytes:
    """Up to four bytes changed, removed, doubled or inserted."""
    data = bytearray(raw)
    for _ in range(random_source.randint(1, 4)):
        position = random_source.randrange(len(data))
        kind = random_source.randrange(4)
        if kind == 0:
            data[position] = random_source.randrange(256)
        elif kind == 1:
            del data[position : position + random_source.randint(1, 8)]
        elif kind == 2:
            data[position:position] = data[position : position + random_source.randint(1, 40)]
        else:
            data[position:position] = random_source.randbytes(random_source.randint(1, 4))
    return bytes(data)


def fuzz(path: Path, variants: list[bytes]) -> int:
    """Loads every variant; each must load or be refused with a sentence. Returns how many loaded."""
    loaded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for variant in variants:
        path.write_bytes(variant)
        try:
            load_weights(path)
            loaded += 1
        except (BadDataError, UnsafeFileError) as refusal:
            assert path.name in refusal.message and refusal.hint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    return loaded


def fuzzed_pickles(tmp_path: Path, count: int) -> int:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0), "plain": [1, "x", None]}, buffer)
    honest = zipfile.ZipFile(buffer).read("archive/data.pkl")
    source, variants = random.Random(1), []
    for _ in range(count):
        pt(tmp_path / "made.pt", mutated(honest, source), FOUR_FLOATS)
        variants.append((tmp_path / "made.pt").read_bytes())
    return fuzz(tmp_path / "fuzzed.pt", variants)


def fuzzed_files(tmp_path: Path, valid: Path, count: int) -> int:
    source, raw = random.Random(2), valid.read_bytes()
    return fuzz(tmp_path / "fuzzed.pt", [mutated(raw, source) for _ in range(count)])


def fuzzed_safetensors(tmp_path: Path, count: int) -> int:
    save_file({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.bool)}, tmp_path / "made.safetensors")
    source, raw = random.Random(3), (tmp_path / "made.safetensors").read_bytes()
    return fuzz(tmp_path / "fuzzed.safetensors", [mutated(raw, source) for _ in range(count)])


def test_mutations_of_honest_files_load_or_are_refused_and_nothing_else(tmp_path, valid, tripwire):
    assert fuzzed_pickles(tmp_path, 150) < 150
    assert fuzzed_files(tmp_path, valid, 150) < 150
    assert fuzzed_safetensors(tmp_path, 150) < 150


@pytest.mark.slow
def test_thousands_of_mutations_load_or_are_refused_and_nothing_else(tmp_path, valid, tripwire):
    assert fuzzed_pickles(tmp_path, 10_000) < 5_000
    assert fuzzed_files(tmp_path, valid, 10_000) < 10_000
    assert fuzzed_safetensors(tmp_path, 10_000) < 5_000
