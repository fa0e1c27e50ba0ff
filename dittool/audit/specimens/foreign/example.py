"""Inputs for a foreign model: guessed from its forward signature for the usual forms, or made by a function of the
user's.

The usual forms are (x, t), (x, t, y) with a class label or text tokens, and text with a mask, under the names that are
common. Sizes that a name does not tell are found by trying the widths that occur in the model.

B batch · C latent channels · L text tokens · H W latent rows and columns
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from dittool.audit.specimens.trial import LARGEST_BUILT
from dittool.audit.specimens.watching import Inputs, answer
from dittool.errors import UsageError, described

_NAMES = {  # of forward's arguments, by what they are
    "latent": (
        *("x", "z", "hidden_states", "sample", "latent", "latents", "x_t", "xt", "z_t", "zt", "img", "noisy_latents"),
        *("inputs", "input"),
    ),
    "time": ("t", "timestep", "timesteps", "time", "sigma", "noise_labels", "time_step"),
    "label": ("y", "class_labels", "labels", "label", "class_label"),
    "text": (
        *("text", "context", "encoder_hidden_states", "txt", "caption", "captions", "text_embeds", "prompt_embeds"),
        *("text_tokens", "tokens", "cond"),
    ),
    "mask": ("mask", "text_mask", "encoder_attention_mask", "context_mask", "txt_mask", "caption_mask"),
    "vector": ("pooled_projections", "pooled", "vec", "vector", "cls", "clip_pooled"),
}
_WIDTHS = {  # parts of settings' names that say how wide an argument is
    "latent": ("in_channels",),
    "vector": ("pool", "vec"),
    "text": ("text", "caption", "context", "joint", "cross"),
    "label": ("text", "caption", "context", "joint", "cross"),
}
_SIZES = ("input_size", "sample_size", "img_size", "image_size", "latent_size", "img_resolution", "resolution")
POSITIONS = ("img_ids", "txt_ids")  # of the Flux family: they say where a token is, not what it is

BATCH, TEXT_TOKENS = 2, 7
_GUESSED_TOKENS = 16  # of a latent that comes as tokens
_MOST_TRIALS = 2000
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
        self._base = self._called(function) if function else self._guessed(model, settings)
        latent = self._named("latent", lambda value: value.dim() in (3, 4))
        if latent is None:
            raise UsageError(
                f"none of forward's arguments {', '.join(self._base)} looks like a latent of 3 or 4 dimensions", _HINT
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
    def time_is_known(self) -> bool:
        """Whether the user's own function has said in which range time is."""
        return self._function is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the latent; None when it comes as tokens."""
        latent = self._base[self.latent]
        return tuple(latent.shape[-2:]) if latent.dim() == 4 else None

    @property
    def sizes_can_change(self) -> bool:
        return self.size is not None or self._function_takes_a_size or "img_ids" in self._base

    def inputs(self, seed: int = 0, size: tuple[int, int] | None = None, batch: int = BATCH) -> Inputs:
        """One batch with a random latent; `size` in latent cells."""
        function = self._function if size and self._function_takes_a_size else None
        base = self._called(function, size) if function else dict(self._base)
        shape = list(base[self.latent].shape)
        if size and len(shape) == 4:
            shape[-2:] = size
        elif size and not self._function_takes_a_size and "img_ids" in base:
            shape[1], base["img_ids"] = math.prod(size), _coordinates(size)
        base[self.latent] = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(
            base[self.latent].dtype
        )
        if batch < (rows := len(base[self.latent])):
            base |= {name: value[:batch] for name, value in base.items() if _has_rows(name, value, rows)}
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
        known = [name for name in _NAMES[kind] if name in fitting]
        floating = [name for name in fitting if self._base[name].is_floating_point()]
        return next(iter(known or floating), None)

    # Guessing

    def _guessed(self, model: nn.Module, settings: Mapping[str, object]) -> Inputs:
        forward = f"forward({', '.join(self._parameters)})"
        choices: dict[str, list[Tensor]] = {}
        for name, parameter in self._parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if found := self._candidates(name, model, settings):
                choices[name] = found
            elif parameter.default is parameter.empty:
                raise UsageError(f"{forward}: what '{name}' is cannot be guessed", _HINT)
        latent = next((name for name in choices if name in _NAMES["latent"]), None)
        if latent is None:
            usual = ", ".join(_NAMES["latent"][:5])
            raise UsageError(f"{forward} has no argument with a usual name of a latent ({usual} …)", _HINT)
        error: BaseException | None = None
        for values in itertools.islice(itertools.product(*choices.values()), _MOST_TRIALS):
            inputs = _with_positions(dict(zip(choices, values, strict=True)), self._parameters, latent)
            try:
                answer(model, inputs)
                return inputs
            except (Exception, SystemExit) as raised:  # this guess was wrong
                error = raised
        raise UsageError(
            f"{forward} runs with none of the guesses; the last raises {described(error) if error else None}", _HINT
        ) from error

    def _candidates(self, name: str, model: nn.Module, settings: Mapping[str, object]) -> list[Tensor]:
        """Values to try for an argument, by its name; none for a name that is not known."""
        kind = next((kind for kind, names in _NAMES.items() if name in names), "")
        generator = torch.Generator().manual_seed(0)
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        modules = list(model.modules())
        named = [value for setting, value in settings.items() if any(part in setting for part in _WIDTHS.get(kind, ()))]
        fed = [module.in_features for module in modules if isinstance(module, nn.Linear)]
        widths = list(dict.fromkeys([*(width for width in named if type(width) is int), *fed]))
        vectors = [normal(BATCH, width) for width in widths]
        tokens = [normal(BATCH, TEXT_TOKENS, width) for width in widths]
        if kind == "latent":
            in_tokens = [normal(BATCH, _GUESSED_TOKENS, width) for width in widths]
            return in_tokens if "img_ids" in self._parameters else _latents(model, settings, widths, normal) + in_tokens
        if kind == "time":
            t = torch.linspace(0.15, 0.85, BATCH) * 1000
            return [t, t.long()]
        if kind == "label":
            tables = [module.num_embeddings for module in modules if isinstance(module, nn.Embedding)]
            labels = [torch.arange(BATCH) % max(min(tables) - 1, 1)] if tables else []
            return labels + tokens + [value[:, None] for value in tokens] + vectors
        if kind == "mask":
            keep = torch.arange(TEXT_TOKENS)[None] < torch.tensor([TEXT_TOKENS - 2 * i for i in range(BATCH)])[:, None]
            return [keep, keep.float(), keep.long()]
        return {"text": tokens + vectors, "vector": vectors}.get(kind, [])


def _latents(
    model: nn.Module, settings: Mapping[str, object], widths: list[int], normal: Callable[..., Tensor]
) -> list[Tensor]:
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    patch = _side(convolution.stride if convolution else settings.get("patch_size", 2)) or 2
    channels = [convolution.in_channels] if convolution else []
    named = (settings.get(name) for name in ("in_channels", "channels", "latent_channels"))
    channels += [count for count in named if isinstance(count, int)]
    channels += [width // patch**2 for width in widths if width % patch**2 == 0]
    sides = [side for name in _SIZES if (side := _side(settings.get(name, vars(model).get(name))))]
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST_BUILT:
        sides.insert(0, patch * _FEW)  # few tokens first: a network of this size takes its time
    largest = patch * _LARGEST_GUESS
    sides = [side for side in sides if side <= largest] + [8 * patch] + [side for side in sides if side > largest]
    return [normal(BATCH, count, side, side) for count in dict.fromkeys(channels) for side in dict.fromkeys(sides)]


def _side(size: object) -> int:
    """Of a square's size as a model says it, one number or two; 0 for anything else."""
    first = size[0] if isinstance(size, (tuple, list)) else size
    return first if isinstance(first, int) else 0


def _with_positions(inputs: Inputs, parameters: Collection[str], latent: str) -> Inputs:
    """Adds the token coordinates of the Flux family where forward asks for them."""
    if "img_ids" in parameters:
        side = math.isqrt(inputs[latent].shape[1])
        inputs["img_ids"] = _coordinates((side, side))
    if "txt_ids" in parameters:
        inputs["txt_ids"] = torch.zeros(TEXT_TOKENS, 3)
    return inputs


def _coordinates(grid: tuple[int, int]) -> Tensor:
    """(h·w, 3): zero, row and column of each token in row-major order."""
    index = torch.arange(math.prod(grid))
    return torch.stack([torch.zeros_like(index), index // grid[1], index % grid[1]], dim=1).float()


def _has_rows(name: str, value: object, rows: int) -> bool:
    return isinstance(value, Tensor) and name not in POSITIONS and value.dim() > 0 and len(value) == rows
