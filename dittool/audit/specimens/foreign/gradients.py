"""Gradients taken one by one while backward makes them, so that a large model's never lie in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn


@contextmanager
def gradients_to(take: Callable[[str, Tensor], None], model: nn.Module) -> Iterator[None]:
    """Inside the `with`, `take(name, gradient)` gets each parameter's gradient, in parts where backward runs in
    parts; parameters keep none.
    """

    def taken(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        take(name, gradient)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.grad = None
    hooks = [parameter.register_post_accumulate_grad_hook(partial(taken, name)) for name, parameter in trained.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
