"""Weights in half precision. A CPU computes with them slowly and roughly, and what lies beside them in float32 does not
go with them, so that such a model is judged cast to float32, and run once more as it was built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.blame import strangers_fault
from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.audit.specimens.specimen import AsBuilt
from dittool.audit.specimens.trial import kind_of_number
from dittool.audit.specimens.watching import Inputs, answers_without_gradient


def half_kinds(model: nn.Module) -> list[torch.dtype]:
    """The kinds of its parameters that are narrower than float32, the most frequent first."""
    kinds = [parameter.dtype for parameter in model.parameters() if is_half(parameter.dtype)]
    return sorted(set(kinds), key=kinds.count, reverse=True)


def is_half(kind: object) -> bool:
    return isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize < 4


def cast_to_float32(model: nn.Module) -> nn.Module:
    """The model itself: parameters, buffers, what modules hold as tensors, and the kinds of numbers that they keep to
    cast to.
    """
    model.float()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if is_half(value):
                setattr(module, name, torch.float32)
            elif isinstance(value, Tensor) and is_half(value.dtype):
                setattr(module, name, value.float())
    return model


def inputs_in(inputs: Inputs, kind: torch.dtype, which: Callable[[torch.dtype], bool]) -> Inputs:
    """The inputs with those of some kinds of numbers cast to another."""
    return with_leaves(inputs, {name: leaf.to(kind) for name, leaf in leaves(inputs).items() if which(leaf.dtype)})


def as_built(model: nn.Module, inputs: Inputs) -> AsBuilt:
    """What a model with half weights answers, by the first way in which it can be called."""
    kinds, errors = half_kinds(model), [""]
    named = ", ".join(map(kind_of_number, kinds))
    for way, kind, given in _ways(kinds, inputs):
        try:
            with torch.autocast("cpu", kind, enabled=way.endswith("autocast")):
                found = answers_without_gradient(model, given)
        except Exception as raised:  # a CPU lacks some operations, and kinds may not go together
            errors.append(strangers_fault(raised) or f"raises {type(raised).__name__}: {raised}")
            continue
        not_finite = sum(int((~torch.isfinite(tensor)).sum()) for tensor in found)
        return AsBuilt(named, way, next(filter(None, errors), ""), not_finite, sum(tensor.numel() for tensor in found))
    return AsBuilt(named, "", errors[-1])


def _ways(kinds: list[torch.dtype], inputs: Inputs) -> Iterator[tuple[str, torch.dtype, Inputs]]:
    """In words, the kind of numbers, and the inputs."""
    for kind in kinds:
        yield f"given {kind_of_number(kind)}", kind, inputs_in(inputs, kind, lambda other: other.is_floating_point)
    yield "given float32", kinds[0], inputs
    for kind in kinds:
        if kind in (torch.bfloat16, torch.float16):
            yield "under autocast", kind, inputs
