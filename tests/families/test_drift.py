"""Training of the one-step generator: checkpoints, exact resume, several processes, and errors that name both sides."""

from __future__ import annotations

import pytest
import torch

from dittool.ckpt.run_log import read_log
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError, NonFiniteError, UsageError
from dittool.families.drift_data import ClassSamples, LatentStream
from dittool.families.family import family_of
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.audit.opened import audit
from tests.quick import every_third
from tests.run_states import assert_same_bits, final_state, same_tensors, stopped_at


def test_a_run_leaves_what_every_run_leaves_and_what_a_generator_needs(class_run, class_shards):
    assert {path.name for path in class_run.iterdir()} >= {
        "resolved.toml",
        "log.jsonl",
        "loss.png",
        "checkpoints",
        "run.json",
    }
    state = final_state(class_run)
    assert (state["step"], state["samples_seen"]) == (6, 48)
    assert state["classes"] == ShardSet.open(class_shards.folder).classes and len(state["classes"]) == 12
    rows = read_log(class_run)
    assert [row["step"] for row in rows if "eval_energy" in row] == [3, 6]
    assert {"loss_raw", "loss_moments1", "grad_norm"} <= rows[-1].keys()


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_ends_with_the_same_bits(class_run, class_shards, tmp_path, step):
    out = stopped_at(class_run, step, tmp_path / "run")
    train(class_shards.config_with(), class_shards.folder, out, resume=True)
    assert_same_bits(final_state(class_run), final_state(out))


def test_maps_weigh_what_their_key_says(class_shards, tmp_path):
    weights = {}
    for weight in (1.0, 0.25):
        run = tmp_path / str(weight)
        train(class_shards.config_with(f"drift.maps_weight={weight}", "train.steps=2"), class_shards.folder, run)
        row = next(row for row in read_log(run) if "loss_raw" in row)
        maps = sum(value for name, value in row.items() if name.startswith("loss_") and name != "loss_raw")
        assert row["loss"] == pytest.approx(row["loss_raw"] + weight * maps, rel=1e-4)
        weights[weight] = final_state(run)["model"]["output.weight"]
    assert not torch.allclose(weights[1.0], weights[0.25], atol=1e-5)


@pytest.mark.parametrize(
    "override",
    every_third(
        [
            "drift.generated=2",
            "drift.positives=3",
            "drift.unconditional=3",
            "drift.temperatures=[0.02, 0.05]",
            'drift.features=["raw", "patches2"]',
            "drift.alpha_max=3.0",
            "drift.alpha_exponent=5.0",
            "drift.unguided=0.5",
            "drift.class_queue=5",
            "drift.global_queue=8",
            "drift.pushed=10",
            "train.weight_decay=0.0",
            "train.betas=[0.9, 0.99]",
            "train.min_lr=1e-2",
            "train.warmup_steps=3",
            "train.batch_size=16",
        ]
    ),
)
def test_a_key_of_the_objective_and_of_its_updates_changes_what_is_learned(override, class_run, class_shards, tmp_path):
    train(class_shards.config_with(override, "train.eval_every=0"), class_shards.folder, tmp_path / "run")
    assert not same_tensors(final_state(class_run)["model"], final_state(tmp_path / "run")["model"])


def test_the_decay_of_the_average_changes_the_average_alone(class_run, class_shards, tmp_path):
    train(class_shards.config_with("ema.target=0.1", "train.eval_every=0"), class_shards.folder, tmp_path / "run")
    mine, other = final_state(class_run), final_state(tmp_path / "run")
    assert same_tensors(mine["model"], other["model"]) and not same_tensors(mine["ema"], other["ema"])


def test_a_resumed_run_that_fills_its_queues_anew_does_not_end_with_the_same_bits(
    class_run, class_shards, tmp_path, monkeypatch
):
    """The comparison above can fail."""
    out = stopped_at(class_run, 2, tmp_path / "run")
    monkeypatch.setattr(LatentStream, "restore", lambda self, state: self.fill())
    train(class_shards.config_with(), class_shards.folder, out, resume=True)
    with pytest.raises(AssertionError):
        assert_same_bits(final_state(class_run), final_state(out))


def test_workers_change_no_bit(class_run, class_shards, tmp_path):
    train(class_shards.config_with("train.workers=2"), class_shards.folder, tmp_path / "run")
    assert_same_bits(final_state(class_run), final_state(tmp_path / "run"))


def test_accumulated_groups_are_the_groups_of_one_large_batch(class_shards, tmp_path):
    """Four groups at once or as two and two: the same gradient but for rounding."""
    for name, settings in (("whole", ("train.batch_size=16",)), ("parts", ("train.accumulate=2",))):
        train(
            class_shards.config_with("train.steps=2", "train.warmup_steps=1", *settings),
            class_shards.folder,
            tmp_path / name,
        )
    whole, parts = (final_state(tmp_path / name)["model"] for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)


def test_the_audit_of_a_run_is_clean(class_run):
    found = audit(str(class_run))
    assert found.ok, [judged for judged in found.findings if judged.finding.status == "fail"]
    codes = {judged.rule.code for judged in found.findings if judged.finding.status == "pass"}
    assert codes >= {"G1", "G2", "C4", "K1", "K2", "K3", "K5"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.classes=11",), "model.classes is 11, the data have 12"),
        (("model.channels=4",), "model.channels is 4, the data have 16"),
        (("model.input=8x8",), "images of 32x32; model.input 8x8 with a codec of stride 8 draws 64x64 alone"),
        (("encoders.vae=some/vae",), "latents come from 'builtin:dct', the configuration says 'some/vae'"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_both_sides(overrides, message, class_shards, tmp_path):
    with pytest.raises(BadDataError, match=message):
        train(class_shards.config_with(*overrides), class_shards.folder, tmp_path / "run")


def test_shards_without_classes_say_how_to_make_some(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    with pytest.raises(BadDataError, match="its samples have no classes") as caught:
        ClassSamples(shards, shards.samples, LatentNorm((0.0,), (1.0,)), 0)
    assert "images/CLASS/NAME.jpg" in caught.value.hint


def test_a_class_without_a_training_sample_is_named(class_shards):
    shards = ShardSet.open(class_shards.folder)
    kept = [ref for ref in shards.samples if shards.read_record(ref).cls != "blue-circle"]
    with pytest.raises(BadDataError, match="1 classes have no training sample, the first is 'blue-circle'"):
        ClassSamples(shards, kept, LatentNorm((0.0,), (1.0,)), 0)


def test_a_real_sample_that_is_not_finite_is_named(class_shards, tmp_path, monkeypatch):
    real, spoilt = ClassSamples.latents, ShardSet.open(class_shards.folder).split("train")[3].id

    def latents(self, numbers):
        found = real(self, numbers)
        found[[self.id(number) == spoilt for number in numbers.tolist()]] = float("nan")
        return found

    monkeypatch.setattr(ClassSamples, "latents", latents)
    with pytest.raises(NonFiniteError) as stopped:
        train(class_shards.config_with("train.steps=40"), class_shards.folder, tmp_path / "run")
    assert spoilt in stopped.value.samples


def test_groups_that_do_not_divide_among_processes_are_refused(class_shards):
    with pytest.raises(UsageError, match="2 groups a step do not divide into 3 processes"):
        family_of(class_shards.config_with()).open_data(
            class_shards.config_with(), class_shards.folder, Ranks(0, 3, torch.device("cpu"))
        )


def test_on_a_device_groups_are_made_there_and_real_samples_copied_once(class_shards, monkeypatch):
    """The meta device, on which a look at a value raises: normals and real samples are on it, and the host decides the
    rest as it does for a CPU.
    """
    config = class_shards.config_with()
    made = []
    for device in ("cpu", "meta"):
        data = family_of(config).open_data(config, class_shards.folder, Ranks(0, 1, torch.device(device)))
        data.stream.fill()
        made.append(next(data.stream.batches(0, 1, data.ranks)))
    here, there = made
    assert here.ids == there.ids
    for name in ("labels", "alpha", "noise", "style", "positives", "unconditional"):
        assert getattr(there, name).device.type == "meta" and getattr(there, name).shape == getattr(here, name).shape
