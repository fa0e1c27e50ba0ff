"""Inputs for a foreign model: guessed from its forward signature for the usual forms, or made by a function of the
user's.

The usual forms are (x, t), (x, t, y) with a class label or text tokens, and text with a mask, under the names that are
common. Sizes that a name does not tell are found by trying the widths that occur in the model.

B batch · C latent channels · L text tokens · H W latent rows and columns
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.attempt import Attempt
from dittool.audit.specimens.foreign.blame import ModelRefuses
from dittool.audit.specimens.foreign.forms import BATCH, NAMES
from dittool.audit.specimens.foreign.resizing import follows_the_latent
from dittool.audit.specimens.foreign.search import Search, latent_forms
from dittool.audit.specimens.foreign.search import largest_label as labels
from dittool.audit.specimens.foreign.written import place, said, written_example
from dittool.audit.specimens.trial import LARGEST_BUILT
from dittool.audit.specimens.watching import Inputs
from dittool.errors import UsageError

_WIDTHS = "text|caption|context|joint|cross|pool|vec"  # parts of settings' names that say how wide an argument is
_SIZES = ("input_size", "sample_size", "img_size", "image_size", "latent_size", "img_resolution", "resolution")
POSITIONS = ("img_ids", "txt_ids")  # of the Flux family: they say where a token is, not what it is

_FEW = 4  # tokens along a side, for a large network
_LARGEST_GUESS = 16  # tokens along a side, of a size that the model itself names
_HINT = (
    "say how to call it with --example file.py:function, a function of the model (and height, width) that returns"
    " forward's arguments"
)


class Example:
    """Makes a model's inputs, of any latent size that the model's caller may choose."""

    def __init__(
        self, model: nn.Module, settings: Mapping[str, object], function: Callable[..., object] | None
    ) -> None:
        self._model, self._function = model if function else None, function  # a large one is not kept for nothing
        self._parameters = inspect.signature(model.forward).parameters
        self._found: Attempt | None = None  # of a guess
        self._search: Search | None = None  # … whose positions depend on the latent's size
        self._dtype = torch.float32
        self._base = self._called(function) if function else self._guessed(model, settings)
        self._listed = [name for name, value in self._base.items() if self._is_listed_latent(name, value)]
        self._base = self._stacked(self._base)
        latent = self._found.latent if self._found else self._named("latent", lambda value: value.dim() in (3, 4, 5))
        if latent is None:
            raise UsageError(
                f"none of forward's arguments {', '.join(self._base)} looks like a latent of 3 to 5 dimensions", _HINT
            )
        self.latent = latent
        self.time = self._named("time", lambda value: value.dim() <= 1)

    @property
    def conditions(self) -> list[str]:
        """Names of the inputs that are neither the latent, the time, a mask nor a position."""
        others = [name for name in self._tensors if name not in (self.latent, self.time)]
        return [name for name in others if not self.is_mask(name)]

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The inputs that are no positions."""
        return {
            name: value for name, value in self._base.items() if isinstance(value, Tensor) and name not in POSITIONS
        }

    def is_mask(self, name: str) -> bool:
        """Whether an input says which of another's tokens count: (B, L) of zeros and ones beside a (B, L, ·)."""
        value = self._base[name]
        if not isinstance(value, Tensor) or value.dim() != 2 or not bool(((value == 0) | (value == 1)).all()):
            return False
        return any(
            isinstance(other, Tensor) and other.dim() >= 3 and other.shape[-2] == value.shape[1]
            for other in self._base.values()
        )

    @property
    def follow_the_latent(self) -> set[str]:
        """Arguments that were guessed to be as large as the latent's size says, and are made so at every size."""
        named = self._found.forms() if self._found else []
        return {re.split(r"[.]", path)[0] for path, form in named if follows_the_latent(form)}

    @property
    def constant(self) -> set[str]:
        """Inputs that have one value alone: of a table of one row."""
        named = self._found.forms() if self._found else []
        return {path for path, form in named if form.content == "label" and form.below == 1}

    @property
    def time_is_known(self) -> bool:
        """Whether the user's own function has said in which range time is."""
        return self._function is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the latent; None when it comes as tokens."""
        latent = self._base[self.latent]
        return (latent.shape[-2], latent.shape[-1]) if latent.dim() >= 4 else None

    @property
    def sizes_can_change(self) -> bool:
        lies_on_a_grid = "img_ids" in self._base or (self._found is not None and self._found.lies_on_a_grid)
        return self.size is not None or self._function_takes_a_size or lies_on_a_grid

    def inputs(self, seed: int = 0, size: tuple[int, int] | None = None, batch: int = BATCH) -> Inputs:
        """One batch with a random latent; `size` in latent cells."""
        function = self._function if size and self._function_takes_a_size else None
        if self._found is not None:
            found = self._found
            if size:
                found = self._search.at_size(size) if self._search else found.of_size(size)
            base = found.inputs(self._dtype)
        else:
            base = self._called(function, size) if function else dict(self._base)
        base = self._stacked(base)
        shape = list(base[self.latent].shape)
        if size and len(shape) >= 4:
            shape[-2:] = size
        elif size and self._function and not self._function_takes_a_size and "img_ids" in base:
            shape[1], base["img_ids"] = math.prod(size), _coordinates(size)
        base[self.latent] = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(
            base[self.latent].dtype
        )
        if batch < (rows := len(base[self.latent])):
            base = {name: _first_rows(value, batch, rows, name) for name, value in base.items()}
        return base

    def changed(self, inputs: Inputs, name: str) -> Inputs:
        """The same inputs with one of them replaced by another of its kind."""
        value = inputs[name]
        if name == self.time:
            in_units = value.is_floating_point() and value.max() <= 1
            other = (value * 0.5 + 0.2) if in_units else (value * 0.37 + 11).to(value.dtype)
        elif value.is_floating_point():
            other = torch.randn(value.shape, generator=torch.Generator().manual_seed(99)).to(value.dtype)
        else:
            other = torch.where(value > 0, value - 1, value + 1).to(value.dtype)
        return {**inputs, name: other}

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model, which where it takes its latent as a list of samples, and answers with one, takes and gives them
        as one tensor from here on.
        """
        if self._listed:
            model.register_forward_pre_hook(partial(_unstack, names=tuple(self._listed)), with_kwargs=True)
            model.register_forward_hook(_stack_samples)
        return model

    def _is_listed_latent(self, name: str, value: object) -> bool:
        """Whether an argument is a latent sample by sample."""
        is_latent = self._found.latent == name if self._found else name in NAMES["latent"]
        shapes = {_shape(part) for part in value} if isinstance(value, (list, tuple)) else set()
        return is_latent and len(shapes) == 1 and len(shapes.pop() or ()) >= 2

    def _stacked(self, base: Inputs) -> Inputs:
        tensors = {name: torch.stack(list(base[name])) for name in self._listed if not isinstance(base[name], Tensor)}
        return {**base, **tensors}

    @property
    def _function_takes_a_size(self) -> bool:
        return self._function is not None and len(inspect.signature(self._function).parameters) >= 3

    def _called(self, function: Callable[..., object], size: tuple[int, int] | None = None) -> Inputs:
        wanted = len(inspect.signature(function).parameters)
        made = function(*((self._model, *(size or (None, None)))[:wanted]))
        if isinstance(made, (tuple, list)):
            made = dict(zip(self._parameters, made, strict=False))
        if not isinstance(made, dict) or not any(isinstance(value, Tensor) for value in made.values()):
            raise UsageError(
                f"--example returns a {type(made).__name__} without tensors, not forward's arguments", _HINT
            )
        return made

    def _named(self, kind: str, fits: Callable[[Tensor], bool]) -> str | None:
        """The fitting input with a usual name of its kind, else the first of floating point."""
        fitting = [name for name, value in self._tensors.items() if fits(value)]
        known = [name for name in NAMES[kind] if name in fitting]
        floating = [name for name in fitting if self._base[name].is_floating_point()]
        return next(iter(known or floating), None)

    # Guessing

    def _guessed(self, model: nn.Module, settings: Mapping[str, object]) -> Inputs:
        fed = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
        named = [value for name, value in settings.items() if type(value) is int and re.search(_WIDTHS, name)]
        widths = list(dict.fromkeys([*named, *fed]))
        search = Search(
            model, latent_forms(*_sides_and_channels(model, settings, widths), widths), widths, labels(model)
        )
        if search.found is None and search.best and search.best[1].refusal:
            raise ModelRefuses(search.best[1].refusal)
        if search.found is None:
            came = search.best[1] if search.best else None
            how = f"; the attempt that came furthest ended {place(came)}: {said(came.error)}" if came else ""
            raise UsageError(
                f"forward({', '.join(self._parameters)}) runs with none of the guesses{how}",
                f"{_HINT}. What came furthest:\n\n{written_example(model, search.best, search.parameters)}",
            )
        self._found = search.found
        self._search = search if any(follows_the_latent(form) for _, form in search.found.forms()) else None
        self._dtype = search.dtype
        return self._found.inputs(search.dtype)


def _sides_and_channels(
    model: nn.Module, settings: Mapping[str, object], widths: list[int]
) -> tuple[list[int], list[int]]:
    """Sides of a square latent in cells, and its channels, the likely ones first."""
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    patch = _side(convolution.stride if convolution else settings.get("patch_size", 2)) or 2
    channels = [convolution.in_channels] if convolution else []
    named = (settings.get(name) for name in ("in_channels", "channels", "latent_channels"))
    channels += [count for count in named if isinstance(count, int)]
    sides = [side for name in _SIZES if (side := _side(settings.get(name, vars(model).get(name))))]
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST_BUILT:
        sides.insert(0, patch * _FEW)  # few tokens first: a network of this size takes its time
    largest = patch * _LARGEST_GUESS
    sides = [side for side in sides if side <= largest] + [8 * patch] + [side for side in sides if side > largest]
    return list(dict.fromkeys(sides)), list(dict.fromkeys(channels))


def _side(size: object) -> int:
    """Of a square's size as a model says it, one number or two; 0 for anything else."""
    first = size[0] if isinstance(size, (tuple, list)) else size
    return first if isinstance(first, int) else 0


def _coordinates(grid: tuple[int, int]) -> Tensor:
    """(h·w, 3): zero, row and column of each token in row-major order."""
    index = torch.arange(math.prod(grid))
    return torch.stack([torch.zeros_like(index), index // grid[1], index % grid[1]], dim=1).float()


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _unstack(
    _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {name: list(value) if name in names else value for name, value in kwargs.items()}


def _stack_samples(_model: nn.Module, _args: object, output: object) -> object:
    """What a model answers with, its lists of samples of one shape as one tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (list, tuple)):
        shapes = {_shape(part) for part in output}
        if len(shapes) == 1 and None not in shapes:
            return torch.stack(list(output))
        return [_stack_samples(_model, _args, part) for part in output]
    parts = output if isinstance(output, Mapping) else getattr(output, "__dict__", None)
    return {key: _stack_samples(_model, _args, part) for key, part in parts.items()} if parts else output


def _first_rows(value: Any, batch: int, rows: int, name: str = "") -> Any:
    """The first samples of whatever is a batch of `rows`."""
    if isinstance(value, Tensor):
        cut = name not in POSITIONS and value.dim() > 0 and len(value) == rows
        return value[:batch] if cut else value
    if isinstance(value, dict):
        return {key: _first_rows(part, batch, rows) for key, part in value.items()}
    return value
