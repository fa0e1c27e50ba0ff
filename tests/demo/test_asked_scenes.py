"""The scenes that a validation asks a model for: of captions known and new, in no data set, each readable."""

from __future__ import annotations

import numpy as np

from dittool.demo.checker import parse_caption, scenes_to_ask_for, shows
from dittool.demo.drawing import KNOWN, NEW, caption, draw_scene, plan_scenes


def named(text):
    said = parse_caption(text)
    return said.colour, said.shape, said.position, said.background


def test_as_many_of_captions_known_as_of_those_that_no_data_set_holds():
    asked = scenes_to_ask_for(36)
    assert [scene.known for scene in asked] == [True] * 36 + [False] * 36
    assert {named(scene.caption) for scene in asked if not scene.known} == set(NEW)
    assert {named(scene.caption) for scene in asked if scene.known} <= set(KNOWN)
    assert len({scene.name for scene in asked}) == 72


def test_their_pictures_show_what_their_captions_say_and_are_in_no_data_set():
    asked = scenes_to_ask_for(12)
    assert all(all(shows(scene.pixels, scene.caption).values()) for scene in asked)
    drawn = {np.asarray(draw_scene(scene)).tobytes() for scene in plan_scenes(400, 0, KNOWN)}
    assert not {scene.pixels.tobytes() for scene in asked} & drawn


def test_other_seeds_ask_for_other_scenes():
    assert not {s.pixels.tobytes() for s in scenes_to_ask_for(4, 1)} & {
        s.pixels.tobytes() for s in scenes_to_ask_for(4, 2)
    }
    assert caption(plan_scenes(1, 0, NEW)[0]) not in {scene.caption for scene in scenes_to_ask_for(36) if scene.known}
