"""The folder that the lines of `table.py` are run in: runs, shards, features, pictures, files of strangers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_data import record_data
from dittool.ckpt.write import write_safetensors
from dittool.cli import run as run_line
from dittool.config.architectures import AnyConfig
from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.shards.write import shard
from dittool.demo.class_drawing import draw_class_folders
from dittool.demo.drawing import draw_dataset
from dittool.sampling.draw import draw
from dittool.sampling.one_step import OneStepRequest, draw_classes
from dittool.sampling.request import DrawRequest
from dittool.storage import read_json
from dittool.train.loop import train
from dittool.validate.run import validate
from tests.conftest import SMALL_CLASSES

_TINY = 'base = "demo"\n[model]\ndepth = {depth}\nwidth = 32\nheads = 2\n[train]\nbatch_size = 2\nworkers = 0\n'
_PROMPTS = '{"prompt": "a green square", "seed": 5}\n{"ref": "ref.png", "size": "64x64", "negative": "grey"}\n'
_LINKED = {".pt", ".npy", ".tar", ".safetensors"}  # replaced, never written into


def build(folder: Path, run: Path, class_run: Path) -> None:
    """Everything that the lines name. `run` is of a rectified flow with its shards recorded, `class_run` of a one-step
    generator; neither is changed.
    """
    shards = Path(os.path.normpath(run / read_json(run / "run.json")["data"]))
    shutil.copytree(shards, folder / "data" / "shards")
    for name, step in (("run", None), ("other", 1)):
        _cheap_copy(run, folder / name, folder / "data" / "shards", step)
    _averaged(folder / "run", folder / "averaged")
    _copied_run(class_run, folder / "classes")
    _features(folder, load_config("demo", ["data.holdout=0.3"]))
    chance = np.random.default_rng(0)
    for name in ("ref", "other", "theirs"):
        Image.fromarray(chance.integers(0, 255, (96, 64, 3), np.uint8)).save(folder / f"{name}.png")
    write_safetensors(folder / "alexnet.safetensors", _alexnet(), {})
    for suffix in (".safetensors", ".pt"):
        (folder / "theirs").with_suffix(suffix).write_bytes(b"not ours")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    (folder / "prompts.jsonl").write_text(_PROMPTS)
    for name, depth in (("tiny", 1), ("deeper", 2)):
        (folder / f"{name}.toml").write_text(_TINY.format(depth=depth))
    _pictures(folder)


def _alexnet() -> dict[str, Tensor]:
    """The layers that LPIPS reads, untrained."""
    layers = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    chance = torch.Generator().manual_seed(0)
    shapes = {f"features.{n}.weight": (out, into, side, side) for n, (out, into, side) in layers.items()}
    shapes |= {f"features.{n}.bias": (layers[n][0],) for n in layers}
    return {name: torch.randn(shape, generator=chance) / 30 for name, shape in shapes.items()}


def class_run(folder: Path) -> Path:
    """A generator of drawn classes after six steps."""
    config = load_config("drift-demo", SMALL_CLASSES)
    draw_class_folders(folder / "images", 96, 0, 32)
    embed(folder / "images", folder / "derived", config)
    shard(folder / "derived", folder / "shards")
    train(config, folder / "shards", folder / "run")
    return folder / "run"


def _pictures(folder: Path) -> None:
    inside = Path.cwd()
    os.chdir(folder)  # pictures remember paths as they were given
    try:
        ref, final = Path("ref.png"), "checkpoints/checkpoint_final.pt"
        draw(DrawRequest(Path("run") / final, "a green square", ref, 1, 3, None, {}), Path("drawn.png"))
        draw_classes(OneStepRequest(Path("classes") / final, ("green-circle",), None, 1, 3), Path("class.png"))
        assert run_line(["warmstart", "run", "--preset", "tiny.toml", "--out", "start.safetensors", "--quiet"]) == 0
    finally:
        os.chdir(inside)


def _features(folder: Path, config: AnyConfig) -> None:
    """Two dozen images: features twice, and shards whole, without an index, and without a word of where from."""
    draw_dataset(folder / "images", 24, seed=1)
    embed(folder / "images", folder / "derived", config)
    shard(folder / "derived", folder / "few", holdout=0.3)
    draw_dataset(folder / "others", 12, seed=2)
    embed(folder / "others", folder / "derived-again", config)
    shutil.copytree(folder / "few", folder / "lost")
    shard(folder / "derived", folder / "foreign", shard_size=3, holdout=0.0)
    for name in ("lost", "foreign"):
        for path in [*(folder / name).glob("*.json"), *(folder / name).rglob("*.members*")]:
            path.unlink()
    shutil.rmtree(folder / "images")
    shutil.rmtree(folder / "others")


def _cheap_copy(run: Path, copy: Path, shards: Path, step: int | None) -> None:
    """The run with a final checkpoint, and one of step 2, that draw and judge little; with `step`, of that step."""
    copy.mkdir()
    shutil.copy(run / "log.jsonl", copy / "log.jsonl")
    resolved = re.sub(r"batch_size = \d+", "batch_size = 2", (run / "resolved.toml").read_text())
    (copy / "resolved.toml").write_text(resolved)
    state = load_checkpoint(run / "checkpoints" / "checkpoint_final.pt")
    state["config"]["sample"]["steps"] = 2
    state["config"]["validate"]["limit"] = 4
    if step is not None:
        state["step"] = step
        state["ema"] = {name: tensor * 0.9 for name, tensor in state["ema"].items()}
    save_checkpoint(copy / "checkpoints", state, final=True)
    state["step"], state["ema"] = 2, state["model"]
    state["model"] = {name: tensor * 1.1 for name, tensor in state["model"].items()}
    save_checkpoint(copy / "checkpoints", state)
    record_data(copy, shards, state["data"]["identity_hash"], state["data"]["order_hash"])
    validate(copy / "checkpoints" / "checkpoint_final.pt", shards)


def _averaged(run: Path, copy: Path) -> None:
    """The run's two checkpoints as if it had followed averages of three widths."""
    copy.mkdir()
    state = load_checkpoint(run / "checkpoints" / "checkpoint_final.pt")
    for step in (2, state["step"]):
        ema = state["ema"].items()
        widths = {
            f"{width:g}": {name: tensor * (1 + width + step) for name, tensor in ema} for width in (0.05, 0.1, 0.2)
        }
        averaged = {**state, "step": step, "snapshots": {"begun": 0, "weights": widths}}
        save_checkpoint(copy / "checkpoints", averaged, final=step == state["step"])


def _copied_run(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tensorboard", "samples", ".lock", "*step*"))


def copied(template: Path, folder: Path) -> None:
    """The workshop anew, in little time: large files are links, which programs of ours replace and never write into."""

    def link(source: str, target: str) -> None:
        os.link(source, target) if Path(source).suffix in _LINKED else shutil.copy2(source, target)

    shutil.copytree(template, folder, copy_function=link)


def tensors_digest(path: Path) -> str:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return repr({name: (tuple(value.shape), float(value.double().sum())) for name, value in sorted(tensors.items())})
