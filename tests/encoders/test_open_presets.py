"""As a new user would: a preset whose encoders need no account, from a folder of pictures to a picture, with tiny
models of the published classes laid into the hub's cache under the published names.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from dittool.config.load import load_config
from dittool.demo.drawing import draw_dataset
from tests.encoders.conftest import KL

SMALL = (
    *("model.depth=2", "model.width=32", "model.heads=2", "train.compile=false", "train.workers=0"),
    *("train.steps=3", "train.batch_size=4", "train.warmup_steps=1", "train.eval_every=0", "train.sample_every=0"),
    *("data.area=128x128", "data.holdout=0.2", "checkpoint.every=3", "train.precision=fp32", "encoders.dtype=fp32"),
)


def lay_into_the_cache(names, folders, put, tmp_path):
    """Models of the classes that the names promise."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    ostris = {**KL, "scaling_factor": 0.2614, "shift_factor": None, "use_quant_conv": True, "use_post_quant_conv": True}
    AutoencoderKL(**ostris).save_pretrained(tmp_path / "ostris")
    put(names.image, folders / "dinov2-registers", "")
    put(names.text, folders / "t5-pieces", "")
    put(names.vae, tmp_path / "ostris", "")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nano-open", "base-open"])
def test_from_a_folder_of_pictures_to_a_picture_without_an_account(
    preset,
    folders,
    hub_cache,
    tmp_path,
    dit,
    monkeypatch,
    capsys,
):
    config = load_config(preset)
    lay_into_the_cache(config.encoders, folders, hub_cache, tmp_path)
    monkeypatch.chdir(tmp_path)
    draw_dataset(tmp_path / "data/images", 24, seed=0)
    small = [word for key in SMALL for word in ("-s", key)]
    assert dit("doctor", "--preset", preset, *small, "--json").out.count('"weights: ') == 3
    for command in (("embed",), ("shard",), ("train", "--no-audit")):
        options = () if command == ("shard",) else ("--preset", preset, *small)
        ended = dit(*command, *options, "-q")
        assert ended.code == 0, ended.err
    audited = json.loads(dit("audit", "data/shards", "--preset", preset, *small, "--json").out)
    # latents of an autoencoder that nobody trained have another deviation than its scale says, and D6 sees that
    assert {finding["code"] for finding in audited["findings"] if finding["status"] == "fail"} <= {"D6"}
    card = json.loads((tmp_path / "data/shards/index.json").read_text())["identity"]["encoders"]
    assert (card["image"]["patch_size"], card["image"]["registers"]) == (14, 4)
    assert (card["vae"]["channels"], card["vae"]["scale"], card["vae"]["shift"]) == (16, 0.2614, 0.0)
    assert {kind: encoder["id"] for kind, encoder in card.items()} == config.encoders.model_dump(
        include={"image", "text", "vae"}
    )
    reference = next((tmp_path / "data/images").glob("*.png"))
    drawn = dit(
        "sample", "--prompt", "a red dog", "--ref", reference, "--size", "128x128", "--steps", "2", "--out", "o.png"
    )
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "o.png").size == (128, 128)
    shutil.rmtree(tmp_path / "data")
