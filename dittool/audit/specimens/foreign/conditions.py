"""Which inputs of a foreign model move its answer, and how far its embedding of time turns."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dittool.audit.specimens.specimen import Liveness, relative_change
from dittool.audit.specimens.trial import Inputs, answer
from dittool.audit.specimens.watching import ending_with, is_vector, watch

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel


def input_effects(foreign: ForeignModel) -> Liveness:
    """Each input is exchanged in turn; what dropping a condition means to the model cannot be known."""
    example, model = foreign.example, foreign.shared_awake
    inputs = example.inputs()
    plain = _answer(model, inputs)
    time = example.time or ""
    names = [example.latent, *([time] if time else []), *example.conditions]
    changes = {name: relative_change(plain, _answer(model, example.changed(inputs, name))) for name in names}
    masked = _under_masks(foreign, inputs)
    leaks = {f"{name} under its mask": relative_change(plain, _answer(model, other)) for name, other in masked.items()}
    turns = _turns(foreign, inputs, time) if time else {}
    return Liveness(
        changes,
        foreign.dead_parameters(foreign.awake().train()),
        "with open gates",
        leaks,
        f"nothing shows under {len(leaks)} masks" if leaks else "",
        time,
        turns,
        bool(turns) and example.time_is_known and float(inputs[time].max()) <= 1,
        example.time_is_known,
    )


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


def _turns(foreign: ForeignModel, inputs: Inputs, time_name: str) -> dict[float, float]:
    """How far t's embedding moves over a fifth of [0, 1] and of [0, 1000]; empty when no layer before the second
    block is fed by t alone.
    """
    example, model = foreign.example, foreign.shared_awake
    time = inputs[time_name]
    if not time.is_floating_point():
        return {}
    linear: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    others = [example.changed(inputs, name) for name in (example.latent, *example.conditions)]

    def seen(given: Inputs) -> dict[str, Tensor]:
        first = [model.get_submodule(name) for name in foreign.anatomy.blocks[:1]]
        with watch(linear) as calls, ending_with(first[0]) if first else nullcontext(), torch.no_grad():
            answer(model, given)
        return {name: calls[name][0].outputs[0] for name in calls}

    plain, moved, *rest = (seen(given) for given in (inputs, example.changed(inputs, time_name), *others))
    by_time = [
        name for name, value in plain.items() if is_vector(value, len(time)) and not torch.equal(value, moved[name])
    ]
    alone = [name for name in by_time if all(torch.equal(plain[name], other[name]) for other in rest if name in other)]
    if not alone:
        return {}
    turns = {}
    for span in (1.0, 1000.0):
        points = torch.linspace(0, span, 11)
        steps = [seen({**inputs, time_name: torch.full_like(time, float(point))})[alone[-1]][:1] for point in points]
        embedding = torch.cat(steps)
        turns[span] = relative_change(embedding[:-2], embedding[2:])
    return turns
