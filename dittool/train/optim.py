"""What an update does to the weights: AdamW with its weight-decay groups, Muon for the matrices of the blocks where it
is asked for, the learning rate, and the exponential moving average that validation and sampling use.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dittool.config.schema import Ema, Train
from dittool.errors import UsageError
from dittool.objective.schedule import ema_decay, in_optimizer_order, learning_rate, update_rule
from dittool.train.distributed import Ranks, gathered, parts_like
from dittool.train.muon import Muon

_MUON = "muon"  # key of its state beside AdamW's


class Optimizer:
    """AdamW (arXiv 1711.05101) in two groups, the decayed parameters in the model's order, then the others; without
    the matrices that Muon updates, where `train.optimizer` says so.
    """

    def __init__(self, model: nn.Module, train: Train, ranks: Ranks) -> None:
        self._train = train
        self._named = dict(model.named_parameters())
        by_rule: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": []}
        matrices = {}
        for name, parameter in self._named.items():
            rule = update_rule(name, parameter.dim(), train.optimizer)
            if rule == "muon":
                matrices[name] = parameter
            else:
                by_rule[rule].append(parameter)
        groups = [
            {"params": by_rule["decayed"], "weight_decay": train.weight_decay},
            {"params": by_rule["plain"], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), eps=1e-8, fused=True
        )
        self.muon: Muon | None = None
        if train.optimizer == "muon":
            assert train.muon_momentum is not None and train.muon_weight_decay is not None  # the schema sets them
            self.muon = Muon(matrices, train.muon_momentum, train.muon_weight_decay, ranks)

    def update(self, step: int, made: Tensor) -> float:
        """Update number `step`, counted from 0, with the gradients that are there. Returns AdamW's rate.

        `made` () bool, on the device: where it is False, weights and moments stay as they are, whatever the gradients.
        """
        rate = set_learning_rate(self.adamw, step, self._train)
        self.adamw.found_inf = (~made).float()  # type: ignore[attr-defined]  # what torch's GradScaler sets
        self.adamw.step()
        if self.muon is not None:
            assert self._train.muon_lr is not None
            self.muon.step(self._train.muon_lr * rate / self._train.lr, made)  # its own peak on the same schedule
        return rate

    def bytes_of_state(self) -> int:
        """Of all moments, once there are any, in this process."""
        of_adamw = sum(parameter.nbytes for group in self.adamw.param_groups for parameter in group["params"])
        return 2 * of_adamw + (sum(part.nbytes for part in self.muon.momentum.values()) if self.muon else 0)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, these as they lie in this process."""
        muon = {} if self.muon is None else {_MUON: self.muon.state()}
        return {**self.adamw.state_dict(), **muon}

    def load(self, saved: Mapping[str, Any]) -> None:
        """The state of a checkpoint, its tensors in one piece.

        A run of AdamW alone goes on with Muon: its first moments, which are the same mean of gradients, become the
        momentum. Raises `UsageError` where Muon's matrices would need moments that were never kept.
        """
        adamw = {key: value for key, value in saved.items() if key != _MUON}
        if _MUON in saved:
            if self.muon is None:
                raise UsageError(
                    'train.optimizer = "adamw": the checkpoint is of "muon", which keeps no second moments of matrices',
                    "go on with -s train.optimizer=muon, or begin anew from these weights with --init",
                )
            self.muon.load(saved[_MUON]["momentum"])
        elif self.muon is not None:
            adamw = self._handed_over(adamw, self.muon)
        parameters = [parameter for group in self.adamw.param_groups for parameter in group["params"]]
        split = {
            index: parts_like(moments, dict.fromkeys(moments, parameters[index]))
            for index, moments in adamw["state"].items()
        }
        self.adamw.load_state_dict({**adamw, "state": split})

    def _handed_over(self, saved: Mapping[str, Any], muon: Muon) -> dict[str, Any]:
        """Gives Muon its momentum out of the state of a run of AdamW alone; returns what stays with AdamW."""
        dimensions = {name: parameter.dim() for name, parameter in self._named.items()}
        order, stay = (in_optimizer_order(dimensions, optimizer) for optimizer in ("adamw", "muon"))
        moments = {name: saved["state"][index] for index, name in enumerate(order)}
        muon.load({name: moments[name]["exp_avg"] for name in muon.matrices})
        groups = [
            {**old, "params": new["params"]}
            for old, new in zip(saved["param_groups"], self.adamw.state_dict()["param_groups"], strict=True)
        ]
        return {"state": {index: moments[name] for index, name in enumerate(stay)}, "param_groups": groups}


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, train: Train) -> float:
    """Gives all groups the rate of update `step`, counted from 0, and returns it."""
    rate = learning_rate(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class EmaModel:
    """A second model that follows the first: ema ← decay·ema + (1 − decay)·weights, after every update."""

    def __init__(self, model: nn.Module, config: Ema) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._config = config

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int, made: Tensor) -> None:
        """`updates` is the number of updates made before this one; `made` as for `move_towards`."""
        move_towards(self.model.parameters(), model.parameters(), 1 - ema_decay(updates, self._config), made)

    @torch.no_grad()
    def distance(self, model: nn.Module) -> Tensor:
        """‖weights − average‖ / ‖weights‖, (), on the device. All processes must ask together."""
        pairs = [*zip(model.parameters(), self.model.parameters(), strict=True)]
        apart = torch.stack([gathered((weight - average).square().sum()) for weight, average in pairs])
        whole = torch.stack([gathered(weight.square().sum()) for weight, _ in pairs])
        return (apart.sum() / whole.sum()).sqrt()


def move_towards(averages: Iterable[Tensor], weights: Iterable[Tensor], share: float, made: Tensor) -> None:
    """average ← average + share·(weights − average), in place; unchanged where `made`, () bool on the device, is
    False: then there was no update.
    """
    on_device = torch.where(made, share, 0.0)
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, on_device)
