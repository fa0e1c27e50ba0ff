"""Every shipped preset: it loads, its model is built, its audit is clean, and the README says its true size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dittool.config.load import load_config
from dittool.config.presets import preset_names
from dittool.encoders.known import known_widths
from dittool.models.build import build_model, parameter_count

README = Path(__file__).parent.parent / "README.md"
OF_THE_FIRST_MODEL = [name for name in preset_names() if load_config(name).model.arch == "dit"]


@pytest.mark.parametrize("name", OF_THE_FIRST_MODEL)
def test_a_preset_is_built_with_the_parameters_that_the_readme_says(name):
    config = load_config(name)
    widths = known_widths(config.encoders.image, config.encoders.text, config.encoders.vae)
    row = next(line for line in README.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert (
        row.split("|")[-2].strip()
        == f"{parameter_count(lambda: build_model(config, widths.text, widths.image, widths.latent_channels)):,}"
    )
    assert row.split("|")[2].strip() == f"{config.model.depth} × {config.model.width}"


def test_every_preset_with_patches_can_sample_what_it_learns():
    """A branch that guidance needs and that dropout never trains would be guided by noise."""
    for name in OF_THE_FIRST_MODEL:
        config = load_config(name)
        trained = {"none": config.dropout.none, "text": config.dropout.text_only, "dino": config.dropout.reference_only}
        assert all(share > 0 for share in trained.values()), name


def test_the_readmes_commands_name_existing_presets():
    names = re.findall(r"--preset (\w[\w-]*)", README.read_text())
    assert names and set(names) <= {*preset_names(), "P"}
