"""What is seen while a network runs: its modules' calls, attention's logits, gradients, and what is kept for backward.

B batch · H heads · N tokens · D width
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

Inputs = dict[str, Any]  # arguments of a network's forward by name


def answer(model: nn.Module, inputs: Inputs) -> Tensor:
    """The first tensor that the model returns. What it prints goes to stderr, so that reports are not mixed with it."""
    with redirect_stdout(sys.stderr):
        output = model(**inputs)
    found = next(_tensors(output), None)
    if found is None:
        raise TypeError(f"forward returns a {type(output).__name__} without a tensor")
    return found


@torch.no_grad()
def answer_without_gradient(model: nn.Module, inputs: Inputs) -> Tensor:
    return answer(model, inputs)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    output: object = None

    @property
    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        several = self.output if isinstance(self.output, (tuple, list)) else [self.output]
        return [value for value in several if isinstance(value, Tensor)]

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

    def again(self, module: nn.Module, change: Callable[[object], object] = lambda value: value) -> Call:
        """The same call of another module of the kind, with its arguments changed."""
        args, kwargs = tuple(map(change, self.args)), {name: change(value) for name, value in self.kwargs.items()}
        return Call(args, kwargs, module(*args, **kwargs))


def is_tokens(tensor: Tensor) -> bool:
    """(B, N, D) with more than one token."""
    return tensor.dim() == 3 and tensor.shape[1] > 1 and tensor.is_floating_point()


def is_vector(tensor: Tensor, batch: int) -> bool:
    """(B, D), or the same with axes of length 1 between."""
    in_rows = tensor.dim() >= 2 and len(tensor) == batch and tensor.numel() == batch * tensor.shape[-1]
    return in_rows and tensor.is_floating_point()


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed at the end of the `with`."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def watch(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Yields a dict that receives each module's calls, in the order in which modules are first called."""
    seen: dict[str, list[Call]] = {}

    def hook(name: str, _module: nn.Module, *call: Any) -> None:
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
def counted_runs(model: nn.Module, blocks: Sequence[str]) -> Iterator[Counter[str]]:
    """Counts how often each block's forward runs, also where it is not called through the module."""
    counts: Counter[str] = Counter()
    modules = {name: model.get_submodule(name) for name in blocks}
    own = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}

    def counting(name: str, forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        counts[name] += 1
        return forward(*args, **kwargs)

    for name, module in modules.items():
        module.forward = partial(counting, name, module.forward)
    try:
        yield counts
    finally:
        for name, module in modules.items():
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


class AttentionLogits(TorchFunctionMode):
    """Inside a `with`, `seen` receives (…, N, N) before each softmax: of `scaled_dot_product_attention`, and of a
    softmax over a square of tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query, key = (*args, *(kwargs[name] for name in ("query", "key") if name in kwargs))[:2]
            self.seen.append((query @ key.transpose(-1, -2)).detach())  # (…, N, N)
        elif function in (torch.softmax, F.softmax, Tensor.softmax):
            logits = args[0] if args else kwargs["input"]
            if logits.dim() >= 3 and logits.shape[-1] == logits.shape[-2]:
                self.seen.append(logits.detach())
        return function(*args, **kwargs)
