"""C6 on a foreign model: does each of its inputs move the answer, and does gradient reach every parameter?"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.specimens.foreign.anatomy import ending_with, is_vector, watch
from dittool.audit.specimens.foreign.example import Inputs
from dittool.audit.specimens.foreign.gradients import gradients_to
from dittool.audit.specimens.foreign.model import ForeignModel, answer
from dittool.audit.specimens.ours import relative_change
from dittool.audit.specimens.trial import is_zero

FIX = "follow the input through the model's forward: it must reach the blocks or their modulation"
_LEAST = 1e-5  # relative change that counts as one
_LEAST_TURN = 0.2  # relative change of t's embedding over a fifth of its range
_TRAINING_PASSES = 8


def check_conditions(foreign: ForeignModel) -> list[Finding]:
    example, model = foreign.example, foreign.shared_awake
    inputs = example.inputs()
    plain = _answer(model, inputs)
    names = [example.latent, *([example.time] if example.time else []), *example.conditions]
    changes = {name: relative_change(plain, _answer(model, example.changed(inputs, name))) for name in names}
    faults = [
        f"{name}: the answer does not change with it ({change:.1g})"
        for name, change in changes.items()
        if change < _LEAST
    ]
    leaks = {
        name: relative_change(plain, _answer(model, other)) for name, other in _under_masks(foreign, inputs).items()
    }
    faults += [
        f"{name}: shows in the answer under its mask (relative change {change:.2g})"
        for name, change in leaks.items()
        if change > _LEAST
    ]
    turns = _turns(foreign, inputs) if example.time else {}
    told = ""
    if example.time is None:
        faults += ["no input is a timestep: it is not a diffusion model that can be conditioned on t"]
    elif turns:
        told = (
            f"; t's embedding changes by {turns[1.0]:.2g} over a fifth of [0, 1] and by {turns[1000.0]:.2g} over a"
            " fifth of [0, 1000]"
        )
        if example.time_is_known and float(inputs[example.time].max()) <= 1 and turns[1.0] < _LEAST_TURN:
            turn = f"changes by {turns[1.0]:.2g} over a fifth; at least {_LEAST_TURN} is wanted (t times 1000?)"
            faults.append(f"{example.time} is given in [0, 1], where its embedding {turn}")
        elif not example.time_is_known:
            told += ", whichever the training feeds"
    if dead := _without_gradient(foreign):
        faults.append(f"no gradient reaches {len(dead)} parameters, first {', '.join(dead[:3])}")
    if faults:
        return [finding for fault in faults for finding in failed(f"{fault}, with open gates", FIX)]
    shown = ", ".join(f"{name} {change:.2g}" for name, change in changes.items())
    masked = f"; nothing shows under {len(leaks)} masks" if leaks else ""
    return passed(f"relative change of the answer with {shown}; gradient reaches every parameter{masked}{told}")


@torch.no_grad()
def _answer(model: nn.Module, inputs: Inputs) -> Tensor:
    return answer(model, inputs).float()


def _under_masks(foreign: ForeignModel, inputs: Inputs) -> dict[str, Inputs]:
    """For each masked input of tokens the inputs with other content where the mask is zero."""
    changed = {}
    for mask in (name for name in inputs if foreign.example.is_mask(name)):
        hidden = inputs[mask] == 0  # (B, L)
        for name, value in inputs.items():
            if (
                name != mask
                and isinstance(value, Tensor)
                and value.is_floating_point()
                and value.dim() == 3
                and value.shape[:2] == hidden.shape
            ):
                other = torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
                changed[name] = {**inputs, name: torch.where(hidden[..., None], other, value)}
    return changed


def _turns(foreign: ForeignModel, inputs: Inputs) -> dict[float, float]:
    """How far t's embedding moves over a fifth of [0, 1] and of [0, 1000]; empty when no layer before the second
    block is fed by t alone.
    """
    example, model = foreign.example, foreign.shared_awake
    time = inputs[example.time]
    if not time.is_floating_point():
        return {}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = [example.changed(inputs, name) for name in (example.latent, *example.conditions)]

    def seen(given: Inputs) -> dict[str, Tensor]:
        first = [model.get_submodule(name) for name in foreign.anatomy.blocks[:1]]
        with watch(linear) as calls, ending_with(first[0]) if first else nullcontext(), torch.no_grad():
            answer(model, given)
        return {name: calls[name][0].outputs[0] for name in calls}

    plain, moved, *rest = (seen(given) for given in (inputs, example.changed(inputs, example.time), *others))
    by_time = [
        name for name, value in plain.items() if is_vector(value, len(time)) and not torch.equal(value, moved[name])
    ]
    alone = [name for name in by_time if all(torch.equal(plain[name], other[name]) for other in rest if name in other)]
    if not alone:
        return {}
    turns = {}
    for span in (1.0, 1000.0):
        points = torch.linspace(0, span, 11)
        steps = [seen({**inputs, example.time: torch.full_like(time, float(point))})[alone[-1]][:1] for point in points]
        embedding = torch.cat(steps)
        turns[span] = relative_change(embedding[:-2], embedding[2:])
    return turns


def _without_gradient(foreign: ForeignModel) -> list[str]:
    """Parameters that no gradient reaches in several passes in training mode, where dropped conditions come too."""
    model = foreign.awake().train()
    without = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def take(name: str, gradient: Tensor) -> None:
        if not is_zero(gradient):
            without.discard(name)

    with torch.random.fork_rng(devices=[]), gradients_to(take, model):
        torch.manual_seed(0)
        for seed in range(_TRAINING_PASSES):
            answer(model, foreign.example.inputs(seed=seed)).float().square().sum().backward()
            if not without:
                break
    return [name for name, _ in model.named_parameters() if name in without]
