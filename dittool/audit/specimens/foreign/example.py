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
from dataclasses import replace
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.attempt import Attempt
from dittool.audit.specimens.foreign.blame import ModelRefuses
from dittool.audit.specimens.foreign.forms import BATCH, NAMES
from dittool.audit.specimens.foreign.half import inputs_in, is_half
from dittool.audit.specimens.foreign.latents import largest_label as labels
from dittool.audit.specimens.foreign.latents import latent_forms
from dittool.audit.specimens.foreign.resizing import follows_the_latent
from dittool.audit.specimens.foreign.search import Search
from dittool.audit.specimens.foreign.shaping import Shaping, by_place, shape_of
from dittool.audit.specimens.foreign.signature import parameters_of, places_of, takes_places_alone
from dittool.audit.specimens.foreign.written import place, said, written_example
from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.audit.specimens.trial import LARGEST_BUILT
from dittool.audit.specimens.watching import Inputs, answers_without_gradient
from dittool.errors import UsageError

_WIDTHS = "text|caption|context|joint|cross|pool|vec"  # parts of settings' names that say how wide an argument is
_SIZES = ("input_size", "sample_size", "img_size", "image_size", "latent_size", "img_resolution", "resolution")
_FRAMES = ("num_frames", "frames", "video_length", "temporal_size", "num_latent_frames")
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
        self,
        model: nn.Module,
        settings: Mapping[str, object],
        function: Callable[..., object] | None,
        in_float32: bool = False,
    ) -> None:
        """`in_float32`: whether the model was cast from half precision, as all that are built after it will be."""
        self._model, self._function = model if function else None, function  # a large one is not kept for nothing
        self._parameters, self._places = parameters_of(model), places_of(model)
        by_place(model, self._places)
        self._found: Attempt | None = None  # of a guess
        self._search: Search | None = None  # … whose positions depend on the latent's size
        self._dtype, self.in_float32 = torch.float32, in_float32
        base = self._called(function) if function else self._guessed(model, settings)
        listed = tuple(name for name, value in base.items() if self._is_listed_latent(name, value))
        latent = listed[0] if listed else leaf_of(self._found.latent) if self._found else named_latent(base)
        if latent is None:
            raise UsageError(
                f"none of forward's arguments {', '.join(leaves(base))} looks like a latent of 2 to 5 dimensions", _HINT
            )
        self.latent = latent if latent in base else key_for(latent, base)
        shaping = Shaping(
            self.latent, "" if latent in base else latent, listed, places=self._places, in_float32=in_float32
        )
        self._shaping = replace(shaping, channels_last=has_channels_last(model, base, latent) and not listed)
        if self._found and self._search and self._shaping.channels_last:
            self._found = self._search.found = replace(self._found, channels_last=True)
        self._base = self._shaping.known(base)

    @property
    def follow_the_latent(self) -> set[str]:
        """Arguments that were guessed to be as large as the latent's size says, and are made so at every size."""
        named = self._found.forms() if self._found else []
        return {re.split(r"[.]", path)[0] for path, form in named if follows_the_latent(form)}

    @property
    def constant(self) -> set[str]:
        """Inputs that have one value alone: of a table of one row."""
        named = self._found.forms() if self._found else []
        return {leaf_of(path) for path, form in named if form.content == "label" and form.below == 1}

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
            if size and (self._search or not self._shaping.channels_last):
                found = self._search.at_size(size) if self._search else found.of_size(size)
            base = self._shaping.known(found.inputs(self._dtype))
        else:
            base = self._shaping.known(self._called(function, size)) if function else dict(self._base)
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

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model, which takes and gives one tensor (B, C, H, W) however its forward does."""
        return self._shaping.prepared(model)

    def called(self, model: nn.Module) -> nn.Module:
        """The same with its weights as they are."""
        return self._shaping.called(model)

    def _is_listed_latent(self, name: str, value: object) -> bool:
        """Whether an argument is a latent sample by sample."""
        is_latent = self._found.latent == name if self._found else name in NAMES["latent"]
        shapes = {shape_of(part) for part in value} if isinstance(value, (list, tuple)) else set()
        return is_latent and len(shapes) == 1 and len(shapes.pop() or ()) >= 2

    @property
    def _function_takes_a_size(self) -> bool:
        return self._function is not None and len(inspect.signature(self._function).parameters) >= 3

    def _called(self, function: Callable[..., object], size: tuple[int, int] | None = None) -> Inputs:
        wanted = len(inspect.signature(function).parameters)
        made = function(*((self._model, *(size or (None, None)))[:wanted]))
        needed = [name for name, one in self._parameters.items() if one.default is one.empty]
        as_arguments = isinstance(made, dict) and (not made or made.keys() & self._parameters.keys())
        if isinstance(made, (tuple, list)):
            if self._model and takes_places_alone(self._model) and len(made) > len(self._places):
                self._places = tuple(f"input_{i}" for i in range(len(made)))
                self._parameters = {name: Parameter(name, Parameter.KEYWORD_ONLY) for name in self._places}
                by_place(self._model, self._places)
            made = dict(zip(self._parameters, made, strict=False))
        elif len(needed) == 1 and not as_arguments and not isinstance(made, Tensor):
            made = {needed[0]: made}  # what it returns is the one argument
        if not isinstance(made, dict) or not leaves(made):
            raise UsageError(
                f"--example returns a {type(made).__name__} without tensors, not forward's arguments", _HINT
            )
        return inputs_in(made, torch.float32, is_half) if self.in_float32 else made

    # Guessing

    def _guessed(self, model: nn.Module, settings: Mapping[str, object]) -> Inputs:
        fed = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
        named = [value for name, value in settings.items() if type(value) is int and re.search(_WIDTHS, name)]
        widths = list(dict.fromkeys([*named, *fed]))
        frames = [count for name in _FRAMES if isinstance(count := settings.get(name), int)]
        latents = latent_forms(*_sides_and_channels(model, settings, widths), widths, frames)
        search = Search(model, latents, widths, labels(model))
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
        following = (follows_the_latent(form) or form.content == "mask" for _, form in search.found.forms())
        self._search = search if any(following) else None
        self._dtype = search.dtype
        return self._found.inputs(search.dtype)


def leaf_of(path: str) -> str:
    """The name of an attempt's tensor among the inputs: `batch[0]`, not `batch.0`."""
    return re.sub(r"\.(\d+)", r"[\1]", path)


def key_for(leaf: str, inputs: Inputs) -> str:
    """What a latent inside of an argument is called as an argument of its own: its own name where that is free."""
    last = re.split(r"[.]|\[\d+\]", leaf.rstrip("]0123456789["))[-1] or "latent"
    return last if last not in inputs else f"{last}_inside"


def named_latent(inputs: Inputs) -> str | None:
    """The tensor of 3 to 5 dimensions with a usual name, also inside of an argument; else the first that is an argument
    itself; else the first inside of one, of 4 or 5 dimensions before others. Where there is none the same of 2: tokens
    of all samples in one sequence.
    """
    given = leaves(inputs)
    fitting = {name: value for name, value in given.items() if value.dim() in (3, 4, 5) and _may_be_latent(name, value)}
    if not fitting:
        fitting = {name: value for name, value in given.items() if value.dim() == 2 and _may_be_latent(name, value)}
    own = [name for name in fitting if name in inputs]
    inside = [name for name in fitting if name not in inputs]
    for names in (own, inside):
        usual = [name for name in names if re.split(r"[.]", name)[-1] in NAMES["latent"]]
        if usual:
            return min(usual, key=lambda name: NAMES["latent"].index(re.split(r"[.]", name)[-1]))
    return next(iter(own), max(inside, key=lambda name: fitting[name].dim() > 3, default=None))


def _may_be_latent(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and name not in POSITIONS


@torch.no_grad()
def has_channels_last(model: nn.Module, inputs: Inputs, latent: str) -> bool:
    """Whether a latent is (B, H, W, C): it may be twice as wide in front of its last axis, and not along that. Of a
    model that takes one size alone: whether its other two sides are equal.
    """
    tensor = leaves(inputs).get(latent)
    if (
        tensor is None
        or tensor.dim() < 4
        or not (tensor.shape[-1] <= tensor.shape[1] or tensor.shape[-1] != tensor.shape[-2])
    ):
        return False

    def runs(axis: int) -> bool:
        sizes = list(tensor.shape)
        sizes[axis] *= 2
        wider = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(tensor)
        try:
            answers_without_gradient(model, with_leaves(inputs, {latent: wider}))
        except Exception:  # whatever the model raises for a size
            return False
        return True

    if runs(-1):
        return False
    return runs(-2) or tensor.shape[-3] == tensor.shape[-2] != tensor.shape[-1]


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


def _first_rows(value: Any, batch: int, rows: int, name: str = "") -> Any:
    """The first samples of whatever is a batch of `rows`."""
    if isinstance(value, Tensor):
        cut = name not in POSITIONS and value.dim() > 0 and len(value) == rows
        return value[:batch] if cut else value
    if isinstance(value, dict):
        return {key: _first_rows(part, batch, rows) for key, part in value.items()}
    return value
