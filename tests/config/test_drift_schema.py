"""Three families of configuration, told apart by `model.arch`; each has its own sections and refuses the others'."""

from __future__ import annotations

import pytest

from dittool.config.architectures import ARCHITECTURES
from dittool.config.load import ConfigError, load_config


def problems(preset: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(preset, overrides)
    return caught.value.problems


@pytest.mark.parametrize(("preset", "arch"), [("nano", "dit"), ("drift-b2", "drift"), ("drift-toy", "drift-toy")])
def test_the_arch_chooses_the_family(preset, arch):
    assert type(load_config(preset)) is ARCHITECTURES[arch].schema


def test_a_preset_without_an_arch_is_of_the_first_family(tmp_path):
    assert load_config("nano").model.arch == "dit"


def test_an_unknown_arch_is_one_error_that_names_the_known_ones():
    (problem,) = problems("nano", "model.arch=drifting")
    known = "'dit', 'drift', 'latent-mae', 'drift-toy'"
    assert problem == f"model.arch: must be one of {known}, not 'drifting' (-s model.arch=drifting)"


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("drift-b2", "flow.shift=2.0", "flow: unknown section"),
        ("drift-b2", "model.mlp_ratio=4.0", "model.mlp_ratio: unknown key"),
        ("nano", "drift.positives=8", "drift: unknown section"),
        ("drift-toy", "encoders.vae=builtin:dct", "encoders: unknown section"),
    ],
)
def test_what_belongs_to_another_family_is_unknown(preset, override, message):
    assert any(problem.startswith(message) for problem in problems(preset, override))


def test_a_misspelt_key_is_answered_with_one_of_its_own_family():
    (problem,) = problems("drift-b2", "drift.temperature=[0.1]")
    assert "did you mean 'drift.temperatures'?" in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.heads=7", "width 768 is not divisible by heads 7"),
        ("model.heads=384", 'a head of 2 channels is not divisible by 4, which rope = "2d" needs'),
        ("model.input=32x31", "input 32x31 is not whole tokens of patch_size 2"),
        ("drift.positives=129", "positives 129 is above class_queue 128"),
        ("drift.unconditional=1001", "unconditional 1001 is above global_queue 1000"),
        ("drift.unconditional=0", "guidance scales above 1 need unconditional negatives"),
        ("drift.generated=100", "train.batch_size 4096 is not whole groups of drift.generated 100"),
        ("drift.temperatures=[0.1, 0.1]", "a temperature stands in temperatures twice"),
        ("sample.alpha=5.0", "sample.alpha 5 is above drift.alpha_max 4"),
        ("feature_encoder.width=8", 'feature_encoder has no effect unless drift.encoder = "trained"'),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(override, message):
    assert any(message in problem for problem in problems("drift-b2", override))


def test_an_encoder_is_trained_only_where_something_is_read_from_it():
    wanted = "drift.encoder=trained"
    assert any(
        "has no effect when drift.features is" in problem
        for problem in problems("drift-b2", wanted, 'drift.features=["raw"]')
    )
    idle = problems("drift-b2", wanted, "feature_encoder.masked=0.0", "feature_encoder.labels=false")
    assert any(
        "maps_weight weighs maps" in problem
        for problem in problems("drift-b2", "drift.maps_weight=0.5", 'drift.features=["raw"]')
    )
    assert any("nothing to learn" in problem for problem in idle)
    assert any("no effect on a toy" in problem for problem in problems("drift-toy", wanted))


def test_a_share_without_guidance_needs_guidance():
    found = problems("drift-l2-paper", "drift.alpha_max=1.0", "sample.alpha=1.0")
    assert any("unguided has no effect when alpha_max is 1" in problem for problem in found)


def test_a_toy_has_neither_guidance_nor_features_of_images():
    assert any("must be" in problem for problem in problems("drift-toy", 'drift.features=["locations"]'))
    assert any(
        "no guidance" in problem for problem in problems("drift-toy", "drift.alpha_max=2.0", "drift.unconditional=4")
    )
