"""What the weights of a foreign model say of where it comes from: never written, halved, compiled around, trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.watching import fixed_chance

_READERS = ((torch, "load"), (np, "load"), (nn.Module, "load_state_dict"))


def never_written(factory: Factory) -> list[str]:
    """Parameters and buffers whose memory was taken and not filled: in a build where such memory is NaN they are."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = factory.build()
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
    held = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in held if tensor.is_floating_point() and bool(tensor.isnan().any())]


def compiled_parts(model: nn.Module) -> list[str]:
    """Modules, and methods of the model's own classes, that torch.compile wraps."""
    wrapped = [name or "the model" for name, module in model.named_modules() if hasattr(module, "_orig_mod")]
    for kind in {type(module) for module in model.modules()}:
        wrapped += [
            f"{kind.__name__}.{name}"
            for name, value in vars(kind).items()
            if hasattr(value, "_torchdynamo_orig_callable") and not kind.__module__.startswith("torch.")
        ]
    return list(dict.fromkeys(wrapped))


def moved_norms(model: nn.Module) -> str:
    """Says so where most norms' weights differ from channel to channel, as no beginning has them; else ""."""
    norms = [
        weight
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for name, weight in module.named_parameters(recurse=False)
        if name == "weight" and weight.numel() > 1
    ]
    moved = sum(not _is_constant(weight) for weight in norms)
    return f"the weights of {moved} of {len(norms)} norms differ within a norm" if moved > len(norms) / 2 else ""


def loaded(factory: Factory) -> str:
    """Says so where the factory reads weights, and what it draws is the same under two seeds; else ""."""
    read: list[str] = []

    def reading(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **kwargs: object) -> object:
            read.append(name)
            return original(*args, **kwargs)

        return called

    weights = []
    for seed in (0, 1):
        with ExitStack() as stack:
            for place, name in _READERS:
                stack.enter_context(patch.object(place, name, reading(name, getattr(place, name))))
            stack.enter_context(fixed_chance(seed))
            stack.enter_context(redirect_stdout(sys.stderr))
            model = factory.made()
        if not read:
            return ""
        weights.append(dict(model.named_parameters()))
    drawn = [name for name, weight in weights[0].items() if weight.dim() >= 2 and not _is_constant(weight)]
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in drawn)
    return f"its factory calls {read[0]}, and its {len(drawn)} matrices are the same whatever the seed" if same else ""


def _is_constant(tensor: Tensor) -> bool:
    return not bool((tensor != tensor.flatten()[0]).any())
