"""A copy of a large model in which one block stands for several equal ones.

Structure can be judged on it in a fraction of the time and memory. Blocks of a list are equal when they are made of the
same (classes, attributes, shapes, hooks, buffers), and when in a run of the whole model, in evaluation mode and in
training mode, they are called in the same way, after the same steps, and ask the same of torch. Of equal blocks the
first and the last are kept. Each other one stays in its place, and hands its tokens on: whoever counts blocks, pairs
the first with the last or gives each its own part of a table finds all of them. The copy is run: outside of the blocks
that hand on it must do, step by step, what the whole model does. Otherwise there is none.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.accounts import (
    Account,
    Run,
    account_of_parts,
    as_it_was,
    labels,
    owners_of,
    run_watched_blocks,
)
from dittool.audit.specimens.gates import is_closed
from dittool.audit.specimens.leaves import leaves
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.watching import Inputs

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_LEAST_ALIKE = 4  # blocks of a kind, below which all are kept


@dataclass(frozen=True)
class FewerBlocks:
    """A copy, which shares the weights of its blocks with the whole model."""

    model: nn.Module
    stands_for: dict[str, str]  # of each block that hands its tokens on: the equal one that is kept
    handing: dict[str, _Handing]
    blocks: int  # of all lists from which blocks were taken
    trains: bool  # whether the whole model ran in training mode
    closed: tuple[str, ...]  # its parameters that are zero throughout, or nearly

    @property
    def note(self) -> str:
        kept = self.blocks - len(self.stands_for)
        return f" (on a copy with {kept} of its {self.blocks} blocks; each of the others is equal to one of these)"

    def with_equals(self, parameters: Collection[str]) -> set[str]:
        """Names of parameters, with those of equal blocks."""
        equal = {
            f"{block}.{name.removeprefix(f'{kept}.')}"
            for block, kept in self.stands_for.items()
            for name in parameters
            if name.startswith(f"{kept}.")
        }
        return {*parameters, *equal}

    def with_inner_runs(self, counts: Counter[str]) -> Counter[str]:
        """Runs of modules, with those inside of blocks that hand on, where not the block itself runs again."""
        more = Counter[str]()
        for block, kept in self.stands_for.items():
            inner = {name: count for name, count in counts.items() if name.startswith(f"{kept}.") and count}
            for name, count in inner.items() if not counts[block] and not counts[kept] else ():
                more[f"{block}.{name.removeprefix(f'{kept}.')}"] = count
        return more | counts

    def of(self, other: nn.Module) -> nn.Module:
        """Another model that is built as the whole one is, with fewer blocks; itself where it has others."""
        try:
            blocks = {name: part_of(other, name) for name in self.stands_for}
        except AttributeError:
            return other
        shells = {name: _shell(block, self.handing[name]) for name, block in blocks.items()}
        return _with_shells(other, shells, list(other.parameters()))


def with_fewer_blocks(whole: nn.Module, inputs: Inputs) -> FewerBlocks | None:
    """None where no blocks are equal, or where the copy does not do as the model does."""
    names = _members(whole)
    if not names:
        return None
    try:
        runs, closed = _runs(whole, names, inputs), _closed(whole)
        handing, stands_for = _taken_out(whole, names, runs, {id(parameter) for parameter in closed.values()})
        shells = {name: _shell(part_of(whole, name), hands) for name, hands in handing.items()}
        shared = [parameter for name, parameter in whole.named_parameters() if name not in closed]
        short = _with_shells(whole, shells, shared)
        again = _runs(short, names, inputs)
    except Exception:  # it cannot be copied, or counts on what its blocks hold
        return None
    proven = [run.outside(shells) for run in runs] == [run.outside(shells) for run in again]
    if not (shells and proven):
        return None
    return FewerBlocks(short, stands_for, handing, len(names), len(runs) > 1, tuple(closed))


def _closed(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if is_closed(parameter)}


def _runs(model: nn.Module, names: Sequence[str], inputs: Inputs) -> list[Run]:
    """In evaluation mode, and in training mode where its code runs in that."""
    with as_it_was(model):
        found = [run_watched_blocks(model, names, inputs)]
        with suppress(Exception):
            found.append(run_watched_blocks(model.train(), names, inputs))
    return found


def _taken_out(
    whole: nn.Module, names: Sequence[str], runs: Sequence[Run], closed: Collection[int]
) -> tuple[dict[str, _Handing], dict[str, str]]:
    """What hands on the tokens of each block that is not kept, and the equal one that is."""
    handing, stands_for = dict[str, _Handing](), dict[str, str]()
    owners = owners_of(whole)
    parts = {name: account_of_parts(part_of(whole, name), owners, closed) for name in names}
    arguments = [_arguments(whole, run) for run in runs]
    for members in _classes(names, parts, runs, arguments):
        handed = _handed_on(members, runs[0], arguments[0]) if len(members) >= _LEAST_ALIKE else None
        for name in members[1:-1] if handed is not None else ():
            handing[name] = _Handing(inspect.signature(part_of(whole, name).forward), handed)
            stands_for[name] = members[0]
    return handing, stands_for


def _members(model: nn.Module) -> list[str]:
    """Members of lists that may have equals, none inside of another."""
    owners, found = owners_of(model), list[str]()
    for name, module in model.named_modules():
        members = [key for key, child in module.named_children() if any(child.children()) and owners[id(child)] == 1]
        if isinstance(module, _LISTS) and len(members) >= _LEAST_ALIKE and not f"{name}.".startswith(tuple(found)):
            found += [f"{name}.{key}.".lstrip(".") for key in members]
    return [name.rstrip(".") for name in found]


def _arguments(model: nn.Module, run: Run) -> dict[str, Inputs]:
    """What each block was given, by the names of its forward's arguments."""
    taken = {name: inspect.signature(part_of(model, name).forward) for name in run.calls}
    return {
        name: dict(taken[name].bind(*calls[0].args, **calls[0].kwargs).arguments) for name, calls in run.calls.items()
    }


def _classes(
    names: Sequence[str], parts: Mapping[str, Account], runs: Sequence[Run], arguments: Sequence[Mapping[str, Inputs]]
) -> list[list[str]]:
    """Blocks of one list that are equal, in the order in which they are called."""
    once = [name for name in runs[0].calls if all(len(run.calls.get(name, ())) == 1 for run in runs)]
    lists: dict[str, list[str]] = {}
    for name in once:
        lists.setdefault(name.rpartition(".")[0], []).append(name)
    found = []
    for members in lists.values():
        accounts: dict[str, list[Account]] = {name: [parts[name]] for name in members}
        for run, given in zip(runs, arguments, strict=True):
            label = labels({name: given[name] for name in members})
            for name in members:
                accounts[name].append(run.account(name, label, given[name]))
        found += _equals(accounts)
    return found


def _equals(accounts: Mapping[str, Sequence[Account]]) -> list[list[str]]:
    """Those of equal structure whose numbers are the same, or each grow or fall from one to the next."""
    alike: dict[object, list[str]] = {}
    for name, each in accounts.items():
        alike.setdefault(tuple(account.structure for account in each), []).append(name)
    found: dict[object, list[str]] = {}
    for structure, names in alike.items():
        rows = [[number for account in accounts[name] for number in account.numbers] for name in names]
        telling = [column for column in zip(*rows, strict=True) if len(set(column)) > 1 and not _counts(column)]
        for i, name in enumerate(names):
            found.setdefault((structure, tuple(column[i] for column in telling)), []).append(name)
    return list(found.values())


def _counts(column: Sequence[float]) -> bool:
    """Whether numbers grow or fall all along."""
    steps = [after - before for before, after in pairwise(column)]
    return all(step > 0 for step in steps) or all(step < 0 for step in steps)


def _handed_on(members: Sequence[str], run: Run, arguments: Mapping[str, Inputs]) -> object:
    """What blocks return, with the argument's name in the place of each tensor; None where it is not known."""
    order = list(run.calls)
    found = []
    for name in members:
        following = order[order.index(name) + 1 :][:1]
        after = leaves(arguments[following[0]]) if following else {}
        found.append(_named(run.calls[name][0].output, leaves(arguments[name]), after))
    known = [each for each in found if each is not None]
    return known[0] if known and all(each == known[0] for each in known) else None


@dataclass(frozen=True)
class _Argument:
    name: str


def _named(output: Any, given: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Any:
    """Of one block: each tensor by the argument under which the next block gets it, or by the only one of its shape, or
    by the only one that it equals.
    """
    if isinstance(output, Tensor):
        alike = [name for name, tensor in given.items() if (tensor.shape, tensor.dtype) == (output.shape, output.dtype)]
        linked = [name for name in alike if after.get(name) is output]
        names = linked or (alike if len(alike) == 1 else [name for name in alike if torch.equal(given[name], output)])
        return _Argument(names[0]) if len(names) == 1 else None
    if type(output) in (tuple, list):
        parts = [_named(part, given, after) if part is not None else _Argument("") for part in output]
        tensors = [part for part in parts if part != _Argument("")]
        is_known = None not in parts and all(parts.count(part) == 1 for part in tensors)
        return type(output)(parts) if is_known and tensors else None
    return None


class _Handing:
    """Returns what a block would, with its tokens as they came."""

    def __init__(self, signature: inspect.Signature, output: object) -> None:
        self._signature, self._output = signature, output

    def __deepcopy__(self, _memo: object) -> _Handing:
        return self

    def __call__(self, _shell: nn.Module, *args: Any, **kwargs: Any) -> object:
        given = leaves(dict(self._signature.bind(*args, **kwargs).arguments))

        def filled(output: Any) -> Any:
            if isinstance(output, _Argument):
                # times one, which autograd keeps: so that checkpointing has something to run again for
                return given[output.name] * torch.ones((), dtype=given[output.name].dtype) if output.name else None
            return type(output)(map(filled, output))

        return filled(self._output)


def _shell(block: nn.Module, handing: _Handing) -> nn.Module:
    """A block of the same class and attributes, with nothing inside, that hands its tokens on."""
    kind, shell = type(block), copy.copy(block)
    own = {key: OrderedDict() if isinstance(value, OrderedDict) else value for key, value in vars(block).items()}
    own |= {"_parameters": {}, "_buffers": {}, "_modules": {}}
    own.pop("forward", None)
    vars(shell).clear()
    vars(shell).update(own)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> object:
        return handing(self, *args, **kwargs)

    shell.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return shell


def _with_shells(whole: nn.Module, shells: Mapping[str, nn.Module], shared: Sequence[Tensor]) -> nn.Module:
    """A copy that shares some parameters, with shells in the place of blocks."""
    memo: dict[int, object] = {id(part_of(whole, name)): shell for name, shell in shells.items()}
    return copy.deepcopy(whole, memo | {id(tensor): tensor for tensor in shared})
