"""Where the weights in a checkpoint are: the averaged ones first, whatever name their trainer gave them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError


def test_our_checkpoint_gives_its_averaged_weights_and_says_so(valid, state, listener):
    weights = load_weights(valid, talk=listener)
    assert torch.equal(weights["0.weight"], state(1)["ema"]["0.weight"])
    assert torch.equal(load_weights(valid, "model")["0.weight"], state(1)["model"]["0.weight"])
    assert "'ema'" in listener.notes[0] and listener.warnings == []


def test_without_averaged_weights_the_raw_ones_are_taken_with_a_warning(tmp_path, state, listener):
    torch.save({key: value for key, value in state(1).items() if key != "ema"}, tmp_path / "a.pt")
    assert torch.equal(load_weights(tmp_path / "a.pt", talk=listener)["0.weight"], state(1)["model"]["0.weight"])
    assert "no averaged (EMA) weights" in listener.warnings[0]
    with pytest.raises(BadDataError, match="no weights under 'ema'"):
        load_weights(tmp_path / "a.pt", "ema")


@pytest.mark.row(58)
@pytest.mark.parametrize(
    "wrap",
    [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w}, lambda w: OrderedDict(module=w)],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_a_foreign_state_dict_is_found_and_its_wrappers_are_taken_off(tmp_path, wrap, prefix):
    torch.save(wrap({f"{prefix}{name}": torch.ones(2) for name in ("a.weight", "b.weight")}), tmp_path / "a.pt")
    assert list(load_weights(tmp_path / "a.pt")) == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw, mean: {"state_dict": raw, "state_dict_ema": mean},
        lambda raw, mean: {"model": raw, "ema_model_state_dict": mean},
        lambda raw, mean: {"model": raw, "model_ema": {"decay": 0.999, "module": mean}},
        lambda raw, mean: {"params": raw, "averaged": mean, "optimizer": {"state": {}}},
        lambda raw, mean: {
            "state_dict": {f"model.{name}": t for name, t in raw.items()}
            | {f"ema_model.{name}": t for name, t in mean.items()}
        },
    ],
    ids=["timm", "trainer", "nested", "averaged", "lightning"],
)
def test_the_average_is_taken_under_whatever_name_a_trainer_gives_it(tmp_path, wrap, listener):
    raw, mean = {"a.weight": torch.ones(2)}, {"a.weight": torch.full((2,), 7.0)}
    torch.save(wrap(raw, mean), tmp_path / "a.pt")
    loaded = load_weights(tmp_path / "a.pt", talk=listener)
    assert {name: t.tolist() for name, t in loaded.items()} == {"a.weight": [7, 7]}
    assert listener.warnings == []


@pytest.mark.row(58)
def test_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "a.pt")
    with pytest.raises(BadDataError, match=r"no state dict.*it has epoch, loss"):
        load_weights(tmp_path / "a.pt")


def test_weights_mapped_from_a_file_survive_its_deletion_and_are_private(valid):
    weights = load_weights(valid)
    before = valid.read_bytes()
    weights["0.weight"].zero_()
    assert valid.read_bytes() == before
    valid.unlink()
    assert weights["0.bias"].isfinite().all()
