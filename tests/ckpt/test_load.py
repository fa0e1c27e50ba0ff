"""Files that somebody else made: what is honest loads, everything else is refused before anything in it runs or
allocates.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import struct
import zipfile

import pytest
import torch
from torch import nn

from dittool.ckpt.load import (
    check_pt,
    load_checkpoint,
    non_finite_tensors,
    require_finite,
    require_fit,
)
from dittool.ckpt.safetensors_file import check_safetensors
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UnsafeFileError, UsageError
from dittool.untrusted.tensor_spec import TensorSpec
from tests.untrusted.disguised import DISGUISED
from tests.untrusted.disguised_calls import CALLED
from tests.untrusted.disguised_tensors import STORAGES
from tests.untrusted.handmade import (
    END,
    FOUR_FLOATS,
    LOCAL,
    archive,
    honest_members,
    number,
    program,
    pt,
    rewritten,
    storage,
    tensor,
    text,
)
from tests.untrusted.hidden import HIDDEN
from tests.untrusted.hostile import CALLING, HOSTILE, OTHER_MEMBERS, OVERSIZED, SPOILT_ARCHIVES

# Honest files


def everything_honest() -> dict:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    shared = torch.arange(12.0)
    return {
        "model": model.state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "dtypes": [
            torch.zeros(3, dtype=dtype)
            for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64)
        ],
        "newer dtypes": [torch.zeros(3, dtype=dtype) for dtype in (torch.uint16, torch.uint64, torch.float8_e4m3fn)],
        "views": (shared[2:5], shared.view(3, 4).T, shared[::2]),
        "empty": [torch.zeros(0), torch.zeros(2, 0, 3), torch.tensor(1.5)],
        "plain": {
            "text": "é\n",
            "numbers": [1, -1, 2**70, 0.5, float("inf")],
            "flags": (True, False, None),
            3: "three",
            "size": torch.Size([2, 3]),
        },
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
    path = pt(
        tmp_path / "a.pt", program(b"}" + text("w") + tensor(storage()) + b"s"), {"0": struct.pack("<4f", 1, 2, 3, 4)}
    )
    assert load_weights(path)["w"].tolist() == [1, 2, 3, 4]


# Code that would run


@pytest.mark.row(57)
@pytest.mark.parametrize("name", CALLING)
def test_a_pickle_that_calls_something_is_refused_unread(tmp_path, tripwire, name):
    with pytest.raises(
        UnsafeFileError,
        match=r"a\.pt: refused without loading it: (global|a call of builtins|a pickle that is not of protocol)",
    ):
        load_checkpoint(pt(tmp_path / "a.pt", CALLING[name]))


@pytest.mark.row(57)
def test_the_refusal_names_the_global(tmp_path):
    path = pt(tmp_path / "a.pt", program(b"cos\nsystem\n" + text("id") + b"\x85R"))
    with pytest.raises(UnsafeFileError, match=r"global os\.system"):
        check_pt(path)


@pytest.mark.row(57)
@pytest.mark.parametrize("name", [*HOSTILE, *HIDDEN, *DISGUISED, *CALLED, *STORAGES])
def test_a_hostile_pickle_is_refused_by_name(tmp_path, tripwire, name):
    body, said = {**HOSTILE, **HIDDEN, **DISGUISED, **CALLED, **STORAGES}[name]
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        check_pt(pt(tmp_path / "a.pt", program(body), FOUR_FLOATS))


@pytest.mark.row(57)
def test_nothing_may_stand_behind_the_end_of_the_pickle(tmp_path):
    honest = program(b"}" + text("w") + tensor(storage()) + b"s")
    with pytest.raises(UnsafeFileError, match="21 bytes behind the pickle's end"):
        check_pt(pt(tmp_path / "a.pt", honest + b"cos\nsystem\nX\0\0\0\0\x85R.ab", FOUR_FLOATS))


# Memory that would be taken


@pytest.mark.row(57)
@pytest.mark.parametrize("name", OVERSIZED)
def test_a_tensor_that_its_file_does_not_hold_is_refused_before_memory_is_taken(tmp_path, name):
    body, said = OVERSIZED[name]
    path = pt(tmp_path / "a.pt", program(b"}" + text("w") + body + b"s"), FOUR_FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.row(57)
def test_weights_only_alone_would_have_taken_the_memory(tmp_path):
    """The negative control: the two ways that torch itself leaves open, at a harmless size."""
    path = pt(tmp_path / "a.pt", program(b"c__builtin__\nbytearray\n" + number(2**24) + b"\x85R"))
    assert path.stat().st_size < 500 and len(torch.load(path, weights_only=True)) == 2**24
    path = pt(tmp_path / "b.pt", program(tensor(storage(), shape=(2**50,), stride=(0,))), FOUR_FLOATS)
    assert torch.load(path, weights_only=True).numel() == 2**50


@pytest.mark.row(57)
def test_a_storage_that_no_tensor_uses_is_refused(tmp_path):
    with pytest.raises(UnsafeFileError, match="storage '1' that no tensor uses"):
        check_pt(
            pt(
                tmp_path / "a.pt",
                program(b"}" + text("w") + tensor(storage()) + b"s"),
                {**FOUR_FLOATS, "1": b"payload"},
            )
        )


def test_bools_that_are_neither_0_nor_1_are_refused(tmp_path):
    body = program(b"}" + text("w") + tensor(storage(kind="BoolStorage")) + b"s")
    assert load_checkpoint(pt(tmp_path / "good.pt", body, {"0": b"\0\1\1\0"}))["w"].sum() == 2
    with pytest.raises(UnsafeFileError, match="bools with bytes other than 0 and 1"):
        load_checkpoint(pt(tmp_path / "bad.pt", body, {"0": b"\0\1\2\0"}))


# The archive around it


@pytest.mark.row(57)
@pytest.mark.parametrize("name", SPOILT_ARCHIVES)
def test_an_archive_that_could_be_read_in_two_ways_is_refused(tmp_path, name):
    spoil, said = SPOILT_ARCHIVES[name]
    path = archive(tmp_path / "a.pt", honest_members())
    check_pt(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UnsafeFileError, match=said):
        check_pt(path)


@pytest.mark.row(57)
def test_the_two_end_records_that_torch_writes_must_agree(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    for offset, form, value in [(8, "<H", 1), (10, "<H", 1), (12, "<I", 46), (16, "<I", 0)]:
        (tmp_path / "a.pt").write_bytes(rewritten(raw, END, offset, form, value))
        with pytest.raises(UnsafeFileError, match="two end records contradict each other"):
            check_pt(tmp_path / "a.pt")


@pytest.mark.row(57)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("extra", "said"), OTHER_MEMBERS)
def test_an_archive_with_other_members_is_refused(tmp_path, extra, said):
    with pytest.raises(UnsafeFileError, match=re.escape(said)):
        check_pt(archive(tmp_path / "a.pt", {**honest_members(), **extra}))


@pytest.mark.row(57)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_given_twice_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [*honest_members().items(), ("a/data.pkl", b"x")]:
            file.writestr(name, data)
    with pytest.raises(UnsafeFileError, match=re.escape("holds 'data.pkl' twice")):
        check_pt(path)


@pytest.mark.row(57)
def test_bytes_before_or_behind_the_archive_are_refused(tmp_path):
    raw = archive(tmp_path / "a.pt", honest_members()).read_bytes()
    for spoilt in (b"#!/bin/sh\n" + raw, raw + b"x", LOCAL + raw):
        (tmp_path / "b.pt").write_bytes(spoilt)
        with pytest.raises((UnsafeFileError, BadDataError)):
            check_pt(tmp_path / "b.pt")


@pytest.mark.row(57)
def test_a_compressed_archive_is_refused_without_unpacking_it(tmp_path):
    path = archive(tmp_path / "a.pt", {**honest_members(), "a/data/1": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFileError, match="is compressed"):
        check_pt(path)


# What is no checkpoint at all


@pytest.mark.row(57, 58)
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
def test_a_file_of_another_kind_gets_one_clear_sentence(tmp_path, content, said):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(BadDataError, match=re.escape(said)) as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "a.pt" in caught.value.message and "\n" not in caught.value.message and caught.value.hint


@pytest.mark.row(57)
def test_a_truncated_checkpoint_is_called_so_wherever_it_was_cut(tmp_path, valid):
    raw = valid.read_bytes()
    for length in (4, 100, len(raw) // 2, len(raw) - 1):
        (tmp_path / "a.pt").write_bytes(raw[:length])
        with pytest.raises(BadDataError, match="cut short"):
            load_checkpoint(tmp_path / "a.pt")


@pytest.mark.row(57)
def test_an_archive_without_a_pickle_is_no_checkpoint(tmp_path):
    with pytest.raises(BadDataError, match=r"without data\.pkl"):
        check_pt(archive(tmp_path / "a.pt", {"a/version": b"3\n"}))


@pytest.mark.row(57)
def test_the_formats_before_the_archive_are_refused_with_the_way_to_convert_them(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="a bare pickle") as caught:
        load_checkpoint(path)
    assert "torch.save(torch.load(" in caught.value.hint
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    with pytest.raises(UnsafeFileError, match="a tar archive"):
        load_checkpoint(path)


@pytest.mark.row(57)
def test_folders_pipes_and_missing_files_are_named_and_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path, said in [
        (tmp_path, "a folder"),
        (tmp_path / "pipe.pt", "not a regular file"),
    ]:
        with pytest.raises(BadDataError, match=said):
            load_checkpoint(path)
    with pytest.raises(UsageError, match="no such file"):
        load_checkpoint(tmp_path / "no.pt")


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


@pytest.mark.row(58)
def test_weights_of_another_architecture_are_refused_with_counts_and_the_first_ten_differences():
    model = {f"{name}.weight": torch.zeros(2, 2) for name in "abcdefghijklm"}
    require_fit(model, model, "old.pt")
    weights = {
        **{name: tensor for name, tensor in model.items() if name != "a.weight"},
        "b.weight": torch.zeros(3, 2),
        "z.weight": torch.zeros(1),
    }
    with pytest.raises(BadDataError) as caught:
        require_fit(weights, model, "old.pt")
    assert caught.value.message.splitlines() == [
        "old.pt: these weights belong to another architecture (1 missing, 1 unexpected, 1 of another shape):",
        "  b.weight: 3×2, the model has 2×2",
        "  a.weight: missing, the model has 2×2",
        "  z.weight: unexpected, 1",
    ]
    with pytest.raises(BadDataError, match="13 missing") as caught:
        require_fit({}, model, "old.pt")
    assert caught.value.message.count("missing, the model") == 10 and "and 3 more" in caught.value.message


@pytest.mark.row(59)
def test_tensors_with_nan_are_named_wherever_they_are():
    state = {
        "model": {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)},
        "list": [torch.tensor(float("inf"))],
        "ints": torch.ones(2).int(),
    }
    state["half"] = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    assert non_finite_tensors(state) == ["model.a", "list.0", "half"]
    with pytest.raises(BadDataError, match=r"init: 1 tensors hold NaN or infinity: a"):
        require_finite(state["model"], "init")


def test_a_zip_named_safetensors_is_to_be_renamed(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(BadDataError, match=r"a zip archive, as torch\.save writes") as caught:
        check_safetensors(path)
    assert caught.value.hint == "rename it to end in .pt"


@pytest.mark.parametrize(
    ("settings", "says"),
    [(argparse.Namespace(lr=1), "if it is yours"), (print, "do not load this file; ask its maker")],
)
def test_a_training_checkpoint_of_another_program_gets_advice_for_its_maker(settings, says, tmp_path):
    path = tmp_path / "train.pt"
    torch.save({"state_dict": {"a": torch.zeros(3)}, "args": settings}, path)
    with pytest.raises(UnsafeFileError) as caught:
        load_checkpoint(path)  # to resume or draw from; dit inspect-ckpt and dit audit look at the first
    assert caught.value.hint.startswith(says)
