"""Several processes: the same order of samples, the same gradients, one writer; a signal to one stops all, with the
state saved.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from dittool.ckpt.files import discard, list_checkpoints, resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.errors import Interrupted, UsageError
from dittool.families.flow import FAMILY
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state, same_tensors

pytestmark = pytest.mark.xdist_group("torchrun")  # two of them at once may take one port, and hang


def torchrun(
    processes: int, out, family_shards, *overrides: str, resume: bool = False, program: str = "dittool"
) -> subprocess.Popen:
    options = [word for override in (*family_shards.overrides, *overrides) for word in ("-s", override)]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        program,
        "train",
        *(["--no-audit"] if program == "dittool" else []),
        "--data",
        str(family_shards.folder),
        "--out",
        str(out),
        *(["--resume"] if resume else ["--preset", family_shards.preset]),
        *options,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1")
    )


def finished(process: subprocess.Popen) -> int:
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    return process.returncode


def largest_difference(a: dict, b: dict) -> float:
    return max(float((a[part][name] - b[part][name]).abs().max()) for part in ("model", "ema") for name in a[part])


@pytest.mark.parametrize(
    ("shards", "parallel", "optimizer"),
    [
        ("tiny_shards", "fsdp", "muon"),
        pytest.param("tiny_shards", "fsdp", "adamw", marks=pytest.mark.slow),
        pytest.param("tiny_shards", "ddp", "muon", marks=pytest.mark.slow),
        pytest.param("class_shards", "ddp", "adamw", marks=pytest.mark.slow),
        pytest.param("tiny_shards", "ddp", "adamw", marks=pytest.mark.slow),
        pytest.param("class_shards", "fsdp", "muon", marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(shards, parallel, optimizer, request, tmp_path):
    family_shards = request.getfixturevalue(shards)
    keys = (
        f"parallel={parallel}",
        f"optimizer={optimizer}",
        "accumulate=2",
        "steps=3",
        "lr=1e-4",
        "warmup_steps=0",
        "eval_every=3",
        "sample_every=3",
    )
    settings = [f"train.{key}" for key in keys]
    if family_shards.preset == "drift-demo":
        settings += ["drift.encoder=trained", "feature_encoder.steps=3"]
    train(family_shards.config_with(*settings), family_shards.folder, tmp_path / "one")
    finished(torchrun(2, tmp_path / "two", family_shards, *settings))
    one, two = (load_checkpoint(resolve_checkpoint(tmp_path / name)) for name in ("one", "two"))
    assert (two["step"], two["samples_seen"]) == (one["step"], one["samples_seen"])
    assert one["samples_seen"] == 3 * 2 * family_shards.config_with().train.batch_size
    for row_one, row_two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        for name, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5), ("eval_loss", 1e-5)):
            assert row_two.keys() == row_one.keys()
            assert name not in row_one or row_two[name] == pytest.approx(row_one[name], rel=tolerance)
    moments = [
        torch.cat([state["exp_avg"].flatten() for state in checkpoint["optimizer"]["state"].values()])
        for checkpoint in (one, two)
    ]
    assert float((moments[0] - moments[1]).abs().max()) < 1e-6  # the gradients of all steps, weighted
    assert one["model"].keys() == two["model"].keys() and largest_difference(one, two) < 1e-4
    assert (tmp_path / "two" / "samples" / "step0000003_ema.png").is_file()
    if "queues" in one:
        assert same_tensors(one["queues"], two["queues"])
        weights = [content["feature_encoder"]["weights"] for content in (one, two)]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


LONGER = ("train.steps=120", "train.eval_every=40", "checkpoint.every=20")


def until_row(out, process: subprocess.Popen, step: int) -> None:
    """Waits until the log of a run shows this step."""
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or not any(row["step"] >= step for row in read_log(out)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def a_process_of(agent: subprocess.Popen) -> int:
    children = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=True).stdout
    return int(children.split()[-1])


@pytest.mark.row(15)
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("hurt", [signal.SIGTERM, signal.SIGKILL], ids=["TERM to torchrun", "KILL to a process"])
def test_hurt_under_torchrun_a_run_resumes_to_the_same_bits(tiny_shards, tmp_path, parallel, hurt):
    settings = (*LONGER, f"train.parallel={parallel}")
    finished(torchrun(2, tmp_path / "unhurt", tiny_shards, *settings))
    out = tmp_path / "hurt"
    agent = torchrun(2, out, tiny_shards, *settings)
    until_row(out, agent, 50)
    os.kill(agent.pid if hurt == signal.SIGTERM else a_process_of(agent), hurt)
    agent.communicate(timeout=120)
    assert agent.returncode != 0 and max(file.step for file in list_checkpoints(out / "checkpoints")) < 120
    finished(torchrun(2, out, tiny_shards, *settings, resume=True))
    assert_same_bits(final_state(tmp_path / "unhurt"), final_state(out))


def back_to(step: int, run) -> None:
    for checkpoint in list_checkpoints(run / "checkpoints"):
        if checkpoint.step > step:
            checkpoint.path.with_suffix(".json").unlink()
            discard(checkpoint.path)


@pytest.mark.row(23)
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_then_two_then_one_processes_see_the_same_samples(family_run, family_shards, tmp_path, parallel):
    """A run may change its number of processes on the way: only the rounding of sums differs."""
    out = shutil.copytree(family_run, tmp_path / "run")
    for step, processes in ((3, 2), (6, 1)):
        back_to(step, out)
        finished(torchrun(processes, out, family_shards, f"train.parallel={parallel}", resume=True))
    for mine, theirs in zip(read_log(out), read_log(family_run), strict=True):
        assert mine["step"] == theirs["step"] and mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert largest_difference(*(load_checkpoint(resolve_checkpoint(run)) for run in (out, family_run))) < 1e-3


@pytest.mark.slow
@pytest.mark.row(15)
@pytest.mark.parametrize("shards", ["tiny_shards", "class_shards"])
def test_a_signal_to_one_process_stops_all_and_saves_once(shards, request, tmp_path):
    family_shards = request.getfixturevalue(shards)
    out = tmp_path / "run"
    process = torchrun(2, out, family_shards, "train.steps=100000", "checkpoint.every=100000")
    deadline = time.monotonic() + 90
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0 and err.count("stopped at step") >= 1
    names = [file.path.name for file in list_checkpoints(out / "checkpoints")]
    assert len(names) == 1 and load_checkpoint(out / "checkpoints" / names[0])["step"] >= 1


def test_a_batch_that_does_not_divide_is_refused_by_name(tiny_shards):
    of_two = Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(UsageError, match="5 samples in a batch do not divide among 2 processes"):
        FAMILY.open_data(tiny_shards.config_with("train.batch_size=5"), tiny_shards.folder, of_two)


@pytest.mark.slow
def test_what_the_first_process_does_alone_may_take_longer_than_collectives_wait(tiny_shards, tmp_path):
    out = tmp_path / "run"
    settings = ("train.steps=1", "train.warmup_steps=0", "train.eval_every=1", "train.sample_every=1")
    judged = ("validate.every=1", "validate.limit=1")
    process = torchrun(2, out, tiny_shards, *settings, *judged, program="tests.train.slow_first_process")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    assert [line for line in err.splitlines() if line.startswith("slow: ")] == [
        f"slow: {name}" for name in ("audit", "evaluate", "save", "draw", "judge")
    ]
    assert list((out / "validation").rglob("results.json")) and list((out / "samples").iterdir())


def two_processes(first, others) -> tuple[object, object]:
    """What two functions of a `Ranks` give, or raise, as processes 0 and 1 with one store."""
    store = dist.HashStore()

    def outcome(function, rank: int) -> object:
        try:
            return function(Ranks(rank, 2, torch.device("cpu"), store=store))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(2) as both:
        running = [both.submit(outcome, function, rank) for rank, function in enumerate((first, others))]
        return running[0].result(20), running[1].result(20)


def test_the_others_wait_for_the_first_process_each_time():
    done = []

    def turns(ranks: Ranks) -> list[list[str]]:
        seen = []
        for name in "ab":
            with ranks.first_alone() as alone:
                if alone:
                    time.sleep(0.2)
                    done.append(name)
            seen.append(list(done))
        return seen

    _, seen = two_processes(turns, turns)
    assert seen[0][:1] == ["a"] and seen[1] == ["a", "b"]


def test_a_failure_of_the_first_process_ends_the_wait_of_the_others():
    def fails(ranks: Ranks) -> None:
        with ranks.first_alone() as alone:
            if alone:
                raise OSError("the disk is full")

    first, other = two_processes(fails, fails)
    assert isinstance(first, OSError)
    assert isinstance(other, Interrupted) and "the first process failed" in other.message


TOLD = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2", "--shutdown-timeout", "60")


@pytest.mark.slow
@pytest.mark.parametrize("message", [TOLD, ()], ids=["torchrun hands it on", "torchrun dies of it"])
def test_a_signal_to_torchrun_saves_the_run(tiny_shards, tmp_path, message):
    out, words = tmp_path / "run", [word for override in tiny_shards.overrides for word in ("-s", override)]
    words += ["-s", "train.steps=100000", "-s", "checkpoint.every=100000"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *message]
    command += ["-m", "dittool", "train", "--no-audit", "--preset", "demo", "--data", str(tiny_shards.folder)]
    process = subprocess.Popen([*command, "--out", str(out), *words], env=dict(os.environ, OMP_NUM_THREADS="1"))
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=90) != 0
    while not list_checkpoints(out / "checkpoints") or list_checkpoints(out / "checkpoints")[0].verify():
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)


def _gradients_of_half(rank: int, place: str) -> None:
    import torch.distributed as dist

    from dittool.train.distributed import Ranks, gathered
    from tests.models.test_joined_attention import batch, tiny

    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    found = {}
    for name in ("whole", "bf16"):
        model = tiny()
        if name != "whole":
            Ranks(rank, 2, torch.device("cpu"), sharded=True).shard(model, name)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*batch())
        out.float().square().mean().backward()
        gradients = {key: gathered(one.grad) for key, one in model.named_parameters()}
        held = {one.dtype for one in model.parameters()}
        found[name] = (out.detach(), gradients, held)
    if rank == 0:
        torch.save(found["whole"][:2] + found["bf16"][:2], f"{place}/found.pt")
        assert found["bf16"][2] == {torch.float32}
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_that_travel_in_bf16_give_what_autocast_gives(tmp_path):
    """Of batches that both processes share, so that the mean over them is that of one."""
    torch.multiprocessing.spawn(_gradients_of_half, (str(tmp_path),), nprocs=2)
    out, gradients, same_out, same = torch.load(tmp_path / "found.pt")
    assert torch.equal(out, same_out)
    for key, gradient in gradients.items():
        assert same[key].dtype == torch.float32
        assert (same[key] - gradient).norm() <= 0.01 * gradient.norm() + 1e-8, key
