"""A model whose own code would not run on this machine, for want of a device or a package: what its structure shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from dittool.audit.specimens.anatomy import modules_in_words
from dittool.audit.specimens.foreign.blame import Refusal
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.gates import is_zero
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.settings import effect_of, guess_values
from dittool.audit.specimens.specimen import Biases, NotAnswered, Options, Precision, Scope, Specimen
from dittool.audit.specimens.trial import LARGEST_BUILT, kind_of_number

_LOOKED_AT = ("shapes", "first weights", "modules")
_FEWEST_VECTORS = 6  # of a modulation: its layer is as many times as wide as what it takes


class RefusedModel(Specimen):
    """Built, and never run."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"model"})

    def __init__(self, factory: Factory, refusal: Refusal) -> None:
        self.refusal, self._factory, self._model = refusal, factory, factory.build()

    def _unanswered(self) -> str:
        return f"{self.refusal}; what needs a run is not judged"

    def precision(self) -> Precision:
        return Precision("", Counter(kind_of_number(parameter.dtype) for parameter in self._model.parameters()))

    def biases(self) -> Biases:
        """Of the layers in blocks that cannot be a modulation: what a vector feeds shows only when it runs."""
        wrong: dict[str, int] = {}
        layers = 0
        for block in self._blocks():
            for name, module in part_of(self._model, block).named_modules(prefix=block):
                if isinstance(module, nn.Linear) and not _may_be_modulation(module):
                    layers += 1
                    if module.bias is not None:
                        wrong[f"{name}.bias"] = module.bias.numel()
        sizes = {
            name: parameter.numel()
            for name, parameter in self._model.named_parameters()
            if name.rpartition(".")[2] == "bias" and name not in wrong
        }
        total = sum(parameter.numel() for parameter in self._model.parameters())
        return Biases(wrong, layers, sizes, total, "by structure alone: ")

    def options(self) -> Options:
        """What an argument changes before anything runs; what changes nothing there may act in a run."""
        if sum(parameter.numel() for parameter in self._model.parameters()) > LARGEST_BUILT:
            raise NotAnswered("too many parameters to build for each argument; name a smaller model with --kwargs")
        taker, settings = self._factory.taker, self._factory.settings
        effects = {
            name: effect_of(value, guess_values(taker(name), name, value), partial(self._difference, name), _LOOKED_AT)
            for name, value in settings.items()
        }
        unseen = "changes nothing that is built, and nothing was run"
        held = {
            name: replace(effect, kind="unseen", evidence=unseen) if effect.kind == "dead" else effect
            for name, effect in effects.items()
        }
        return Options("arguments", held)

    def _difference(self, argument: str, value: object) -> str:
        other = self._factory.build(0, **{argument: value})
        before, after = self._model.state_dict(), other.state_dict()
        if {name: tensor.shape for name, tensor in before.items()} != {
            name: tensor.shape for name, tensor in after.items()
        }:
            return "shapes"
        if not all(torch.equal(before[name], after[name]) for name in before):
            return "first weights"
        return "modules" if modules_in_words(self._model) != modules_in_words(other) else ""

    def _blocks(self) -> list[str]:
        """Members of lists that have several of their class, the outer ones. Raises `NotAnswered` when none is."""
        found: list[str] = []
        for name, module in self._model.named_modules():
            if not isinstance(module, nn.ModuleList) or name.startswith(tuple(f"{block}." for block in found)):
                continue
            kinds = Counter(type(child) for child in module.children() if any(child.children()))
            found += [f"{name}.{key}" for key, child in module.named_children() if kinds[type(child)] > 1]
        if not found:
            raise NotAnswered(f"no list of modules has several of one class, and {self.refusal}")
        return found


def _may_be_modulation(layer: nn.Linear) -> bool:
    return layer.out_features >= _FEWEST_VECTORS * layer.in_features or is_zero(layer.weight)
