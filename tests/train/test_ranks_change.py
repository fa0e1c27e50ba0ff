"""A run changes its number of processes on the way, with weights, average and moments split over them (FSDP2): what is
loaded is what was saved, bit for bit, and its steps are those of the run that stayed alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from dittool.ckpt.files import list_checkpoints, newest_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.sharded import is_sharded
from dittool.console import SILENT
from dittool.families.flow import FAMILY
from dittool.train.beginning import Beginning
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from dittool.train.state import TrainState
from tests.run_states import assert_same_bits, final_state, same_tensors
from tests.sharded import in_parts
from tests.train.test_distributed import back_to, finished, torchrun

pytestmark = pytest.mark.xdist_group("torchrun")


def brought_back(rank: int, count: int, config, data, checkpoints, place) -> None:
    """Loads the newest checkpoint in one of several processes, and gathers again what all of them hold."""
    dist.init_process_group("gloo", init_method=f"file://{place}/store{count}", rank=rank, world_size=count)
    store = dist.FileStore(f"{place}/words{count}", count)
    ranks = Ranks(rank, count, torch.device("cpu"), sharded=True, store=store)
    state = TrainState(config, FAMILY.open_data(config, data, ranks), ranks)
    Beginning(True, None, False, set(), None).bring(state, checkpoints, SILENT)
    content = state.to_checkpoint()
    held = sum(one.to_local().numel() for one in state.model.parameters())
    held_on_average = sum(one.to_local().numel() for one in state.ema.model.parameters())
    everything = sum(one.numel() for one in state.model.parameters())
    assert held == held_on_average <= everything / count + 2000
    if rank == 0:
        torch.save(content, f"{place}/of{count}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_any_number_of_processes_loads_is_what_was_saved(tiny_shards, tmp_path, optimizer):
    keys = ("train.parallel=fsdp", f"train.optimizer={optimizer}", "ema.averages=[0.05, 0.1]", "checkpoint.every=1")
    config, run = tiny_shards.config_with(*keys), tmp_path / "run"
    train(config, tiny_shards.folder, run, until=2)
    saved = load_checkpoint(newest_checkpoint(run / "checkpoints").path)
    for written_by in (1, 3):
        if written_by > 1:
            in_parts(newest_checkpoint(run / "checkpoints").path, written_by)
        for count in (2, 4):
            arguments = (count, config, tiny_shards.folder, run / "checkpoints", tmp_path)
            torch.multiprocessing.spawn(brought_back, arguments, nprocs=count)
            loaded = torch.load(tmp_path / f"of{count}.pt")
            saved["data"].pop("folder", None)
            assert_same_bits(saved, loaded)
            for width, average in saved["snapshots"]["weights"].items():
                assert same_tensors(average, loaded["snapshots"]["weights"][width])
            for name, momentum in saved["optimizer"].get("muon", {"momentum": {}})["momentum"].items():
                assert torch.equal(momentum, loaded["optimizer"]["muon"]["momentum"][name])
        for name in ("store2", "store4", "words2", "words4"):
            (tmp_path / name).unlink(missing_ok=True)


@pytest.mark.row(23)
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_two_four_one_processes_end_where_one_ends(tiny_shards, tmp_path, optimizer):
    keys = ("parallel=fsdp", f"optimizer={optimizer}", "lr=1e-4", "warmup_steps=0")
    keys += ("muon_lr=1e-3",) if optimizer == "muon" else ()
    settings = (*(f"train.{key}" for key in keys), "checkpoint.every=2", "checkpoint.keep=9")
    alone, out = tmp_path / "alone", tmp_path / "changing"
    config = tiny_shards.config_with(*settings)
    train(config, tiny_shards.folder, alone)
    train(config, tiny_shards.folder, out, until=2)
    for processes, reached in ((2, 4), (4, 6)):
        finished(torchrun(processes, out, tiny_shards, *settings, resume=True))
        back_to(reached, out)
        newest = newest_checkpoint(out / "checkpoints")
        assert newest.step == reached and len(list(newest.path.glob("part-*"))) == processes
    train(config, tiny_shards.folder, out, resume=True)
    assert [is_sharded(file.path) for file in list_checkpoints(out / "checkpoints")] == [False, True, True, False]
    one, other = final_state(alone), final_state(out)
    for part in ("model", "ema"):
        for name, tensor in one[part].items():
            assert float((tensor - other[part][name]).abs().max()) < 1e-6, (part, name)


def test_a_run_goes_on_from_parts_to_the_same_bits(tiny_shards, tiny_run, tmp_path):
    """Written by three processes, continued by one."""
    out = tmp_path / "run"
    train(tiny_shards.config, tiny_shards.folder, out, until=5)
    path = in_parts(newest_checkpoint(out / "checkpoints").path, 3)
    done = train(tiny_shards.config, tiny_shards.folder, out, resume_from=path)
    assert done.step == 8
    assert_same_bits(final_state(tiny_run), final_state(out))


@pytest.mark.row(5, 9, 20)
@pytest.mark.slow
@pytest.mark.parametrize("background", ["false", "true"])
@pytest.mark.parametrize("failure", ["disk", "kill"])
def test_a_process_that_fails_in_its_part_leaves_the_checkpoint_before(
    tiny_shards, tmp_path, monkeypatch, failure, background
):
    monkeypatch.setenv("FAILURE", failure)
    out, settings = tmp_path / "run", ("train.parallel=fsdp", f"checkpoint.background={background}")
    process = torchrun(2, out, tiny_shards, *settings, program="tests.train.failing_part")
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert newest_checkpoint(out / "checkpoints").step == 3
    if failure == "disk":
        assert "No space left on device" in err and "process 1 could not write its part" in err
        assert not list((out / "checkpoints").glob(".tmp-dit-*"))
    finished(torchrun(2, out, tiny_shards, *settings, resume=True))
    finished(torchrun(2, tmp_path / "unhurt", tiny_shards, *settings))
    assert not list(out.rglob(".tmp-dit-*"))
    assert_same_bits(final_state(tmp_path / "unhurt"), final_state(out))


@pytest.mark.slow
def test_processes_that_share_no_folder_gather_into_one_file(tiny_shards, tmp_path, monkeypatch):
    """The second one is told that it does not see what the first one made."""
    out = tmp_path / "run"
    process = torchrun(2, out, tiny_shards, "train.parallel=fsdp", program="tests.train.blind_process")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    assert [file.path.suffix for file in list_checkpoints(out / "checkpoints")] == [".pt"] * 3
    assert err.count("not shared by all processes") == 1 and not list(out.rglob(".tmp-dit-*"))
