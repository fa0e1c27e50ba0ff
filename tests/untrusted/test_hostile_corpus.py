"""The corpus: hostile files are refused by every command that reads checkpoints, honest ones of every layout by
none.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dittool.ckpt.files import save_checkpoint
from tests.untrusted.hostile import PROTOCOLS, techniques, write_corpus

MOST_EXTRA_MEMORY = 256  # MiB
LARGE = 1 << 20  # bytes of a file
COMMANDS = {  # a checkpoint's place is {}; the last two take no weights alone
    "audit": ("audit", "{}"),
    "inspect-ckpt": ("inspect-ckpt", "{}", "--json"),
    "warmstart": ("warmstart", "{}", "--preset", "demo", "--out", "x.safetensors"),
    "sample": ("sample", "--prompt", "a", "--checkpoint", "{}"),
    "validate": ("validate", "{}"),
}
STATUS = Path("/proc/self/status")
READER = """
import re, sys
from pathlib import Path
from dittool.ckpt.inspect import inspect
from dittool.errors import DitError
files = [Path(line) for line in sys.stdin.read().splitlines()]
def peak():  # of this program alone: getrusage also counts what its parent had before
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
codes = []
for file in files:
    try:
        inspect(file)
        codes.append(0)
    except DitError as refusal:
        codes.append(int(refusal.exit_code))
print(sorted(set(codes)), len(codes), (peak() - before) // 1024)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[list[Path], Path]:
    """The files, and the canary that none of them may make."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "files").mkdir()
    return write_corpus(root / "files", root / "canary"), root / "canary"


@pytest.mark.filterwarnings("ignore")
def test_a_reader_that_trusts_the_files_is_hit_by_every_technique(tmp_path):
    """The control."""
    for name in techniques(tmp_path / "canary"):
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        kept = pickle.loads(pickle.dumps(techniques(folder / "canary")[name], PROTOCOLS[1]))
        for _ in range(100):  # a process that it started may take a moment
            if os.path.lexists(folder / "canary"):
                break
            time.sleep(0.02)
        assert os.path.lexists(folder / "canary"), (name, kept)


@pytest.mark.row(56, 57)
def test_every_hostile_file_is_refused_with_exit_4_and_one_line(dit, corpus):
    files, canary = corpus
    assert len(files) >= 840
    # the others' code is asked for with their memory
    for path in (path for path in files if path.stat().st_size < LARGE):
        ended = dit("inspect-ckpt", path)
        errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert (ended.code, ended.out, len(errors)) == (4, "", 1), (path, ended)
        assert "refused without loading it" in errors[0]
    assert not os.path.lexists(canary)


@pytest.mark.row(56, 57)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_checkpoints_refuses(dit, corpus, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, canary = corpus
    of_a_kind = [path for path in files if path.suffix == ".pt" or command not in ("sample", "validate")]
    for path in of_a_kind[:: len(of_a_kind) // 15]:
        ended = dit(*(part.replace("{}", str(path)) for part in COMMANDS[command]))
        assert ended.code == 4, (path, ended)
    assert not os.path.lexists(canary)


@pytest.mark.row(56, 57)
@pytest.mark.skipif(not STATUS.exists(), reason="the peak of one program's memory is read from Linux")
def test_no_bomb_takes_more_than_a_quarter_of_a_gigabyte(corpus):
    """In a process of its own, whose peak memory over all files is measured."""
    files, canary = corpus
    said = subprocess.run(
        [sys.executable, "-c", READER], input="\n".join(map(str, files)), capture_output=True, text=True, check=True
    ).stdout
    codes, count, extra = said.strip().rsplit(" ", 2)
    assert (codes, int(count)) == ("[4]", len(files))
    assert int(extra) <= MOST_EXTRA_MEMORY
    assert not os.path.lexists(canary)


def honest_files(folder: Path, state) -> list[Path]:
    """Files as trainers leave them: ours, the averaged weights, wrappers, half precision, shared tensors, published
    layouts.
    """
    folder.mkdir()
    ours = state(3)
    weights = ours["model"]
    shared, strided = torch.randn(3, 4), torch.arange(12.0).view(3, 4).T
    saved = {
        "ours without an average": {key: value for key, value in ours.items() if key != "ema"},
        "weights": weights,
        "averaged weights": ours["ema"],
        "under state_dict": {"state_dict": weights, "epoch": 3},
        "under model": {"model": weights},
        "under ema": {"ema": weights, "model": weights},
        "under model_ema": {"model_ema": weights},
        "under module": {"module": weights},
        "data parallel": {f"module.{name}": one for name, one in weights.items()},
        "compiled": {f"_orig_mod.{name}": one for name, one in weights.items()},
        "compiled and parallel": {f"module._orig_mod.{name}": one for name, one in weights.items()},
        "bf16": {name: one.bfloat16() for name, one in weights.items()},
        "fp16": {name: one.half() for name, one in weights.items()},
        "float8": {name: one.to(torch.float8_e4m3fn) for name, one in weights.items()},
        "shared": {"a": shared, "b": shared, "c": shared[1:]},
        "strided": {"a": strided},
        "buffers": torch.nn.BatchNorm2d(4).state_dict(),
        "parameters": {"w": torch.nn.Parameter(torch.ones(2))},
        "one number": {"w": torch.tensor(1.5)},
        "nothing in it": {"w": torch.zeros(0, 3), "v": torch.ones(1)},
        "random state": {**ours, "rng": torch.get_rng_state()},
        "optimizer": {
            "model": weights,
            "optimizer": ours["optimizer"],
            "scheduler": {"last_epoch": 3, "_last_lr": [1e-4]},
            "args": {"lr": 1e-4},
        },
    }
    for name, content in saved.items():
        torch.save(content, folder / f"{name}.pt")
    for name in ("weights", "bf16", "averaged weights"):
        save_file(saved[name], folder / f"{name}.safetensors", {"format": "pt"})
    shutil.copy(save_checkpoint(folder / "run", ours), folder / "ours.pt")
    shutil.rmtree(folder / "run")
    return sorted(folder.iterdir())


def test_honest_files_are_refused_by_nobody(dit, tmp_path, state):
    files = honest_files(tmp_path / "honest", state) + layouts(tmp_path / "layouts")
    assert len(files) >= 25
    for path in files:
        assert dit("inspect-ckpt", path, "--tree", "--json").code == 0, path
        assert dit("audit", path, "--select", "K1,K2").code == 0, path


def layouts(folder: Path) -> list[Path]:
    """A first block of each published layout, by the names of its tensors."""
    folder.mkdir()
    names = {
        "DiT": [
            "x_embedder.proj.weight",
            "t_embedder.mlp.0.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.0.adaLN_modulation.1.weight",
        ],
        "PixArt": ["pos_embed.proj.weight", "adaln_single.linear.weight", "transformer_blocks.0.scale_shift_table"],
        "SD3": [
            "joint_blocks.0.context_block.attn.qkv.weight",
            "joint_blocks.0.x_block.adaLN_modulation.1.weight",
            "final_layer.linear.weight",
        ],
        "Flux": [
            "double_blocks.0.img_mod.lin.weight",
            "double_blocks.0.txt_attn.qkv.weight",
            "single_blocks.0.linear1.weight",
            "img_in.weight",
        ],
    }
    for layout, tensors in names.items():
        torch.save({name: torch.ones(2, 2) for name in tensors}, folder / f"{layout}.pt")
        save_file({name: torch.ones(2, 2) for name in tensors}, folder / f"{layout}.safetensors")
    return sorted(folder.iterdir())
