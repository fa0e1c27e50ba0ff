"""torch.compile of the blocks: the same numbers, the same names, and a number of graphs that buckets and captions
do not raise.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.config.load import load_config
from dittool.errors import UsageError
from dittool.models import layers
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT, DiTConfig
from dittool.train import state
from dittool.train.failures import compiler_errors_explained
from dittool.train.loop import train
from dittool.train.state import compile_blocks

BUCKETS = [(8, 8), (10, 6), (4, 12)]  # latent cells
CONFIG = DiTConfig(
    depth=2,
    width=32,
    heads=4,
    mlp="gelu",
    mlp_ratio=4.0,
    patch_size=2,
    norm="layer",
    qk_norm=True,
    positions="sincos",
    shared_modulation=False,
    patches=True,
    patch_fusion="attended",
    patch_positions=True,
    context_norm=False,
    context_balance=False,
    time_init="small",
    gradient_checkpointing=False,
    routed_blocks=(2, 2),
    aligned_block=None,
    latent_channels=4,
    text_width=12,
    image_width=20,
)


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Counts the graphs that the compiler is given, and runs them as they are: no C++ compiler is needed."""
    made: list = []

    def backend(graph, _example):
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(state, "COMPILER", backend)
    yield made
    torch._dynamo.reset()


def build(**changes) -> DiT:
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(CONFIG, **changes)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(size: int, grid: tuple[int, int], length: int, padded: bool):
    rows, columns = grid[0] // 2, grid[1] // 2
    mask = torch.arange(length)[None].expand(size, -1) < length - 3 if padded else None
    c = Conditions(
        torch.randn(size, length, 12),
        mask,
        torch.randn(size, 20),
        torch.randn(size, rows * columns, 20),
        (rows, columns),
    )
    return torch.randn(size, 4, *grid), torch.rand(size), c


def every_shape(sizes: tuple[int, ...]):
    return [
        batch(size, grid, length, padded)
        for size in sizes
        for grid in BUCKETS
        for length in (8, 16)
        for padded in (True, False)
    ]


@pytest.mark.parametrize(
    ("checkpointing", "precision", "joins"),
    [
        (False, torch.float32, False),
        pytest.param(True, torch.bfloat16, True, marks=pytest.mark.slow),
        pytest.param("selective", torch.float32, True, marks=pytest.mark.slow),
    ],
)
def test_two_graphs_serve_all_blocks_buckets_and_caption_lengths(graphs, monkeypatch, checkpointing, precision, joins):
    monkeypatch.setattr(layers, "joining_pays", lambda _q: joins)
    plain, fast = build(gradient_checkpointing=checkpointing), build(gradient_checkpointing=checkpointing)
    compile_blocks(fast)
    for z, t, c in every_shape(sizes=(2, 5)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            expected, found = plain(z, t, c), fast(z, t, c)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    assert len(graphs) == 2
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batches_of_one_sample_have_two_graphs_of_their_own(graphs):
    model = build()
    compile_blocks(model)
    for inputs in every_shape(sizes=(3, 1)):
        model(*inputs)
    assert len(graphs) == 4


def test_names_of_weights_do_not_know_that_they_are_compiled(graphs):
    model = build()
    compile_blocks(model)
    model(*batch(2, BUCKETS[0], 8, True))
    assert list(model.state_dict()) == list(build().state_dict())


def test_a_run_is_compiled_by_its_key_and_ends_where_the_plain_one_ends(graphs, family_run, family_shards, tmp_path):
    train(family_shards.config_with("train.compile=true"), family_shards.folder, tmp_path / "run")
    fast, plain = (load_checkpoint(resolve_checkpoint(run)) for run in (tmp_path / "run", family_run))
    assert 1 <= len(graphs) <= 2
    for part in ("model", "ema"):
        assert fast[part].keys() == plain[part].keys()
        assert all(torch.allclose(fast[part][name], plain[part][name], atol=1e-5) for name in plain[part])


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "on_gpu"), [(True, True, True), (False, False, False), ("gpu", False, True)]
)
def test_a_preset_is_compiled_where_there_is_a_gpu(wanted, on_cpu, on_gpu):
    config = load_config("nano", [f"train.compile={str(wanted).lower()}"])
    assert [state.compiles(config, torch.device(name)) for name in ("cpu", "cuda")] == [on_cpu, on_gpu]
    assert all(
        load_config(name).train.compile == "gpu"
        for name in ("nano", "nano-fast", "medium", "base", "large", "drift-l2")
    )


def test_a_run_is_not_compiled_without_the_key(graphs, tiny_shards, tmp_path):
    train(tiny_shards.config_with("train.steps=3"), tiny_shards.folder, tmp_path / "run")
    assert not graphs


def test_a_machine_without_a_compiler_is_told_what_to_do(family_shards, tmp_path, monkeypatch):
    def backend(_graph, _example):
        raise OSError("no g++ here")

    torch._dynamo.reset()
    monkeypatch.setattr(state, "COMPILER", backend)
    with pytest.raises(UsageError, match=r"train\.compile: the model cannot be compiled.*no g\+\+ here") as message:
        train(family_shards.config_with("train.compile=true"), family_shards.folder, tmp_path / "run")
    assert "-s train.compile=false" in message.value.hint


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="out of luck"), compiler_errors_explained():
        raise RuntimeError("out of luck")


@pytest.mark.xdist_group("torchrun")  # two of them at once may take one port, and hang
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_compiled_processes_end_where_a_plain_one_ends(tiny_shards, tmp_path, parallel):
    settings = (
        "train.steps=3",
        "train.accumulate=2",
        "train.lr=1e-4",
        "train.warmup_steps=0",
        f"train.parallel={parallel}",
    )
    train(tiny_shards.config_with(*settings), tiny_shards.folder, tmp_path / "one")
    program = tmp_path / "compiled_without_gcc.py"
    program.write_text(
        "from dittool.train import state\nfrom dittool.cli import main\nstate.COMPILER = 'aot_eager'\nmain()\n"
    )
    options = [
        word for override in (*tiny_shards.overrides, *settings, "train.compile=true") for word in ("-s", override)
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
        "train",
        "--preset",
        "demo",
    ]
    command += ["--data", str(tiny_shards.folder), "--out", str(tmp_path / "two"), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_checkpoint(resolve_checkpoint(tmp_path / name)) for name in ("one", "two"))
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.allclose(one["model"][name], two["model"][name], atol=1e-4) for name in one["model"])
