"""The whole of `dit validate` on models of known quality: what is good is GO, what sees nothing or the wrong thing
is NO-GO.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError
from dittool.validate import run
from dittool.validate.verdict import CHECKS
from tests.validate.oracle import judge


def passed(done):
    """Criterion → whether it passed, of those that decide; checks of the measurement itself only where they fail."""
    return {
        one.name: one.passed
        for one in done.criteria
        if one.passed is not None and not (one.passed and one.name in {*CHECKS, "images"})
    }


def test_a_perfect_model_is_go_at_the_floor_in_every_test(perfect):
    assert perfect.verdict == "GO"
    assert passed(perfect) == {"gap_closed": True, "swap_closer": True, "edit_shown": True, "edit_shown_shape": True}
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
    done = judge(oracle(cut=["text", "reference"]), drawn[0], tmp_path)
    assert done.verdict == "NO-GO"
    assert not any(passed(done)[name] for name in ("gap_closed", "swap_closer", "edit_shown"))
    reconstruction = done.results["reconstruction"]
    assert reconstruction["mean"] == reconstruction["ceiling_shuffled"], (
        "the same noise gives the same picture whatever the conditions"
    )
    assert reconstruction["gap_closed"] == 0
    assert done.results["text_manip"]["sensitivity"] == 0


def test_a_model_trained_on_shuffled_conditions_is_no_go(drawn, oracle, tmp_path):
    done = judge(oracle(shuffled=True), drawn[0], tmp_path)
    assert done.verdict == "NO-GO"
    assert passed(done).get("gap_closed") is not True
    assert passed(done)["edit_shown"] is False


def test_shards_of_another_identity_are_refused_with_the_difference(drawn, oracle, tmp_path):
    shards, _ = drawn
    card = shards.card.with_encoder(replace(shards.card.image, registers=0))
    other = ShardSet(shards.folder, shards.samples, replace(shards.index, identity=card, identity_hash=card.sha256))
    with pytest.raises(BadDataError, match=r"encoders\.image\.registers: 0 here, 4 there"):
        judge(oracle(), other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_draws_nan_is_an_error_not_a_picture(drawn, oracle, tmp_path):
    model = oracle()
    model.latents = lambda conditions, noise: torch.full_like(noise, float("nan"))
    with pytest.raises(BadDataError, match="NaN"):
        judge(model, drawn[0], tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_two_validations_give_the_same_figures_and_pictures(drawn, oracle, perfect, tmp_path):
    again = judge(oracle(), drawn[0], tmp_path / "step0001234")  # as deep as the other: paths are seen from there
    assert {**again.results, "seconds": 0} == {**perfect.results, "seconds": 0}
    assert (again.folder / "contact_sheet.png").read_bytes() == (perfect.folder / "contact_sheet.png").read_bytes()


def test_validating_leaves_the_random_state_of_a_training_run_alone(drawn, oracle, tmp_path):
    model = oracle()
    vars(model).pop("image_encoder", None)  # to be built during the validation
    torch.manual_seed(3)
    before = torch.get_rng_state()
    judge(model, drawn[0], tmp_path, tests=["dino_swap"], limit=4)
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_of_an_earlier_validation_do_not_stay(drawn, oracle, tmp_path):
    judge(oracle(), drawn[0], tmp_path, limit=6)
    assert len(list((tmp_path / "reconstruction").glob("*.png"))) == 6
    done = judge(oracle(), drawn[0], tmp_path, tests=["reconstruction"], limit=3)
    assert {path.name for path in (tmp_path / "reconstruction").glob("*.png")} == {
        row["file"] for row in done.results["reconstruction"]["per_image"]
    }
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


@pytest.mark.parametrize("ends", [KeyboardInterrupt, BadDataError])
def test_a_judgement_that_does_not_come_to_its_end_leaves_the_earlier_one(drawn, oracle, tmp_path, monkeypatch, ends):
    earlier = judge(oracle(), drawn[0], tmp_path, tests=["reconstruction", "dino_swap"], limit=4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def breaks(trial):
        raise ends("half way")

    monkeypatch.setattr(run, "swap_references", breaks)
    with pytest.raises(ends):
        judge(oracle(), drawn[0], tmp_path, tests=["reconstruction", "dino_swap"], limit=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert earlier.report in before


def test_a_full_disk_is_said_of_the_folder_that_was_asked_for(drawn, oracle, tmp_path, monkeypatch):
    def full(trial):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(trial.folder / "dino_swap" / "a.png"))

    monkeypatch.setattr(run, "swap_references", full)
    with pytest.raises(OSError) as refused:
        judge(oracle(), drawn[0], tmp_path, tests=["dino_swap"], limit=2)
    assert refused.value.filename == str(tmp_path / "dino_swap" / "a.png")


def test_a_judgement_that_is_refused_leaves_no_folder(drawn, oracle, tmp_path, monkeypatch):
    def refuses(trial):
        raise BadDataError("refused")

    monkeypatch.setattr(run, "swap_references", refuses)
    with pytest.raises(BadDataError):
        judge(oracle(), drawn[0], tmp_path / "new" / "folder", tests=["dino_swap"], limit=2)
    assert list(tmp_path.iterdir()) == []


def test_fewer_than_eight_images_are_no_go_and_the_count_stands_in_the_results(drawn, oracle, tmp_path):
    few = judge(oracle(), drawn[0], tmp_path / "few", tests=["dino_swap"], limit=7)
    assert few.verdict == "NO-GO" and few.results["left_out"] == ["reconstruction", "text_manip", "mode_losses"]
    assert [one.name for one in few.criteria if one.passed is False] == ["images"]
    assert "too few were judged" in few.results["diagnosis"]
    enough = judge(oracle(), drawn[0], tmp_path / "enough", tests=["dino_swap"], limit=8)
    assert enough.verdict == "GO" and enough.results["data"]["images"] == 8


def test_data_of_some_of_the_trained_buckets_are_judged_and_of_others_refused(drawn, oracle, tmp_path):
    shards, model = drawn[0], oracle()
    name = shards.samples[0].bucket

    def of_buckets(*buckets: str) -> ShardSet:
        card = replace(shards.card, buckets=buckets)
        index = replace(shards.index, identity=card, identity_hash=card.sha256)
        return ShardSet(shards.folder, [ref for ref in shards.samples if ref.bucket == name], index)

    assert judge(model, of_buckets(name), tmp_path, tests=["mode_losses"]).results["data"]["images"] > 0
    with pytest.raises(BadDataError, match="buckets"):
        judge(model, of_buckets(name, "64x64"), tmp_path, tests=["mode_losses"])
