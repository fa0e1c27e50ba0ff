"""What this machine does with a preset: every part of training measured in one run, beside what the machine can do at
all.

The parts take the code that training takes, on synthetic features of the preset's sizes. FLOPs are those of the model's
matrix products as built, counted once (a backward pass counts twice a forward pass, recomputation does not count); the
model's utilisation (MFU) is their rate over the rate of one large matrix product of the same precision, measured here,
not taken from a data sheet.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dittool.config.architectures import AnyConfig
from dittool.config.load import changed
from dittool.console import SILENT, Talk, Task
from dittool.devices import device_name, wait_for
from dittool.encoders.cards import FeatureWidths
from dittool.encoders.vae import load_codec
from dittool.errors import WeightsMissingError
from dittool.families.family import MicroBatch, family_of
from dittool.train.distributed import Ranks, process_group
from dittool.train.estimate import batch_kinds, require_memory
from dittool.train.log import peak_memory_bytes
from dittool.train.loop import train_step
from dittool.train.state import TrainState

_SECONDS = 3.0  # at least so long, and …
_TIMES = 3  # … at least so often is each part timed, after one time that does not count


@dataclass(frozen=True)
class Figure:
    """One part: how many images a second, and what that is of the machine's or of the step's rate."""

    part: str
    images_per_second: float | None  # None: of the matrix product, or not measured
    tflops: float | None  # 10¹² floating point operations a second
    mfu: float | None  # tflops over the matrix product's
    of_step: float | None  # images/s over those of the bare step: reading and decoding want to be above 1
    remark: str = ""


@dataclass(frozen=True)
class Bench:
    """A preset on this machine."""

    device: str
    precision: str
    bucket: str
    batch: int
    tokens: int
    parameters: int
    flops_per_image: int  # of a forward pass
    peak_memory_bytes: int
    figures: list[Figure]


@dataclass(frozen=True)
class _Rates:
    """Images a second of each part."""

    forward: float
    step: float
    loop: float
    reading: float
    decoding: float | None
    why_not_decoded: str


def bench(config: AnyConfig, talk: Talk = SILENT) -> Bench:
    """Measures a preset. Raises `UsageError` for encoders of unknown width, and what training would raise."""
    family = family_of(config)
    config = family.cheap_begin(config)
    with (
        tempfile.TemporaryDirectory() as scratch,
        process_group(config.train.parallel) as ranks,
        talk.progress("measure", 6, "part") as task,
    ):
        folder = Path(scratch) / "shards"
        _require_memory(config, Path(scratch) / "few", ranks)
        family.noise(config, folder)
        opened = family.open_data(config, folder, ranks)
        state = TrainState(config, opened, ranks)
        family.begin(opened, {}, talk)
        kind = batch_kinds(state)[0]
        flops = forward_flops(config, opened.provenance.widths, kind.example) // len(kind.example)
        product = matrix_product_flops(ranks.device, config.train.precision)
        task.advance()
        rates = _measured(state, kind.example, folder, task)
    return Bench(
        device_name(ranks.device),
        config.train.precision,
        kind.name,
        len(kind.example),
        kind.tokens,
        sum(parameter.numel() for parameter in state.model.parameters()),
        flops,
        peak_memory_bytes(ranks.device),
        _figures(config, rates, product, flops),
    )


def _require_memory(config: AnyConfig, folder: Path, ranks: Ranks) -> None:
    """Before much noise is written: what `require_memory` raises, by a set for as few samples as there can be."""
    family = family_of(config)
    family.noise(changed(config, {"train.batch_size": family.fewest(config)}, "for one sample"), folder)
    require_memory(config, folder, ranks)


def _measured(state: TrainState, example: MicroBatch, folder: Path, task: Task) -> _Rates:
    """Every part of training, one after the other."""
    family, accumulate, size = state.family, state.config.train.accumulate, len(example)
    ready = example.to(state.device)
    inputs = family.inputs(ready)
    forward = size / _seconds(lambda: _forward(state, inputs), state.device)
    task.advance()
    step = size * accumulate / _seconds(lambda: train_step(state, iter([ready] * accumulate)), state.device)
    task.advance()
    loop = _loop_rate(state, size)
    task.advance()
    reading = _reading_rate(state.config, folder, state.ranks)
    task.advance()
    decoding, why_not = _decoding_rate(family.codec(state.config), inputs[0][:1].cpu(), state.device)
    task.advance()
    return _Rates(forward, step, loop, reading, decoding, why_not)


def _figures(config: AnyConfig, rates: _Rates, product: float, flops: int) -> list[Figure]:
    """The rates beside that of the matrix product. A backward pass counts twice a forward pass."""

    def computed(part: str, images: float, flops_per_image: float) -> Figure:
        rate = images * flops_per_image
        return Figure(part, images, rate / 1e12, rate / product, images / rates.step)

    decoding = None if rates.decoding is None else rates.decoding / rates.step
    workers = f"one process; the preset has {config.train.workers} workers"
    return [
        Figure(
            "matrix product",
            None,
            product / 1e12,
            1.0,
            None,
            f"{'the faster of bf16 and fp32' if config.train.precision == 'bf16' else 'fp32'}, square, the machine's"
            " measure",
        ),
        computed("forward", rates.forward, flops),
        computed("step", rates.step, 3 * flops),
        computed("step with reading", rates.loop, 3 * flops),
        Figure("reading", rates.reading, None, None, rates.reading / rates.step, workers),
        Figure("decoding", rates.decoding, None, None, decoding, rates.why_not_decoded),
    ]


def forward_flops(config: AnyConfig, widths: FeatureWidths, batch: MicroBatch) -> int:
    """FLOPs of the matrix products of one forward pass over a batch, attention included. Nothing is computed for it."""
    family, nowhere = family_of(config), torch.device("meta")
    with nowhere:
        model = family.build(config, widths).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*family.inputs(batch.to(nowhere)))
    return counter.get_total_flops()


def matrix_product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one large square matrix product in the precision of a run (fp32 on a GPU: TF32, as in training). Under
    bf16 the faster one of bf16 and fp32 counts: a CPU may have no instructions for bf16.
    """
    n, dtypes = (8192 if device.type == "cuda" else 1024), [torch.float32, torch.bfloat16][: 1 + (precision == "bf16")]
    a, b = (torch.randn(n, n, device=device) for _ in range(2))

    def seconds(dtype: torch.dtype) -> float:
        first, second = a.to(dtype), b.to(dtype)
        return _seconds(lambda: first @ second, device)

    return 2 * n**3 / min(map(seconds, dtypes))


def _forward(state: TrainState, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        state.forward(*inputs)


def _loop_rate(state: TrainState, size: int) -> float:
    """Images a second of steps that wait for their data, as in a run."""
    batches = state.family.batches(state.data, 0, 1 + _TIMES)
    train_step(state, batches)  # workers have started after it
    wait_for(state.device)
    start = time.perf_counter()
    for _ in range(_TIMES):
        train_step(state, batches)
    wait_for(state.device)
    return _TIMES * state.config.train.accumulate * size / (time.perf_counter() - start)


def _reading_rate(config: AnyConfig, folder: Path, ranks: Ranks) -> float:
    """Images a second of micro-batches that this process makes alone."""
    family = family_of(config)
    alone = changed(config, {"train.workers": 0}, "dit bench")
    opened = family.open_data(alone, folder, ranks)
    family.begin(opened, {}, SILENT)
    batches = family.batches(opened, 0, 1 + _TIMES)
    next(batches)
    start = time.perf_counter()
    return sum(len(batch) for batch in batches) / (time.perf_counter() - start)


def _decoding_rate(name: str | None, latent: Tensor, device: torch.device) -> tuple[float | None, str]:
    """Images a second of the codec's decoder, or None and the reason."""
    if name is None:
        return None, "there are no images to decode"
    try:
        codec = load_codec(name)
    except WeightsMissingError as error:
        return None, error.message
    return 1 / _seconds(lambda: codec.decode(latent), device), "the codec's decoder, one image at a time"


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest time of several; what disturbs a measurement only makes it longer."""
    run()
    times: list[float] = []
    while len(times) < _TIMES or sum(times) < min(_SECONDS, 20 * times[0]):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times)
