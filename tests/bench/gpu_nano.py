"""nano and nano-patches on a folder of captioned images, with built-in encoders: how near they come, how fast, how well
the machine is used.

    # the measurement, on a GPU
    python -m tests.bench.gpu_nano FOLDER --out runs/gpu_nano --lpips alexnet.safetensors
    # that it works, anywhere
    python -m tests.bench.gpu_nano FOLDER --steps 3 --count 8 -s model.depth=2 -s data.area=64x64

For each preset: embed, shard (a tenth held out), train, then draw images of both splits again, unguided and guided,
with LPIPS, SSIM and PSNR beside the codec floor and the ceiling of shuffled conditions; images/s from the log and from
bare steps, and the utilisation (MFU) against a matrix product measured in the same run. OUT/results.md is made for
docs/results.md, OUT/results.json holds all figures.

It needs torch ≥ 2.10, transformers ≥ 5, and of the other packages only those in NEEDED: not diffusers, not webdataset;
without lpips it measures SSIM. --compile compiles the blocks, --precision bf16 trains in half precision (the presets
say fp32, with TF32 products).
"""

# ruff: noqa: E402  (what is missing is said all at once, before the first import of it)
from __future__ import annotations

import importlib.util
import sys

NEEDED = (
    "torch",
    "transformers",
    "safetensors",
    "pydantic",
    "tomli_w",
    "rich",
    "PIL",
    "numpy",
    "skimage",
    "matplotlib",
    "tensorboard",
    "jinja2",
)
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    sys.exit(f"not installed here: {', '.join(missing)}")

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from dittool.ckpt.run_log import read_log
from dittool.config.load import load_config
from dittool.config.schema import Config
from dittool.console import Console, duration_text
from dittool.geometry import parse_size
from dittool.train.bench import bench
from dittool.train.loop import train
from tests.bench.reconstructed import judge, lpips_at_hand, shards_of, steps_per_second, table

BUILT_IN = (
    "encoders.image=builtin:dinov3",
    "encoders.text=builtin:words",
    "encoders.vae=builtin:dct",
    "data.latent_scaling=measured",
)


def preset(name: str, options: argparse.Namespace) -> Config:
    steps = options.steps
    return load_config(
        name,
        [
            *BUILT_IN,
            "data.holdout=0.1",
            f"train.steps={steps}",
            f"train.warmup_steps={min(1000, steps // 5)}",
            f"train.workers={options.workers}",
            f"train.log_every={max(steps // 100, 1)}",
            f"train.eval_every={max(steps // 10, 1)}",
            f"train.sample_every={max(steps // 5, 1)}",
            f"train.compile={str(options.compile).lower()}",
            f"train.precision={options.precision}",
            f"checkpoint.every={max(steps // 2, 1)}",
            *options.set,
        ],
    )


def measure(name: str, options: argparse.Namespace, talk: Console) -> dict:
    """One preset, from shards to figures."""
    config, out = preset(name, options), options.out / name
    shards = shards_of(options.source, options.out / "data", options.count, config, talk)
    talk.note(f"{name}: bare steps and the matrix product")
    machine = bench(config, talk)
    done = train(config, shards.folder, out, talk=talk)
    side = min(min(parse_size(ref.bucket)) for ref in shards.samples)
    rows = judge(
        done.checkpoint,
        shards,
        lpips_at_hand(options.lpips, side, talk),
        out / "judged",
        options.limit,
        options.sampling_steps,
        talk,
    )
    samples_per_step = config.train.batch_size * config.train.accumulate
    log = read_log(out)
    return {
        "preset": name,
        "parameters": machine.parameters,
        "steps": done.step,
        "batch": samples_per_step,
        "seconds": done.seconds,
        "precision": config.train.precision,
        "compiled": config.train.compile,
        "loss": done.loss,
        "eval_loss": done.figures.get("eval_loss"),
        "images_per_second_in_the_run": samples_per_step * steps_per_second(log, samples_per_step),
        "images_per_second_all_in": done.samples_per_second,
        "data_wait_share": [row["data_wait_share"] for row in log if "data_wait_share" in row][-1],
        "peak_memory_gb": max(row["peak_memory_gb"] for row in log if "peak_memory_gb" in row),
        "machine": asdict(machine),
        "judged": [asdict(row) for row in rows],
        "table": table(rows),
    }


def report(found: list[dict]) -> str:
    """Markdown, to be laid into docs/results.md."""
    machine = found[0]["machine"]
    product = machine["figures"][0]
    lines = [
        f"{machine['device']}, torch {torch.__version__}, transformers {transformers.__version__}; built-in encoders",
        f"matrix product, measured: {product['tflops']:.3g} TFLOP/s ({machine['precision']})",
        "",
        (
            "| preset | parameters | steps × batch | time | images/s in the run | bare step, images/s | MFU, bare step"
            " | MFU in the run | peak GB |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        step = one["machine"]["figures"][2]
        in_run = (
            3
            * one["machine"]["flops_per_image"]
            * one["images_per_second_in_the_run"]
            / 1e12
            / one["machine"]["figures"][0]["tflops"]
        )
        lines.append(
            f"| {one['preset']} | {one['parameters']:,} | {one['steps']:,} × {one['batch']} |"
            f" {duration_text(one['seconds'])} | {one['images_per_second_in_the_run']:.3g} |"
            f" {step['images_per_second']:.3g} | {step['mfu']:.1%} | {in_run:.1%} | {one['peak_memory_gb']:.2f} |"
        )
    for one in found:
        lines += ["", f"{one['preset']}: loss {one['loss']:.4f}, hold-out loss {one['eval_loss']}", "", one["table"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_nano"))
    parser.add_argument("--presets", nargs="+", default=["nano", "nano-patches"])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--count", type=int, default=100, help="images")
    parser.add_argument("--limit", type=int, default=90, help="images judged of each split")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--lpips", type=Path, help="AlexNet weights")
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of the presets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in options.presets:
        found.append(measure(name, options, Console()))
        (options.out / "results.json").write_text(json.dumps(found, indent=1))
        (options.out / "results.md").write_text(report(found))
    print((options.out / "results.md").read_text())


if __name__ == "__main__":
    main()
