"""What is seen while a network runs: its modules' calls, attention's logits, gradients, and what is kept for backward.

B batch · H heads · N tokens · D width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        several = self.output if isinstance(self.output, (tuple, list)) else [self.output]
        return [value for value in several if isinstance(value, Tensor)]

    @property
    def streams(self) -> list[tuple[Tensor, Tensor]]:
        """(tokens in, tokens out) for each output of tokens that an input of the same shape goes with, the nearest
        one.
        """
        found = []
        for after in self.outputs:
            before = [
                one for one in self.tensors if is_tokens(one) and one.shape == after.shape and one.dtype == after.dtype
            ]
            if is_tokens(after) and before:
                found.append((min(before, key=lambda one: float((one - after).detach().abs().max())), after))
        return found

    def again(self, module: nn.Module) -> Call:
        """The same call of another module of the kind."""
        return Call(self.args, self.kwargs, module(*self.args, **self.kwargs))


def is_tokens(tensor: Tensor) -> bool:
    """(B, N, D) with more than one token."""
    return tensor.dim() == 3 and tensor.shape[1] > 1 and tensor.is_floating_point()


def is_vector(tensor: Tensor, batch: int) -> bool:
    """(B, D), or the same with axes of length 1 between."""
    return (
        tensor.dim() >= 2
        and len(tensor) == batch
        and tensor.numel() == batch * tensor.shape[-1]
        and tensor.is_floating_point()
    )


@contextmanager
def watch(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Yields a dict that receives each module's calls, in the order in which modules are first called."""
    seen: dict[str, list[Call]] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args, kwargs, output: seen.setdefault(name, []).append(Call(args, kwargs, output))

    hooks = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


class _Enough(Exception):
    """Ends a forward pass of which the rest is not wanted."""


@contextmanager
def ending_with(module: nn.Module) -> Iterator[list[Call]]:
    """Inside the `with` a model runs no further than to the end of this module's first call, which the list then
    holds.
    """
    seen: list[Call] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append(Call(args, kwargs, output))
        raise _Enough

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with suppress(_Enough):
            yield seen
    finally:
        handle.remove()


@contextmanager
def counted_runs(model: nn.Module, blocks: Sequence[str]) -> Iterator[Counter[str]]:
    """Counts how often each block's forward runs, also where it is not called through the module."""
    counts: Counter[str] = Counter()

    def counting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counting_one(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return forward(*args, **kwargs)

        return counting_one

    modules = {name: model.get_submodule(name) for name in blocks}
    for name, module in modules.items():
        module.forward = counting(name, module.forward)
    try:
        yield counts
    finally:
        for module in modules.values():
            del module.forward


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
    for parameter in trained.values():
        parameter.grad = None
    hooks = [parameter.register_post_accumulate_grad_hook(partial(taken, name)) for name, parameter in trained.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts inside a `with`: each storage once, parameters not at all. What a checkpointed block keeps while it is
    recomputed is outside.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._storages: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an address that is given back and used again would count once

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = storage.nbytes()
            self._alive.append(tensor)
        return tensor


@contextmanager
def attention_logits() -> Iterator[list[Tensor]]:
    """Yields a list that receives (…, N, N) before each softmax: of `scaled_dot_product_attention`, and of a
    softmax over a square of tokens.
    """
    catcher = _Catcher()
    with catcher:
        yield catcher.seen


class _Catcher(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query, key = (
                kwargs[name] if name in kwargs else args[index] for index, name in enumerate(("query", "key"))
            )
            self.seen.append((query @ key.transpose(-1, -2)).detach())  # (…, N, N)
        elif function in (torch.softmax, F.softmax, Tensor.softmax):
            logits = args[0] if args else kwargs["input"]
            if logits.dim() >= 3 and logits.shape[-1] == logits.shape[-2]:
                self.seen.append(logits.detach())
        return function(*args, **kwargs)
