"""A network's parts by their names: which they are, how many parameters stand in them, which are never run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn


def part_of(model: nn.Module, name: str) -> nn.Module:
    """The part that `named_modules` calls so, whatever else its owner calls by that name: `get_submodule` would give a
    method or a property of it.
    """
    for step in name.split(".") if name else ():
        part = model._modules[step]
        assert part is not None  # named_modules names no None
        model = part
    return model


def parameter_of(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that `named_parameters` calls so."""
    owner, _, leaf = name.rpartition(".")
    found = part_of(model, owner)._parameters[leaf]
    assert found is not None  # named_parameters names no None
    return found


def sizes_of_parts(model: nn.Module, blocks: Sequence[str], but: Sequence[str] = ()) -> Counter[str]:
    """Parameters in the blocks, under "", and in each of the model's parts outside of them: one that holds blocks is
    named by the parts of it that are none. What stands in `but` is left out.
    """
    inside, sizes = tuple(f"{name}." for name in blocks), Counter[str]()
    around = {name.rpartition(".")[0] for name in blocks}
    around |= {outer.rsplit(".", count)[0] for outer in around for count in range(1, outer.count(".") + 1)}
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(f"{part}." for part in but)):
            continue
        part = name.partition(".")[0]
        while part in around and part != name:
            part = name[: name.find(".", len(part) + 1)] if "." in name[len(part) + 1 :] else name
        sizes["" if name.startswith(inside) else part] += parameter.numel()
    return sizes


def never_run_and_frozen(model: nn.Module, runs: Counter[str]) -> tuple[str, ...]:
    """The outermost parts whose parameters are not trained and of which no module runs, as a moving average's copy."""
    found: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(f"{outer}." for outer in found)) or not name:
            continue
        parameters = list(module.parameters())
        own = [other for other in runs if other == name or other.startswith(f"{name}.")]
        if parameters and not own and not any(parameter.requires_grad for parameter in parameters):
            found.append(name)
    return tuple(found)


def weights_not_finite(model: nn.Module) -> list[str]:
    """Names of the tensors of its state dict that hold NaN or infinity."""
    numbers = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return [name for name, tensor in numbers.items() if not bool(torch.isfinite(tensor).all())]
