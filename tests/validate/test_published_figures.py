"""FID and its like from a command line: of features that any program made, of samples, and of a checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from dittool.encoders import metric_networks as networks
from dittool.encoders.metric_networks import CLEAN, LEGACY, WEIGHTS_VARIABLE, FeatureNetwork, load_network
from dittool.errors import WeightsMissingError
from dittool.sampling.pipeline import Pipeline
from dittool.validate.figures import drawn as drawn_module
from dittool.validate.figures import given


def rows(seed, count=120, width=6, shift=0.0):
    return (np.random.RandomState(seed).randn(count, width) + shift).astype(np.float32)


def fid_of(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    root = sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def averages(monkeypatch):
    """Every network is the mean colours of a picture's quarters; captions have the features of their length."""

    def load(name):
        def features(pixels):
            quarters = torch.from_numpy(np.array(pixels)).float().permute(0, 3, 1, 2) / 255
            return torch.nn.functional.adaptive_avg_pool2d(quarters, 2).flatten(1)

        def texts(captions):
            return torch.tensor([[len(caption), *[1.0] * 11] for caption in captions])

        return FeatureNetwork(name, "averages", "00", None, "1", "none", 2, features, texts)

    monkeypatch.setattr(drawn_module, "load_network", load)
    monkeypatch.setattr(given, "load_network", load)


def test_given_features_need_no_weights_and_give_scipys_figure(tmp_path, no_weights, dit):
    x, y = rows(0, shift=0.4), rows(1, count=200)
    np.savez(tmp_path / "drawn.npz", arr_0=x)
    np.savez(tmp_path / "real.npz", inception=y)
    ended = dit(
        *("validate", tmp_path / "drawn.npz", "--reference", tmp_path / "real.npz"),
        *("--tests", "fid,kid,precision-recall", "--json", "--quiet"),
    )
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out)["figures"]
    assert list(figures) == ["fid", "kid", "precision", "recall"]
    assert figures["fid"]["value"] == pytest.approx(fid_of(x, y), rel=1e-3)
    assert figures["fid"]["images"] == 120 and figures["fid"]["reference"]["images"] == 200
    assert figures["fid"]["reference"]["name"] == "real.npz" and len(figures["fid"]["reference"]["sha256"]) == 64
    low, high = figures["fid"]["interval"]
    assert low < figures["fid"]["value"] < high and figures["fid"]["at_infinity"] < figures["fid"]["value"]
    page = (tmp_path / "drawn_figures" / "report.html").read_text()
    assert "real.npz (200)" in page and "FID" in page


def test_statistics_serve_fid_and_nothing_else(tmp_path, no_weights, dit):
    x, y = rows(0), rows(1, shift=0.2)
    np.savez(tmp_path / "drawn.npz", arr_0=x)
    np.savez(tmp_path / "stats.npz", mu=y.mean(0), sigma=np.cov(y.T))
    line = ("validate", tmp_path / "drawn.npz", "--reference", tmp_path / "stats.npz", "--quiet")
    ended = dit(*line, "--tests", "fid", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["figures"]["fid"]["value"] == pytest.approx(fid_of(x, y), rel=1e-3)
    ended = dit(*line, "--tests", "kid")
    assert ended.code == 3 and "only mu and sigma" in ended.err


def test_missing_weights_are_code_7_and_say_what_to_fetch_and_where_to_put_it(tmp_path, no_weights, dit):
    np.savez(tmp_path / "drawn.npz", arr_0=np.zeros((20, 8, 8, 3), np.uint8))
    for test, fetch, place in (
        ("fid", "weights-inception-2015-12-05-6726825d.pth", str(no_weights)),
        ("fd-dinov2", "hf download facebook/dinov2-large", str(no_weights / "dinov2-large")),
        ("cmmd", "hf download openai/clip-vit-large-patch14-336", str(no_weights / "clip-vit-large-patch14-336")),
    ):
        ended = dit("validate", tmp_path / "drawn.npz", "--reference", tmp_path / "drawn.npz", "--tests", test)
        assert ended.code == 7 and fetch in ended.err and place in ended.err, ended.err
    assert not (tmp_path / "drawn_figures").exists()


def test_features_that_are_written_are_read_again_to_the_same_figures(tmp_path, averages, dit):
    generator = np.random.RandomState(0)
    for name, brightest in (("drawn", 200), ("real", 256)):
        np.savez(tmp_path / f"{name}.npz", arr_0=generator.randint(0, brightest, (40, 16, 16, 3), np.uint8))
        line = ("validate", tmp_path / f"{name}.npz", "--tests", "fid,cmmd", "--quiet")
        ended = dit(*line, "--features-out", tmp_path / f"{name}_features.npz")
        assert ended.code == 0, ended.err
    with np.load(tmp_path / "real_features.npz") as written:
        assert {*written} == {"inception", "clip", "mu", "sigma"} and written["sigma"].shape == (12, 12)
    found = []
    for kind in ("", "_features"):
        drawn, real = (tmp_path / f"{name}{kind}.npz" for name in ("drawn", "real"))
        ended = dit("validate", drawn, "--reference", real, "--tests", "fid,cmmd", "--quiet", "--json")
        assert ended.code == 0, ended.err
        found.append({name: one["value"] for name, one in json.loads(ended.out)["figures"].items()})
    assert found[0] == found[1] and found[0]["fid"] > 0

    theirs = pytest.importorskip("torch_fidelity.metric_fid", reason="pip install 'dit[metrics]'")
    read = [np.load(tmp_path / f"{name}_features.npz") for name in ("drawn", "real")]
    statistics = [{"mu": one["mu"], "sigma": one["sigma"]} for one in read]
    second = theirs.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert second == pytest.approx(found[0]["fid"], rel=1e-3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "neither arr_0"),
        ({"arr_0": np.zeros((20, 8, 8, 4), np.uint8)}, "samples are"),
        ({"arr_0": np.full((20, 6), np.nan, np.float32)}, "NaN or infinity"),
        ({"arr_0": rows(0, count=9)}, "9 images"),
        ({"arr_0": rows(0, width=5)}, "5"),
        ({"mu": np.zeros(6), "sigma": np.zeros((5, 5))}, "no mean and covariance"),
    ],
)
def test_a_reference_that_cannot_be_one_is_bad_data(tmp_path, no_weights, dit, arrays, message):
    np.savez(tmp_path / "drawn.npz", arr_0=rows(0))
    np.savez(tmp_path / "real.npz", **arrays)
    ended = dit("validate", tmp_path / "drawn.npz", "--reference", tmp_path / "real.npz", "--tests", "fid", "--quiet")
    assert ended.code == 3 and message in ended.err, ended.err


def test_a_checkpoint_is_measured_and_not_judged(drawn, oracle, tmp_path, monkeypatch, averages, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    line = ("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--quiet", "--json")
    ended = dit(*line, "--tests", "fid,clip", "--images", "24", "--split", "train")
    assert ended.code == 0, ended.err
    printed = json.loads(ended.out)
    assert printed["verdict"] == "MEASURED" and printed["criteria"] == []
    fid = printed["figures"]["fid"]
    assert fid["images"] == 24 and fid["sampling"]["cfg_text"] == oracle().settings.cfg_text
    assert fid["reference"]["name"].startswith("train images") and fid["network"] == "inception"
    assert printed["figures"]["clip"]["reference"] is None
    page = (tmp_path / "validation" / "step0001234_train_fid_clip" / "report.html").read_text()
    assert "Against a reference set" in page and "text 3.0, 2 euler" in page and "<h2>Criteria" not in page


def test_options_of_figures_are_refused_where_no_figure_is_asked_for(tmp_path, drawn, oracle, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    ended = dit("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--images", "20", "--quiet")
    assert ended.code == 2 and "--images: no effect" in ended.err


def test_dinov2_and_clip_are_loaded_from_a_folder_and_see_what_their_papers_say(no_weights):
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
    Dinov2Model(Dinov2Config(**small, image_size=224)).save_pretrained(no_weights / "dinov2-large")
    place = no_weights / "clip-vit-large-patch14-336"
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(place)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 4, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**small, "intermediate_size": 16, "image_size": 28}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(place)

    pixels = np.random.RandomState(0).randint(0, 256, (2, 40, 64, 3), np.uint8)
    dino = load_network("dinov2")
    assert dino.features(pixels).shape == (2, 16) and dino.side == 224 and dino.resizing == CLEAN
    assert len(dino.sha256) == 64 and dino.revision == "local"
    squeezed, cropped = load_network("clip"), load_network("clip-crop")
    assert squeezed.features(pixels).shape == (2, 8) and squeezed.texts is None
    square = pixels[:, :, 12:52]
    assert torch.allclose(cropped.features(square), squeezed.features(square), atol=1e-5)
    assert not torch.allclose(cropped.features(pixels), squeezed.features(pixels), atol=1e-3)
    read = cropped.texts(["a a", "a " * 20])
    assert read.shape == (2, 8) and torch.isfinite(read).all()

    (place / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsMissingError, match="cannot be loaded"):
        load_network("clip")


def test_inception_is_torch_fidelitys_to_the_bit_and_clean_resizing_is_pillows(no_weights, monkeypatch):
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    theirs_of = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'dit[metrics]'")
    from PIL import Image

    kind = theirs_of.FeatureExtractorInceptionV3
    loading = kind.load_state_dict
    monkeypatch.setattr(theirs_of.torch, "load", lambda *_, **__: {})
    monkeypatch.setattr(kind, "load_state_dict", lambda self, state: None)
    blank = kind("inception", ["2048"], feature_extractor_weights_path="none")
    monkeypatch.undo()
    assert kind.load_state_dict is loading
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(no_weights))
    torch.save(blank.state_dict(), no_weights / networks.INCEPTION_FILE)
    networks._inception_network.cache_clear()
    try:
        legacy, clean = load_network("inception"), load_network("inception-clean")
    finally:
        networks._inception_network.cache_clear()
    assert legacy.published is False, "its hash is not that of the published file"
    assert (legacy.resizing, clean.resizing) == (LEGACY, CLEAN)
    pixels = np.random.RandomState(0).randint(0, 256, (1, 20, 30, 3), np.uint8)
    theirs = blank(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0]
    assert torch.equal(legacy.features(pixels), theirs) and theirs.shape == (1, 2048)
    assert not torch.equal(clean.features(pixels), theirs)

    ours = networks._clean(networks._floats(pixels), 47)[0]
    channels = [Image.fromarray(pixels[0, :, :, i].astype(np.float32), "F") for i in range(3)]
    pillows = np.stack([np.asarray(one.resize((47, 47), Image.Resampling.BICUBIC)).clip(0, 255) for one in channels])
    assert np.allclose(ours.numpy(), pillows, atol=1e-3)
