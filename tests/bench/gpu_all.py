"""Everything that only a GPU can tell, in ten minutes on one card without a network: that it runs, and how fast.

    python -m tests.bench.gpu_all --out runs/gpu_all                     # on the card
    python -m tests.bench.gpu_all --out runs/gpu_all --tiny              # that it works, on a CPU

Parts, each by itself: one step of each preset; compile, bf16, Muon, recomputation; a run with log, evaluation and
checkpoint; waits for the device in a step, by a profile; images/s and their share of the dense peak (--peak, 989
TFLOP/s in bf16 on an H200) and of a large matrix product; memory beside the count of train/memory.py; sampling with
both guidances and the losses of validation; a step of diffusers' PixArt blocks of the same shape, where installed.

No part begins after --seconds. One that fails or finds no time is written down as that, and the next one begins.
OUT/gpu_all.json and OUT/gpu_all.md are written after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.config.architectures import AnyConfig
from dittool.config.load import load_config
from dittool.console import SILENT
from dittool.data.shards.read import ShardSet
from dittool.devices import device_name, device_of_choice, wait_for
from dittool.families.family import MicroBatch, family_of
from dittool.sampling.pipeline import Pipeline
from dittool.storage import write_atomic
from dittool.train.bench import forward_flops, matrix_product_flops
from dittool.train.distributed import Ranks
from dittool.train.loop import train, train_step
from dittool.train.memory import step_memory
from dittool.train.state import TrainState
from dittool.validate.mode_losses import sample_losses

PRESETS = ("nano", "nano-fast", "nano-patches", "medium", "base", "large", "drift-b2", "drift-l2", "drift-mae")
BUILT_IN = ("encoders.image=builtin:dinov3", "encoders.text=builtin:words", "encoders.vae=builtin:dct")
TINY = ("model.depth=1", "model.width=32", "model.heads=2", "data.area=64x64")
TINY_DRIFT = (
    *("model.depth=1", "model.width=16", "model.heads=2", "model.mlp_width=16", "model.input=4x4"),
    *('data.buckets=["32x32"]', "drift.generated=4", "drift.positives=4", "drift.unconditional=2"),
    *("drift.class_queue=6", "drift.global_queue=12", 'drift.features=["raw", "moments"]', "train.batch_size=8"),
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
STEPS = 5  # timed, after two that are not


@dataclass
class Report:
    """What was found so far, and until when there is time."""

    folder: Path
    end: float
    device: str
    wanted: list[str]  # beginnings of names
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """One part, if it is asked for: its figures, or why there are none."""
        if not any(name.startswith(wanted) for wanted in self.wanted):
            return
        start = time.monotonic()
        if start > self.end:
            self.parts[name] = {"skipped": "no time left"}
        else:
            try:
                self.parts[name] = measure()
            except Exception as error:  # the next part may work
                self.parts[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
            self.parts[name]["seconds"] = round(time.monotonic() - start, 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        write_atomic(self.folder / "gpu_all.json", json.dumps(self.to_json(), indent=1).encode())
        write_atomic(self.folder / "gpu_all.md", self.page().encode())

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "torch": torch.__version__, "parts": self.parts}

    def page(self) -> str:
        lines = [f"{self.device}, torch {torch.__version__}", "", "| part | figures |", "| --- | --- |"]
        for name, found in self.parts.items():
            shown = "; ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
            )
            lines.append(f"| {name} | {shown.replace('|', '/')} |")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Bench:
    """A state with one micro-batch on the device, and its configuration."""

    config: AnyConfig
    state: TrainState
    batch: MicroBatch
    shards: Path

    def step(self) -> None:
        train_step(self.state, iter([self.batch] * self.config.train.accumulate))

    def seconds(self) -> float:
        """Of a step, the mean of several that follow each other without a look."""
        for _ in range(2):
            self.step()
        wait_for(self.state.device)
        start = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        wait_for(self.state.device)
        return (time.perf_counter() - start) / STEPS


def configured(preset: str, options: argparse.Namespace, *overrides: str) -> AnyConfig:
    drift = preset.startswith("drift")
    tiny = () if not options.tiny or preset == "drift-mae" else TINY_DRIFT if drift else TINY
    if options.tiny and preset == "drift-mae":
        preset = "drift-mae-demo"
    size = () if drift else (f"train.batch_size={batch_of(preset, options)}",)
    encoders = () if drift else BUILT_IN
    return load_config(preset, [*encoders, *tiny, *size, "train.workers=0", *options.set, *overrides])


def batch_of(preset: str, options: argparse.Namespace) -> int:
    return (
        2
        if options.tiny
        else {"nano": 64, "nano-fast": 64, "nano-patches": 64, "medium": 48, "base": 32, "large": 24}[preset]
    )


@contextmanager
def prepared(config: AnyConfig) -> Iterator[Bench]:
    family, ranks = family_of(config), Ranks(0, 1, device_of_choice())
    config = family.cheap_begin(config)
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        family.noise(config, shards)
        opened = family.open_data(config, shards, ranks)
        state = TrainState(config, opened, ranks)
        family.begin(opened, {}, SILENT)
        batch = next(family.batches(opened, 0, 1)).to(ranks.device)
        yield Bench(config, state, batch, shards)


def one_step(preset: str, options: argparse.Namespace, *overrides: str) -> dict[str, Any]:
    """That a step of a preset runs, its loss is finite, and what it takes."""
    with prepared(configured(preset, options, *overrides)) as bench:
        figures = train_step(bench.state, iter([bench.batch] * bench.config.train.accumulate))
        seconds = bench.seconds()
        return {
            "loss": float(figures.loss),
            "finite": bool(figures.made),
            "images_per_second": len(bench.batch) * bench.config.train.accumulate / seconds,
            "step_seconds": seconds,
            "peak_gb": peak_gb(),
        }


def peak_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def rates(preset: str, product: float, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second, and what that is of the card; memory beside what was counted."""
    with prepared(configured(preset, options)) as bench:
        images = len(bench.batch) * bench.config.train.accumulate / bench.seconds()
        flops = 3 * forward_flops(bench.config, bench.state.data.provenance.widths, bench.batch) / len(bench.batch)
        peak = peak_gb()  # before the count, which makes a second model without values
        counted = step_memory(bench.config, bench.state.data, bench.batch).of(len(bench.batch)) / 1e9
        return {
            "images_per_second": images,
            "tflops": images * flops / 1e12,
            "of_dense_peak": images * flops / (options.peak * 1e12),
            "of_matrix_product": images * flops / product,
            "peak_gb": peak,
            "counted_gb": counted,
            "peak_over_count": peak / counted,
        }


def waits(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Waits for the device in a step, by a profile."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with prepared(configured(preset, options, "train.compile=false")) as bench:
        for _ in range(2):
            bench.step()
        wait_for(bench.state.device)
        with profile(activities=activities) as seen:
            for _ in range(STEPS):
                bench.step()
        counts = {event.key: event.count for event in seen.key_averages() if event.key in WAITS}
        return {"waits_per_step": sum(counts.values()) / STEPS, **counts}


def sampled(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Sampling with both guidances from features of noise, and the losses by mode that `dit validate` judges by."""
    with prepared(configured(preset, options)) as bench:
        pipeline = Pipeline(bench.state.ema.model, bench.config, bench.state.data.provenance, 0)
        one = bench.batch.conditions.map(lambda tensor: tensor[:1])
        noise = torch.randn(1, *bench.batch.latents.shape[1:])
        settings = pipeline.settings.changed({"steps": 2 if options.tiny else 50})
        pipeline.latents(one, noise, settings.changed({"steps": 1}))
        wait_for(pipeline.device)
        start = time.perf_counter()
        latents = pipeline.latents(one, noise, settings)
        seconds = time.perf_counter() - start
        opened = ShardSet.open(bench.shards)
        losses = sample_losses(pipeline, opened, opened.samples[:2], torch.tensor([0.3, 0.7]))
        return {
            "finite": bool(torch.isfinite(latents).all() and torch.isfinite(losses).all()),
            "steps": settings.steps,
            "seconds_a_picture": seconds,
        }


def looked_at(options: argparse.Namespace) -> dict[str, Any]:
    """A run of a few steps through the loop itself: log, evaluation, checkpoint."""
    every = ("train.log_every=2", "train.eval_every=4", "train.sample_every=0", "checkpoint.every=4")
    config = configured("nano", options, "train.steps=4", "train.warmup_steps=1", *every)
    with tempfile.TemporaryDirectory() as scratch:
        shards, run = Path(scratch) / "shards", Path(scratch) / "run"
        family_of(config).noise(config, shards)
        done = train(config, shards, run)
        saved = load_checkpoint(resolve_checkpoint(run))
        return {"steps": done.step if done else 0, "loss": done.loss if done else 0.0, "saved_step": saved["step"]}


def beside_diffusers(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Theirs over ours, of a step of the same shape (tests/bench/bench_diffusers.py)."""
    from tests.bench.bench_diffusers import compare

    area = "64x64" if options.tiny else {"nano": "512x512", "base": "1024x1024"}[preset]
    tiny = (*TINY[:3],) if options.tiny else ()
    asked = argparse.Namespace(
        preset=preset,
        area=area,
        batch=batch_of(preset, options),
        rounds=2 if options.tiny else 5,
        set=[*BUILT_IN, *tiny],
    )
    return {"row": compare(configured(preset, options).train.precision, asked)}


def measure(options: argparse.Namespace) -> Report:
    options.out.mkdir(parents=True, exist_ok=True)
    device = device_of_choice()
    report, product = Report(options.out, time.monotonic() + options.seconds, device_name(device), options.parts), {}

    def matrix() -> dict[str, Any]:
        product["flops"] = matrix_product_flops(device, "bf16" if device.type == "cuda" else "fp32")
        return {"tflops": product["flops"] / 1e12}

    report.part("matrix product", matrix)
    for preset in options.presets:
        report.part(f"one step: {preset}", partial(one_step, preset, options, "train.compile=false"))
    variants = {
        "compile": ("train.compile=true",),
        "bf16": ("train.precision=bf16", "train.compile=false"),
        "muon": ("train.optimizer=muon", "train.compile=false"),
        "recomputing": ("model.gradient_checkpointing=true", "train.compile=false"),
        "selective": ("model.gradient_checkpointing=selective", "train.compile=false"),
        "selective, compiled": ("model.gradient_checkpointing=selective", "train.compile=true"),
    }
    for name, overrides in variants.items():
        report.part(f"nano-patches: {name}", partial(one_step, "nano-patches", options, *overrides))
    report.part("a run of four steps", partial(looked_at, options))
    report.part("waits in a step: nano", partial(waits, "nano", options))
    for preset in ("nano", "base"):
        report.part(f"rates: {preset}", partial(rates, preset, product.get("flops", float("nan")), options))
    for preset in ("nano-patches", "base"):
        report.part(f"sampling with both guidances: {preset}", partial(sampled, preset, options))
    for preset in ("nano", "base"):
        report.part(f"beside diffusers: {preset}", partial(beside_diffusers, preset, options))
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_all"))
    parser.add_argument("--seconds", type=float, default=540.0, help="no part begins later than this")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s of the card's data sheet")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--parts", nargs="+", default=[""], help="only those whose names begin so")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of every preset")
    print(measure(parser.parse_args(arguments)).page())


if __name__ == "__main__":
    main()
