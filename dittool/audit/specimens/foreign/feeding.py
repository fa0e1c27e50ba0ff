"""What a foreign model is fed with: the example's inputs as a tree of tensors, what each of them is, and other values.

Each tensor is the latent, the time, a mask, a position, or a condition; by its name where that is usual, else by its
values and by what it does.

B batch · C latent channels · L tokens of a condition · N tokens of the latent · H W latent rows and columns
"""

from __future__ import annotations

import inspect
import math
import re
from functools import cached_property

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.foreign.forms import kind_of
from dittool.audit.specimens.leaves import leaves, other_value, with_leaves
from dittool.audit.specimens.watching import Inputs

_TIME = re.compile(
    r"(?:^|[._])(?:t|ts|time|times|timestep|timesteps|time_steps?|t_in|tt|noise_labels?|noise_levels?|sigmas?|"
    r"(?:c_)?noise_cond|log_?snr|lambdas?|gammas?|noise_steps?|diffusion_steps?)$"
)
_LOGARITHM = re.compile(r"log|lambda|gamma")
_MASK = re.compile(r"mask|valid|padding|(?:^|[._])pad|attend|keep", re.IGNORECASE)
_POSITION = re.compile(
    r"pos|rope|rotary|freq|(?<!crop_)coord|angle|phase|theta|(?:^|[._])(?:cos|sin|grid|rot|pe$)|"
    r"(?:img|txt|image|text|latent)_ids?$|(?:frame|token|patch)_(?:ids?|index|indices)$|^ind(?:ex|ices)_"
)
_FRAMES = 3  # of a video, where one alone does not reach what mixes them
_HIDDEN = 2  # tokens that are masked to see whether masks act
_WHOLE_BATCH = 1 << 30  # samples: all that the example has


class Feed:
    """Inputs of any latent size that the model's caller may choose."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._example, self.latent = example, example.latent
        self._parameters = inspect.signature(model.forward).parameters
        self.time = self._found_time()
        rows, times = self._leaves[self.latent], self._leaves.get(self.time)
        # samples one behind the other in one sequence: as many as there are times
        self.packed = rows.dim() == 2 and times is not None and times.dim() == 1 and len(times) not in (1, len(rows))
        self.batch = 1 if self.packed else len(rows)

    @cached_property
    def _leaves(self) -> dict[str, Tensor]:
        return leaves(self._example.inputs(batch=_WHOLE_BATCH))

    @cached_property
    def positions(self) -> list[str]:
        """Inputs that say where a token is, not what it is."""
        return [name for name, value in self._others.items() if _POSITION.search(name) and not _MASK.search(name)]

    @cached_property
    def masks(self) -> list[str]:
        """Inputs that may say which of another's tokens count: (B, L) of zeros and ones, beside a (B, L, ·) or so
        called.
        """
        return [name for name, value in self._others.items() if _is_zeros_and_ones(value) and self._may_mask(name)]

    @property
    def conditions(self) -> list[str]:
        """Inputs that are neither the latent, the time, a mask nor a position."""
        return [name for name in self._others if name not in (*self.masks, *self.positions)]

    @property
    def default_of_flags(self) -> dict[str, bool]:
        return {name: self._parameters[name].default for name in self.flags}

    @property
    def switches(self) -> list[str]:
        """Conditions and masks of zeros and ones, each of which may switch another input off."""
        named = (*self.conditions, *self.masks)
        return [name for name in named if bool(((self._leaves[name] == 0) | (self._leaves[name] == 1)).all())]

    @cached_property
    def flags(self) -> list[str]:
        """Arguments of forward that are true or false by default and were left so; not what chooses its answer's
        form.
        """
        return [
            name
            for name, parameter in self._parameters.items()
            if isinstance(parameter.default, bool) and name not in self.inputs() and kind_of(name) != "ignored"
        ]

    @property
    def texts(self) -> list[str]:
        """Conditions that come as tokens, or as the words of a text."""
        words = (value for value in self.conditions)
        return [
            name for name in words if self._leaves[name].dim() >= (3 if self._leaves[name].is_floating_point() else 2)
        ]

    @property
    def _others(self) -> dict[str, Tensor]:
        left = (self.latent, self.time, *self._example.constant)
        return {name: value for name, value in self._leaves.items() if name not in left}

    @cached_property
    def not_fed(self) -> list[str]:
        """Arguments of forward that the example leaves out, or gives nothing but an empty list."""
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        fed = self._example.inputs()
        return [
            name
            for name, parameter in self._parameters.items()
            if parameter.kind not in kinds
            and not (name in fed and kind_of(name) == "ignored")  # such as attention_kwargs={}
            and _is_nothing(fed.get(name))
            and parameter.default in (None, parameter.empty)
        ]

    @property
    def positions_not_fed(self) -> list[str]:
        """Those of `not_fed` that may say where tokens are: called so, or nothing that is known."""
        return [
            name for name in self.not_fed if _POSITION.search(name) or kind_of(name) in ("", "place", "grid", "shapes")
        ]

    @property
    def time_is_unit(self) -> bool:
        """Whether the user's own function has said that time is in [0, 1]; a logarithm never is."""
        if not self.time or not self._example.time_is_known or _LOGARITHM.search(self.time):
            return False
        time = self._leaves[self.time]
        return bool(((time >= 0) & (time <= 1)).all())

    @property
    def time_is_known(self) -> bool:
        """Whether the user's own function has said in which range time is."""
        return self._example.time_is_known

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the latent; None when it comes as tokens."""
        latent = self._leaves[self.latent]
        return (latent.shape[-2], latent.shape[-1]) if latent.dim() >= 4 else None

    @property
    def sizes_can_change(self) -> bool:
        return self._example.sizes_can_change

    def inputs(self, seed: int = 0, size: tuple[int, int] | None = None) -> Inputs:
        """One batch with a random latent; `size` in latent cells. What lies on the latent's own cells goes with it."""
        base = self._example.inputs(seed=seed, size=size, batch=_WHOLE_BATCH)
        if size is None or self.size is None or size == self.size:
            return base
        drawn = torch.Generator().manual_seed(seed)
        laid = {
            name: value
            for name, value in leaves(base).items()
            if name != self.latent
            and re.split(r"[.\[]", name)[0] not in self._example.follow_the_latent
            and value.dim() >= 3
            and tuple(value.shape[-2:]) == self.size
        }
        resized = {
            name: torch.randn(*value.shape[:-2], *size, generator=drawn).to(value)
            if value.is_floating_point()
            else value.flatten(-2)[..., torch.arange(math.prod(size)) % math.prod(self.size)].unflatten(-1, size)
            for name, value in laid.items()
        }
        return with_leaves(base, resized)

    def of_more_frames(self, inputs: Inputs) -> Inputs | None:
        """With three frames in the place of a video's one; None where the latent has no axis of one frame."""
        latent = inputs[self.latent]
        axis = next((axis for axis in (2, 1) if latent.dim() == 5 and latent.shape[axis] == 1), None)
        if axis is None:
            return None
        sizes = [_FRAMES if i == axis else side for i, side in enumerate(latent.shape)]
        return {**inputs, self.latent: torch.randn(sizes, generator=torch.Generator().manual_seed(5)).to(latent)}

    def other(self, inputs: Inputs, name: str) -> Tensor:
        """Another tensor of the kind of one of these inputs."""
        value = leaves(inputs)[name]
        if name != self.time or not value.numel():
            return other_value(value)
        if value.is_floating_point() and value.max() <= 1:
            return value * 0.5 + 0.2
        return (value.float() * 0.37 + 11).to(value.dtype)

    def changed(self, inputs: Inputs, *names: str) -> Inputs:
        """The inputs with some of them replaced by others of their kind."""
        return with_leaves(inputs, {name: self.other(inputs, name) for name in names})

    def filled(self, inputs: Inputs, name: str, value: int) -> Inputs:
        """The inputs with one of them the same number throughout, or a flag so. As they are where they have none of it:
        a mask over all tokens that may be left out is, at another size.
        """
        if name in self.flags:
            return {**inputs, name: bool(value)}
        present = leaves(inputs)
        return with_leaves(inputs, {name: torch.full_like(present[name], value)}) if name in present else inputs

    def without_content(self, inputs: Inputs, tokens: int) -> Inputs:
        """With a latent of zeros, and the same at every place of any other input that lies on the latent's cells or
        tokens, as a map of classes does.
        """
        others = {self.latent: torch.zeros_like(inputs[self.latent])}
        cells = tuple(inputs[self.latent].shape[-2:]) if inputs[self.latent].dim() >= 4 else None
        for name, value in leaves(inputs).items():
            if name in (self.latent, *self.positions, *self.masks):
                continue
            if (value.dim() >= 3 and tuple(value.shape[-2:]) == cells) or (
                value.dim() >= 3 and not value.is_floating_point() and math.prod(value.shape[-2:]) == tokens
            ):
                others[name] = value[..., :1, :1].expand_as(value).clone()
            elif value.dim() >= 2 and value.shape[1] == tokens and name in (*self.conditions, self.time):
                others[name] = value[:, :1].expand_as(value).clone()
        return with_leaves(inputs, others)

    def masked(self, inputs: Inputs) -> dict[str, tuple[str, list[tuple[Inputs, Inputs]]]]:
        """For each mask and each input of tokens that it may be of: the mask, and where it hides with zeros, or with
        ones, the inputs with the last tokens of each sample hidden, and these with other content there.
        """
        found: dict[str, tuple[str, list[tuple[Inputs, Inputs]]]] = {}
        values = leaves(inputs)
        floating = (name for name, value in values.items() if value.is_floating_point() and value.dim() == 3)
        of_tokens = [name for name in floating if name not in self.masks]
        for mask in self.masks:
            for hiding in (0, 1):
                marks = values[mask].clone()
                marks[..., -_HIDDEN:] = hiding
                hidden = marks.reshape(len(marks), -1, marks.shape[-1])[:, 0] == hiding  # (B, L)
                plain = with_leaves(inputs, {mask: marks})
                for name in of_tokens:
                    if name != self.latent and values[name].shape[:2] == hidden.shape:
                        other = torch.where(hidden[..., None], other_value(values[name], seed=7), values[name])
                        pairs = found.setdefault(f"{name} under its mask", (mask, []))[1]
                        pairs.append((plain, with_leaves(plain, {name: other})))
        return found

    def is_called_mask(self, name: str) -> bool:
        return bool(_MASK.search(name))

    def _found_time(self) -> str:
        """A tensor of one number a sample, or a token, under a usual name, also inside of another; else the first of
        floating point and one dimension.
        """
        fitting = {name: value for name, value in self._leaves.items() if name != self.latent and _is_time(value)}
        named = [name for name in fitting if _TIME.search(name)]
        loose = [name for name, value in fitting.items() if value.is_floating_point() and value.dim() <= 1]
        return next(iter(named or loose), "")

    def _may_mask(self, name: str) -> bool:
        value = self._leaves[name]
        if _MASK.search(name):
            return value.dim() >= 2
        beside = (other for key, other in self._leaves.items() if key != name and other.dim() >= 3)
        return value.dim() == 2 and any(other.shape[-2] == value.shape[1] for other in beside)


def _is_time(value: Tensor) -> bool:
    """(), (B,), (B, 1), (B, N) or (B, 1, 1, 1)."""
    return value.dtype != torch.bool and (value.dim() <= 2 or value.numel() == len(value))


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _is_zeros_and_ones(value: Tensor) -> bool:
    return value.dim() >= 2 and not value.is_complex() and bool(((value == 0) | (value == 1)).all())
