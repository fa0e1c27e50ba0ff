"""Which inputs of a foreign model move its answer, and what its timestep does."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dittool.audit.specimens.changes import changes, largest_change
from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.specimen import Liveness, relative_change
from dittool.audit.specimens.watching import (
    Inputs,
    answer_without_gradient,
    answers_without_gradient,
    ending_with,
    is_vector,
    watch,
)

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

_LEAK = 1e-5  # relative change of the answer by what a mask hides


def liveness_of(foreign: ForeignModel) -> Liveness:
    """Each input is exchanged in turn; what dropping a condition means to the model cannot be known."""
    feed, model, inputs = foreign.feed, foreign.shared_awake, foreign.inputs()
    names = [feed.latent, *([feed.time] if feed.time else []), *feed.conditions]
    exchanged = {name: feed.changed(inputs, name) for name in names}
    leaks: dict[str, float] = {}
    masked = feed.masked(inputs)
    seen = {leak: [_leak(foreign, *pair) for pair in pairs] for leak, (_, pairs) in masked.items()}
    obeyed = {mask for leak, (mask, _) in masked.items() if min(seen[leak]) <= _LEAK}
    for leak, (mask, pairs) in masked.items():
        shown = seen[leak]
        if mask in obeyed and min(shown) > _LEAK:
            continue  # it is another input's
        least = min(range(len(pairs)), key=shown.__getitem__)  # to hide with zeros or with ones are both usual
        if shown[least] > _LEAK and not feed.is_called_mask(mask):
            exchanged[mask] = feed.changed(inputs, mask)  # zeros and ones of another meaning
        else:
            leaks[leak], exchanged[mask] = shown[least], pairs[least][0]
    turns = _turns(foreign, inputs, feed.time) if feed.time else {}
    unit = bool(turns) and feed.time_is_unit
    training = foreign.awake().train(not foreign.fault_in_training)
    found = changes(model, inputs, exchanged)
    for name in _silent(foreign, found):
        found[name] = max(found[name], _beside_switches(foreign, model, inputs, name))
    if foreign.has_fewer_blocks and (silent := _silent(foreign, found)):
        with foreign.woken() as whole:
            found |= changes(whole, inputs, {name: exchanged[name] for name in silent})
            for name in _silent(foreign, found):
                found[name] = max(found[name], _beside_switches(foreign, whole, inputs, name))
    spare = _spare(found, leaves(inputs))
    dead = foreign.dead_parameters(training)
    idle = _idle_blocks(foreign, dead)
    return Liveness(
        {name: change for name, change in found.items() if name not in spare},
        [name for name in dead if not name.startswith(tuple(f"{block}." for block in idle))],
        "with open gates" + (", in evaluation mode" if foreign.fault_in_training else "") + foreign.structure_note,
        leaks,
        f"nothing shows under {len(leaks)} masks" if leaks else "",
        feed.time,
        turns,
        unit,
        feed.time_is_known,
        feed.not_fed,
        foreign.unsteadiness,
        spare,
        _truncated(foreign, inputs),
        idle,
    )


def _idle_blocks(foreign: ForeignModel, dead: Collection[str]) -> tuple[str, ...]:
    """Members of a list of blocks, of a class of these, that no run has called: all of their parameters are dead."""
    model, blocks = foreign.shared_awake, foreign.anatomy.blocks
    found: list[str] = []
    for holder in dict.fromkeys(block.rpartition(".")[0] for block in blocks):
        kinds = {type(part_of(model, block)) for block in blocks if block.rpartition(".")[0] == holder}
        for name, member in part_of(model, holder).named_children() if holder else ():
            own = [f"{holder}.{name}.{parameter}" for parameter, _ in member.named_parameters()]
            if f"{holder}.{name}" not in blocks and type(member) in kinds and own and set(own) <= set(dead):
                found.append(f"{holder}.{name}")
    return tuple(found)


def _spare(found: dict[str, float], values: dict[str, Tensor]) -> tuple[str, ...]:
    """Inputs that move nothing, of a list of which two others of their shape do, as where layers are chosen."""

    def alike(name: str, other: str) -> bool:
        in_one_list = name.endswith("]") and name.rpartition("[")[0] == other.rpartition("[")[0]
        return in_one_list and values[name].shape == values[other].shape

    live = [name for name, change in found.items() if change > _LEAK]
    return tuple(name for name in found if name not in live and sum(alike(name, other) for other in live) >= 2)


def _silent(foreign: ForeignModel, found: dict[str, float]) -> list[str]:
    return [name for name, change in found.items() if change <= max(_LEAK, foreign.unsteadiness)]


def _beside_switches(foreign: ForeignModel, model: nn.Module, inputs: Inputs, name: str) -> float:
    """How much an input moves the answer where another one of zeros and ones, which may switch it off, is zero or one
    throughout; of such a one itself, how much that does.
    """
    most = 0.0
    for switch, value in foreign.varied.switches:
        turned = foreign.feed.filled(inputs, switch, value)
        before, after = (inputs, turned) if name == switch else (turned, foreign.feed.changed(turned, name))
        most = max(most, changes(model, before, {name: after})[name])
    return most


def _leak(foreign: ForeignModel, plain: Inputs, other: Inputs) -> float:
    """How much shows of what a mask hides, in the picture: a text's own states may hold what is hidden."""
    latent = foreign.feed.latent
    try:
        given = (answer_without_gradient(foreign.shared_awake, inputs, latent) for inputs in (plain, other))
        shown = largest_change(*([tensor] for tensor in given))
    except Exception:  # everything of a sample would be hidden
        return torch.inf
    return torch.inf if math.isnan(shown) else shown


def _truncated(foreign: ForeignModel, inputs: Inputs) -> bool | None:
    """Whether times of one whole number give one answer, and times of others do not; None when time is not of
    floating point.
    """
    time = foreign.feed.time
    value = leaves(inputs)[time] if time else torch.zeros((), dtype=torch.long)
    if not value.is_floating_point():
        return None
    steps = {step: with_leaves(inputs, {time: value.floor() + step}) for step in (0.2, 0.8, 5.2)}
    try:
        moved = changes(foreign.shared_awake, steps[0.2], {"within": steps[0.8], "beyond": steps[5.2]})
    except Exception:  # such times are refused
        return False
    return moved["within"] <= foreign.unsteadiness and moved["beyond"] > foreign.unsteadiness


def _turns(foreign: ForeignModel, inputs: Inputs, time: str) -> dict[float, float]:
    """How far t's embedding moves over a fifth of [0, 1] and of [0, 1000]; empty when no layer before the second
    block is fed by t alone.
    """
    feed, model, value = foreign.feed, foreign.shared_awake, leaves(inputs)[time]
    if not value.is_floating_point() or value.dim() == 0:
        return {}
    linear: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }

    def seen(given: Inputs) -> dict[str, Tensor]:
        first = [part_of(model, name) for name in foreign.anatomy.of_latent[:1]]
        with watch(linear) as calls, ending_with(first[0]) if first else nullcontext():
            answers_without_gradient(model, given)
        return {name: calls[name][0].outputs[0] for name in calls}

    plain, moved, *rest = (
        seen(feed.changed(inputs, name) if name else inputs) for name in ("", time, feed.latent, *feed.conditions)
    )
    alone = [
        name
        for name, output in plain.items()
        if is_vector(output, len(value))
        and not torch.equal(output, moved[name])
        and all(torch.equal(output, other[name]) for other in rest if name in other)
    ]
    turns = {}
    for span in (1.0, 1000.0) if alone else ():
        points = (
            with_leaves(inputs, {time: torch.full_like(value, float(t))}) for t in torch.linspace(span / 1000, span, 11)
        )
        embedding = torch.cat([seen(given)[alone[-1]][:1] for given in points])
        turns[span] = relative_change(embedding[:-2], embedding[2:])
    return turns
