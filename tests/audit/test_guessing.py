"""Inputs of models that nobody described: what is found, and what is said where nothing was."""

from __future__ import annotations

import math

import pytest
import torch

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.foreign import search
from dittool.audit.specimens.foreign.example import Example
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import UsageError
from tests.audit import guessed_models
from tests.audit.diffusers_models import TINY
from tests.audit.opened import open_subject

FORMS = {  # what each model is to be fed with
    "NoConvolution": {"x": (2, 4, 16, 16), "t": (2,)},
    "OptionalMask": {"x": (2, 4, 16, 16), "t": (2,)},
    "NeededOption": {"x": (2, 4, 16, 16), "t": (2,), "prompt_features": (2, 7, 23)},
    "TwoWidths": {"x": (2, 4, 16, 16), "t": (2,), "text_tokens": (2, 7, 23), "pooled_text": (2, 16)},
    "Head": {"x": (2, 16, 9), "t": (2, 1), "c": (2, 16, 23)},
    "MayBeLeftOut": {
        **{"x": (2, 4, 16, 16), "t": (2,), "aug_cond": (2, 9), "class_cond": (2,), "hint": (2, 3, 16, 16)},
    },
    "DroppedInTraining": {"x": (2, 4, 16, 16), "t": (2,), "text": (2, 1, 7, 23)},
    "RefusesAMask": {
        **{"x": (2, 4, 16, 16), "t": (2,), "context": (2, 7, 23), "encoder_attention_mask": (2, 7)},
    },
    "StatesBroughtAlong": {"x": (2, 4, 16, 16), "t": (2,)},
    "Frames": {"hidden_states": (2, 4, 1, 16, 16), "timestep": (2,)},
}


def example(name: str) -> Example:
    return Example(getattr(guessed_models, name)().eval(), {}, None)


@pytest.mark.parametrize("name", FORMS)
def test_sizes_are_read_from_what_the_model_says_of_them(name):
    assert {key: tuple(value.shape) for key, value in example(name).inputs().items()} == FORMS[name]


def test_a_dictionary_has_the_keys_that_the_source_reads():
    cond = example("Keys").inputs()["cond"]
    assert cond["text"].shape == (2, 7, 23) and cond["label"].dtype == torch.long


def test_a_dataclass_is_built_from_its_fields():
    condition = example("Annotated").inputs()["condition"]
    assert isinstance(condition, guessed_models.Condition)
    assert condition.text.shape == (2, 7, 23) and condition.pooled.shape == (2, 29)


def test_a_list_has_one_element_a_sample():
    assert [text.shape for text in example("Listed").inputs()["texts"]] == [(7, 23), (7, 23)]


def test_a_text_has_a_layer_for_each_of_the_models():
    layers = example("LayerByLayer").inputs()["text_layers"]
    assert len(layers) == 5 and all(layer.shape == (2, 7, 23) for layer in layers)


def test_a_latent_that_comes_as_a_list_of_samples_is_one_tensor_to_everybody_else():
    model = guessed_models.OfSamples().eval()
    listed = Example(model, {}, None)
    inputs = listed.inputs(size=(6, 10))
    assert inputs["x"].shape == (2, 4, 6, 10)
    assert listed.prepared(model)(**inputs).shape == (2, 4, 6, 10)


def test_rotary_angles_lie_on_the_latents_tokens_at_every_size():
    pair, table = example("RotaryPair"), example("RotaryTable")
    for size in (None, (6, 10)):
        rows, columns = (side // 2 for side in size or (16, 16))
        cos, sin = pair.inputs(size=size)["image_rotary_emb"]
        assert cos.shape == sin.shape == (rows * columns, guessed_models.WIDTH)
        assert torch.allclose(cos**2 + sin**2, torch.ones_like(cos)) and len(cos.unique(dim=0)) == len(cos)
        assert cos.equal(cos.unflatten(-1, (-1, 2))[..., :1].expand(-1, -1, 2).flatten(-2))  # neighbours turn alike
        turns = table.inputs(size=size)["freqs_cis"]
        assert turns.is_complex() and turns.shape[0] >= rows and turns.shape[1] >= columns
    assert table.inputs()["attention_kwargs"] == {}


def test_lists_and_dictionaries_may_be_empty_and_a_drop_is_one_boolean_a_sample():
    inputs = example("References").inputs()
    assert inputs["input_images"] == [] and inputs["places"] == {}
    assert inputs["dropped"].tolist() == [False, False]


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_places_of_the_latents_tokens_stand_behind_those_of_others(size):
    places = example("Joint").inputs(size=size)["position_ids"]
    rows, columns = size
    assert places.shape == (7 + rows * columns, 3) and not places[:7].any()
    assert places[7:, 1:].tolist() == [[row, column] for row in range(rows) for column in range(columns)]


@pytest.mark.parametrize("size", [(4, 4), (8, 16), (9, 5)])
def test_places_of_the_latents_tokens_may_be_a_tensor_of_their_own(size):
    inputs = example("Apart").inputs(size=size)
    assert inputs["hidden_states"].shape[1] == math.prod(size) and inputs["txt_ids"].shape == (7, 3)
    wanted = [[row, column] for row in range(size[0]) for column in range(size[1])]
    assert inputs["img_ids"][:, 1:].tolist() == wanted


@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
def test_a_videos_channels_may_come_last_and_places_by_axes(size):
    inputs = example("FramesLast").inputs(size=size)
    assert inputs["hidden_states"].shape == (2, 4, 1, *size)
    assert [place.tolist() for place in inputs["visual_rope_pos"]] == [[0], *(list(range(side // 2)) for side in size)]


def test_the_size_of_the_original_picture_is_two_numbers_and_one():
    info = example("Sized").inputs()["data_info"]
    assert info["img_hw"].shape == (2, 2) and info["aspect_ratio"].shape == (2, 1)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_places_may_lie_across(size):
    grid = example("AcrossTheGrid").inputs(size=size)["grid"]
    rows, columns = size
    assert grid[1].T.tolist() == [[row, column] for row in range(rows) for column in range(columns)]


def test_a_condition_may_be_another_picture():
    assert example("ControlPicture").inputs()["control_states"].shape == (2, 4, 16, 16)


def test_numbers_of_words_are_whole():
    assert example("Words").inputs()["prompt"].dtype == torch.long


def test_an_image_may_have_another_size_than_the_guess():
    assert example("NoConvolution").inputs(size=(6, 10))["x"].shape == (2, 4, 6, 10)


def test_where_nothing_runs_the_furthest_attempt_is_written_down_to_be_finished(monkeypatch):
    monkeypatch.setattr(search, "_MOST_ATTEMPTS", 60)
    with pytest.raises(UsageError) as caught:
        example("Never")
    assert "'Tensor' object is not callable" in caught.value.message
    text = caught.value.hint[caught.value.hint.index("import torch") :]
    names: dict[str, object] = {}
    exec(text, names)  # it is Python, and what is known of it runs
    made = names["example"](None, None, 12)
    assert made["x"].shape[2:] == (16, 12) and made["t"].shape == (2,) and "secret" in made
    assert "it ended in forward, " in text and "guessed_models.py:" in text
    assert '# return self.run(x, t, len(secret("sesame")))' in text


def test_where_an_object_holds_the_latent_its_class_is_imported(monkeypatch):
    monkeypatch.setattr(search, "_MOST_ATTEMPTS", 60)
    with pytest.raises(UsageError) as caught:
        example("NeverInside")
    text, names = caught.value.hint[caught.value.hint.index("import torch") :], dict[str, object]()
    exec(text, names)
    assert "from types import SimpleNamespace" in text
    assert names["example"](None, None, None)["batch"].latents.dim() == 4


@pytest.mark.parametrize(("kind", "function"), [("Places", None), ("PlacesHandedOn", "by_place")])
def test_arguments_without_names_are_given_by_their_places(kind, function):
    made = None if function is None else f"{guessed_models.__file__}:{function}"
    rules = [rule for rule in built_in_rules() if rule.code in ("R1", "C6", "C8")]
    result = audit_subject(open_subject(f"{guessed_models.__file__}:{kind}", example=made), rules)
    assert not result.crashes
    statuses = {each.rule.code: each.finding.status for each in result.findings}
    assert statuses["C6"] == "pass" and statuses["C8"] == "pass"


@pytest.mark.slow
def test_all_transformers_of_diffusers_are_guessed():
    ensure_torchvision()
    diffusers = pytest.importorskip("diffusers")
    failed = []
    for name, config in TINY.items():
        model = getattr(diffusers, name)(**config).eval()
        try:
            Example(model, dict(model.config), None)
        except UsageError:
            failed.append(name)
    assert not failed
