"""What is seen while a network runs: its modules' calls, attention's logits, gradients, and what is kept for backward.

B batch · H heads · N tokens · D width
"""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

Inputs = dict[str, Any]  # arguments of a network's forward by name
_DEEPEST = 8  # nesting of what a network returns


def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor of floating point that the model returns, nested however. What it prints goes to stderr, so that
    reports are not mixed with it, and that it ends the program is an error of its own.
    """
    try:
        with redirect_stdout(sys.stderr):
            output = model(**inputs)
    except SystemExit as end:
        raise RuntimeError(f"it ends the program with exit({end.code})") from end
    found = [tensor for tensor in _tensors(output) if tensor.is_floating_point()]
    if not found:
        raise TypeError(f"forward returns a {type(output).__name__} without a tensor of floating point")
    return found


def answer(model: nn.Module, inputs: Inputs, latent: str = "") -> Tensor:
    """What the model predicts: of several tensors the one that is shaped as this input is, else the first."""
    found = answers(model, inputs)
    return picture_among(found, inputs[latent]) if latent and isinstance(inputs[latent], Tensor) else found[0]


def picture_among(found: Sequence[Tensor], latent: Tensor) -> Tensor:
    """Of a model's answers the one that is shaped most like the latent; (B, …) of a picture for each sample."""
    pictures = [tensor for tensor in found if tensor.dim() == latent.dim() - 1 and tensor.shape == found[0].shape]
    if len(pictures) == len(found) == len(latent):
        return torch.stack(pictures)

    def likeness(tensor: Tensor) -> tuple[bool, int]:
        alike = tensor.dim() == latent.dim() and len(tensor) == len(latent)
        return alike, sum(a == b for a, b in zip(tensor.shape, latent.shape, strict=True)) if alike else 0

    return max(found, key=likeness)  # of equals the first


@torch.no_grad()
def answer_without_gradient(model: nn.Module, inputs: Inputs, latent: str = "") -> Tensor:
    """`answer` with the draws of chance that every comparison has."""
    with fixed_chance():
        return answer(model, inputs, latent)


@torch.no_grad()
def answers_without_gradient(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """`answers` with the draws of chance that every comparison has."""
    with fixed_chance():
        return answers(model, inputs)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside the `with` what torch.compile wraps runs as it is written: in seconds, and with every module called."""

    def as_it_is(model: Any = None, **_settings: object) -> Any:
        return (lambda given: given) if model is None else model

    # importing dynamo takes seconds, and who has wrapped something has imported it
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with stance, patch.object(torch, "compile", as_it_is):
        yield


@contextmanager
def fixed_chance(seed: int = 0) -> Iterator[None]:
    """Inside the `with` torch, numpy and random draw from one seed; outside they go on as if nothing had been."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    torch_state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a while
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _tensors(value: object, depth: int = 0) -> Iterator[Tensor]:
    """Of nested mappings, sequences, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        yield value
        return
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif not isinstance(value, (type, nn.Module)) and hasattr(value, "__dict__"):
        inner = vars(value).values()
    for part in inner if depth < _DEEPEST else ():
        yield from _tensors(part, depth + 1)


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    output: object = None

    @property
    def tensors(self) -> list[Tensor]:
        """Its arguments that are tensors, also those in lists and dictionaries."""
        return list(_tensors([*self.args, *self.kwargs.values()]))

    @property
    def outputs(self) -> list[Tensor]:
        return list(_tensors(self.output))

    @property
    def streams(self) -> list[tuple[Tensor, Tensor]]:
        """(tokens in, tokens out) for each output of tokens that has an input of its shape; of several the nearest."""
        pairs = []
        for after in filter(is_tokens, self.outputs):
            alike = [
                tokens
                for tokens in filter(is_tokens, self.tensors)
                if tokens.shape == after.shape and tokens.dtype == after.dtype
            ]
            if alike:
                distances = [float((tokens - after).detach().abs().max()) for tokens in alike]
                pairs.append((alike[distances.index(min(distances))], after))
        return pairs

    @property
    def carried(self) -> list[Tensor]:
        """The tokens that it takes in: those of its streams, or of tokens that it gives in another shape the first of
        their rank.
        """
        ranks = {tensor.dim() for tensor in self.outputs if is_tokens(tensor)}
        taken = [tensor for tensor in self.tensors if is_tokens(tensor) and tensor.dim() in ranks]
        return [before for before, _ in self.streams] or taken[:1]

    def again(self, module: nn.Module, others: Mapping[int, Tensor] = MappingProxyType({})) -> Call:
        """The same call of another module of the kind, with others in the place of some tensors, by their id."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return others.get(id(value), value)
            if type(value) in (list, tuple):
                return type(value)(map(changed, value))
            return {key: changed(part) for key, part in value.items()} if type(value) is dict else value

        args, kwargs = changed(self.args), changed(self.kwargs)
        with fixed_chance():
            return Call(args, kwargs, module(*args, **kwargs))


def is_tokens(tensor: Tensor) -> bool:
    """(B, N, D) with more than one token, or tokens in rows and columns, and frames, with channels first or last."""
    if tensor.dim() not in (3, 4, 5):
        return False
    spread = max({3: tensor.shape[1:2], 4: tensor.shape[1:3], 5: tensor.shape[2:4]}[tensor.dim()]) > 1
    return spread and tensor.is_floating_point()


def is_vector(tensor: Tensor, batch: int) -> bool:
    """(B, D), or the same with axes of length 1 beside B or behind D."""
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    in_rows = len(shape) >= 2 and batch in shape[:-1] and tensor.numel() == batch * shape[-1]
    return in_rows and tensor.is_floating_point()


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed at the end of the `with`."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def watch(modules: dict[str, nn.Module], first_only: bool = False) -> Iterator[dict[str, list[Call]]]:
    """Yields a dict that receives each module's calls, in the order in which modules are first called."""
    seen: dict[str, list[Call]] = {}

    def hook(name: str, _module: nn.Module, *call: Any) -> None:
        if not (first_only and name in seen):
            seen.setdefault(name, []).append(Call(*call))

    with hooked(
        module.register_forward_hook(partial(hook, name), with_kwargs=True) for name, module in modules.items()
    ):
        yield seen


class _Enough(Exception):
    """Ends a forward pass of which the rest is not wanted."""


@contextmanager
def ending_with(module: nn.Module) -> Iterator[list[Call]]:
    """Inside the `with` a model runs no further than to the end of this module's first call, which the list then
    holds.
    """
    seen: list[Call] = []

    def hook(_module: nn.Module, *call: Any) -> None:
        seen.append(Call(*call))
        raise _Enough

    with module.register_forward_hook(hook, with_kwargs=True), suppress(_Enough):
        yield seen


@contextmanager
def counted_runs(model: nn.Module) -> Iterator[Counter[str]]:
    """Counts how often each module's forward runs, also where it is not called through the module."""
    counts: Counter[str] = Counter()
    own: dict[str, Callable[..., object]] = {}
    modules = dict(model.named_modules())

    def counting(name: str, forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        counts[name] += 1
        return forward(*args, **kwargs)

    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # its forward cannot be set
        if "forward" in vars(module):
            own[name] = vars(module)["forward"]
        module.forward = partial(counting, name, module.forward)
    try:
        yield counts
    finally:
        for name, module in modules.items():
            if "forward" in vars(module):
                del module.forward
            if name in own:
                module.forward = own[name]


@contextmanager
def gradients_to(take: Callable[[str, Tensor], None], model: nn.Module) -> Iterator[None]:
    """Inside the `with`, `take(name, gradient)` gets each parameter's gradient, in parts where backward runs in
    parts; parameters keep none.
    """

    def taken(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            take(name, gradient)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    with hooked(
        parameter.register_post_accumulate_grad_hook(partial(taken, name)) for name, parameter in trained.items()
    ):
        yield


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts inside a `with`: each storage once, parameters not at all. What a checkpointed block keeps while it is
    recomputed is outside.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._kept: dict[int, Tensor] = {}  # alive: an address that is given back and used again would count once

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._parameters:
            self._kept[address] = tensor
        return tensor


class CallsOfTorch(TorchFunctionMode, ABC):
    """Inside a `with`, `called` stands in the place of each function of torch."""

    @abstractmethod
    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """What the caller is given; calls of torch made here go to torch itself."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        return self.called(function, args, kwargs or {})


class AttentionLogits(CallsOfTorch):
    """Inside a `with`, after `begin`, `seen` receives (heads, queries, keys) of the first sample before each softmax of
    attention: of `scaled_dot_product_attention`, and of a softmax over the last of three axes or more. At most `most`.
    """

    def __init__(self, most: int = 8) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self._most, self._begun = most, False

    def begin(self, *_call: object) -> None:
        """From here on: a hook in front of the module whose attention is wanted."""
        self._begun = True

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if len(self.seen) < self._most and self._begun:
            logits = attention_logits(function, args, kwargs)
            if logits is not None:
                self.seen.append(logits.reshape(-1, *logits.shape[-2:]))
        return function(*args, **kwargs)


@torch.no_grad()
def attention_logits(function: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """(1, …, queries, keys) of the first sample in front of the softmax of attention, as `AttentionLogits` sees it;
    None for any other function of torch.
    """
    if function is F.scaled_dot_product_attention:
        query, key = (*args, *(kwargs[name] for name in ("query", "key") if name in kwargs))[:2]
        if key.dim() > 2 and query.shape[-3] != key.shape[-3]:  # grouped queries
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        return query[:1].float() @ key[:1].float().transpose(-1, -2)
    if function in (torch.softmax, F.softmax, Tensor.softmax):
        logits = args[0] if args else kwargs["input"]
        return (logits[:1] if logits.dim() > 3 else logits).detach().float() if logits.dim() >= 3 else None
    return None
