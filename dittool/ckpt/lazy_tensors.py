"""Tensors that stay in their files until somebody asks for one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dittool.untrusted.tensor_spec import TensorSpec


class LazyTensors(Mapping[Any, Any]):
    """A dict of a checkpoint whose tensors are read at each look, and not kept."""

    def __init__(self, described: Mapping[Any, Any], read: Callable[[Any], Any]) -> None:
        """`described`: the dict with a `TensorSpec` for each tensor; `read`: one of its values → what it stands for."""
        self.described = described
        self._read = read

    def __getitem__(self, key: Any) -> Any:
        return self._read(self.described[key])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def spec_of(tensor: Tensor | TensorSpec) -> TensorSpec:
    """Dtype and shape; of a tensor that is split over processes those of all of it."""
    if isinstance(tensor, TensorSpec):
        return tensor
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Dtypes and shapes by name, without reading a tensor."""
    known = tensors.described if isinstance(tensors, LazyTensors) else tensors
    return {name: spec_of(one) for name, one in known.items()}
