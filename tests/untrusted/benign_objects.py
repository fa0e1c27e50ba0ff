"""What else public trainers keep in checkpoints, one kind a file: enumerations of any name, classes in classes, kinds
of containers, kept calls, tensors without plain values, arrays of objects, settings of types.
"""

from __future__ import annotations

import collections
import enum
import functools
import logging
import math
import types
import typing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class _Color(enum.Enum):
    RED = "red"
    DARK = "dark blue"
    NONE = ""
    HALF = torch.float16
    PAIR = ("red", 1)
    MODEL = "org/model-XL.2"


class _Backend(str, enum.Enum):
    INDUCTOR = "inductor"
    NO = "no"


class _ByName(enum.Enum):
    """As a trainer that wants its files to survive other values writes them."""

    FAST = object()

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> Any:
        return getattr, (type(self), self._name_)


class _Outer:
    class Mode(enum.Enum):
        FAST = "fast"

    class Inner:
        depth = 2

        def __init__(self) -> None:
            self.width = 3


class _Point:
    """A value that is written as the call that makes it."""

    def __init__(self, name: str = "", value: float = 0.0) -> None:
        self.name, self.value = name, value

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.value)


class _Started:
    """A value that is made of nothing."""

    def __reduce__(self) -> Any:
        return type(self), ()


class _FrozenDict(dict):
    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


class _Registry(collections.OrderedDict):
    """May be empty."""


class _Meters(collections.defaultdict):
    """May be empty, too."""


class _Window(collections.deque):
    """The last losses."""


class _Tokens(collections.Counter):
    """How often each was seen."""


class _Options(types.SimpleNamespace):
    """Settings by name."""


class _Meter:
    def __init__(self) -> None:
        self.sum = 0.0


def _warm_up(step: int, steps: int = 10) -> float:
    return min(1.0, step / steps)


PLACES = {
    "acme.settings.Color": _Color,
    "acme.settings.Backend": _Backend,
    "acme.settings.ByName": _ByName,
    "acme.settings.Outer": _Outer,
    "acme.values.Point": _Point,
    "acme.values.Started": _Started,
    "acme.values.FrozenDict": _FrozenDict,
    "acme.values.Registry": _Registry,
    "acme.values.Meters": _Meters,
    "acme.values.Window": _Window,
    "acme.values.Tokens": _Tokens,
    "acme.values.Options": _Options,
    "acme.values.Meter": _Meter,
    "acme.schedule.warm_up": _warm_up,
}
# the same for classes inside, which keep their owner's name before their own
INSIDE = {"acme.settings.Outer.Mode": _Outer.Mode, "acme.settings.Outer.Inner": _Outer.Inner}


def _without_plain_values() -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore"):
        return {
            "sparse": torch.eye(3).to_sparse(),
            "rows": torch.eye(3).to_sparse_csr(),
            "columns": torch.eye(3).to_sparse_csc(),
            "blocks": torch.eye(4).to_sparse_bsr((2, 2)),
            "meta": torch.empty(2, 3, device="meta"),
            "a meta parameter": nn.Parameter(torch.empty(2, 3, device="meta")),
            "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "by channel": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "other dtypes": [torch.ones(2).to(dtype) for dtype in (torch.float8_e4m3fnuz, torch.complex32)],
        }


def contents() -> dict[str, dict[str, Any]]:
    """What each file holds beside its weights, by a name."""
    types_in_settings: list[Any] = [int | None, typing.Union[int, str], typing.Callable[[int], int]]  # noqa: UP007, pickled as written
    return {
        "enumerations of any name": {
            "color": [_Color.RED, _Color.DARK, _Color.NONE, _Color.HALF, _Color.PAIR, _Color.MODEL],
            "backend": {_Backend.INDUCTOR: _Backend.NO},
            "by name": _ByName.FAST,
        },
        "classes in classes": {"mode": _Outer.Mode.FAST, "inner": _Outer.Inner(), "class": _Outer.Inner},
        "values written as calls": {"point": _Point("left", 0.5), "started": _Started(), "dict": _FrozenDict(a=[1])},
        "containers that may be empty": {
            "registry": _Registry(),
            "meters": [_Meters(list), _Meters()],
            "window": _Window(maxlen=3),
            "tokens": _Tokens("aab"),
            "options": _Options(a=1),
            "users": [collections.UserDict(a=1), collections.UserList([1]), collections.ChainMap({"a": 1})],
        },
        "values of a defaultdict": {
            "meters": collections.defaultdict(_Meter, loss=_Meter()),
            "windows": collections.defaultdict(functools.partial(collections.deque, maxlen=20)),
            "nested": collections.defaultdict(functools.partial(collections.defaultdict, list)),
            "counts": collections.defaultdict(collections.Counter, a=collections.Counter("ab")),
        },
        "kept calls of a trainer's own": {
            "schedule": functools.partial(_warm_up, steps=3),
            "meter": functools.partial(_Meter),
            "clamp": functools.partial(torch.clamp, min=0.0),
            "nested": functools.partial(functools.partial(_warm_up, 3), steps=5),
        },
        "functions in settings": {
            "activations": [torch.sigmoid, nn.functional.silu, torch.Tensor.add, math.sqrt, max, np.mean],
            "schedule": _warm_up,
            "types": [*types_in_settings, typing.Literal["a", "b"], typing.Optional[list[int]]],  # noqa: UP045, pickled as written
            "logger": logging.getLogger("acme"),
            "version": torch.__version__,
            "paths": [Path, type(Path("a"))],
        },
        "tensors without plain values": _without_plain_values(),
        "numpy's objects": {
            "objects": np.array([{"a": 1}, None, "x"], dtype=object),
            "rows": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
            "bytes": np.void(b"abc"),
            "seeds": [np.random.SeedSequence(5), np.random.RandomState(np.random.PCG64(1))],
            "kinds": [np.floating, np.complex64, np.dtype([("a", "f4")])],
        },
        "torch's objects": {
            "distribution": torch.distributions.Normal(0.0, 1.0),
            "data": torch.utils.data.TensorDataset(torch.ones(2)),
            "order": torch.utils.data.RandomSampler([1, 2]),
            "normed": torch.nn.utils.spectral_norm(nn.Linear(3, 3)),
            "copy": torch.optim.swa_utils.AveragedModel(nn.Linear(1, 1)),
            "scheme": torch.per_tensor_affine,
            "dtypes": [torch.int4, torch.uint2, torch.float4_e2m1fn_x2],
        },
    }
