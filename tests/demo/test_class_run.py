"""The one-step demo on the shapes of one colour: what is drawn is recognised as what was asked for, and a collapsed
generator is seen as one.
"""

from __future__ import annotations

import pytest

from dittool.config.load import load_config
from dittool.demo.class_run import contact_sheet, judge, prepare
from dittool.sampling.one_step import OneStepPipeline
from dittool.train.loop import train

SHORT = ("model.classes=3", "train.steps=200", "train.warmup_steps=50", "train.sample_every=0", "train.eval_every=200")


@pytest.fixture(scope="module")
def red_shapes(tmp_path_factory):
    """Shards of three classes. Read only."""
    return prepare(tmp_path_factory.mktemp("red"), load_config("drift-demo", SHORT), colours=["red"])


@pytest.mark.slow
def test_shapes_of_one_colour_are_learned_in_200_steps(red_shapes, tmp_path):
    """Seen: 92% and 96% recognised for two seeds, energy distance −0.3 and 1.5."""
    done = train(load_config("drift-demo", SHORT), red_shapes, tmp_path / "run")
    assert done.conclusion.facts["encoder"]["accuracy"] > 0.9 and done.figures["eval_energy"] < 3
    pipeline = OneStepPipeline.load(done.checkpoint)
    found = judge(pipeline, 24, 1.0)
    assert set(found) == {"red-circle", "red-square", "red-triangle"}
    assert all(one.colour > 0.9 and one.shape > 0.6 for one in found.values()), found
    contact_sheet(pipeline, tmp_path / "sheet.png", 2, 1.0)
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.slow
def test_attraction_alone_collapses_and_the_energy_distance_says_so(red_shapes, tmp_path):
    """Seen: 100% recognised, all on one background, energy distance 4.3 and 4.5."""
    done = train(load_config("drift-demo", [*SHORT, "drift.repulsion=0.0"]), red_shapes, tmp_path / "run")
    found = judge(OneStepPipeline.load(done.checkpoint), 24, 1.0)
    assert done.figures["eval_energy"] > 3 and all(one.kinds <= 1 for one in found.values())
