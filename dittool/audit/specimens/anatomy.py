"""Where a network's blocks and its modulation are: known of ours, found by running of any other.

A block takes tokens and gives tokens of the same shape, and its residual stands inside of it: with every weight at zero
it returns its input. Where a norm after the residual hides that, a block is what takes or gives the tokens of another
member of its list. Blocks are looked for in lists of modules, then beside them. One that takes tokens in rows and
columns, and mixes near places alone, as a convolution does, is a block where a condition feeds it; so is a member of a
list that gives other channels or fewer places and is no linear map of its tokens. Where there are no others, those that
no condition feeds are taken too, and last members of lists whose answer is added to their tokens behind them: the
residual of attention and of MLP then stands outside of both. Those that only see a condition's tokens, as a caption's
refiner, are kept apart. Modulation is what the condition vector feeds inside a block: layers whose input stays when the
block's tokens change, and changes with the timestep or another condition. A parameter that a block holds itself, beside
its layers, belongs to the modulation too.

B batch · N tokens · D width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from dittool.audit.specimens.one_call import (
    MOST_VECTORS,
    added_before,
    has_residual,
    is_fed,
    linked,
    mixes,
    moves,
    not_linear,
)
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.watching import Call, Inputs, answers_without_gradient, is_vector, watch

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
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
    branches: frozenset[str] = field(default_factory=frozenset)  # blocks whose residual stands outside of them
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
        block = part_of(model, name)
        shapes = tuple((parameter, tuple(tensor.shape)) for parameter, tensor in block.named_parameters())
        groups.setdefault((modules_in_words(block), shapes), []).append(name)
    return list(groups.values())


def kind_of_block(block: nn.Module) -> tuple[str, ...]:
    """Its class and the names of its parameters."""
    return type(block).__name__, *(name for name, _ in block.named_parameters())


def modules_in_words(model: nn.Module) -> tuple[tuple[str, type[nn.Module], str], ...]:
    """Name, class and settings of each module."""
    return tuple((name, type(module), module.extra_repr()) for name, module in model.named_modules())


def modulation_tables(block: nn.Module) -> dict[str, nn.Parameter]:
    """Tables of a few vectors that a block or a part of it holds beside its layers, as PixArt's scale_shift_table."""
    tables = {}
    for prefix, module in block.named_modules():
        if (any(module.children()) or module is block) and not isinstance(module, nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if 2 <= parameter.numel() // parameter.shape[-1] <= MOST_VECTORS < parameter.shape[-1]:
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
    parameters: int  # of the model at its real size
    stands_for: Mapping[str, str] = field(default_factory=dict)  # of blocks that hand on their tokens an equal one

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
    search.take_reshaping({name: module for name, module in members.items() if name in search.outside()})
    if not search.found:
        branches = search.take(members, fed_alone=False)
    added = frozenset() if search.found else search.take_added(branches)
    if search.found:
        return replace(_with_modulation(runs, *search.in_order()), branches=added)
    why = "no list of modules takes tokens that depend on the latent and gives tokens of the same shape"
    if branches:
        why = f"{', '.join(branches[:2])} … are not called one after another: their residual stands outside of them"
    return Anatomy((), {}, {}, (), why_not=why)


class _Search:
    """Blocks among a model's modules, the outer ones first."""

    def __init__(self, runs: Runs, modules: dict[str, nn.Module]) -> None:
        self._runs, self._modules = runs, modules
        self.found: dict[str, bool] = {}  # whether the latent reaches a block
        self._fed_of: dict[frozenset[str], set[str]] = {}  # of candidates those that a condition feeds
        self._order: dict[str, int] = {}

    def take(
        self, candidates: dict[str, nn.Module], sure: bool = False, in_lists: bool = True, fed_alone: bool = True
    ) -> list[str]:
        """Adds those that are blocks; gives names of those that transform tokens and are none.

        Args:
            sure: they are of a class that is known to be a block's.
            in_lists: they are members of lists; outside of them a residual is asked for.
            fed_alone: of those that mix near places alone, they are blocks where a condition feeds them.
        """
        plain, latent, texts = (
            self._runs.calls(candidates, given) for given in (self._runs.plain, self._runs.latent, self._runs.texts)
        )
        self._order |= {name: len(self._order) + i for i, name in enumerate(plain) if name not in self._order}
        moved = {name: moves(plain[name], latent.get(name)) for name in plain}
        transforming = [
            name for name in plain if plain[name].streams and (moved[name] or moves(plain[name], texts.get(name)))
        ]
        branches: list[str] = []
        residual: dict[object, bool] = {}
        for name in sorted(transforming, key=lambda name: name.count(".")):
            if _inside(name, (*self.found, *branches)):
                continue
            siblings = [other for other in transforming if _parent(other) == _parent(name) and other != name]
            local = plain if not fed_alone else {} if sure else self._fed(candidates, plain)
            if sure or self._is_block(name, plain, siblings if in_lists else None, residual, name in local):
                self.found[name] = moved[name]
            else:
                branches.append(name)
        return branches

    def take_reshaping(self, candidates: dict[str, nn.Module]) -> None:
        """Adds members of lists that a condition feeds, and that give other channels or fewer places than they take."""
        plain, latent = (self._runs.calls(candidates, given) for given in (self._runs.plain, self._runs.latent))
        fed = self._fed(candidates, plain)
        for name, call in sorted(plain.items(), key=lambda item: item[0].count(".")):
            if call.streams or not call.carried or name not in fed or not moves(call, latent.get(name)):
                continue
            if _inside(name, list(self.found)) or not_linear(call, self._modules[name]) == 0:
                continue
            if not self._is_last_layer(call):
                self.found[name] = True
                self._order.setdefault(name, len(self._order))

    def take_added(self, branches: list[str]) -> frozenset[str]:
        """Adds those whose answer is added to what they take before the next of them takes the sum."""
        modules = {name: self._modules[name] for name in branches}
        plain, latent = (self._runs.calls(modules, given) for given in (self._runs.plain, self._runs.latent))
        pairs = [(name, other) for name in plain for other in plain if name != other]
        taken = [pair for pair in pairs if added_before(*map(plain.__getitem__, pair))]
        added = {name for pair in taken for name in pair}
        self.found |= {name: moves(plain[name], latent.get(name)) for name in plain if name in added}
        return frozenset(added)

    def _is_last_layer(self, call: Call) -> bool:
        """Whether what it gives is the model's answer, merely laid out otherwise: no block, in whichever list."""
        answered = answers_without_gradient(self._runs.model, self._runs.plain)
        varied = [answer for answer in answered if answer.min() < answer.max()]
        return any(bool(torch.isin(answer, given).all()) for answer in varied for given in call.outputs)

    def _fed(self, candidates: dict[str, nn.Module], plain: dict[str, Call]) -> set[str]:
        """Those that take a vector, or a few, of a condition beside their tokens."""
        if frozenset(candidates) not in self._fed_of:
            other = self._runs.calls(candidates, self._runs.conditions)
            self._fed_of[frozenset(candidates)] = {
                name
                for name, call in plain.items()
                if name in other and is_fed(self._modules[name], call, other[name], self._runs.batch)
            }
        return self._fed_of[frozenset(candidates)]

    def _is_block(
        self,
        name: str,
        plain: dict[str, Call],
        siblings: list[str] | None,
        residual: dict[object, bool],
        though_local: bool,
    ) -> bool:
        module, call = self._modules[name], plain[name]
        kind = (type(module), tuple(tensor.shape for tensor in module.parameters()))
        if kind not in residual:
            residual[kind] = has_residual(module, call)
        in_list = siblings is not None and isinstance(self._modules.get(_parent(name)), (nn.ModuleList, nn.ModuleDict))
        if not residual[kind]:
            chained = any(linked(call, plain[other]) or linked(plain[other], call) for other in siblings or ())
            if not chained and (siblings or not in_list):
                return False
        in_a_row = call.streams[0][0].dim() == 3
        return (in_list and in_a_row) or (residual[kind] and though_local) or mixes(module, call)

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
        return own > _LEAST_SHARE * self._runs.parameters

    def in_order(self) -> tuple[list[str], frozenset[str]]:
        """Blocks in the order of their first calls, and those that the latent does not reach."""
        stands_for = self._runs.stands_for
        found = self.found | {name: self.found[kept] for name, kept in stands_for.items() if kept in self.found}
        calls = self._runs.calls({name: self._modules[name] for name in found}, self._runs.plain)
        return list(calls), frozenset(name for name, of_latent in found.items() if not of_latent)


def _with_modulation(runs: Runs, blocks: list[str], of_conditions: frozenset[str]) -> Anatomy:
    model = runs.model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    watched = {**linear, **{name: part_of(model, name) for name in blocks}}
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
        of_each_token = given.dim() == 3 and isinstance(linear[name], nn.Linear)
        return by_conditions or (of_each_token and changes(name, timed))

    def of_tokens(name: str, rows: Set[int]) -> bool:
        """Whether what is no vector has a row for each of a block's tokens: a text that time has modulated has not."""
        given = input_of(plain, name)
        return given is not None and (is_vector(given, runs.batch) or given.dim() != 3 or given.shape[1] in rows)

    inner: dict[str, tuple[str, ...]] = {}
    kept = [block for block in blocks if block not in runs.stands_for]
    for block in kept:
        module, call = part_of(model, block), plain[block]
        rows = {tokens.shape[1] for tokens in call.carried}
        own = [name for name in linear if _inside(name, [block]) and fed(name) and of_tokens(name, rows)]
        inner[block] = _untouched_by_tokens(module, block, own, call)
    last: dict[str, tuple[str, ...]] = {}
    for first, *others in alike_blocks(model, kept):
        layers = _last_of_chains(part_of(model, first), first, inner[first], plain[first])
        for block in (first, *others):
            last[block] = tuple(f"{block}{name.removeprefix(first)}" for name in layers)
    for block, equal in runs.stands_for.items():
        for found in (inner, last) if equal in inner else ():
            found[block] = tuple(f"{block}{name.removeprefix(equal)}" for name in found[equal])
    taken = {_storage(value) for block in blocks if not inner[block] for value in plain[block].tensors}
    outside = [name for name in plain if name in linear and not _inside(name, blocks) and fed(name)]
    shared = tuple(name for name in outside if _storage(plain[name].output) in taken)
    return Anatomy(tuple(blocks), last, inner, shared, of_conditions)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _untouched_by_tokens(block: nn.Module, name: str, fed: list[str], call: Call) -> tuple[str, ...]:
    """Those of a block's layers whose input stays when the block's tokens are others: no pooling of the tokens."""
    if not fed:
        return ()
    layers = {layer: part_of(block, layer.removeprefix(f"{name}.")) for layer in fed}
    turned = {id(before): before.flip(-1) for before in call.carried}
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
    layers = {layer: part_of(block, layer.removeprefix(f"{name}.")) for layer in fed}

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
