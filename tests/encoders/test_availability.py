"""Which weights are here, which are missing, gated, and how to get them: what `dit doctor` says of the encoders."""

from __future__ import annotations

import json

import huggingface_hub
import huggingface_hub.constants
import pytest

from dittool.encoders.availability import weights
from dittool.machine import BITES, NOTE, OK

GATED, OPEN = "facebook/dinov3-vitl16-pretrain-lvd1689m", "facebook/dinov2-with-registers-base"


@pytest.fixture
def online(monkeypatch):
    """As on a machine with a network; `online(token)` with that account."""

    def set_up(token=None):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)

    return set_up


def finding(kind, name, have_shards=False):
    (found,) = weights({kind: name}, have_shards)
    assert found.check == f"weights: {kind}"
    return found


def test_built_in_ones_and_those_in_a_folder_are_there(folders):
    assert finding("text", "builtin:words").status == OK
    assert finding("image", str(folders / "dinov2")).status == OK
    missing = finding("vae", "/nowhere/vae")
    assert missing.status == BITES and "not there" in missing.what and "-s encoders.vae=NAME" in missing.remedy


def test_what_was_fetched_is_in_the_hubs_cache(folders, hub_cache, online):
    online()
    assert finding("image", OPEN).status == NOTE
    hub_cache(OPEN, folders / "dinov2-registers", "")
    assert finding("image", OPEN).status == OK
    hub_cache("org/pipeline", folders / "flux/vae", "vae")
    assert finding("vae", "org/pipeline").status == OK and finding("text", "org/pipeline").status == NOTE


def test_an_open_one_bites_only_where_fetching_is_forbidden(online, hub_cache, monkeypatch):
    online()
    found = finding("image", OPEN)
    assert found.status == NOTE and "gated" not in found.what and f"hf download {OPEN}" in found.remedy
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert finding("image", OPEN).status == BITES and "HF_HUB_OFFLINE" in finding("image", OPEN).what
    assert finding("image", OPEN, have_shards=True).status == NOTE  # training reads features


def test_a_gated_one_bites_without_an_account_and_says_what_needs_none(online, hub_cache):
    online()
    found = finding("image", GATED)
    assert found.status == BITES and "gated" in found.what
    assert f"https://huggingface.co/{GATED}" in found.remedy and "hf auth login" in found.remedy
    assert "--preset nano-open" in found.remedy
    online("hf_token")
    found = finding("vae", "black-forest-labs/FLUX.1-schnell")
    assert found.status == NOTE and "hf auth login" not in found.remedy and "--include 'vae/*'" in found.remedy


def test_the_doctor_says_it_of_a_preset(dit, tmp_path, online, hub_cache):
    online()
    for preset, bitten in (("nano", {"weights: image", "weights: vae"}), ("nano-open", set()), ("drift-toy", set())):
        shown = json.loads(dit("doctor", "--preset", preset, "--data", tmp_path, "--out", tmp_path, "--json").out)
        found = {one["check"]: one["status"] for one in shown["findings"] if one["check"].startswith("weights")}
        assert {check for check, status in found.items() if status == BITES} == bitten
        assert len(found) == (0 if preset == "drift-toy" else 3)
