"""Where a network's blocks, its modulation and its tokens are: known of ours, found by running of any other.

Blocks are the members of the longest lists of modules that take tokens and give tokens of the same shape, one after
another, when the tokens depend on the latent. Modulation is what the condition vector feeds inside a block: linear
layers whose input has no token axis and changes with the timestep or another condition. A parameter that a block holds
itself, beside its layers, belongs to the modulation too.

B batch · N tokens · D width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from dittool.audit.specimens.watching import Call, Inputs, answer_without_gradient, is_tokens, is_vector, watch

_MOST_VECTORS = 12  # of a modulation


@dataclass(frozen=True)
class Anatomy:
    """What was found; names are those of `named_modules`."""

    blocks: tuple[str, ...]  # in the order of the model's forward
    # of each block: its own last linear layers that the condition vector feeds, by their full names
    modulation: dict[str, tuple[str, ...]]
    inner: dict[str, tuple[str, ...]]  # of each block: all linear layers that a vector feeds
    shared: tuple[str, ...]  # linear layers outside of the blocks whose output a block takes as its modulation
    tokens: int = 0  # of the latent in the first block's sequence; 0 when they do not stand together
    before: int = 0  # other tokens of that sequence in front of them …
    after: int = 0  # … and behind them
    stream: int = 0  # which of the first block's streams of tokens it is
    why_not: str = ""  # why no blocks were found

    def latent_tokens(self, call: Call) -> Tensor:
        """(B, N, D): the latent's tokens as the first block takes them in a call."""
        tokens = call.streams[self.stream][0]
        return tokens[:, self.before : tokens.shape[1] - self.after]

    @cached_property
    def where(self) -> str:
        """`2 in blocks` for the evidence."""
        counts = Counter(name.rpartition(".")[0] or name for name in self.blocks)
        return ", ".join(f"{count} in {name}" for name, count in counts.items())


def alike_blocks(model: nn.Module, blocks: Sequence[str]) -> list[list[str]]:
    """Blocks of one class with the same parts, names and shapes, together."""
    groups: dict[object, list[str]] = {}
    for name in blocks:
        block = model.get_submodule(name)
        shapes = tuple((parameter, tuple(tensor.shape)) for parameter, tensor in block.named_parameters())
        groups.setdefault((modules_in_words(block), shapes), []).append(name)
    return list(groups.values())


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
    """Three inputs of a model: plain, with the latent exchanged, with time and other conditions exchanged."""

    model: nn.Module  # with open gates
    plain: Inputs
    latent: Inputs
    conditions: Inputs

    def calls(self, modules: dict[str, nn.Module], inputs: Inputs) -> dict[str, Call]:
        """The first call of each module."""
        with watch(modules) as seen:
            answer_without_gradient(self.model, inputs)
        return {name: calls[0] for name, calls in seen.items()}


def find_anatomy(runs: Runs) -> Anatomy:
    """Blocks and modulation by what they do."""
    modules = dict(runs.model.named_modules())
    lists = {name: module for name, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential))}
    members = {
        f"{name}.{i}".lstrip("."): child
        for name, members in lists.items()
        for i, child in enumerate(members)
        if any(child.children())
    }
    plain, transforming = _transforming(runs, members)
    found: list[str] = []
    branches: list[str] = []
    for name in lists:
        if _inside(name, (*found, *branches)):
            continue
        own = [member for member in members if member in transforming and member.rpartition(".")[0] == name]
        if isinstance(lists[name], nn.Sequential) and not any(_mixes(members[member], plain[member]) for member in own):
            continue  # an embedding's or an MLP's
        (found if _chained([plain[member] for member in own]) else branches).extend(own)
    found = [name for name in plain if name in found]  # in calling order
    kinds = {type(members[name]) for name in found}
    outside = [name for name in modules if name not in found and not _inside(name, found)]
    if alone := {name: modules[name] for name in outside if type(modules[name]) in kinds}:
        found += _transforming(runs, alone)[1]
    if found:
        return _with_modulation(runs, found)
    why = "no list of modules takes tokens (B, N, D) that depend on the latent and gives tokens of the same shape"
    if branches:
        why = f"{', '.join(branches[:2])} … are not called one after another: their residual stands outside of them"
    return Anatomy((), {}, {}, (), why_not=why)


def _with_modulation(runs: Runs, blocks: list[str]) -> Anatomy:
    model = runs.model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    watched = {**linear, **{name: model.get_submodule(name) for name in blocks}}
    plain, latent, conditioned = (runs.calls(watched, given) for given in (runs.plain, runs.latent, runs.conditions))
    batch = len(plain[blocks[0]].tensors[0])

    def fed_by_conditions(name: str) -> bool:
        if name not in plain or name not in conditioned or not plain[name].tensors:
            return False
        a, b, c = (calls[name].tensors[0] for calls in (plain, conditioned, latent))
        return is_vector(a, batch) and not torch.equal(a, b) and torch.equal(a, c)

    vectors = [name for name in plain if name in linear and fed_by_conditions(name)]
    inner = {block: tuple(name for name in vectors if _inside(name, [block])) for block in blocks}
    last: dict[str, tuple[str, ...]] = {}
    for first, *others in alike_blocks(model, blocks):
        layers = _last_of_chains(model.get_submodule(first), first, inner[first], plain[first])
        for block in (first, *others):
            last[block] = tuple(f"{block}{name.removeprefix(first)}" for name in layers)
    storages = {_storage(value) for block in blocks if not inner[block] for value in plain[block].tensors}
    shared = tuple(name for name in vectors if _storage(plain[name].output) in storages and not _inside(name, blocks))
    return Anatomy(tuple(blocks), last, inner, shared, *_latent_tokens(plain[blocks[0]], latent[blocks[0]]))


def _inside(name: str, modules: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _latent_tokens(call: Call, other_latent: Call) -> tuple[int, int, int, int]:
    """(tokens, before, after, stream) of `Anatomy`, from two calls of the first block under different latents."""
    for stream, ((tokens, _), (moved, _)) in enumerate(zip(call.streams, other_latent.streams, strict=True)):
        reached = (tokens - moved).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        if reached:
            together = reached[-1] - reached[0] + 1 == len(reached)
            return len(reached) if together else 0, reached[0], tokens.shape[1] - reached[-1] - 1, stream
    return 0, 0, 0, 0


def _transforming(runs: Runs, modules: dict[str, nn.Module]) -> tuple[dict[str, Call], list[str]]:
    """The modules' calls, and names of those that take tokens that depend on the latent and give as many of the same
    width.
    """
    plain, latent = (runs.calls(modules, inputs) for inputs in (runs.plain, runs.latent))

    def transforms(name: str) -> bool:
        if name not in latent or len(plain[name].tensors) != len(latent[name].tensors):
            return False
        pairs = zip(plain[name].tensors, latent[name].tensors, strict=True)
        depends = any(is_tokens(a) and a.shape == b.shape and not torch.equal(a, b) for a, b in pairs)
        return depends and bool(plain[name].streams)

    return plain, [name for name in plain if transforms(name)]


def _mixes(module: nn.Module, call: Call) -> bool:
    """Whether a token's answer depends on another token, as an MLP's does not."""
    tokens = call.streams[0][0]
    moved = tokens.clone()
    moved[:, -1] += 1
    with torch.no_grad():
        outputs = call.again(module, lambda value: moved if value is tokens else value).outputs
    pairs = zip(call.outputs, outputs, strict=True)
    return any(is_tokens(before) and not torch.equal(before[:, :-1], after[:, :-1]) for before, after in pairs)


def _chained(calls: list[Call]) -> bool:
    """Whether each call takes what the one before gave."""
    return all(
        any(
            torch.equal(given, taken)
            for _, given in before.streams
            for taken in call.tensors
            if taken.shape == given.shape
        )
        for before, call in pairwise(calls)
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
