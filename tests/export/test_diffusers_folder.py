"""A folder of diffusers draws, without dit, what dit draws: to the bit, whatever the network is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from dittool import load
from dittool.ckpt.exported import exported_weights
from dittool.ckpt.files import save_checkpoint
from dittool.config.schema import SampleSettings
from dittool.encoders.cards import ImageCard, TextCard, VaeCard, card_to_json
from dittool.encoders.image import load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import UsageError
from dittool.export.diffusers_folder import pipeline_source, transformer_source
from dittool.export.export import ExportRequest, export
from dittool.export.loaded import settings
from dittool.sampling.one_step import OneStepPipeline
from tests.export.conftest import changed

NETWORKS = {
    "the block of the recipe": {"patch_fusion": "added", "mlp": "swiglu", "positions": "rope", "qk_norm": True},
    "shared modulation": {"shared_modulation": True, "norm": "rms", "time_init": "xavier"},
    "balanced context": {"context_norm": True, "context_balance": True, "qk_norm": True},
    "no patches": {"patches": False, "mlp": "swiglu"},
    "no positions of patches": {"patch_positions": False, "positions": "rope"},
}
GENERATORS = {
    "as in the paper": {"alpha_embedding": "sinusoid", "qk_norm": "rms_gain", "style_tables": "separate"},
    "other parts": {"patch_embedding": "linear", "norm": "layer", "rope": "1d", "swiglu": "split", "zero_output": True},
}
PUBLISHED = {
    "image": ImageCard("a/dino", "main", "", "fp32", 8, 14, 0),
    "text": TextCard("a/t5", "main", "", "fp32", 8, 64),
    "vae": VaeCard("a/vae", "main", "", "fp32", 16, 8, 1.0, 0.0),
}
BUILT_IN = {kind: type(card)(f"builtin:{kind}", *list(vars(card).values())[1:-1]) for kind, card in PUBLISHED.items()}


def calls(picture):
    return [
        {"prompt": "a red circle", "num_images_per_prompt": 5, "seed": 3},
        {"prompt": "a red circle", "reference": picture, "num_inference_steps": 3, "guidance": "joint"},
        {"reference": picture, "solver": "heun", "guidance_scale": 1.5, "cfg_dino": 4.0},
        {"prompt": ["a dog", "a cat"], "negative_prompt": "blue", "height": 96, "width": 64, "guidance_norm": 2.5},
        {"prompt": "a dog", "image": picture, "strength": 0.5, "weak_routed": 0.5},
    ]


def in_our_words(call):
    names = {"num_images_per_prompt": "count", "num_inference_steps": "steps", "guidance_scale": "cfg_text"}
    names |= {"negative_prompt": "negative", "image": "init"}
    ours = {names.get(key, key): value for key, value in call.items() if key not in ("height", "width")}
    return ours | ({"size": (call["width"], call["height"])} if "height" in call else {})


def require_same(pictures, number, pipelines_calls):
    for place, expected in enumerate(pipelines_calls):
        for index, image in enumerate(expected):
            assert np.array_equal(pictures[f"{number}/{place}/{index}"], np.asarray(image)), (number, place, index)
    count = sum(len(expected) for expected in pipelines_calls)
    assert sum(name.startswith(f"{number}/") for name in pictures) == count


def test_diffusers_draws_the_pictures_of_dit_where_dit_cannot_be_imported(
    checkpoint, generator, exported, tiny_shards, read_without_dit, tmp_path
):
    picture = str(min(tiny_shards.images.glob("*.png")))
    recipe = changed(checkpoint, tmp_path / "recipe", **NETWORKS["the block of the recipe"])
    drift = export(ExportRequest(generator, tmp_path / "drift")).folder
    of_drift = [{"class_labels": ["0", "1"], "guidance_scale": 1.5, "num_images_per_prompt": 3, "seed": 2}]
    in_recipe = export(ExportRequest(recipe, tmp_path / "exported")).folder
    two = [call for call in calls(picture) if "height" not in call and "image" not in call][:2]
    pictures = read_without_dit([(exported, calls(picture)), (in_recipe, two), (drift, of_drift)])
    pipe, other = load(checkpoint), load(recipe)
    require_same(pictures, 0, [pipe(**in_our_words(call)) for call in calls(picture)])
    require_same(pictures, 1, [other(**in_our_words(call)) for call in two])
    require_same(pictures, 2, [load(generator, OneStepPipeline)(["0", "1"], alpha=1.5, count=3, seed=2)])


@pytest.mark.slow
def test_every_kind_of_network_draws_the_same_there(checkpoint, generator, tiny_shards, read_without_dit, tmp_path):
    picture = str(min(tiny_shards.images.glob("*.png")))
    flows = [changed(checkpoint, tmp_path / name, **keys) for name, keys in NETWORKS.items()]
    drifts = [changed(generator, tmp_path / name, **keys) for name, keys in GENERATORS.items()]
    asked = [call for call in calls(picture) if "height" not in call]
    of_drift = [{"class_labels": "1", "num_images_per_prompt": 2}]
    jobs = [(export(ExportRequest(path, tmp_path / f"flow{n}")).folder, asked) for n, path in enumerate(flows)]
    jobs += [(export(ExportRequest(path, tmp_path / f"drift{n}")).folder, of_drift) for n, path in enumerate(drifts)]
    pictures = read_without_dit(jobs)
    for number, path in enumerate(flows):
        require_same(pictures, number, [load(path)(**in_our_words(call)) for call in asked])
    for number, path in enumerate(drifts, start=len(flows)):
        require_same(pictures, number, [load(path, OneStepPipeline)("1", count=2)])


@pytest.mark.slow
def test_encoders_of_published_classes_are_loaded_by_their_ids(
    checkpoint, folders, tiny_shards, read_without_dit, tmp_path
):
    image, text = (
        load_image_encoder(str(folders / "dinov2"), "fp32"),
        load_text_encoder(str(folders / "t5"), "bf16", 64),
    )
    codec = load_codec(str(folders / "flux"))
    state = torch.load(checkpoint, weights_only=True)
    cards = {card.kind: card_to_json(card) for card in (image.card, text.card, codec.card)}
    state["data"]["identity"]["encoders"] = cards
    state["data"]["dims"] |= {"text": 32, "image": 32}
    statistics = state["data"]["statistics"]
    statistics |= {name: [0.0] * 32 for name in statistics if name.startswith(("cls_", "patch_"))}
    path = changed(save_checkpoint(tmp_path / "published", state, final=True), tmp_path / "random")
    picture = str(min(tiny_shards.images.glob("*.png")))
    calls = [{"prompt": "a red bird", "reference": picture}, {"prompt": "a dog", "image": picture, "strength": 0.7}]
    pictures = read_without_dit([(export(ExportRequest(path, tmp_path / "exported")).folder, calls)])
    require_same(pictures, 0, [load(path)(**in_our_words(call)) for call in calls])


@pytest.mark.parametrize("cards", [BUILT_IN, PUBLISHED], ids=["built in", "published"])
@pytest.mark.parametrize("kind", ["flow", "drift"])
def test_the_sources_are_whole_tidy_and_know_nothing_of_dit(kind, cards, tmp_path):
    for name, source in {"net": transformer_source(kind), "pipe": pipeline_source(kind, cards)}.items():
        (tmp_path / f"{name}.py").write_text(source)
        assert "import dittool" not in source and "from dittool" not in source
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check", "--isolated", "--select=F"], ["format", "--isolated", "--line-length=120", "--check"]):
        done = subprocess.run([*ruff, *check, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_pipeline_takes_along_the_encoders_that_it_has_and_no_others():
    built_in, published = (pipeline_source("flow", cards) for cards in (BUILT_IN, PUBLISHED))
    assert "class WordVectors" in built_in and "class T5Encoder" not in built_in
    assert "class T5Encoder" in published and "class WordVectors" not in published


def test_the_settings_of_an_exported_pipeline_are_those_of_dit():
    assert [field.name for field in fields(settings.SampleSettings)] == list(SampleSettings.model_fields)


def test_the_index_says_what_hub_and_pipeline_read(exported):
    index = json.loads((exported / "model_index.json").read_text())
    parts = {key for key, value in index.items() if isinstance(value, list) and key != "_class_name"}
    assert parts == {"transformer", "scheduler"}  # the hub's client takes every list for a part
    assert index["encoders"]["text"]["id"] == "builtin:words" and len(index["encoders"]["text"]["weights"]) == 64
    assert exported_weights(exported) == exported / "transformer/diffusion_pytorch_model.safetensors"


def test_an_encoder_of_another_package_is_refused_with_what_serves_instead():
    cards = {**BUILT_IN, "text": replace(PUBLISHED["text"], id="plugin:words")}
    with pytest.raises(UsageError, match="its code cannot travel") as raised:
        pipeline_source("flow", cards)
    assert "--format safetensors" in raised.value.hint
