"""Bytes that autograd keeps for the backward pass, measured with saved-tensor hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts inside a `with`: each storage once, parameters not at all. What a checkpointed block keeps while it is
    recomputed is outside.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._storages: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an address that is given back and used again would count once

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        return self

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = storage.nbytes()
            self._alive.append(tensor)
        return tensor
