"""The device of a process, and the lines that only a GPU reaches, walked on one that is not there."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.devices import as_in_training, choose_device, device_of_choice
from dittool.errors import UsageError
from tests.fake_gpu import NAME, fake_gpu


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as asked:
        yield asked
    choose_device(None)


def options(shards) -> list[str]:
    return [word for override in shards.overrides for word in ("-s", override)]


def test_without_a_choice_the_gpu_computes_where_there_is_one(gpu):
    assert device_of_choice() == torch.device("cuda")
    assert choose_device("cuda:1") == device_of_choice() == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu") and choose_device(None) == torch.device("cuda")


@pytest.mark.parametrize("name", ["cuda:2", "mps", "gpu", "cuda:", "CUDA", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(gpu, name):
    with pytest.raises(UsageError) as refused:
        choose_device(name)
    assert "cpu, cuda, cuda:0, cuda:1" in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    "line",
    ["train --preset drift-toy", "validate", "sample --prompt red", "embed", "train --preset demo --dry-run"],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu"])
def test_every_command_that_computes_refuses_a_device_that_is_not_there(line, device, tmp_path, monkeypatch, dit):
    monkeypatch.chdir(tmp_path)
    ended = dit(*line.split(), "--device", device)
    assert ended.code == 2 and f"--device {device}: " in ended.err and "cpu" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_processes_cannot_take_anothers_gpu(gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes"):
        choose_device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda") and choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_computes_as_in_training_and_a_cpu_as_ever(gpu, precision):
    before = torch.backends.cuda.matmul.allow_tf32
    with as_in_training(torch.device("cuda"), precision):
        assert torch.backends.cuda.matmul.allow_tf32
    assert gpu == (["torch.bfloat16"] if precision == "bf16" else [])
    with as_in_training(torch.device("cpu"), precision):
        assert torch.backends.cuda.matmul.allow_tf32 == before and not torch.is_autocast_enabled("cpu")


def test_a_dry_run_names_the_gpu_and_counts_its_memory(gpu, tiny_shards, dit):
    words = ("--data", tiny_shards.folder, "-s", "train.precision=bf16", *options(tiny_shards))
    ended = dit("train", "--preset", "demo", "--dry-run", *words, "--json")
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert (plan["device"], plan["memory_bytes"]) == (NAME, 123_000_000) and "torch.bfloat16" in gpu


def test_a_bench_names_the_gpu(gpu, tiny_shards, monkeypatch, dit):
    from dittool.train import bench

    monkeypatch.setattr(bench, "_SECONDS", 0.0)
    monkeypatch.setattr(bench, "matrix_product_flops", lambda device, precision: 1e12)
    ended = dit("bench", "--preset", "demo", *options(tiny_shards), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["device"] == NAME and json.loads(ended.out)["peak_memory_bytes"] == 123_000_000


def test_the_doctor_looks_at_every_gpu(gpu, tmp_path, dit):
    ended = dit("doctor", "--preset", "demo", "--out", tmp_path, "--data", tmp_path, "--json")
    found = {one["check"]: one for one in json.loads(ended.out)["findings"]}
    assert NAME in found["device: cuda:0"]["what"] and found["device: cuda:1"]["status"] == "ok"


def test_training_sampling_and_validation_run_on_it_in_the_precision_of_training(gpu, tiny_shards, tmp_path, dit):
    run = tmp_path / "run"
    settings = [
        word
        for key in ("precision=bf16", "steps=2", "warmup_steps=1", "eval_every=2", "sample_every=2")
        for word in ("-s", f"train.{key}")
    ]
    line = ("train", "--preset", "demo", "--data", tiny_shards.folder, "--out", run, "--no-audit", "--quiet")
    assert (ended := dit(*line, *options(tiny_shards), *settings, "--device", "cuda:1")).code == 0, ended.err
    assert list((run / "samples").iterdir()) and "eval_loss" in (run / "log.jsonl").read_text()
    before = len(gpu)
    ended = dit("sample", "--prompt", "red", "--checkpoint", run, "--out", tmp_path / "a.png", "--quiet", "--json")
    assert ended.code == 0, ended.err
    settings = json.loads(ended.out)["images"][0]["settings"]
    assert settings["made_with"]["device"] == "cuda" and len(gpu) > before
    before = len(gpu)
    ended = dit("validate", run, "--limit", 1, "--tests", "mode_losses", "--out", tmp_path / "judged", "--quiet")
    assert ended.code in (0, 1), ended.err
    assert len(gpu) >= before + 10, "the keys and values, then nine timesteps"


def test_on_a_cpu_a_bf16_run_draws_the_same_bits_as_before(tiny_shards, tmp_path):
    """What stands in the checkpoint decides nothing there: fp32, to the bit."""
    from dittool.sampling.pipeline import Pipeline
    from dittool.train.loop import train

    config = tiny_shards.config_with("train.precision=bf16", "train.steps=1", "train.warmup_steps=0")
    train(config, tiny_shards.folder, tmp_path / "run")
    pipeline = Pipeline.load(resolve_checkpoint(tmp_path / "run"))
    bucket = pipeline.buckets[0]
    conditions, noise = pipeline.conditions("red", None, bucket, 1), pipeline.noise(bucket, [0])
    drawn = pipeline.latents(conditions, noise)
    pipeline.config = pipeline.config.model_copy(
        update={"train": pipeline.config.train.model_copy(update={"precision": "fp32"})}
    )
    assert torch.equal(drawn, pipeline.latents(conditions, noise))
