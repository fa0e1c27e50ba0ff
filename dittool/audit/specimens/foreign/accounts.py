"""What a block is made of and what it does in one run of its model, in a form in which two blocks can be compared.

An account has a structure, which must be equal, and numbers, which may also count the blocks: a block that knows its
own index, or drops paths at a rate that grows with depth, is like its neighbours in everything else.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.leaves import leaves
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.watching import Call, CallsOfTorch, Inputs, answers_without_gradient, hooked

_DEEPEST = 5  # nesting of a block's attributes
_LARGEST_READ = 1 << 20  # values of a buffer that are compared; a larger one is like no other
_PLAIN = (bool, str, bytes, complex, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


@dataclass(frozen=True)
class Account:
    """Two with equal structures have equally many numbers, in the same order."""

    structure: Hashable
    numbers: tuple[float, ...]


class _Writer:
    """Describes values; their numbers are kept apart."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def account(self, *parts: Hashable) -> Account:
        return Account(parts, tuple(self.numbers))

    def of(self, value: Any, depth: int = 0) -> Hashable:
        if isinstance(value, _PLAIN):
            return type(value).__name__, value
        if isinstance(value, (int, float)):
            self.numbers.append(float(value))
            return type(value).__name__
        if isinstance(value, Tensor):
            return tuple(value.shape), value.dtype
        if isinstance(value, slice):
            return "slice", *(self.of(part, depth) for part in (value.start, value.stop, value.step))
        if isinstance(value, type):
            return value.__qualname__, id(value)
        if inspect.isroutine(value):
            code, cells = getattr(value, "__code__", None), getattr(value, "__closure__", None) or ()
            held = tuple(self.of(cell.cell_contents, depth + 1) for cell in cells if depth <= _DEEPEST)
            return getattr(value, "__qualname__", repr(value)), id(code) if code else 0, held
        kind = type(value).__qualname__
        if depth > _DEEPEST or isinstance(value, nn.Module):
            return kind
        if isinstance(value, (list, tuple)):
            return kind, *(self.of(part, depth + 1) for part in value)
        if isinstance(value, Mapping):
            return kind, *((str(key), self.of(part, depth + 1)) for key, part in value.items())
        if isinstance(value, partial):
            return kind, self.of(value.func, depth + 1), self.of([value.args, value.keywords], depth + 1)
        if isinstance(value, (set, frozenset)):
            return kind, *sorted(map(repr, value))
        return kind, self.of(getattr(value, "__dict__", None), depth + 1)

    def of_values(self, tensor: Tensor) -> Hashable:
        """Of a tensor whose values count."""
        if tensor.numel() > _LARGEST_READ or tensor.is_meta:
            return "like no other", id(tensor)
        values = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return tuple(tensor.shape), tensor.dtype, hash(values)


def owners_of(model: nn.Module) -> Counter[int]:
    """Under how many names each module and each parameter stands in a model, by its id."""
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return modules + Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))


def account_of_parts(block: nn.Module, owners: Counter[int], closed: Collection[int]) -> Account:
    """Its modules, their attributes and hooks, shapes of their parameters and which of these are zero or held by others
    too, and the values of their buffers. `closed` are the ids of those that are.
    """
    writer, parts = _Writer(), []
    for name, module in block.named_modules(remove_duplicate=False):
        own = vars(module)
        plain = {key: value for key, value in own.items() if key not in ("_parameters", "_buffers", "_modules")}
        hooks = {key: list(value.values()) for key, value in plain.items() if key.endswith(_HOOKS) and value}
        tensors = {key: writer.of_values(value) for key, value in plain.items() if isinstance(value, Tensor)}
        rest = {key: value for key, value in plain.items() if not key.endswith(_HOOKS) and key not in tensors}
        parameters = {key: _of_parameter(value, owners, closed) for key, value in own["_parameters"].items()}
        buffers = {key: None if value is None else writer.of_values(value) for key, value in own["_buffers"].items()}
        held = (tuple(each.items()) for each in (parameters, buffers, tensors))
        kind = type(module).__base__ if hasattr(module, "parametrizations") else type(module)
        parts.append((name, writer.of(kind), tuple(own["_modules"]), *held, writer.of(rest), writer.of(hooks)))
    return writer.account(*parts)


def _of_parameter(parameter: Tensor | None, owners: Counter[int], closed: Collection[int]) -> Hashable:
    if parameter is None:
        return None
    kind = tuple(parameter.shape), parameter.dtype, parameter.requires_grad
    return kind, id(parameter) in closed, owners[id(parameter)]


@dataclass
class Run:
    """One run of a model, with what each of its blocks was asked and did."""

    steps: list[tuple[str, Account]] = field(default_factory=list)  # calls of torch: in which block ("": in none), what
    lead: dict[str, list[Account]] = field(default_factory=dict)  # of each block: calls between the block before and it
    calls: dict[str, list[Call]] = field(default_factory=dict)  # of each block, in the order of first calls

    def outside(self, blocks: Mapping[str, object]) -> list[tuple[str, Account]]:
        """The calls of torch that were made in none of these blocks."""
        return [(where, step) for where, step in self.steps if where not in blocks]

    def account(self, block: str, label: Mapping[tuple[str, int], Hashable], arguments: Inputs) -> Account:
        """What a block did; `label` says of a tensor that it was given who else was given it, by argument and id."""
        steps = [*self.lead[block], *(step for where, step in self.steps if where == block)]
        writer = _Writer()
        given = writer.of(arguments)
        shared = tuple((name, label[name, _address(tensor)]) for name, tensor in leaves(arguments).items())
        returned = writer.of(self.calls[block][0].output)
        numbers = [number for step in steps for number in step.numbers]
        return Account((given, shared, returned, *(step.structure for step in steps)), (*writer.numbers, *numbers))


def labels(arguments: Mapping[str, Inputs]) -> dict[tuple[str, int], Hashable]:
    """Of each tensor that blocks are given under one name: whether most of them are given it, some, or one alone."""
    counts = Counter((name, _address(tensor)) for given in arguments.values() for name, tensor in leaves(given).items())
    groups: dict[str, list[int]] = {}
    for (name, _), count in counts.items():
        groups.setdefault(name, []).append(count)

    def label(key: tuple[str, int], count: int) -> Hashable:
        of_name = sorted(groups[key[0]])
        if count == 1:
            return "alone"
        return "common" if count == of_name[-1] and of_name[-2:] != [count, count] else key

    return {key: label(key, count) for key, count in counts.items()}


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


class _Watcher(CallsOfTorch):
    def __init__(self) -> None:
        super().__init__()
        self.run = Run()
        self._inside: list[str] = []  # blocks that are running, the outermost first
        self._since: list[Account] = []  # calls of torch since the block before

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        name = getattr(function, "__name__", "")
        if name != "__get__":
            writer = _Writer()
            step = writer.account(name, writer.of(args), writer.of(kwargs))
            self.run.steps.append((self._inside[0] if self._inside else "", step))
            if not self._inside:
                self._since.append(step)
        return function(*args, **kwargs)

    def enter(self, name: str, *_call: object) -> None:
        if not self._inside:
            self.run.lead[name], self._since = self._since, []
        self._inside.append(name)

    def leave(self, name: str, _module: nn.Module, *call: Any) -> None:
        self._inside.pop()
        self.run.calls.setdefault(name, []).append(Call(*call))


def run_watched_blocks(model: nn.Module, blocks: Sequence[str], inputs: Inputs) -> Run:
    """Raises whatever the model does."""
    watcher = _Watcher()
    modules = {name: part_of(model, name) for name in blocks}
    before = (
        module.register_forward_pre_hook(partial(_entering, watcher, name), prepend=True)
        for name, module in modules.items()
    )
    after = (
        module.register_forward_hook(partial(watcher.leave, name), with_kwargs=True) for name, module in modules.items()
    )
    with hooked(before), hooked(after), watcher:
        answers_without_gradient(model, inputs)
    return watcher.run


def _entering(watcher: _Watcher, name: str, *_call: object) -> None:
    watcher.enter(name)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Behind the `with` a model's modes, its buffers, and which of its parameters are trained are as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
