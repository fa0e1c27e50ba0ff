"""Factories in other people's files: in packages, with configurations, with more than a model in their answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dittool.audit.specimens.foreign.factory import load_attribute, load_factory
from dittool.errors import UsageError

LAYER = "from torch import nn\nclass Layer(nn.Linear):\n    pass\n"
CONFIGURED = """
from dataclasses import dataclass, field
from torch import nn

@dataclass
class Sizes:
    width: int = 4

@dataclass
class Config:
    depth: int
    norm: str = "layer"
    sizes: Sizes = field(default_factory=Sizes)

class Model(nn.Sequential):
    def __init__(self, config: Config, bias: bool = True):
        super().__init__(*(nn.Linear(config.sizes.width, config.sizes.width, bias) for _ in range(config.depth)))

class Alone(nn.Linear):
    def __init__(self, sizes: Sizes):
        super().__init__(sizes.width, sizes.width)

class Unannotated(nn.Linear):
    def __init__(self, config):
        super().__init__(config.width, config["width"])
"""


def package(root: Path, *, init: bool) -> Path:
    """`zoo/models/dit.py` that imports from its package in two ways."""
    models = root / "zoo" / "models"
    models.mkdir(parents=True)
    (root / "zoo" / "layers.py").write_text(LAYER)
    (models / "dit.py").write_text("from ..layers import Layer\ndef dit():\n    return Layer(2, 3)\n")
    if init:
        (root / "zoo" / "__init__.py").write_text("")
        (models / "__init__.py").write_text("")
    return models / "dit.py"


@pytest.mark.parametrize("init", [True, False])
def test_a_file_with_relative_imports_is_a_part_of_its_package(tmp_path, init, monkeypatch):
    for name in ("zoo", "zoo.models", "zoo.models.dit", "zoo.layers"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    assert load_factory(f"{package(tmp_path, init=init)}:dit").build().out_features == 3


def test_a_file_that_imports_from_its_projects_root_finds_it(tmp_path):
    (tmp_path / "parts_of_zoo").mkdir()
    (tmp_path / "parts_of_zoo" / "layer.py").write_text(LAYER)
    (tmp_path / "scripts").mkdir()
    file = tmp_path / "scripts" / "make.py"
    file.write_text("from parts_of_zoo.layer import Layer\ndef make():\n    return Layer(2, 3)\n")
    assert load_factory(f"{file}:make").build().out_features == 3


def test_what_is_imported_when_the_model_is_built_is_found_too(tmp_path):
    (tmp_path / "late_layer.py").write_text(LAYER)
    (tmp_path / "late.py").write_text("def make():\n    from late_layer import Layer\n    return Layer(2, 3)\n")
    assert load_factory(f"{tmp_path}/late.py:make").build().out_features == 3


def test_a_missing_package_is_named_with_what_to_do(tmp_path):
    (tmp_path / "needs.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(UsageError, match="no_such_package_anywhere") as caught:
        load_factory(f"{tmp_path}/needs.py:make")
    assert "PYTHONPATH" in caught.value.hint and "package.module:Name" in caught.value.hint


def test_a_file_that_holds_factory_and_example_runs_once(tmp_path):
    count = tmp_path / "count"
    (tmp_path / "both.py").write_text(
        f"open({str(count)!r}, 'a').write('x')\nfrom torch import nn\n"
        "def make():\n    return nn.Linear(2, 2)\ndef example(model):\n    return {}\n"
    )
    load_factory(f"{tmp_path}/both.py:make")
    load_attribute(f"{tmp_path}/both.py:example")
    assert count.read_text() == "x"


@pytest.mark.parametrize("answer", ["model, {'depth': 2}", "{'model': model, 'config': 3}", "[model]"])
def test_the_one_model_of_an_answer_is_taken(tmp_path, answer):
    (tmp_path / "pair.py").write_text(
        f"from torch import nn\ndef make():\n    model = nn.Linear(2, 2)\n    return {answer}\n"
    )
    assert isinstance(load_factory(f"{tmp_path}/pair.py:make").build(), nn.Linear)


def test_two_models_in_an_answer_are_refused(tmp_path):
    (tmp_path / "two.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2), nn.Linear(2, 2)\n")
    with pytest.raises(UsageError, match="returns a tuple with 2 modules"):
        load_factory(f"{tmp_path}/two.py:make").build()


@pytest.fixture
def configured(tmp_path):
    (tmp_path / "configured.py").write_text(CONFIGURED)
    return lambda name, kwargs: load_factory(f"{tmp_path}/configured.py:{name}", json.dumps(kwargs))


def test_a_configuration_is_built_as_the_annotation_says(configured):
    model = configured("Model", {"config": {"depth": 3, "sizes": {"width": 5}}}).build()
    assert len(model) == 3 and model[0].in_features == 5


def test_each_field_is_a_setting_that_can_be_changed(configured):
    factory = configured("Model", {"config": {"depth": 3}})
    settings = {name: value for name, value in factory.settings.items() if name != "config.sizes"}
    assert settings == {"config.depth": 3, "config.norm": "layer", "bias": True}
    assert len(factory.build(**{"config.depth": 1})) == 1 and len(factory.build()) == 3
    torch.testing.assert_close(factory.build(seed=1)[0].weight, factory.build(seed=1)[0].weight)


def test_a_configuration_of_defaults_need_not_be_given(configured):
    assert configured("Alone", {}).build().in_features == 4


def test_without_an_annotation_keys_are_attributes_too(configured):
    assert configured("Unannotated", {"config": {"width": 6}}).build().in_features == 6


def test_an_unknown_field_is_answered_with_those_that_there_are(configured):
    with pytest.raises(UsageError, match="config is a Config, which has no dept") as caught:
        configured("Model", {"config": {"dept": 3}}).build()
    assert "depth, norm, sizes" in caught.value.hint


def test_a_configuration_that_is_missing_is_asked_for_with_its_fields(dit, tmp_path, configured):
    configured("Model", {})
    outcome = dit("audit", f"{tmp_path}/configured.py:Model", "--select", "E1")
    assert outcome.code == 2 and """--kwargs '{"config": {"depth": …""" in outcome.err
