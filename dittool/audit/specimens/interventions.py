"""What is changed in torch while a network runs, so that more can be seen: attention made sharp, chance stilled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dittool.audit.specimens.watching import CallsOfTorch, attention_logits

_SPREAD = 10.0  # of logits
_MASKED = -1e4  # below it a logit stands for a hidden key


class SharpAttention(CallsOfTorch):
    """Inside a `with` the logits of every attention spread: those of weights just drawn are nearly equal, and then
    little of what attention knows shows in an answer. The factors are found in the first run; each further one
    begins with `again`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._factors: list[float] = []
        self._calls = 0

    def again(self) -> None:
        self._calls = 0

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        logits = attention_logits(function, args, kwargs)
        if logits is None:
            return function(*args, **kwargs)
        if self._calls == len(self._factors):
            shown = logits[logits > _MASKED]
            self._factors.append(max(1.0, _SPREAD / max(float(shown.std(correction=0)), 1e-9)) if len(shown) else 1.0)
        factor = self._factors[self._calls]
        self._calls += 1
        if args:
            return function(args[0] * factor, *args[1:], **kwargs)
        name = "query" if "query" in kwargs else "input"
        return function(**{**kwargs, name: kwargs[name] * factor})


def _dropped(given: Tensor, *_args: object, **_kwargs: object) -> Tensor:
    return given


def _filled(value: float) -> Callable[..., Tensor]:
    """In place of a draw that fills its tensor."""
    return lambda given, *_args, **_kwargs: given.fill_(value)


def _normal(mean: Any = 0.0, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    drawn = torch.normal(mean, std, *args, **kwargs)
    return drawn.copy_(mean) if isinstance(mean, Tensor) else drawn.fill_(mean)


_STILL: Mapping[object, Callable[..., object]] = {
    torch.randn: lambda *args, **kwargs: torch.randn(*args, **kwargs).zero_(),
    torch.randn_like: lambda given, **kwargs: torch.zeros_like(given, **kwargs),
    torch.rand: lambda *args, **kwargs: torch.rand(*args, **kwargs).fill_(0.5),
    torch.rand_like: lambda given, **kwargs: torch.full_like(given, 0.5, **kwargs),
    torch.randperm: lambda *args, **kwargs: torch.randperm(*args, **kwargs).sort().values,
    torch.normal: _normal,
    Tensor.normal_: lambda given, mean=0.0, *_args, **_kwargs: given.fill_(mean),
    Tensor.uniform_: _filled(0.5),
    Tensor.exponential_: _filled(1.0),
    torch.bernoulli: lambda given, *_args, **_kwargs: given.round(),
    **dict.fromkeys(
        (torch.dropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        _dropped,
    ),
}


def still_chance(model: nn.Module) -> list[RemovableHandle]:
    """From here on torch draws means, and orders that are none, and drops nothing while the model runs."""
    stilled = _StilledChance()

    def begin(*_call: object) -> None:
        stilled.__enter__()

    def end(*_call: object) -> None:
        stilled.__exit__(None, None, None)

    return [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]


class _StilledChance(CallsOfTorch):
    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if function is F.scaled_dot_product_attention:
            kept = {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
            return function(*args[:4], *([0.0] if len(args) > 4 else []), *args[5:], **(kwargs | kept))
        if kwargs.get("generator") is not None:  # the same draws in every run
            return function(*args, **kwargs)
        return _STILL.get(function, function)(*args, **kwargs)
