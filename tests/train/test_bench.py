"""`dit bench`: what it counts is right, what it prints adds up, and it leaves nothing behind."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.config.load import load_config
from dittool.data.shards.read import ShardSet
from dittool.encoders.cards import FeatureWidths
from dittool.families.synthetic import TEXT_TOKENS, write_noise
from dittool.train import bench as bench_module
from dittool.train.bench import bench, forward_flops

SMALL = ("model.depth=2", "model.width=32", "model.heads=2", "train.batch_size=4")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(bench_module, "_SECONDS", 0.0)


def test_the_flops_are_those_of_the_matrix_products(tiny_shards):
    """Counted by hand: N = 64 latent tokens, M = L + 1 + 64 context tokens, D = 32, features of width 64."""
    batch = tiny_shards.stream()[next(n for n in range(50) if tiny_shards.stream()[n].latents.shape[-2:] == (16, 16))]
    n, d, length, wide = 64, 32, batch.conditions.text.shape[1], 64
    m = length + 1 + 64
    block = 2 * d * 9 * d + 2 * n * d * (3 * d + d) + 4 * n * n * d  # modulation, self-attention
    block += 2 * n * d * 2 * d + 2 * m * d * 2 * d + 4 * n * m * d + 2 * 2 * n * d * 4 * d  # cross-attention, MLP
    # patches in and out, output modulation, timestep
    ends = 2 * n * 64 * d * 2 + 2 * d * 2 * d + 2 * 256 * d + 2 * d * d
    conditions = 2 * wide * d * (length + 1 + 64)
    widths = FeatureWidths(wide, wide, latent_channels=16)
    assert forward_flops(tiny_shards.config, widths, batch) == 4 * (2 * block + ends + conditions)


def test_checkpointing_and_precision_do_not_change_the_count(tiny_shards):
    batch, widths = tiny_shards.stream()[0], FeatureWidths(64, 64, 16)
    changed = tiny_shards.config_with("model.gradient_checkpointing=true", "train.precision=bf16")
    assert forward_flops(changed, widths, batch) == forward_flops(tiny_shards.config, widths, batch)


def test_a_presets_own_sizes_are_measured(tiny_shards):
    found = bench(tiny_shards.config_with("train.batch_size=4"))
    assert (found.bucket, found.batch, found.tokens, found.precision) == ("128x128", 4, 64, "fp32")
    figures = {figure.part: figure for figure in found.figures}
    assert list(figures) == ["matrix product", "forward", "step", "step with reading", "reading", "decoding"]
    product, forward, step = (figures[name] for name in ("matrix product", "forward", "step"))
    assert forward.tflops == pytest.approx(forward.images_per_second * found.flops_per_image / 1e12)
    assert step.mfu == pytest.approx(3 * step.images_per_second * found.flops_per_image / 1e12 / product.tflops)
    assert forward.of_step == pytest.approx(forward.images_per_second / step.images_per_second)
    assert (
        figures["reading"].images_per_second > 0
        and figures["decoding"].images_per_second > 0
        and found.peak_memory_bytes > 1e7
    )


def test_a_codec_that_is_not_there_is_a_remark_and_no_failure(tiny_shards):
    found = bench(tiny_shards.config_with("encoders.vae=black-forest-labs/FLUX.1-schnell"))
    decoding = found.figures[-1]
    assert decoding.images_per_second is None and "FLUX.1-schnell" in decoding.remark


def test_noise_has_the_sizes_of_the_presets_features(tiny_shards, tmp_path):
    write_noise(tiny_shards.config_with("train.batch_size=1"), tmp_path / "noise")
    shards = ShardSet.open(tmp_path / "noise")
    sample = shards.read(shards.samples[2])
    assert len(shards.samples) == 4 and sample.text.shape == (TEXT_TOKENS, 64)
    assert (sample.latent.shape, sample.patches.shape, sample.cls.shape) == ((16, 16, 16), (64, 64), (64,))
    assert torch.from_numpy(sample.latent).float().std() == pytest.approx(1, abs=0.1)


def test_the_command_prints_a_table_or_one_object(dit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [word for override in SMALL for word in ("-s", override)]
    shown = dit("bench", "--preset", "demo", "--quiet", *options)
    assert shown.code == 0 and "of the product" in shown.out and "matrix product" in shown.out
    message = json.loads(dit("bench", "--preset", "demo", "--json", "--quiet", *options).out)
    assert message["preset"] == "demo" and message["tokens"] == 64 and len(message["figures"]) == 6
    assert not list(tmp_path.iterdir())


def test_no_product_is_slower_than_that_of_fp32(monkeypatch):
    """A CPU without instructions for bf16 multiplies in fp32 faster; shares of its rate above 1 would say nothing."""
    seconds = {torch.float32: 1.0, torch.bfloat16: 5.0}
    monkeypatch.setattr(bench_module, "_seconds", lambda run, device: seconds[run().dtype])
    rates = [bench_module.matrix_product_flops(torch.device("cpu"), precision) for precision in ("fp32", "bf16")]
    assert rates == [2 * 1024**3, 2 * 1024**3]


@pytest.mark.parametrize("preset", ["drift-demo", "drift-toy"])
def test_one_step_generators_are_measured_too(preset, class_shards):
    sizes = class_shards.overrides if preset == "drift-demo" else ("drift.generated=8", "drift.positives=8")
    found = bench(load_config(preset, [*sizes, "train.batch_size=8"]))
    figures = {figure.part: figure for figure in found.figures}
    assert (found.batch, found.bucket) == ((8, "32x32") if preset == "drift-demo" else (8, "one size"))
    assert all(figures[part].images_per_second > 0 for part in ("forward", "step", "step with reading", "reading"))
    assert (figures["decoding"].images_per_second is None) == (preset == "drift-toy")


def test_encoders_of_unknown_width_are_named(dit):
    refused = dit("bench", "--preset", "demo", "-s", "encoders.image=some/where")
    assert refused.code == 2 and "some/where" in refused.err
