"""Our training step beside diffusers' PixArtTransformer2DModel at the same sizes. Run: python
tests/bench/bench_diffusers.py [--threads 1]

Both have the depth, width, heads, patch size, latent and text tokens of the preset, and a step is the same work: noise
the latent, predict, mean squared error, backward, clip, fused AdamW, average the weights. Ours is `train_step` as a run
calls it: it also draws the dropout modes, looks whether loss and gradient are finite, and attends to the CLS token of
the reference. Theirs is written as their training scripts are: the model, `EMAModel` with foreach, no mask over the
captions. The contenders take turns; the figure is the median of the rounds' ratios, theirs over ours: above 1, ours is
faster. The models are not the same (theirs shares one modulation among its blocks and has biases): parameters are
printed beside.

On a GPU: python -m tests.bench.bench_diffusers --area 512x512 --batch 8 --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from dittool.encoders.torchvision_remedy import ensure_torchvision

ensure_torchvision()
from diffusers import PixArtTransformer2DModel  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402

from dittool.config.load import load_config  # noqa: E402
from dittool.config.schema import Config  # noqa: E402
from dittool.data.shards.stream import Batch  # noqa: E402
from dittool.families import flow  # noqa: E402
from dittool.families.synthetic import write_noise  # noqa: E402
from dittool.train.distributed import process_group  # noqa: E402
from dittool.train.estimate import wait_for  # noqa: E402
from dittool.train.loop import train_step  # noqa: E402
from dittool.train.state import TrainState  # noqa: E402


def theirs(config: Config, batch: Batch, device: torch.device) -> tuple[Callable[[], None], int]:
    """A step of their model on the same batch, and its number of parameters."""
    model, train = config.model, config.train
    torch.manual_seed(train.seed)
    network = (
        PixArtTransformer2DModel(
            num_attention_heads=model.heads,
            attention_head_dim=model.width // model.heads,
            num_layers=model.depth,
            cross_attention_dim=model.width,
            in_channels=batch.latents.shape[1],
            out_channels=batch.latents.shape[1],
            sample_size=batch.latents.shape[-1],
            patch_size=model.patch_size,
            caption_channels=batch.conditions.text.shape[-1],
            use_additional_conditions=False,
        )
        .to(device)
        .train()
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=train.lr, betas=tuple(train.betas), weight_decay=train.weight_decay, fused=True
    )
    average = EMAModel(network.parameters(), decay=config.ema.target, foreach=True)
    latents, text = batch.latents.float(), batch.conditions.text.float()
    asks = {"resolution": None, "aspect_ratio": None}

    def step() -> None:
        noise, t = torch.randn_like(latents), torch.rand(len(latents), device=device)
        share = t[:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16) if train.precision == "bf16" else nullcontext():
            z = torch.lerp(latents, noise, share)
            velocity = network(
                z, encoder_hidden_states=text, timestep=1000 * t, added_cond_kwargs=asks, return_dict=False
            )[0]
        F.mse_loss(velocity.float(), noise - latents).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(network.parameters())

    return step, sum(parameter.numel() for parameter in network.parameters())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def compare(precision: str, options: argparse.Namespace) -> str:
    """One line of the table."""
    config = load_config(
        options.preset,
        [
            f"train.precision={precision}",
            f"data.area={options.area}",
            f"train.batch_size={options.batch}",
            "train.workers=0",
            *options.set,
        ],
    )
    with tempfile.TemporaryDirectory() as scratch, process_group(config.train.parallel) as ranks:
        write_noise(config, Path(scratch) / "shards")
        data = flow.open_data(config, Path(scratch) / "shards", ranks)
        state = TrainState(config, data, ranks)
        batch = data.stream[0].to(state.device)
        their_step, their_size = theirs(config, batch, state.device)
        our_size = sum(parameter.numel() for parameter in state.model.parameters())
        pairs = []
        for number in range(options.rounds + 1):
            ours_took = seconds(lambda: train_step(state, iter([batch])), state.device)
            theirs_took = seconds(their_step, state.device)
            if number:  # the first is for memory and caches
                pairs.append((ours_took, theirs_took))
        rows, columns = state.model.token_grid(batch.latents)
    ours_median, theirs_median = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(theirs_took / ours_took for ours_took, theirs_took in pairs)
    sizes = f"{config.model.depth}×{config.model.width} | {rows * columns} | {options.batch}"
    return (
        f"| {precision} | {sizes} | {our_size / 1e6:.1f} M, {ours_median:.3f} s | {their_size / 1e6:.1f} M,"
        f" {theirs_median:.3f} s | {ratio:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--area", default="256x256", help="of the images: a token of the presets is 16×16 pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of the preset")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}"
    print(f"{machine}, torch {torch.__version__}")
    print("| precision | model | latent tokens | batch | ours | PixArtTransformer2DModel | theirs over ours |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for precision in options.precisions:
        print(compare(precision, options), flush=True)


if __name__ == "__main__":
    main()
