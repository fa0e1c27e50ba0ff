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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.stream import Batch, BatchStream
from dittool.encoders.vae import load_codec
from dittool.errors import UsageError, WeightsMissingError
from dittool.families.synthetic import squarest, synthetic_shards
from dittool.models.build import build_model
from dittool.objective.flow import dropout_modes, flow_loss, timesteps
from dittool.train.batches import training_stream
from dittool.train.distributed import process_group
from dittool.train.estimate import device_name, wait_for
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


def bench(config: Config, talk: Talk = SILENT) -> Bench:
    """Measures a preset. Raises `UsageError` for encoders of unknown width and for another family of models, and
    what training would raise.
    """
    if config.model.arch != "dit":
        raise UsageError(
            f"models of the family '{config.model.arch}' are not measured yet", "choose one of the others: dit presets"
        )
    bucket, batch_size = squarest(config), config.train.batch_size
    with (
        tempfile.TemporaryDirectory() as scratch,
        process_group(config.train.parallel) as ranks,
        talk.progress("measure", 6, "part") as task,
    ):
        samples = 4 * (batch_size or 8)
        shards = synthetic_shards(Path(scratch) / "shards", config, samples)
        refs = shards.samples
        provenance = Provenance.of(shards, refs, config)
        stream, state = (
            training_stream(config, shards, refs, provenance.norm, ranks),
            TrainState(config, provenance, ranks),
        )
        batch = stream[0]
        size, ready = len(batch.ids), batch.to(state.device)
        flops = forward_flops(config, provenance.dims, batch) // size
        rows, columns = state.model.token_grid(batch.latents)

        product = matrix_product_flops(state.device, config.train.precision)
        task.advance()
        forward = size / _seconds(lambda: _forward(state, ready), state.device)
        task.advance()
        accumulate = config.train.accumulate
        step = size * accumulate / _seconds(lambda: train_step(state, iter([ready] * accumulate)), state.device)
        task.advance()
        loop = _loop_rate(state, stream, size)
        task.advance()
        reading = size / _seconds(lambda: stream[1], torch.device("cpu"))
        task.advance()
        decoding, why_not = _decoding_rate(config.encoders.vae, batch, state.device)
        task.advance()

    def rate(part: str, images: float, flops_per_image: float) -> Figure:
        return Figure(part, images, images * flops_per_image / 1e12, images * flops_per_image / product, images / step)

    figures = [
        Figure(
            "matrix product",
            None,
            product / 1e12,
            1.0,
            None,
            f"{config.train.precision}, square, the machine's measure",
        ),
        rate("forward", forward, flops),
        rate("step", step, 3 * flops),
        rate("step with reading", loop, 3 * flops),
        Figure(
            "reading",
            reading,
            None,
            None,
            reading / step,
            f"one process; the preset has {config.train.workers} workers",
        ),
        Figure("decoding", decoding, None, None, None if decoding is None else decoding / step, why_not),
    ]
    return Bench(
        device_name(state.device),
        config.train.precision,
        bucket.name,
        size,
        rows * columns,
        sum(parameter.numel() for parameter in state.model.parameters()),
        flops,
        peak_memory_bytes(state.device),
        figures,
    )


def forward_flops(config: Config, dims: dict[str, int], batch: Batch) -> int:
    """FLOPs of the matrix products of one forward pass over a batch, attention included. Nothing is computed for it."""
    with torch.device("meta"):
        model = build_model(config, dims["text"], dims["image"], dims["latent_channels"]).eval()
    z, conditions = batch.latents.to("meta"), batch.conditions.map(lambda tensor: tensor.to("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(z, torch.empty(len(z), device="meta"), conditions)
    return counter.get_total_flops()


def matrix_product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one large square matrix product in the precision of a run (fp32 on a GPU: TF32, as in training)."""
    n, dtype = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _seconds(lambda: a @ b, device)


def _forward(state: TrainState, batch: Batch) -> None:
    config, d = state.config, state.config.dropout
    autocast = torch.autocast(state.device.type, torch.bfloat16) if config.train.precision == "bf16" else nullcontext()
    t = timesteps(batch.timestep_draw, config.flow.timestep_sampling, config.flow.shift)
    modes = dropout_modes(batch.mode_draw, [d.none, d.text_only, d.reference_only, d.both])
    with torch.no_grad(), autocast:
        flow_loss(state.model, batch.latents, batch.noise, t, batch.conditions, modes)


def _loop_rate(state: TrainState, stream: BatchStream, size: int) -> float:
    """Images a second of steps that wait for the loader, as in a run."""
    train = state.config.train
    loader = iter(stream.loader(0, (1 + _TIMES) * train.accumulate, train.workers, state.device))
    train_step(state, loader)  # workers have started after it
    wait_for(state.device)
    start = time.perf_counter()
    for _ in range(_TIMES):
        train_step(state, loader)
    wait_for(state.device)
    return _TIMES * train.accumulate * size / (time.perf_counter() - start)


def _decoding_rate(name: str, batch: Batch, device: torch.device) -> tuple[float | None, str]:
    """Images a second of the codec's decoder, or None and the reason."""
    try:
        codec = load_codec(name)
    except WeightsMissingError as error:
        return None, error.message
    one = batch.latents[:1]
    return 1 / _seconds(lambda: codec.decode(one), device), "the codec's decoder, one image at a time"


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
