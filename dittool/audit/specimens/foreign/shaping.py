"""How a foreign model takes its latent: as a list of samples, with its channels last, inside of an argument. Prepared
here it takes and gives one tensor (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.half import cast_to_float32
from dittool.audit.specimens.leaves import leaves, put_back, taken_out, with_leaves
from dittool.audit.specimens.watching import Inputs


@dataclass(frozen=True)
class Shaping:
    """What is done to a model's arguments before, and to its answers after."""

    latent: str  # the argument under which the latent is known
    leaf: str = ""  # where it stands inside of one of forward's arguments
    listed: tuple[str, ...] = ()  # arguments that are lists of samples
    channels_last: bool = False
    places: tuple[str, ...] = ()  # arguments that have no names, in their order
    in_float32: bool = False  # whether its weights are cast from half precision

    def known(self, inputs: Inputs) -> Inputs:
        """Forward's arguments as the audit knows them."""
        lists = [name for name, value in inputs.items() if name in self.listed and not isinstance(value, Tensor)]
        inputs = {**inputs, **{name: torch.stack(list(inputs[name])) for name in lists}}
        if self.leaf and self.leaf in leaves(inputs):
            inputs = taken_out(inputs, self.leaf, self.latent)
        return {**inputs, self.latent: inputs[self.latent].movedim(-1, 1)} if self.channels_last else inputs

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model, which takes arguments as the audit knows them, and whose weights are as it judges them."""
        return self.called(cast_to_float32(model) if self.in_float32 else model)

    def called(self, model: nn.Module) -> nn.Module:
        """The model as it is, which takes arguments as the audit knows them."""
        if self.leaf or self.listed or self.channels_last:
            model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
            model.register_forward_hook(self._after)
        return by_place(model, self.places)

    def _before(
        self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.channels_last:
            kwargs = {**kwargs, self.latent: kwargs[self.latent].movedim(1, -1)}
        if self.leaf:
            kwargs = put_back(kwargs, self.latent)
        return args, {name: list(value) if name in self.listed else value for name, value in kwargs.items()}

    def _after(self, _model: nn.Module, args: object, output: object) -> object:
        if self.channels_last:
            moved = {name: tensor.movedim(-1, 1) for name, tensor in leaves({"": output}).items() if tensor.dim() > 3}
            output = with_leaves({"": output}, moved)[""]
        return stack_samples(_model, args, output) if self.listed else output


def by_place(model: nn.Module, places: Sequence[str]) -> nn.Module:
    """The model, which takes arguments by names where its forward takes them by their places alone."""
    if places:
        model.register_forward_pre_hook(partial(_in_places, tuple(places)), with_kwargs=True)
    return model


def _in_places(places: tuple[str, ...], _model: nn.Module, args: Any, kwargs: Inputs) -> tuple[Any, Inputs] | None:
    given = [kwargs[name] for name in places if name in kwargs]
    return ((*args, *given), {name: kwargs[name] for name in kwargs if name not in places}) if given else None


def stack_samples(_model: nn.Module, _args: object, output: object) -> object:
    """What a model answers with, its lists of samples of one shape as one tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (list, tuple)):
        shapes = {shape_of(part) for part in output}
        if len(shapes) == 1 and None not in shapes:
            return torch.stack(list(output))
        return [stack_samples(_model, _args, part) for part in output]
    parts = output if isinstance(output, Mapping) else getattr(output, "__dict__", None)
    return {key: stack_samples(_model, _args, part) for key, part in parts.items()} if parts else output


def shape_of(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
