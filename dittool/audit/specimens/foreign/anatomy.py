"""Where a foreign model's blocks, modulation and tokens are, found by running it.

Blocks are the members of the longest lists of modules that take tokens and give tokens of the same shape, one after
another, when the tokens depend on the latent. Modulation is what the condition vector feeds inside a block: linear
layers whose input has no token axis and changes with the timestep or another condition. A parameter that a block holds
itself, beside its layers, belongs to the modulation too.

B batch · N tokens · D width
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, alike_blocks
from dittool.audit.specimens.watching import Call, is_tokens, is_vector, watch


def find_anatomy(model: nn.Module, runs: Sequence[Any], forward: Any) -> Anatomy:
    """Blocks and modulation of a model with open gates.

    Args:
        runs: three inputs: one, the same with another latent, the same with another time and other conditions.
        forward: runs the model on inputs.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    }
    members = {
        f"{name}.{i}" if name else str(i): child
        for name, one in lists.items()
        for i, child in enumerate(one)
        if any(child.children())
    }
    plain, other_latent = (_calls(model, members, forward, inputs) for inputs in runs[:2])
    found: list[str] = []
    branches: list[str] = []
    for name in lists:
        if any(name.startswith(f"{seen}.") for seen in (*found, *branches)):
            continue
        own = [
            one
            for one in members
            if one.rpartition(".")[0] == name and _transforms(plain.get(one), other_latent.get(one))
        ]
        if isinstance(lists[name], nn.Sequential) and not any(_mixes(members[one], plain[one][0]) for one in own):
            continue  # an embedding's or an MLP's
        (found if _chained([plain[one][0] for one in own]) else branches).extend(own)
    found = [name for name in plain if name in found]  # in calling order
    kinds = {type(members[name]) for name in found}
    alone = {name: module for name, module in model.named_modules() if type(module) in kinds and name not in found}
    alone = {name: module for name, module in alone.items() if not any(name.startswith(f"{block}.") for block in found)}
    if alone:
        calls, others = (_calls(model, alone, forward, inputs) for inputs in runs[:2])
        found += [name for name in calls if _transforms(calls[name], others.get(name))]
    if not found:
        outside = (
            f"{', '.join(branches[:2])} … are not called one after another: their residual stands outside of them"
            if branches
            else ""
        )
        why = (
            outside
            or "no list of modules takes tokens (B, N, D) that depend on the latent and gives tokens of the same shape"
        )
        return Anatomy((), {}, {}, (), why_not=why)
    return _with_modulation(model, found, runs, forward)


def _with_modulation(model: nn.Module, blocks: list[str], runs: Sequence[Any], forward: Any) -> Anatomy:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    watched = {**linear, **{name: model.get_submodule(name) for name in blocks}}
    plain, latent, conditioned = (_calls(model, watched, forward, inputs) for inputs in runs)
    batch = len(plain[blocks[0]][0].tensors[0])

    def fed_by_conditions(name: str) -> bool:
        if name not in plain or name not in conditioned or not plain[name][0].tensors:
            return False
        a, b, c = (run[name][0].tensors[0] for run in (plain, conditioned, latent))
        return is_vector(a, batch) and not torch.equal(a, b) and torch.equal(a, c)

    vectors = [name for name in plain if name in linear and fed_by_conditions(name)]
    inner = {block: tuple(name for name in vectors if name.startswith(f"{block}.")) for block in blocks}
    last: dict[str, tuple[str, ...]] = {}
    for alike in alike_blocks(model, blocks).values():
        first = _last_of_chains(model.get_submodule(alike[0]), alike[0], inner[alike[0]], plain[alike[0]][0])
        for block in alike:
            last[block] = tuple(f"{block}{name.removeprefix(alike[0])}" for name in first)
    storages = {_storage(value) for block in blocks if not inner[block] for value in plain[block][0].tensors}
    shared = tuple(
        name
        for name in vectors
        if _storage(plain[name][0].output) in storages and not any(name.startswith(f"{b}.") for b in blocks)
    )
    return Anatomy(tuple(blocks), last, inner, shared, *_latent_tokens(plain[blocks[0]][0], latent[blocks[0]][0]))


def _latent_tokens(call: Call, other_latent: Call) -> tuple[int, int, int, int]:
    """(tokens, before, after, stream) of `Anatomy`, from two calls of the first block under different latents."""
    for stream, ((one, _), (other, _)) in enumerate(zip(call.streams, other_latent.streams, strict=True)):
        reached = (one - other).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        if reached:
            together = reached[-1] - reached[0] + 1 == len(reached)
            return len(reached) if together else 0, reached[0], one.shape[1] - reached[-1] - 1, stream
    return 0, 0, 0, 0


def _calls(model: nn.Module, modules: dict[str, nn.Module], forward: Any, inputs: Any) -> dict[str, list[Call]]:
    with watch(modules) as seen, torch.no_grad():
        forward(model, inputs)
    return seen


def _transforms(calls: list[Call] | None, others: list[Call] | None) -> bool:
    """Whether a module takes tokens that depend on the latent and gives as many of the same width."""
    if not calls or not others or len(calls[0].tensors) != len(others[0].tensors):
        return False
    depends = any(
        is_tokens(a) and not torch.equal(a, b)
        for a, b in zip(calls[0].tensors, others[0].tensors, strict=True)
        if a.shape == b.shape
    )
    return depends and bool(calls[0].streams)


def _mixes(module: nn.Module, call: Call) -> bool:
    """Whether a token's answer depends on another token, as an MLP's does not."""
    tokens = call.streams[0][0]
    moved = tokens.clone()
    moved[:, -1] += 1

    def swapped(value: Any) -> Any:
        return moved if value is tokens else value

    other = Call(tuple(map(swapped, call.args)), {name: swapped(value) for name, value in call.kwargs.items()}, None)
    with torch.no_grad():
        answers = zip(call.outputs, other.again(module).outputs, strict=True)
    return any(is_tokens(one) and not torch.equal(one[:, :-1], two[:, :-1]) for one, two in answers)


def _chained(calls: list[Call]) -> bool:
    """Whether each call takes what the one before gave."""

    def follows(before: Call, call: Call) -> bool:
        return any(
            torch.equal(after, value)
            for _, after in before.streams
            for value in call.tensors
            if value.shape == after.shape
        )

    return all(follows(before, call) for before, call in pairwise(calls))


def _last_of_chains(block: nn.Module, name: str, fed: tuple[str, ...], call: Call) -> tuple[str, ...]:
    """Those of a block's vector-fed layers whose output reaches no other of them: an MLP's first layer is not the
    modulation's last.
    """
    layers = {one: block.get_submodule(one.removeprefix(f"{name}.")) for one in fed}
    last = []
    for one, layer in layers.items():
        with watch({other: module for other, module in layers.items() if other != one}) as plain, torch.no_grad():
            call.again(block)
        moved = layer.register_forward_hook(lambda _module, _inputs, output: output + 1)
        with watch({other: module for other, module in layers.items() if other != one}) as shifted, torch.no_grad():
            call.again(block)
        moved.remove()
        if all(torch.equal(plain[other][0].tensors[0], shifted[other][0].tensors[0]) for other in plain):
            last.append(one)
    return tuple(last)


def _storage(tensor: Any) -> int:
    return tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else -1
