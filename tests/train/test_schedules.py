"""Learning rate, EMA and weight-decay groups, counted in updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dittool.config.schema import Ema, Train
from dittool.objective.schedule import ema_decay, learning_rate
from dittool.train.distributed import Ranks
from dittool.train.optim import EmaModel, Optimizer

TRAIN = Train(steps=100, batch_size=4, lr=1e-3, min_lr=1e-5, warmup_steps=10)


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor():
    rates = [learning_rate(step, TRAIN) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-5)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


WSD = {**TRAIN.model_dump(exclude_none=True), "schedule": "wsd"}


def test_a_constant_rate_stays_and_a_cooldown_ends_at_the_floor():
    constant = [learning_rate(step, TRAIN.model_copy(update={"schedule": "constant"})) for step in range(100)]
    wsd = [learning_rate(step, Train(**WSD)) for step in range(100)]  # its last fifth
    assert constant[:10] == wsd[:10] == [learning_rate(step, TRAIN) for step in range(10)]
    assert set(constant[10:]) == set(wsd[10:80]) == {1e-3}
    assert wsd[79:] == sorted(wsd[79:], reverse=True) and len(set(wsd[79:])) == 21
    assert wsd[84] == pytest.approx(1e-5 + 99e-5 * (1 - (5 / 20) ** 0.5)) and wsd[99] == pytest.approx(1e-5)


def test_a_cooldown_fits_behind_the_warm_up_and_has_a_schedule():
    with pytest.raises(ValueError, match="more than steps 100"):
        Train(**WSD, cooldown_steps=91)
    with pytest.raises(ValueError, match="no effect without schedule"):
        Train(steps=100, batch_size=4, cooldown_steps=10)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert learning_rate(0, TRAIN.model_copy(update={"warmup_steps": 0})) == pytest.approx(1e-3)


def test_ema_decay_starts_low_and_reaches_its_target():
    decays = [ema_decay(n, Ema(target=0.99)) for n in range(2000)]
    assert decays[0] == pytest.approx(0.1) and decays[-1] == 0.99 and decays == sorted(decays)


def test_linear_ema_warm_up_reaches_its_target_at_its_step():
    ema = Ema(target=0.99, warmup="linear", warmup_steps=50)
    assert ema_decay(0, ema) == 0 and ema_decay(25, ema) == pytest.approx(0.495) and ema_decay(50, ema) == 0.99


def test_the_average_is_the_recursion_of_its_decay():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema, expected = EmaModel(model, Ema(target=0.9)), model.weight.detach().clone()
    for update in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        ema.update(model, update, torch.tensor(True))
    torch.testing.assert_close(ema.model.weight, expected)
    apart = (model.weight - expected).square().sum() + (model.bias - ema.model.bias).square().sum()
    whole = model.weight.square().sum() + model.bias.square().sum()
    assert float(ema.distance(model)) == pytest.approx(float((apart / whole).sqrt().detach()))


def test_gains_biases_and_nulls_are_not_decayed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.RMSNorm(4)
            self.null_text = nn.Parameter(torch.zeros(4))

    model = Model()
    decayed, kept = Optimizer(model, TRAIN, Ranks(0, 1, torch.device("cpu"))).adamw.param_groups
    assert [id(p) for p in decayed["params"]] == [id(model.linear.weight)] and decayed["weight_decay"] == 0.03
    assert len(kept["params"]) == 3 and kept["weight_decay"] == 0
