"""What results are compared with: the original where it is still there, never a wrong picture without notice."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dittool.data.shards.read import ShardSet
from dittool.validate.samples import choose
from tests.validate.oracle import judge


def failed(done):
    return {one.name for one in done.criteria if one.passed is False}


@pytest.mark.parametrize("originals", ["there", "gone"])
def test_a_truth_decoded_from_normalised_latents_is_noticed(drawn, oracle, tmp_path, originals):
    class NormalisingCodec:
        """Takes stored latents for what a model draws: the truth is wrong, the results are right."""

        def __init__(self, model):
            self.encode, self._decode, self._norm = model.codec.encode, model.codec.decode, model.data.norm

        def decode(self, latents):
            return self._decode(self._norm.apply(latents))

    model, shards = oracle(), drawn[0]
    if originals == "gone":
        shards = ShardSet(shards.folder, shards.samples, replace(shards.index, source=str(tmp_path / "gone")))
    model.decode = oracle().decode
    model.codec = NormalisingCodec(model)
    done = judge(model, shards, tmp_path / "out", tests=["reconstruction"])
    assert done.verdict == "NO-GO"
    assert "truth_as_result" in failed(done)


def test_latents_that_were_stored_scaled_are_noticed(drawn, oracle, tmp_path):
    class Scaled(ShardSet):
        def read(self, ref, patches=True):
            sample = super().read(ref, patches)
            return replace(sample, latent=sample.latent * 1.2)

    shards = drawn[0]
    done = judge(oracle(), Scaled(shards.folder, shards.samples, shards.index), tmp_path, tests=["reconstruction"])
    assert done.verdict == "NO-GO"
    assert "stored_latents" in failed(done)


def test_without_the_originals_truth_is_the_decoded_latent_and_it_is_said(drawn, oracle, tmp_path):
    shards, _ = drawn
    moved = ShardSet(shards.folder, shards.samples, replace(shards.index, source=str(tmp_path / "gone")))
    done = judge(oracle(), moved, tmp_path / "out", tests=["reconstruction"])
    reconstruction = done.results["reconstruction"]
    assert reconstruction["truth"] == {"pixels": 0, "decoded latent": reconstruction["images"]}
    assert reconstruction["floor_vae_roundtrip"] == pytest.approx(1)
    assert reconstruction["checks"]["stored_latents"] is None
    assert "originals are not there" in done.report.read_text()


def test_an_original_that_changed_is_not_taken_for_the_truth(drawn, oracle, tmp_path):
    shards, source = drawn
    copied = tmp_path / "images"
    shutil.copytree(source, copied)
    changed = shards.read_record(choose(shards, 1)[1][0].ref)
    Image.new("RGB", (200, 200), (9, 9, 9)).save(copied / changed.image)
    moved = ShardSet(shards.folder, shards.samples, replace(shards.index, source=str(copied)))
    done = judge(oracle(), moved, tmp_path / "out", tests=["reconstruction"])
    kinds = {row["id"]: row["truth"] for row in done.results["reconstruction"]["per_image"]}
    assert kinds.pop(changed.id) == "decoded latent"
    assert set(kinds.values()) == {"pixels"}


def test_a_strip_shows_truth_result_difference_round_trip_and_other_conditions(perfect, drawn):
    row = perfect.results["reconstruction"]["per_image"][0]
    strip = np.asarray(Image.open(perfect.folder / "reconstruction" / row["file"]))
    width, height = (int(side) for side in row["bucket"].split("x"))
    assert strip.shape == (height, 5 * width, 3)
    truth, result, apart, round_trip, _ = np.split(strip, 5, axis=1)
    assert np.abs(result.astype(int) - round_trip).max() <= 1
    assert np.abs(np.minimum(255, 2 * np.abs(truth.astype(int) - result)) - apart).max() == 0
