"""What each test gives the model to draw from: the conditions that it is about, as training saw them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dittool.data.features.store import FeatureStore
from dittool.data.records import IMAGE_PATCHES
from dittool.data.shards.read import ShardSet
from dittool.sampling.pipeline import Pipeline
from tests.validate.oracle import judge


def test_each_test_gives_the_model_the_conditions_that_it_is_about(drawn, oracle, tmp_path):
    class OddCaptions(ShardSet):
        """Every second caption is two words longer."""

        def read_record(self, ref):
            record = super().read_record(ref)
            longer = int(ref.id[-1]) % 2
            return replace(record, caption=record.caption + " indeed so" * longer)

    shards, seen = drawn[0], []
    for test in ("reconstruction", "dino_swap", "text_manip"):
        model = oracle()
        draw = model.latents
        model.latents = lambda conditions, noise, test=test, draw=draw: (
            seen.append((test, conditions)) or draw(conditions, noise)
        )
        judge(model, OddCaptions(shards.folder, shards.samples, shards.index), tmp_path / test, tests=[test])
    of = {test: [conditions for name, conditions in seen if name == test] for test, _ in seen}
    assert all(one.text is not None and one.cls is not None and one.patches is not None for one in of["reconstruction"])
    assert all(one.text is None and one.cls is not None and one.patches is not None for one in of["dino_swap"])
    assert all(one.text is not None and one.cls is None and one.patches is None for one in of["text_manip"])
    lengths = {int(length) for one in of["text_manip"] for length in one.text_mask.sum(dim=1)}
    assert lengths == {9, 11}, "padding of the longest caption is not part of the others"


def test_a_model_without_patch_tokens_is_not_given_any(drawn, oracle, tmp_path):
    model = oracle("model.patches=false", "model.patch_fusion=attended")
    seen, draw = [], model.latents
    model.latents = lambda conditions, noise: seen.append(conditions) or draw(conditions, noise)
    judge(model, drawn[0], tmp_path, limit=4)
    assert seen and all(conditions.patches is None for conditions in seen)


def test_pooled_patches_are_compared_with_pooled_ones_and_dropped_ones_count_as_in_training(tiny_shards, tmp_path):
    from dittool.data.features.embed import embed
    from dittool.data.provenance import Provenance
    from dittool.data.shards.write import shard
    from dittool.models.build import build_model

    config = tiny_shards.config_with('data.patch_storage="pooled"')
    embed(tiny_shards.images, tmp_path / "derived", config)
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    data = Provenance.of(shards, shards.split("train"), config)
    model = Pipeline(
        build_model(config, data.widths.text, data.widths.image, data.widths.latent_channels), config, data, step=1
    )
    seen, draw = [], model.latents
    model.latents = lambda conditions, noise: seen.append((conditions, noise)) or draw(conditions, noise)
    done = judge(model, shards, tmp_path / "out", limit=2)
    assert done.results["dino_swap"]["pairs"] + done.results["text_manip"]["pairs"] > 0
    for conditions, noise in seen:
        rows, columns = noise.shape[2] // 2, noise.shape[3] // 2  # the encoder's patches: two latent cells each
        assert conditions.patch_grid == ((rows + 1) // 2, (columns + 1) // 2)
    image = next(path for path in sorted(tiny_shards.images.iterdir()) if path.suffix == ".png")
    reference = model.encode_reference(image)
    record = next(record for record in FeatureStore(tmp_path / "derived").read_records() if record.image == image.name)
    stored = FeatureStore(tmp_path / "derived").read(IMAGE_PATCHES, record.id)
    assert np.allclose(reference.patches, stored.astype(np.float32), atol=2e-3)
    for drawn in (
        model.conditions(None, reference, reference.bucket, 1),
        model.conditions("a red circle", None, reference.bucket, 1),
    ):
        assert drawn.patch_grid[0] * drawn.patch_grid[1] == len(stored)
