"""The model card says what the export is, how to load it, and what is known of it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from dittool.ckpt.files import save_checkpoint
from dittool.export.export import ExportRequest, export


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def card_of(run, out, **wanted):
    return ModelCard.load(
        export(ExportRequest(run / "checkpoints/checkpoint_final.pt", out, **wanted)).folder / "README.md"
    )


def test_the_card_shows_the_lines_and_why_they_trust(run, tmp_path):
    card = card_of(run, tmp_path / "out", licence="apache-2.0", repository="me/model")
    assert 'from_pretrained("me/model", trust_remote_code=True)' in card.text and "# model\n" in card.text
    assert "`pipeline_flow.py`" in card.text and "Read them first" in card.text
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-to-image"
    assert card.data.library_name == "diffusers"


def test_the_card_says_data_encoders_licences_and_settings(run, tmp_path):
    text = card_of(run, tmp_path / "out").text
    assert "24 images with captions" in text and "`builtin:words`" in text and "Apache-2.0, code of dit" in text
    assert "| steps | 2 |" in text and "[model]\n" in text and "after 8 updates" in text


def test_pictures_are_drawn_with_the_exported_weights_from_words_that_stay_words(run, tmp_path):
    text = card_of(run, tmp_path / "out", prompts=["a | <b>red</b> [x](y) circle", "a dog"]).text
    rows = [line for line in text.splitlines() if "samples/picture_0.png" in line or "a dog |" in line]
    assert len(rows) == 2 and all(row.count(" | ") == 1 for row in rows)
    assert "<b>" not in text and "\\[x]" in text
    assert Image.open(tmp_path / "out/samples/picture_1.png").size == (128, 128)


def test_a_generator_shows_its_first_classes(class_run, tmp_path):
    checkpoint = class_run / "checkpoints/checkpoint_final.pt"
    classes = torch.load(checkpoint, weights_only=True)["classes"]
    folder = export(ExportRequest(checkpoint, tmp_path / "out")).folder
    card = ModelCard.load(folder / "README.md")
    shown = len(list((folder / "samples").iterdir()))
    assert card.data.pipeline_tag == "unconditional-image-generation" and shown == min(len(classes), 6)
    assert f'pipe("{classes[0]}")' in card.text


def test_verdict_and_audit_stand_there_when_the_run_has_them(run, tmp_path):
    before = card_of(run, tmp_path / "before").text
    assert "Nobody has judged these weights" in before
    criterion = {"name": "x", "title": "copies|of it", "value": 0.25, "threshold": 0.5, "passed": False}
    others = [{**criterion, "title": title, "threshold": bound} for title, bound in (("a", None), ("b", [0.1, 2]))]
    results = {"step": 8, "criteria": [criterion, *others], "verdict": "NO-GO"}
    results["data"] = {"images": 4, "described": "held-out images"}
    place = run / "validation/step0000008"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(results))
    finding = {"code": "E9", "name": "new", "status": "warn", "evidence": "one\nline"}
    (run / "audit.json").write_text(json.dumps({"findings": [finding], "counts": {"pass": 20, "warn": 1}}))
    text = card_of(run, tmp_path / "after").text
    assert "`dit validate` on 4 held-out images: **NO-GO**" in text
    assert "| ✘ copies\\|of it | 0.250 | at least 0.5 |" in text
    assert "| ✘ a | 0.250 | does not decide |" in text and "| ✘ b | 0.250 | 0.1 to 2 |" in text
    raw = card_of(run, tmp_path / "raw", weights="model").text
    assert "Nobody has judged these weights" in raw
    assert "20 pass, 1 warn" in text and "- warn: E9 new: one line" in text


@pytest.mark.parametrize("spoiled", ["no JSON", "[]", '{"step": 8}', '{"step": 7, "criteria": [], "verdict": "GO"}'])
def test_results_that_are_none_are_left_out(run, tmp_path, spoiled):
    place = run / "validation/step0000008"
    place.mkdir(parents=True)
    (place / "results.json").write_text(spoiled)
    (run / "audit.json").write_text(spoiled)
    assert "Nobody has judged these weights" in card_of(run, tmp_path / "out", form="safetensors").text


def test_an_encoder_from_a_local_folder_is_warned_of(run, tmp_path, listener):
    state = torch.load(run / "checkpoints/checkpoint_final.pt", weights_only=True)
    state["data"]["identity"]["encoders"]["text"] |= {"id": "/home/me/t5", "revision": "local"}
    local = save_checkpoint(tmp_path / "local", state, final=True)
    export(ExportRequest(local, tmp_path / "out"), listener)
    assert any("/home/me/t5" in warning for warning in listener.warnings)
