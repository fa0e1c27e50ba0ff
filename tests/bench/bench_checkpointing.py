"""Gradient checkpointing on and off: bytes kept for the backward pass, and time. Run: python
tests/bench/bench_checkpointing.py [--depth 24]

The preset's model with its depth set, one forward and backward pass on noise. The bytes are those that autograd saves,
each storage once, parameters not counted (what a block keeps while it is recomputed is not in them; on a GPU the peak
of allocated memory is printed beside). The two take turns; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dittool.audit.specimens.watching import SavedBytes
from dittool.config.load import load_config
from dittool.data.shards.stream import Batch
from dittool.families import flow
from dittool.families.synthetic import write_noise
from dittool.train.distributed import process_group
from dittool.train.estimate import wait_for


def measure(model: torch.nn.Module, batch: Batch, device: torch.device) -> tuple[int, float, int]:
    """Bytes saved by the forward pass, seconds both ways, peak of allocated bytes on a GPU (0 elsewhere)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wait_for(device)
    start = time.perf_counter()
    saved = SavedBytes(model)
    with saved:
        loss = model(batch.latents, batch.timestep_draw, batch.conditions).square().mean()
    kept = saved.bytes
    del saved
    loss.backward()
    wait_for(device)
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return kept, seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--area", default="256x256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of the preset")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    overrides = [
        f"data.area={options.area}",
        f"train.batch_size={options.batch}",
        f"model.depth={options.depth}",
        *options.set,
    ]
    off, on = (
        load_config(options.preset, [*overrides, f"model.gradient_checkpointing={flag}"]) for flag in ("false", "true")
    )
    with tempfile.TemporaryDirectory() as scratch, process_group("ddp") as ranks:
        write_noise(off, Path(scratch) / "shards")
        data = flow.open_data(off, Path(scratch) / "shards", ranks)
        batch = data.stream[0].to(ranks.device)
        models = {}
        for name, config in (("off", off), ("on", on)):
            torch.manual_seed(0)
            models[name] = flow.build(config, data.provenance.widths).to(ranks.device).train()
        found = {name: [] for name in models}
        for _ in range(options.rounds + 1):
            for name, model in models.items():
                found[name].append(measure(model, batch, ranks.device))
        rows, columns = models["off"].token_grid(batch.latents)
    print(
        f"{options.depth}×{off.model.width}, {rows * columns} latent tokens, batch {options.batch},"
        f" {ranks.device.type}, torch {torch.__version__}"
    )
    print(
        "| gradient checkpointing | saved for the backward pass | forward and backward | peak on the device |\n| --- |"
        " --- | --- | --- |"
    )
    figures = {}
    for name, runs in found.items():
        # the first warms caches
        kept, seconds, peak = (statistics.median(column) for column in zip(*runs[1:], strict=True))
        figures[name] = kept, seconds
        print(f"| {name} | {kept / 2**20:,.0f} MiB | {seconds:.3f} s | {f'{peak / 2**30:.2f} GiB' if peak else '–'} |")
    print(
        f"saved: {1 - figures['on'][0] / figures['off'][0]:.1%} of the bytes; time ×"
        f" {figures['on'][1] / figures['off'][1]:.2f}"
    )


if __name__ == "__main__":
    main()
