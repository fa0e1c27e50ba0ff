"""The distances between images, where LPIPS finds its weights, and the share of a gap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dittool.errors import UsageError, WeightsMissingError
from dittool.validate import perceptual
from dittool.validate.metrics import HIGHEST_PSNR, gap_closed, pixel_rms, psnr, ssim
from dittool.validate.perceptual import find_lpips, load_lpips

ALEXNET = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


@pytest.fixture(scope="session")
def backbone():
    """AlexNet's convolutions with seeded random weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"features.{n}.weight": torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        for n, shape in ALEXNET.items()
    }
    return tensors | {f"features.{n}.bias": torch.zeros(shape[0]) for n, shape in ALEXNET.items()}


@pytest.fixture
def backbone_file(backbone, tmp_path):
    save_file(backbone, tmp_path / "alex.safetensors")
    return tmp_path / "alex.safetensors"


@pytest.fixture
def images():
    """Two images and three versions of them, ever further away."""
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(40, 200, (2, 8, 8, 3)), 8, axis=1), 8, axis=2)
    noise = rng.normal(0, 1, smooth.shape)
    return [np.clip(smooth + strength * noise, 0, 255).astype(np.uint8) for strength in (0, 10, 60)]


def test_equal_images_are_at_the_best_value_of_every_metric(images, backbone_file):
    truth = images[0]
    assert psnr(truth, truth) == [HIGHEST_PSNR] * 2
    assert ssim(truth, truth) == pytest.approx([1, 1])
    assert pixel_rms(truth, truth) == [0, 0]
    assert load_lpips(backbone_file).measure(truth, truth) == pytest.approx([0, 0], abs=1e-6)


def test_every_metric_gets_worse_with_more_noise(images, backbone_file):
    truth, near, far = images
    assert all(a > b for a, b in zip(psnr(near, truth), psnr(far, truth), strict=True))
    assert all(a > b for a, b in zip(ssim(near, truth), ssim(far, truth), strict=True))
    assert all(a < b for a, b in zip(pixel_rms(near, truth), pixel_rms(far, truth), strict=True))
    measure = load_lpips(backbone_file).measure
    assert all(0 < a < b for a, b in zip(measure(near, truth), measure(far, truth), strict=True))


def test_psnr_and_pixel_distance_are_those_of_the_formula():
    black, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 51, np.uint8)
    assert psnr(grey, black) == pytest.approx([20 * math.log10(255 / 51)])
    assert pixel_rms(grey, black) == pytest.approx([0.2])
    assert psnr(black, grey) == psnr(grey, black), "unsigned differences would wrap around"


def test_lpips_depends_on_every_layer_of_the_named_file(images, backbone, tmp_path):
    values = set()
    for changed in (None, *ALEXNET):
        tensors = {
            name: tensor * 2 if changed is not None and name == f"features.{changed}.weight" else tensor
            for name, tensor in backbone.items()
        }
        tensors = {
            name: tensor + 0.1 if changed is not None and name == f"features.{changed}.bias" else tensor
            for name, tensor in tensors.items()
        }
        save_file(tensors, tmp_path / f"{changed}.safetensors")
        values.add(round(load_lpips(tmp_path / f"{changed}.safetensors").measure(images[1], images[0])[0], 7))
    assert len(values) == 1 + len(ALEXNET)


def test_heads_in_the_file_replace_the_packages(images, backbone, backbone_file, tmp_path):
    heads = {f"lin{k}.weight": torch.zeros(1, width, 1, 1) for k, width in enumerate((64, 192, 384, 256, 256))}
    save_file(backbone | heads, tmp_path / "heads.safetensors")
    assert load_lpips(tmp_path / "heads.safetensors").measure(images[1], images[0]) == [0, 0]
    assert load_lpips(backbone_file).measure(images[1], images[0])[0] > 0


def test_loading_lpips_leaves_the_random_state_alone(backbone_file):
    before = torch.get_rng_state()
    load_lpips(backbone_file)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("features.6.bias"), "features.6.bias is missing"),
        (
            lambda tensors: tensors.update({"features.0.weight": torch.zeros(64, 3, 3, 3)}),
            r"\(64, 3, 3, 3\).*\(64, 3, 11, 11\)",
        ),
        (lambda tensors: tensors["features.0.weight"].fill_(float("nan")), "not finite"),
    ],
)
def test_a_named_file_of_another_network_is_an_error_that_says_what_differs(backbone, tmp_path, damage, message):
    tensors = {name: tensor.clone() for name, tensor in backbone.items()}
    damage(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsMissingError, match=message):
        find_lpips(tmp_path / "odd.safetensors", 128)


def test_a_named_file_that_is_not_there_is_exit_code_7_however_it_was_named(tmp_path, monkeypatch):
    with pytest.raises(WeightsMissingError, match=r"gone\.safetensors") as caught:
        find_lpips(tmp_path / "gone.safetensors", 128)
    assert caught.value.exit_code == 7
    monkeypatch.setenv("DIT_LPIPS_BACKBONE", str(tmp_path / "also-gone.pth"))
    with pytest.raises(WeightsMissingError, match=r"also-gone\.pth"):
        find_lpips(None, 128)


def test_without_any_weights_there_is_no_lpips_and_one_note(listener):
    assert find_lpips(None, 128, listener) is None
    assert len(listener.notes) == 1 and "SSIM" in listener.notes[0]


def test_torchvisions_cache_is_used_and_a_damaged_one_only_noted(backbone, tmp_path, monkeypatch, new_listener):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "checkpoints" / perceptual.ALEXNET
    cached.parent.mkdir(parents=True)
    # an old container, which only the published hash excuses
    torch.save(backbone, cached, _use_new_zipfile_serialization=False)
    listener = new_listener()
    assert find_lpips(None, 128, listener) is None
    assert "7be5be79" in listener.notes[0]
    monkeypatch.setattr(perceptual, "file_sha256", lambda path: "7be5be79" + "0" * 56)
    assert find_lpips(None, 128).name == "lpips-alex"
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached.write_bytes(b"half a download")
    listener = new_listener()
    assert find_lpips(None, 128, listener) is None
    assert perceptual.ALEXNET in listener.notes[0]


def test_images_too_small_for_alexnet_are_measured_by_ssim(backbone_file):
    assert find_lpips(backbone_file, 32).measure(np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match="16"):
        find_lpips(backbone_file, 16)
    assert find_lpips(None, 16) is None


def test_the_gap_is_0_at_the_ceiling_and_1_at_the_floor_in_both_directions():
    assert gap_closed(0.8, floor=0.1, ceiling=0.8, lower_is_better=True) == 0
    assert gap_closed(0.1, floor=0.1, ceiling=0.8, lower_is_better=True) == 1
    assert gap_closed(0.275, floor=0.1, ceiling=0.8, lower_is_better=True) == pytest.approx(0.75)
    assert gap_closed(0.5, floor=0.9, ceiling=0.1, lower_is_better=False) == pytest.approx(0.5)


def test_the_gap_stays_within_bounds_and_is_unknown_where_there_is_none():
    assert gap_closed(9, floor=0.1, ceiling=0.2, lower_is_better=True) == -1
    assert gap_closed(0.05, floor=0.1, ceiling=0.2, lower_is_better=True) == 1
    assert gap_closed(0.3, floor=0.5, ceiling=0.5, lower_is_better=True) is None
    assert gap_closed(0.3, floor=0.5, ceiling=0.4, lower_is_better=True) is None
