"""The whole of `dit validate` on models of known quality: what is good is GO, each planted fault is NO-GO for its own reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.ckpt.run_folder import recorded_data, run_folder
from dittool.data.features import FeatureStore
from dittool.data.records import IMAGE_PATCHES
from dittool.data.shard_set import ShardSet
from dittool.errors import BadDataError, UsageError
from dittool.sampling.pipeline import Pipeline
from dittool.storage import write_json
from dittool.validate.run import validate, validate_pipeline
from dittool.validate.samples import choose
from dittool.validate.verdict import CHECKS


def passed(done):
    """Criterion → whether it passed, of those that decide; checks of the measurement itself only where they fail."""
    return {one.name: one.passed for one in done.criteria if one.passed is not None and not (one.passed and one.name in CHECKS)}


@pytest.fixture(scope="module")
def perfect(drawn, oracle, tmp_path_factory):
    """The validation of a model without fault."""
    return validate_pipeline(oracle(), drawn[0], tmp_path_factory.mktemp("perfect") / "step0001234")


def test_a_perfect_model_is_go_at_the_floor_in_every_test(perfect):
    assert perfect.verdict == "GO"
    assert passed(perfect) == {"gap_closed": True, "swap_closer": True, "edit_shown": True}
    reconstruction = perfect.results["reconstruction"]
    assert reconstruction["mean"] == pytest.approx(reconstruction["floor_vae_roundtrip"], abs=1e-3)
    assert reconstruction["gap_closed"] == pytest.approx(1, abs=1e-2)
    assert perfect.results["dino_swap"]["closer_to_source"] == 1
    assert perfect.results["text_manip"]["edit_shown"] == 1


def test_feeding_the_truth_in_gives_the_floor_image_by_image(perfect):
    for row in perfect.results["reconstruction"]["per_image"]:
        assert row["psnr"]["value"] == pytest.approx(row["psnr"]["floor"], abs=0.1)
        assert row["ssim"]["floor"] > 0.9 > row["ssim"]["ceiling"]


def test_a_model_that_sees_no_condition_is_no_go_in_every_test(drawn, oracle, tmp_path):
    done = validate_pipeline(oracle(cut=["text", "reference"]), drawn[0], tmp_path)
    assert done.verdict == "NO-GO"
    assert not any(passed(done)[name] for name in ("gap_closed", "swap_closer", "edit_shown"))
    reconstruction = done.results["reconstruction"]
    assert reconstruction["mean"] == reconstruction["ceiling_shuffled"], "the same noise gives the same picture whatever the conditions"
    assert reconstruction["gap_closed"] == 0
    assert done.results["text_manip"]["sensitivity"] == 0


def test_a_model_trained_on_shuffled_conditions_is_no_go(drawn, oracle, tmp_path):
    done = validate_pipeline(oracle(shuffled=True), drawn[0], tmp_path)
    assert done.verdict == "NO-GO"
    assert passed(done).get("gap_closed") is not True
    assert passed(done)["edit_shown"] is False


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
        shards = ShardSet(shards.folder, shards.samples, {**shards.index, "source": str(tmp_path / "gone")})
    model.decode = oracle().decode
    model.codec = NormalisingCodec(model)
    done = validate_pipeline(model, shards, tmp_path / "out", tests=["reconstruction"])
    assert done.verdict == "NO-GO"
    assert passed(done)["truth_as_result"] is False


def test_latents_that_were_stored_scaled_are_noticed(drawn, oracle, tmp_path):
    class Scaled(ShardSet):
        def read(self, ref, patches=True):
            sample = super().read(ref, patches)
            return replace(sample, latent=sample.latent * 1.2)

    shards = drawn[0]
    done = validate_pipeline(oracle(), Scaled(shards.folder, shards.samples, shards.index), tmp_path, tests=["reconstruction"])
    assert done.verdict == "NO-GO"
    assert passed(done)["stored_latents"] is False


def test_without_the_originals_truth_is_the_decoded_latent_and_it_is_said(drawn, oracle, tmp_path):
    shards, _ = drawn
    moved = ShardSet(shards.folder, shards.samples, {**shards.index, "source": str(tmp_path / "gone")})
    done = validate_pipeline(oracle(), moved, tmp_path / "out", tests=["reconstruction"])
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
    moved = ShardSet(shards.folder, shards.samples, {**shards.index, "source": str(copied)})
    done = validate_pipeline(oracle(), moved, tmp_path / "out", tests=["reconstruction"])
    kinds = {row["id"]: row["truth"] for row in done.results["reconstruction"]["per_image"]}
    assert kinds.pop(changed.id) == "decoded latent"
    assert set(kinds.values()) == {"pixels"}


def test_subjects_are_held_out_and_each_partner_is_another_image_of_the_bucket(drawn):
    split, subjects = choose(drawn[0], 100)
    assert split == "holdout" and len(subjects) == len(drawn[0].split("holdout"))
    for subject in subjects:
        assert subject.ref.split == "holdout"
        assert subject.partner.id != subject.ref.id and subject.partner.bucket == subject.ref.bucket
    assert choose(drawn[0], 3)[1][0].ref == subjects[0].ref


def test_each_partner_is_used_once_where_a_bucket_has_several(drawn):
    by_bucket = {}
    for subject in choose(drawn[0], 100)[1]:
        by_bucket.setdefault(subject.ref.bucket, []).append(subject)
    several = [group for group in by_bucket.values() if len(group) > 1]
    assert several
    for group in several:
        assert {subject.partner.id for subject in group} == {subject.ref.id for subject in group}


def test_an_image_alone_in_its_bucket_has_no_ceiling_and_no_pair(drawn, oracle, tmp_path):
    shards, _ = drawn
    lonely = shards.split("holdout")[0]
    alone = ShardSet(shards.folder, [ref for ref in shards.samples if ref.bucket != lonely.bucket or ref == lonely], shards.index)
    done = validate_pipeline(oracle(), alone, tmp_path)
    row = next(row for row in done.results["reconstruction"]["per_image"] if row["id"] == lonely.id)
    assert row["ssim"]["ceiling"] is None and row["ssim"]["gap_closed"] is None
    assert lonely.id not in {pair["noise_of"] for pair in done.results["dino_swap"]["per_pair"]}


def test_a_set_without_hold_out_is_judged_on_training_images_and_says_so(drawn, oracle, tmp_path):
    shards, _ = drawn
    trained_on_all = ShardSet(shards.folder, [replace(ref, split="train") for ref in shards.samples], shards.index)
    done = validate_pipeline(oracle(), trained_on_all, tmp_path, tests=["dino_swap"], limit=4)
    assert done.results["data"]["split"] == "train" and done.results["data"]["unseen"] is False
    assert "trained on" in done.results["data"]["described"] or "training images" in done.results["data"]["described"]


def test_a_hold_out_of_another_sharding_is_not_called_unseen(drawn, oracle, perfect, tmp_path):
    shards, _ = drawn
    first, *others = shards.split("train")
    resharded = ShardSet(shards.folder, [replace(first, split="holdout"), *others, *shards.split("holdout")], shards.index)
    done = validate_pipeline(oracle(), resharded, tmp_path, tests=["dino_swap"], limit=4)
    assert done.results["data"]["unseen"] is False
    assert perfect.results["data"]["unseen"] is True


def test_shards_of_another_identity_are_refused_with_the_difference(drawn, oracle, tmp_path):
    shards, _ = drawn
    card = json.loads(json.dumps(shards.card))
    card["encoders"]["image"]["registers"] = 0
    other = ShardSet(shards.folder, shards.samples, {**shards.index, "identity": card, "identity_hash": "0" * 64})
    with pytest.raises(BadDataError, match=r"encoders\.image\.registers: 0 here, 4 there"):
        validate_pipeline(oracle(), other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_draws_nan_is_an_error_not_a_picture(drawn, oracle, tmp_path):
    model = oracle()
    model.latents = lambda conditions, noise: torch.full_like(noise, float("nan"))
    with pytest.raises(BadDataError, match="NaN"):
        validate_pipeline(model, drawn[0], tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_two_validations_give_the_same_figures_and_pictures(drawn, oracle, perfect, tmp_path):
    again = validate_pipeline(oracle(), drawn[0], tmp_path)
    assert {**again.results, "seconds": 0} == {**perfect.results, "seconds": 0}
    assert (again.folder / "contact_sheet.png").read_bytes() == (perfect.folder / "contact_sheet.png").read_bytes()


def test_validating_leaves_the_random_state_of_a_training_run_alone(drawn, oracle, tmp_path):
    model = oracle()
    vars(model).pop("image_encoder", None)  # to be built during the validation
    torch.manual_seed(3)
    before = torch.get_rng_state()
    validate_pipeline(model, drawn[0], tmp_path, tests=["dino_swap"], limit=4)
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_of_an_earlier_validation_do_not_stay(drawn, oracle, tmp_path):
    validate_pipeline(oracle(), drawn[0], tmp_path, limit=6)
    assert len(list((tmp_path / "reconstruction").glob("*.png"))) == 6
    done = validate_pipeline(oracle(), drawn[0], tmp_path, tests=["reconstruction"], limit=3)
    assert {path.name for path in (tmp_path / "reconstruction").glob("*.png")} == {row["file"] for row in done.results["reconstruction"]["per_image"]}
    assert not list((tmp_path / "dino_swap").glob("*.png"))


def test_the_files_are_those_of_the_contract(perfect):
    on_disk = json.loads((perfect.folder / "results.json").read_text())
    assert on_disk == json.loads(json.dumps(perfect.results))
    assert on_disk["step"] == 1234 and on_disk["weights"] == "ema" and on_disk["verdict"] == "GO"
    assert {"metric", "mean", "per_image", "floor_vae_roundtrip", "ceiling_shuffled"} <= set(on_disk["reconstruction"])
    assert {"pairs", "closer_to_source", "mean_margin"} <= set(on_disk["dino_swap"])
    assert {"pairs", "sensitivity"} <= set(on_disk["text_manip"])
    assert {"timesteps", "loss", "loss_ratio", "effect", "splits"} <= set(on_disk["mode_losses"])
    assert all({"name", "value", "threshold", "passed"} <= set(row) for row in on_disk["criteria"])
    for part, rows in (("reconstruction", "per_image"), ("dino_swap", "per_pair"), ("text_manip", "per_pair")):
        named = {row["file"] for row in on_disk[part][rows]}
        assert named == {path.name for path in (perfect.folder / part).iterdir()}
        assert len(named) == len(on_disk[part][rows]) > 0


def test_a_strip_shows_truth_result_difference_round_trip_and_other_conditions(perfect, drawn):
    row = perfect.results["reconstruction"]["per_image"][0]
    strip = np.asarray(Image.open(perfect.folder / "reconstruction" / row["file"]))
    width, height = (int(side) for side in row["bucket"].split("x"))
    assert strip.shape == (height, 5 * width, 3)
    truth, result, apart, round_trip, _ = np.split(strip, 5, axis=1)
    assert np.abs(result.astype(int) - round_trip).max() <= 1
    assert np.abs(np.minimum(255, 2 * np.abs(truth.astype(int) - result)) - apart).max() == 0


def test_a_checkpoint_with_random_weights_is_judged_from_its_files_and_is_no_go(tiny_shards, tmp_path, dit):
    from dittool.ckpt.files import save_checkpoint
    from dittool.data.provenance import Provenance
    from dittool.train.distributed import Ranks
    from dittool.train.state import TrainState

    shards = ShardSet.open(tiny_shards.folder)
    state = TrainState(tiny_shards.config, Provenance.of(shards, shards.split("train"), tiny_shards.config), Ranks(0, 1, torch.device("cpu")))
    for parameter in state.model.parameters():  # only the EMA weights can draw
        parameter.data.fill_(float("nan"))
    run = tmp_path / "runs" / "tiny"
    checkpoint = save_checkpoint(run / "checkpoints", state.to_checkpoint(), final=True)
    write_json(run / "run.json", {"data": str(tiny_shards.folder)})
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.9}\n')
    assert recorded_data(run_folder(checkpoint)) == tiny_shards.folder

    ended = dit("validate", run, "--limit", 3, "--quiet")
    assert ended.code == 1, ended.err
    assert "NO-GO" in ended.out and "report.html" in ended.out
    folder = run / "validation" / "step0000000"
    assert {"results.json", "report.html", "contact_sheet.png", "loss.png", "reconstruction", "dino_swap", "text_manip"} <= {
        path.name for path in folder.iterdir()
    }
    assert "data:image/png;base64," in (folder / "report.html").read_text(), "the loss curve stands in the page"

    ended = dit("validate", checkpoint, "--limit", 2, "--tests", "dino_swap", "--json", "--quiet")
    assert ended.code == 1
    printed = json.loads(ended.out)
    assert printed["verdict"] == "NO-GO" and "reconstruction" not in printed


def test_go_is_exit_code_0(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    ended = dit("validate", checkpoint, "--data", drawn[0].folder, "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.rstrip().endswith(str(tmp_path / "validation" / "step0001234" / "report.html"))


def test_a_named_backbone_that_is_not_there_is_exit_code_7_before_anything_is_drawn(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    ended = dit("validate", checkpoint, "--data", drawn[0].folder, "--lpips-backbone", tmp_path / "gone.pth", "--quiet")
    assert ended.code == 7
    assert not list((tmp_path / "validation").iterdir())


def test_an_output_folder_that_cannot_be_is_exit_code_5_before_the_checkpoint_is_read(tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: pytest.fail("loaded")))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    (tmp_path / "validation").write_text("a file")
    assert dit("validate", checkpoint, "--data", tmp_path).code == 5


@pytest.mark.parametrize(("tests", "message"), [(["fid"], "'fid'"), ([], "no test")])
def test_an_unknown_test_is_a_usage_error_that_lists_those_there_are(tmp_path, tests, message):
    with pytest.raises(UsageError, match=message) as caught:
        validate(tmp_path / "any.pt", tmp_path, tests=tests)
    assert "reconstruction, dino_swap, text_manip" in caught.value.hint


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
        model.latents = lambda conditions, noise, test=test, draw=draw: seen.append((test, conditions)) or draw(conditions, noise)
        validate_pipeline(model, OddCaptions(shards.folder, shards.samples, shards.index), tmp_path / test, tests=[test])
    of = {test: [conditions for name, conditions in seen if name == test] for test, _ in seen}
    assert all(one.text is not None and one.cls is not None and one.patches is not None for one in of["reconstruction"])
    assert all(one.text is None and one.cls is not None and one.patches is not None for one in of["dino_swap"])
    assert all(one.text is not None and one.cls is None and one.patches is None for one in of["text_manip"])
    lengths = {int(length) for one in of["text_manip"] for length in one.text_mask.sum(dim=1)}
    assert lengths == {9, 11}, "padding of the longest caption is not part of the others"


def test_a_model_without_patch_tokens_is_not_given_any(drawn, oracle, tmp_path):
    model = oracle("model.patches=false")
    seen, draw = [], model.latents
    model.latents = lambda conditions, noise: seen.append(conditions) or draw(conditions, noise)
    validate_pipeline(model, drawn[0], tmp_path, limit=4)
    assert seen and all(conditions.patches is None for conditions in seen)


def test_prepared_mirror_images_are_not_judged(tiny_shards, tmp_path):
    from dittool.data.embed import embed
    from dittool.data.shards import shard
    from dittool.validate.samples import choose

    embed(tiny_shards.images, tmp_path / "derived", tiny_shards.config_with('data.flip="prepared"'))
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    assert any(shards.read_record(ref).flipped for ref in shards.samples)
    _, subjects = choose(shards, 100)
    involved = [ref for subject in subjects for ref in (subject.ref, subject.partner) if ref is not None]
    assert involved and not any(shards.read_record(ref).flipped for ref in involved)


def test_held_out_and_training_images_are_never_called_the_same(drawn, oracle, perfect, tmp_path):
    shards = drawn[0]
    done = validate_pipeline(oracle(), shards, tmp_path, tests=["reconstruction"], limit=4, split="train")
    on_training, on_holdout = done.results["reconstruction"], perfect.results["reconstruction"]
    assert (on_training["split"], on_holdout["split"]) == ("train", "holdout")
    assert done.results["data"]["described"] == "training images, as asked for" and done.results["data"]["unseen"] is False
    for part, split in ((on_training, "train"), (on_holdout, "holdout")):
        members = {ref.id for ref in shards.split(split)}
        assert all(row["id"] in members and row["file"] == f"{split}_{row['id']}.png" for row in part["per_image"])
    assert any("training images" in one.title for one in done.criteria)
    assert not any("training images" in one.title for one in perfect.criteria)


def test_the_training_set_has_a_folder_of_its_own(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    for arguments in ((), ("--split", "train")):
        dit("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--limit", 2, "--tests", "reconstruction", "--quiet", *arguments)
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["step0001234", "step0001234_train"]


def test_limit_0_judges_every_image_of_the_split(drawn):
    for split in ("holdout", "train"):
        assert len(choose(drawn[0], 0, split)[1]) == len(drawn[0].split(split))


def test_a_split_without_samples_is_bad_data_that_says_which(drawn):
    shards = drawn[0]
    nothing_held_out = ShardSet(shards.folder, shards.split("train"), shards.index)
    with pytest.raises(BadDataError, match="'holdout'"):
        choose(nothing_held_out, 4, "holdout")
    with pytest.raises(UsageError, match="'test'"):
        validate("any.pt", shards.folder, split="test")


def test_pooled_patches_are_compared_with_pooled_ones_and_dropped_ones_count_as_in_training(tiny_shards, tmp_path):
    from dittool.data.embed import embed
    from dittool.data.provenance import Provenance
    from dittool.data.shards import shard
    from dittool.models.build import build_model

    config = tiny_shards.config_with('data.patch_storage="pooled"')
    embed(tiny_shards.images, tmp_path / "derived", config)
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    data = Provenance.of(shards, shards.split("train"), config)
    model = Pipeline(build_model(config, data.dims["text"], data.dims["image"], data.dims["latent_channels"]), config, data, step=1)
    seen, draw = [], model.latents
    model.latents = lambda conditions, noise: seen.append((conditions, noise)) or draw(conditions, noise)
    done = validate_pipeline(model, shards, tmp_path / "out", limit=2)
    assert done.results["dino_swap"]["pairs"] + done.results["text_manip"]["pairs"] > 0
    for conditions, noise in seen:
        rows, columns = noise.shape[2] // 2, noise.shape[3] // 2  # the encoder's patches: two latent cells each
        assert conditions.patch_grid == ((rows + 1) // 2, (columns + 1) // 2)
    image = next(path for path in sorted(tiny_shards.images.iterdir()) if path.suffix == ".png")
    reference = model.encode_reference(image)
    record = next(record for record in FeatureStore(tmp_path / "derived").read_records() if record.image == image.name)
    stored = FeatureStore(tmp_path / "derived").read(IMAGE_PATCHES, record.id)
    assert np.allclose(reference.patches, stored.astype(np.float32), atol=2e-3)
    for drawn in (model.conditions(None, reference, reference.bucket, 1), model.conditions("a red circle", None, reference.bucket, 1)):
        assert drawn.patch_grid[0] * drawn.patch_grid[1] == len(stored)
