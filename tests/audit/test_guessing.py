"""Inputs of models that nobody described: what is found, and what is said where nothing was."""

from __future__ import annotations

import pytest
import torch

from dittool.audit.specimens.foreign import search
from dittool.audit.specimens.foreign.example import Example
from dittool.errors import UsageError
from tests.audit import guessed_models
from tests.audit.diffusers_models import TINY

FORMS = {  # what each model is to be fed with
    "NoConvolution": {"x": (2, 4, 16, 16), "t": (2,)},
    "OptionalMask": {"x": (2, 4, 16, 16), "t": (2,)},
    "NeededOption": {"x": (2, 4, 16, 16), "t": (2,), "prompt_features": (2, 7, 23)},
    "TwoWidths": {"x": (2, 4, 16, 16), "t": (2,), "text_tokens": (2, 7, 23), "pooled_text": (2, 16)},
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


def test_numbers_of_words_are_whole():
    assert example("Words").inputs()["prompt"].dtype == torch.long


def test_an_image_may_have_another_size_than_the_guess():
    assert example("NoConvolution").inputs(size=(6, 10))["x"].shape == (2, 4, 6, 10)


def test_where_nothing_runs_the_furthest_attempt_is_written_down_to_be_finished(monkeypatch):
    monkeypatch.setattr(search, "_MOST_ATTEMPTS", 60)
    with pytest.raises(UsageError) as caught:
        example("Never")
    assert "has no attribute 'sesame'" in caught.value.message
    text = caught.value.hint[caught.value.hint.index("import torch") :]
    names: dict[str, object] = {}
    exec(text, names)  # it is Python, and what is known of it runs
    made = names["example"](None)
    assert made["x"].dim() == 4 and made["t"].shape == (2,) and "secret" in made
    assert "it came as far as" in text


@pytest.mark.slow
def test_most_transformers_of_diffusers_are_guessed():
    diffusers = pytest.importorskip("diffusers")
    failed = []
    for name, config in TINY.items():
        model = getattr(diffusers, name)(**config).eval()
        try:
            Example(model, dict(model.config), None)
        except UsageError:
            failed.append(name)
    assert len(failed) <= 5, failed
