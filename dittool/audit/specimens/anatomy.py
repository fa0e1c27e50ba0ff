"""Where a network's blocks and its modulation are: known of ours, found by running of any other.

A block takes tokens and gives tokens of the same shape, and its residual stands inside of it: with every weight at zero
it returns its input. Where a norm after the residual hides that, a block is what takes or gives the tokens of another
member of its list. Blocks are looked for in lists of modules, then beside them. Those that only see a condition's
tokens, as a caption's refiner, are kept apart. Modulation is what the condition vector feeds inside a block: linear
layers whose input stays when the block's tokens change, and changes with the timestep or another condition. A parameter
that a block holds itself, beside its layers, belongs to the modulation too.

B batch · N tokens · D width
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from dittool.audit.specimens.watching import Call, Inputs, answers_without_gradient, is_tokens, is_vector, watch

_MOST_VECTORS = 12  # of a modulation
_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_LEAST_SHARE = 0.02  # of the parameters: a smaller module outside of every list is no block


@dataclass(frozen=True)
class Anatomy:
    """What was found; names are those of `named_modules`."""

    blocks: tuple[str, ...]  # in the order of the model's forward
    # of each block: its own last linear layers that the condition vector feeds, by their full names
    modulation: dict[str, tuple[str, ...]]
    inner: dict[str, tuple[str, ...]]  # of each block: all linear layers that a vector feeds
    shared: tuple[str, ...]  # linear layers outside of the blocks whose output a block takes as its modulation
    of_conditions: frozenset[str] = field(default_factory=frozenset)  # blocks that the latent does not reach
    why_not: str = ""  # why no blocks were found

    @property
    def of_latent(self) -> tuple[str, ...]:
        """Blocks that the latent's tokens pass through."""
        return tuple(name for name in self.blocks if name not in self.of_conditions)

    @cached_property
    def where(self) -> str:
        """`2 in blocks` for the evidence."""
        return blocks_in_words(self.blocks)


def blocks_in_words(blocks: Sequence[str]) -> str:
    counts = Counter(name.rpartition(".")[0] or name for name in blocks)
    return ", ".join(f"{count} in {name}" for name, count in counts.items())


def alike_blocks(model: nn.Module, blocks: Sequence[str]) -> list[list[str]]:
    """Blocks of one class with the same parts, names and shapes, together."""
    groups: dict[object, list[str]] = {}
    for name in blocks:
        block = model.get_submodule(name)
        shapes = tuple((parameter, tuple(tensor.shape)) for parameter, tensor in block.named_parameters())
        groups.setdefault((modules_in_words(block), shapes), []).append(name)
    return list(groups.values())


def sizes_of_parts(model: nn.Module, blocks: Sequence[str]) -> Counter[str]:
    """Parameters in the blocks, under "", and in each of the model's parts outside of them."""
    inside, sizes = tuple(f"{name}." for name in blocks), Counter[str]()
    for name, parameter in model.named_parameters():
        sizes["" if name.startswith(inside) else name.partition(".")[0]] += parameter.numel()
    return sizes


def modules_in_words(model: nn.Module) -> tuple[tuple[str, type[nn.Module], str], ...]:
    """Name, class and settings of each module."""
    return tuple((name, type(module), module.extra_repr()) for name, module in model.named_modules())


def modulation_tables(block: nn.Module) -> dict[str, nn.Parameter]:
    """Tables of a few vectors that a block or a part of it holds beside its layers, as PixArt's scale_shift_table."""
    tables = {}
    for prefix, module in block.named_modules():
        if (any(module.children()) or module is block) and not isinstance(module, nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if 2 <= parameter.numel() // parameter.shape[-1] <= _MOST_VECTORS < parameter.shape[-1]:
                    tables[f"{prefix}.{name}".lstrip(".")] = parameter
    return tables


@dataclass(frozen=True)
class Runs:
    """Inputs of a model: plain, and with others in the place of the latent, of time, of conditions that come as tokens,
    and of time and all conditions.
    """

    model: nn.Module  # with open gates
    plain: Inputs
    latent: Inputs
    time: Inputs
    texts: Inputs
    conditions: Inputs
    batch: int

    def calls(self, modules: dict[str, nn.Module], inputs: Inputs) -> dict[str, Call]:
        """The first call of each module."""
        with watch(modules, first_only=True) as seen:
            answers_without_gradient(self.model, inputs)
        return {name: calls[0] for name, calls in seen.items()}


def find_anatomy(runs: Runs) -> Anatomy:
    """Blocks and modulation by what they do."""
    modules = dict(runs.model.named_modules())
    members = {
        f"{name}.{child_name}".lstrip("."): child
        for name, module in modules.items()
        if isinstance(module, _LISTS)
        for child_name, child in module.named_children()
        if any(child.children())
    }
    search = _Search(runs, modules)
    branches = search.take(members)
    kinds = {type(modules[name]) for name in search.found}
    search.take({name: modules[name] for name in search.outside() if type(modules[name]) in kinds}, sure=True)
    search.take({name: modules[name] for name in search.outside() if search.is_large(name)}, in_lists=False)
    if search.found:
        return _with_modulation(runs, *search.in_order())
    why = "no list of modules takes tokens (B, N, D) that depend on the latent and gives tokens of the same shape"
    if branches:
        why = f"{', '.join(branches[:2])} … are not called one after another: their residual stands outside of them"
    return Anatomy((), {}, {}, (), why_not=why)


class _Search:
    """Blocks among a model's modules, the outer ones first."""

    def __init__(self, runs: Runs, modules: dict[str, nn.Module]) -> None:
        self._runs, self._modules = runs, modules
        self.found: dict[str, bool] = {}  # whether the latent reaches a block
        self._order: dict[str, int] = {}
        self._all = sum(parameter.numel() for parameter in runs.model.parameters())

    def take(self, candidates: dict[str, nn.Module], sure: bool = False, in_lists: bool = True) -> list[str]:
        """Adds those that are blocks; gives names of those that transform tokens and are none.

        Args:
            sure: they are of a class that is known to be a block's.
            in_lists: they are members of lists; outside of them a residual is asked for.
        """
        plain, latent, texts = (
            self._runs.calls(candidates, given) for given in (self._runs.plain, self._runs.latent, self._runs.texts)
        )
        self._order |= {name: len(self._order) + i for i, name in enumerate(plain) if name not in self._order}
        moved = {name: _moves(plain[name], latent.get(name)) for name in plain}
        transforming = [
            name for name in plain if plain[name].streams and (moved[name] or _moves(plain[name], texts.get(name)))
        ]
        branches: list[str] = []
        residual: dict[object, bool] = {}
        for name in sorted(transforming, key=lambda name: name.count(".")):
            if _inside(name, (*self.found, *branches)):
                continue
            siblings = [other for other in transforming if _parent(other) == _parent(name) and other != name]
            if sure or self._is_block(name, plain, siblings if in_lists else None, residual):
                self.found[name] = moved[name]
            else:
                branches.append(name)
        return branches

    def _is_block(
        self, name: str, plain: dict[str, Call], siblings: list[str] | None, residual: dict[object, bool]
    ) -> bool:
        module, call = self._modules[name], plain[name]
        kind = (type(module), tuple(tensor.shape for tensor in module.parameters()))
        if kind not in residual:
            residual[kind] = _has_residual(module, call)
        in_list = siblings is not None and isinstance(self._modules.get(_parent(name)), (nn.ModuleList, nn.ModuleDict))
        if not residual[kind]:
            chained = any(_linked(call, plain[other]) or _linked(plain[other], call) for other in siblings or ())
            if not chained and (siblings or not in_list):
                return False
        in_a_row = call.streams[0][0].dim() == 3
        return (in_list and in_a_row) or _mixes(module, call)

    def outside(self) -> list[str]:
        """Modules with parts, neither inside of a block nor around one."""
        return [
            name
            for name, module in self._modules.items()
            if name
            and any(module.children())
            and not isinstance(module, _LISTS)
            and name not in self.found
            and not _inside(name, list(self.found))
            and not any(_inside(block, [name]) for block in self.found)
        ]

    def is_large(self, name: str) -> bool:
        own = sum(parameter.numel() for parameter in self._modules[name].parameters())
        return own > _LEAST_SHARE * self._all

    def in_order(self) -> tuple[list[str], frozenset[str]]:
        """Blocks in the order of their first calls, and those that the latent does not reach."""
        calls = self._runs.calls({name: self._modules[name] for name in self.found}, self._runs.plain)
        return list(calls), frozenset(name for name, of_latent in self.found.items() if not of_latent)


def _with_modulation(runs: Runs, blocks: list[str], of_conditions: frozenset[str]) -> Anatomy:
    model = runs.model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    watched = {**linear, **{name: model.get_submodule(name) for name in blocks}}
    plain, timed, conditioned = (runs.calls(watched, given) for given in (runs.plain, runs.time, runs.conditions))

    def input_of(calls: dict[str, Call], name: str) -> Tensor | None:
        return calls[name].tensors[0] if name in calls and calls[name].tensors else None

    def changes(name: str, others: dict[str, Call]) -> bool:
        before, after = input_of(plain, name), input_of(others, name)
        return before is not None and after is not None and (before.shape != after.shape or not before.equal(after))

    def fed(name: str) -> bool:
        """By a vector of conditions, or by one for each token that time is given for."""
        given = input_of(plain, name)
        if given is None:
            return False
        by_conditions = is_vector(given, runs.batch) and changes(name, conditioned)
        return by_conditions or (given.dim() == 3 and changes(name, timed))

    inner = {}
    for block in blocks:
        module, call = model.get_submodule(block), plain[block]
        own = [name for name in linear if _inside(name, [block]) and fed(name)]
        inner[block] = _untouched_by_tokens(module, block, own, call)
    last: dict[str, tuple[str, ...]] = {}
    for first, *others in alike_blocks(model, blocks):
        layers = _last_of_chains(model.get_submodule(first), first, inner[first], plain[first])
        for block in (first, *others):
            last[block] = tuple(f"{block}{name.removeprefix(first)}" for name in layers)
    taken = {_storage(value) for block in blocks if not inner[block] for value in plain[block].tensors}
    outside = [name for name in plain if name in linear and not _inside(name, blocks) and fed(name)]
    shared = tuple(name for name in outside if _storage(plain[name].output) in taken)
    return Anatomy(tuple(blocks), last, inner, shared, of_conditions)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _moves(plain: Call, other: Call | None) -> bool:
    """Whether tokens that a module takes differ between two of its calls."""
    if other is None or len(plain.tensors) != len(other.tensors):
        return other is not None
    pairs = zip(plain.tensors, other.tensors, strict=True)
    return any(is_tokens(a) and (a.shape != b.shape or not torch.equal(a, b)) for a, b in pairs)


def _has_residual(module: nn.Module, call: Call) -> bool:
    """Whether a module with every weight at zero returns the tokens that it takes."""
    try:
        empty = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in empty.parameters():
                parameter.zero_()
            outputs = call.again(empty).outputs
    except Exception:  # it cannot be copied, or divides by a weight
        return False
    taken = [tensor for tensor in call.tensors if is_tokens(tensor)]
    return any(given.shape == tokens.shape and torch.equal(given, tokens) for given in outputs for tokens in taken)


def _mixes(module: nn.Module, call: Call) -> bool:
    """Whether each place's answer depends on far places, as an MLP's or a convolution's does not."""
    tokens = call.streams[0][0]
    axes = range(1, tokens.dim()) if tokens.dim() > 3 else [0 if tokens.shape[0] > tokens.shape[1] else 1]
    for axis in axes:
        moved = tokens.clone()
        last = moved.select(axis, -1)
        last += torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(last)
        with torch.no_grad():
            outputs = call.again(module, {id(tokens): moved}).outputs
        pairs = zip(call.outputs, outputs, strict=True)
        if not any(a.shape == tokens.shape and not torch.equal(a.select(axis, 0), b.select(axis, 0)) for a, b in pairs):
            return False
    return True


def _linked(before: Call, after: Call) -> bool:
    """Whether one call takes tokens that the other gave."""
    return any(
        taken.shape == given.shape and torch.equal(given, taken)
        for _, given in before.streams
        for taken in after.tensors
    )


def _untouched_by_tokens(block: nn.Module, name: str, fed: list[str], call: Call) -> tuple[str, ...]:
    """Those of a block's layers whose input stays when the block's tokens are others: no pooling of the tokens."""
    if not fed:
        return ()
    layers = {layer: block.get_submodule(layer.removeprefix(f"{name}.")) for layer in fed}
    turned = {id(before): before.flip(-1) for before, _ in call.streams}
    taken = []
    for others in ({}, turned):
        with watch(layers, first_only=True) as seen, torch.no_grad():
            call.again(block, others)
        taken.append({layer: calls[0].tensors[0] for layer, calls in seen.items()})
    plain, moved = taken
    return tuple(
        layer for layer in fed if layer in plain and layer in moved and torch.equal(plain[layer], moved[layer])
    )


def _last_of_chains(block: nn.Module, name: str, fed: tuple[str, ...], call: Call) -> tuple[str, ...]:
    """Those of a block's vector-fed layers whose output reaches no other of them: an MLP's first layer is not the
    modulation's last.
    """
    layers = {layer: block.get_submodule(layer.removeprefix(f"{name}.")) for layer in fed}

    def taken() -> dict[str, Tensor]:
        with watch(layers) as seen, torch.no_grad():
            call.again(block)
        return {layer: calls[0].tensors[0] for layer, calls in seen.items()}

    plain, last = taken(), []
    for changed, layer in layers.items():
        with layer.register_forward_hook(lambda _module, _inputs, output: output + 1):
            moved = taken()
        if all(torch.equal(plain[other], moved[other]) for other in plain if other != changed):
            last.append(changed)
    return tuple(last)


def _storage(value: object) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else -1
