"""docs/plugin-template: installed, it does what docs/plugins.md shows, and the page names every group."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "docs" / "plugin-template"
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def with_template(tmp_path_factory):
    """Runs `dit` in a folder with three captioned pictures, where docs/plugin-template is installed."""
    root = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, root / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*pip, "--target", root / "site", root / "source"], check=True, capture_output=True)
    (root / "images").mkdir()
    rows = []
    for colour in ("red", "blue", "green"):
        Image.new("RGB", (128, 128), colour).save(root / "images" / f"{colour}.png")
        rows.append(f"{colour}.png\ta {colour} square\n")
    (root / "images" / "list.lst").write_text("".join(rows))

    def run(line: str) -> str:
        command = [sys.executable, "-m", "dittool", *shlex.split(line)[1:]]
        surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "site"), str(ROOT)])}
        done = subprocess.run(command, cwd=root, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.root = root
    return run


def test_the_page_names_every_group_that_there_is():
    groups = set(
        re.findall(r'"(dit\.[a-z_]+)"', "".join(path.read_text() for path in (ROOT / "dittool").rglob("*.py")))
    )
    groups -= {"dit.plain"}  # a name for codecs
    assert groups == set(re.findall(r"^\| `(dit\.\w+)` \|", PAGE, re.MULTILINE))
    template = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert groups - set(template) == {"dit.image_encoders", "dit.codecs"}  # of the three kinds of encoders one is shown


def sessions(page: str) -> list[tuple[str, list[str]]]:
    """(command line, the lines that it must print) of each `$ dit …` of a page."""
    consoles = re.findall(r"^```console run\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [part for text in consoles for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, *shown in map(str.splitlines, lines)]


@pytest.mark.slow
@pytest.mark.xdist_group("template")
def test_the_template_works_as_the_page_shows_it(with_template):
    for command, shown in sessions(PAGE):
        printed = with_template(command)
        assert all(text in printed for text in shown), (command, printed)
    table = (with_template.root / "runs" / "letters" / "numbers.csv").read_text()
    assert "1,loss," in table and "2,loss," in table and "2,samples," in table


@pytest.mark.xdist_group("template")
def test_the_template_brings_a_command_and_a_preset(with_template):
    assert "letters-demo 7.7%" in with_template("dit warmups letters-demo")


def test_the_templates_loss_is_the_weighted_one(tiny_shards, monkeypatch):
    """w(t) of power 1 is 2·t."""
    monkeypatch.syspath_prepend(TEMPLATE)
    for name in [name for name in sys.modules if name.startswith("dit_plugin_template")]:
        monkeypatch.delitem(sys.modules, name)
    from dit_plugin_template import weighted, weighted_config

    from dittool.config.load import config_to_dict
    from dittool.families import flow
    from dittool.train.distributed import Ranks

    tree = config_to_dict(tiny_shards.config)
    tree["model"]["arch"] = "dit-weighted"
    config = weighted_config.WeightedConfig.model_validate({**tree, "weighting": {"power": 1.0}})
    data = flow.open_data(config, tiny_shards.folder, Ranks(0, 1, torch.device("cpu")))
    model, batch = flow.build(config, data.provenance.widths), next(flow.batches(data, 0, 1))
    plain, found = flow.loss(data, model, batch), weighted.loss(data, model, batch)
    assert torch.allclose(found.per_sample, 2 * plain.t * plain.per_sample)
