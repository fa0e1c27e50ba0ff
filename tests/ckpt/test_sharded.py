"""A checkpoint in parts is one as any other: read, verified, listed, deleted as a single file is; what its parts or its
index do not say rightly is refused.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save

from dittool.ckpt import write
from dittool.ckpt.files import list_checkpoints, newest_checkpoint, resolve_checkpoint, rotate, save_checkpoint
from dittool.ckpt.folders import checkpoint_at
from dittool.ckpt.inspect import export_safetensors, inspect, is_export
from dittool.ckpt.lazy_tensors import LazyTensors
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.sharded import INDEX_NAME, Sharded, checkpoint_sha256, is_sharded
from dittool.ckpt.to_draw import load_to_draw
from dittool.ckpt.weights import load_weights
from dittool.ckpt.write import write_safetensors
from dittool.errors import BadDataError, DitError, StorageError, UnsafeFileError
from dittool.storage import sweep_temporaries
from tests.ckpt.test_files import equal, names
from tests.sharded import save_in_parts


@pytest.fixture
def rich(state):
    """A state with all that a checkpoint may hold."""
    rich = state(7)
    rich["model"]["half"] = torch.randn(7, 3).bfloat16()
    rich["model"]["mask"] = torch.tensor([True, False, True])
    rich["ema"]["none"] = torch.zeros(0, 4)
    rich["rng"]["counts"] = torch.arange(5)[::2]
    rich["data"] |= {"loss": math.nan, "most": -math.inf, "names": ["é", "b", ("c", 1.5)], "$odd": {3: None}}
    return rich


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_what_was_saved_in_parts_comes_back_exactly(tmp_path, rich, count):
    path = save_in_parts(tmp_path, rich, count)
    loaded = load_checkpoint(path)
    assert len(list(path.glob("part-*"))) == count and path.name == "checkpoint_step0000007"
    nan, theirs = loaded["data"].pop("loss"), rich["data"].pop("loss")
    assert math.isnan(nan) and math.isnan(theirs)
    for key in ("model", "ema", "optimizer"):  # ordered dicts become plain ones
        assert equal(json_like(loaded[key]), json_like(rich[key])), key
    rest = {key: value for key, value in loaded.items() if key not in ("model", "ema", "optimizer")}
    assert equal(rest, {key: rich[key] for key in rest})


def json_like(value):
    return {key: json_like(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def test_no_process_writes_what_another_holds(tmp_path, state):
    path = save_in_parts(tmp_path, state(1), 2)
    first, second = (load_file(part) for part in sorted(path.glob("part-*")))
    assert first["model.0.weight"].shape == second["model.0.weight"].shape == (4, 4)
    assert "rng.torch" in first and "rng.torch" not in second


def test_it_is_listed_found_and_deleted_as_a_file_is(folder, state):
    for step in (5, 6):
        save_in_parts(folder, state(step))
    assert names(folder)[-3:] == ["checkpoint_step0000004.pt", "checkpoint_step0000005", "checkpoint_step0000006"]
    newest = newest_checkpoint(folder)
    assert newest.step == 6 and newest.sidecar.sha256 == checkpoint_sha256(newest.path)
    assert newest.sidecar.bytes == sum(file.stat().st_size for file in newest.path.iterdir())
    assert resolve_checkpoint(folder.parent) == resolve_checkpoint(newest.path) == checkpoint_at(newest.path)
    assert {path.name for path in rotate(folder, 2)} == {f"checkpoint_step000000{step}.pt" for step in (1, 2, 3, 4)}
    save_checkpoint(folder, state(7))
    assert [path.name for path in rotate(folder, 2)] == ["checkpoint_step0000005"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint_step0000006",
        "checkpoint_step0000006.json",
        "checkpoint_step0000007.json",
        "checkpoint_step0000007.pt",
    ]


def test_a_valid_one_of_the_same_step_is_kept_whatever_its_form(tmp_path, state):
    file = save_checkpoint(tmp_path, state(3))
    assert save_in_parts(tmp_path, state(3)) == file
    parts = save_in_parts(tmp_path, state(4))
    assert save_checkpoint(tmp_path, state(4)) == parts and names(tmp_path) == [file.name, parts.name]


@pytest.mark.parametrize("first_in_parts", [True, False])
def test_a_final_one_of_a_run_that_went_on_gets_the_name_of_its_step(tmp_path, state, first_in_parts):
    saves = [save_in_parts, save_checkpoint]
    first, second = saves if first_in_parts else saves[::-1]
    first(tmp_path, state(3), final=True)
    path = second(tmp_path, state(5), final=True)
    assert [file.step for file in list_checkpoints(tmp_path)] == [3, 5]
    assert all(file.verify() is None for file in list_checkpoints(tmp_path)) and path.stem == "checkpoint_final"


@pytest.mark.row(26)
@pytest.mark.parametrize("harm", ["part cut", "byte changed", "part gone", "index changed", "index gone"])
def test_a_damaged_one_is_skipped_aloud(folder, state, listener, harm):
    path = save_in_parts(folder, state(5))
    part, index = sorted(path.glob("part-*"))[1], path / INDEX_NAME
    if harm == "part cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif harm == "byte changed":
        part.write_bytes(part.read_bytes()[:-1] + b"\x77")
    elif harm == "part gone":
        part.unlink()
    elif harm == "index changed":
        index.write_text(index.read_text().replace("identity_hash", "identity-hash"))
    else:
        index.unlink()
    assert newest_checkpoint(folder, listener).step == 4
    assert "1 steps are lost" in listener.warnings[0]


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.row(5)
def test_killed_at_any_moment_of_a_save_the_one_before_is_the_newest_and_the_step_is_saved_again(
    folder, state, monkeypatch
):
    """Between any two changes of files that a save makes."""
    genuine = {name: getattr(os, name) for name in ("open", "replace", "fsync", "mkdir", "unlink")}
    for moment in range(1, 100):
        left = [moment]

        def counted(*arguments, genuine, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return genuine(*arguments, **options)

        with monkeypatch.context() as patch:
            for name, function in genuine.items():
                patch.setattr(
                    os, name, lambda *a, genuine=function, counted=counted, **o: counted(*a, genuine=genuine, **o)
                )
            with suppress(Killed):
                save_in_parts(folder, state(5))
        assert newest_checkpoint(folder).step == (4 if left[0] <= 0 and not finished(folder) else 5)
        sweep_temporaries(folder)
        save_in_parts(folder, state(5))
        assert newest_checkpoint(folder).step == 5
        shutil.rmtree(folder / "checkpoint_step0000005")
        (folder / "checkpoint_step0000005.json").unlink()
        if left[0] > 0:
            break
    assert moment > 15


def finished(folder) -> bool:
    return (folder / "checkpoint_step0000005.json").exists()


@pytest.mark.row(9)
def test_a_disk_that_fills_up_costs_nothing(folder, state, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = names(folder)
    monkeypatch.setattr("dittool.ckpt.sharded.write_atomic", lambda path, raw: full(path, raw))
    with pytest.raises(StorageError, match=r"No space left on device: the checkpoint needs .*B, the disk has .*B free"):
        save_in_parts(folder, state(5))
    sweep_temporaries(folder)
    assert names(folder) == before and not list(folder.glob(".*"))


# Read as any other


@pytest.fixture
def both(tmp_path, state):
    """The same state as a file and in parts."""
    return save_checkpoint(tmp_path / "file", state(2)), save_in_parts(tmp_path / "parts", state(2), 3)


def test_its_weights_are_those_of_the_file(both):
    file, parts = (load_weights(path) for path in both)
    assert dict(file).keys() == parts.keys() and all(torch.equal(file[name], parts[name]) for name in file)
    raw = load_weights(both[1], "model")
    assert all(torch.equal(raw[name], one) for name, one in load_weights(both[0], "model").items())
    with pytest.raises(BadDataError, match="no weights under 'other'"):
        load_weights(both[1], "other")


def test_weights_are_read_one_at_a_time(both, monkeypatch):
    read, genuine = [], Sharded._tensor
    monkeypatch.setattr(Sharded, "_tensor", lambda self, spec: read.append(spec) or genuine(self, spec))
    weights = load_weights(both[1])
    assert isinstance(weights, LazyTensors) and not read
    assert len(weights["0.weight"]) == 8 and len(read) == 1


def test_what_draws_reads_the_average_alone(both, monkeypatch):
    read, genuine = [], Sharded._tensor
    monkeypatch.setattr(Sharded, "_tensor", lambda self, spec: read.append(spec.place.storage) or genuine(self, spec))
    assert load_to_draw(both[1])["config"] == load_to_draw(both[0])["config"]
    assert read and all(name.startswith("ema.") for name in read)


def test_it_is_inspected_as_the_file_is(both):
    file, parts = map(inspect, both)
    for name in ("kind", "weights", "taken", "parameters", "dtypes", "step", "config", "data_identity", "sidecar"):
        assert getattr(file, name) == getattr(parts, name), name
    assert file.tensors == parts.tensors and parts.sidecar == "verified" and parts.path == both[1]
    assert inspect(both[1] / INDEX_NAME).path == both[1]


def test_joined_it_is_what_is_exported_of_the_file(both, tmp_path):
    outs = [tmp_path / f"{path.parent.name}.safetensors" for path in both]
    for path, out in zip(both, outs, strict=True):
        export_safetensors(path, out)
    assert outs[0].read_bytes() == outs[1].read_bytes() and is_export(outs[1])


def test_what_is_written_tensor_by_tensor_is_what_the_library_writes(tmp_path):
    tensors = {name: torch.randn(size) for name, size in (("b", (3, 2)), ("a", ()), ("é", (0, 4)))}
    written = write_safetensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == save(tensors, {"format": "pt"})
    assert written == (checkpoint_sha256(tmp_path / "ours.safetensors"), (tmp_path / "ours.safetensors").stat().st_size)
    mixed = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.randn(4, 6).T, "c": torch.tensor([True])}
    write_safetensors(tmp_path / "mixed.safetensors", mixed, {})
    assert equal(dict(sorted(load_file(tmp_path / "mixed.safetensors").items())), mixed)
    assert write._FORMAT_NAMES.keys() <= set(write.DTYPE_BYTES)


# Strangers'


def changed_index(path, change) -> None:
    index = json.loads((path / INDEX_NAME).read_text())
    change(index)
    (path / INDEX_NAME).write_text(json.dumps(index))


HOSTILE = {
    "a part elsewhere": lambda index: index["parts"][0].update(file="../../etc/passwd"),
    "a part twice": lambda index: index["parts"].__setitem__(1, index["parts"][0]),
    "an unknown kind": lambda index: index["content"].update(data={"$call": "os.system"}),
    "a negative shape": lambda index: index["content"]["model"]["0.weight"].update(shape=[-1, 4]),
    "a tensor twice": lambda index: index["content"].update(more=index["content"]["model"]["0.weight"]),
    "no dtype": lambda index: index["content"]["model"]["0.weight"].update(dtype=["float32"]),
    "a tensor that is not listed": lambda index: index["content"]["model"].pop("0.weight"),
    "strange entries": lambda index: index["content"].update(data={"$entries": [[["a"], 1]]}),
}
DAMAGED = {
    "more rows than there are": lambda index: index["content"]["model"]["0.weight"].update(shape=[9, 4]),
    "another dtype": lambda index: index["content"]["model"]["0.weight"].update(dtype="float16"),
    "a huge tensor": lambda index: index["content"]["model"]["0.weight"].update(shape=[2**40, 4]),
    "no parts": lambda index: index.update(parts=[]),
    "a version to come": lambda index: index.update(version=9),
    "no index": lambda index: index.clear(),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_an_index_that_no_writer_makes_is_refused(both, change):
    changed_index(both[1], HOSTILE[change])
    with pytest.raises(UnsafeFileError):
        load_weights(both[1])


@pytest.mark.parametrize("raw", [b'{"version": 1, "version": 1}', b"[" * 100_000, b"\xff", b"{}", b"[]"])
def test_an_index_that_is_none_is_refused(both, raw):
    (both[1] / INDEX_NAME).write_bytes(raw)
    with pytest.raises((UnsafeFileError, BadDataError)):
        load_weights(both[1])


@pytest.mark.parametrize("change", DAMAGED)
def test_an_index_that_does_not_fit_its_parts_is_refused(both, change):
    changed_index(both[1], DAMAGED[change])
    with pytest.raises(BadDataError):
        load_weights(both[1])


def test_a_part_that_is_a_link_out_of_the_folder_is_refused(both, tmp_path):
    part = next(both[1].glob("part-*"))
    shutil.move(part, tmp_path / "elsewhere.safetensors")
    part.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(DitError, match="a link that leads out of its folder"):
        load_weights(both[1])
    assert is_sharded(both[1])
