"""Training checkpoints as public trainers write them, made by the real torch.save with real objects; those of packages
that are not here (OmegaConf, Lightning, EasyDict, a trainer's own) by classes of these names that pickle as theirs do.
"""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import random
import re
import sys
import types
import typing
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.untrusted import benign_objects


class _Node:
    """An OmegaConf node: a class with its own __setstate__, and a way back to its parent."""

    def __init__(self, content: Any, parent: Any = None) -> None:
        self.__dict__["_content"], self.__dict__["_parent"] = content, parent
        self.__dict__["_metadata"] = _Metadata(typing.Any, type(content), typing.Optional[int])  # noqa: UP045, pickled as written

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclasses.dataclass
class _Metadata:
    ref_type: Any
    object_type: Any
    key_type: Any
    resolver_cache: Any = dataclasses.field(default_factory=lambda: collections.defaultdict(dict))


class _AttributeDict(dict):
    """A dict whose keys are attributes, as Lightning, EasyDict and timm have."""

    __getattr__ = dict.get


class _Precision(enum.Enum):
    BF16 = "bf16"
    FP32 = 32


class _PredictionType(str, enum.Enum):
    V = "v prediction"
    EPS = "epsilon"


class _NoiseSchedule(enum.Enum):
    SHIFTED = ("shifted cosine", 3)
    PAIR = (1, 2.5)


class _Features(enum.Flag):
    TEXT = enum.auto()
    IMAGE = enum.auto()


class _Stage(enum.IntEnum):
    TWO = 2


class _Ordered(collections.OrderedDict):
    """As registries and outputs of models are."""


class _Default(collections.defaultdict):
    """A count by name."""


class _Window(collections.deque):
    """The last losses."""


class _Values(list):
    """A list with a method of its own, as ListConfig was."""


class _Point(tuple):
    """A tuple with a name."""


class _Shape(typing.NamedTuple):
    height: int
    width: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    depth: int = 2
    name: str = "x"


class _State(typing.NamedTuple):
    epoch: int
    loss: float


@dataclasses.dataclass
class _Config:
    depth: int = 2
    out: Path = pathlib.Path("runs")


class _Slots:
    __slots__ = ("decay",)

    def __init__(self) -> None:
        self.decay = 0.999


class _Schedule:
    """A scheduler pickled whole, with the optimizer in it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.last = optimizer, [1e-4]


_PLACES = {
    "omegaconf.dictconfig.DictConfig": _Node,
    "omegaconf.base.ContainerMetadata": _Metadata,
    "lightning.fabric.utilities.data.AttributeDict": _AttributeDict,
    "trainer.precision.Precision": _Precision,
    "trainer.state.State": _State,
    "trainer.choices.PredictionType": _PredictionType,
    "trainer.choices.NoiseSchedule": _NoiseSchedule,
    "trainer.choices.Features": _Features,
    "trainer.choices.Stage": _Stage,
    "trainer.kinds.Ordered": _Ordered,
    "trainer.kinds.Default": _Default,
    "trainer.kinds.Window": _Window,
    "trainer.kinds.Values": _Values,
    "trainer.kinds.Point": _Point,
    "trainer.kinds.Shape": _Shape,
    "trainer.kinds.Frozen": _Frozen,
    "__main__.Config": _Config,
    "trainer.ema.Slots": _Slots,
    "trainer.schedule.Schedule": _Schedule,
    **benign_objects.PLACES,
}


@contextmanager
def elsewhere() -> Iterator[None]:
    """While files are written, the classes stand under the names of their packages; afterwards nothing does."""
    kept = dict(sys.modules)
    placed = {**_PLACES, **benign_objects.INSIDE}
    old = {kind: (kind.__module__, kind.__name__, kind.__qualname__) for kind in placed.values()}
    main = {}
    for place, kind in _PLACES.items():
        module, _, name = place.rpartition(".")
        for end in range(1, 1 + module.count(".") + 1):
            part = ".".join(module.split(".")[:end])
            sys.modules.setdefault(part, types.ModuleType(part))
        if module == "__main__":
            main[name] = kind
        setattr(sys.modules[module], name, kind)
        kind.__module__, kind.__name__, kind.__qualname__ = module, name, name
    for place, kind in benign_objects.INSIDE.items():
        kind.__module__, kind.__qualname__ = "acme.settings", place.removeprefix("acme.settings.")
    try:
        yield
    finally:
        for name in main:
            delattr(sys.modules["__main__"], name)
        for name in sys.modules.keys() - kept.keys():
            del sys.modules[name]
        for kind, (module, short, full) in old.items():
            kind.__module__, kind.__name__, kind.__qualname__ = module, short, full


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def contents() -> dict[str, Any]:
    """What each file holds, by a name; all of them have the state dict of one model."""
    model, optimizer = _trained()
    weights = model.state_dict()
    arguments = argparse.Namespace(
        lr=1e-4, out=pathlib.Path("runs/x"), betas=(0.9, 0.95), data=None, inner=argparse.Namespace(a=1)
    )
    config = _Node({})
    config._content.update(
        model=_Node({"depth": _Node(2, config)}, config), lr=_Node(1e-4, config), path=_Node("x", config)
    )
    hyper = _AttributeDict(lr=1e-4, optimizer=torch.optim.AdamW, activation=nn.functional.gelu, layer=nn.Linear)
    tagged = nn.Parameter(torch.ones(2))
    tagged.partitioned = True
    module = nn.Linear(2, 2)
    trained = {"model": weights, "optimizer": optimizer.state_dict()}
    return {
        "a Namespace": {**trained, "ema": weights, "args": arguments, "train_steps": 400_000},
        "OmegaConf": {**trained, "config": config},
        "Lightning": {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model.{name}": one for name, one in weights.items()},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}
            },
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": hyper,
        },
        "numpy": {
            **trained,
            "step": np.int64(5),
            "loss": np.float32(0.5),
            "ok": np.bool_(True),
            "name": np.str_("run"),
            "when": np.datetime64("2024-01-01"),
            "history": np.arange(6.0).reshape(2, 3),
            "order": np.asfortranarray(np.ones((2, 3), dtype=np.float16)),
            "none": np.zeros((0, 3)),
            "rng": np.random.RandomState(0).get_state(),
            "kind": np.dtype("float32"),
            "scalar type": np.float32,
        },
        "Python's own": {
            **trained,
            "path": pathlib.PurePosixPath("a/b"),
            "when": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
            "took": datetime.timedelta(seconds=5),
            "day": datetime.date(2024, 1, 1),
            "default": collections.defaultdict(list, a=[1]),
            "meter": collections.deque([1.0, 2.0], maxlen=20),
            "count": collections.Counter("aab"),
            "set": {1, 2},
            "frozen": frozenset({"a"}),
            "id": uuid.UUID(int=5),
            "decimal": decimal.Decimal("0.1"),
            "simple": types.SimpleNamespace(a=1),
            "bytes": b"\x00\xff",
            "array": bytearray(b"ab"),
            "complex": 1j,
            "range": range(3),
            "slice": slice(1, 2),
            "none": type(None),
            "types": [list[int], dict[str, int], typing.Any, ...],
            "large": 2**70,
            "random": random.Random(0).getstate(),
            ("a", 1): 1,
            None: 1,
            0.5: 1,
            2**40: 1,
            True: 1,
        },
        "a trainer's own": {
            **trained,
            "precision": _Precision.BF16,
            "bits": _Precision.FP32,
            "state": _State(3, 0.5),
            "config": _Config(),
            "ema": _Slots(),
            "schedule": _Schedule(optimizer),
            "class": _Config,
        },
        "torch's own": {
            **trained,
            "size": torch.Size([2, 3]),
            "dtype": torch.bfloat16,
            "device": torch.device("cpu"),
            "device with a number": torch.device("cuda", 1),
            "parameter": nn.Parameter(torch.ones(2)),
            "tagged": tagged,
            "buffers": nn.BatchNorm2d(4).state_dict(),
            "rng": torch.get_rng_state(),
        },
        "enumerations": {
            **trained,
            "prediction": _PredictionType.V,
            "schedule": [_NoiseSchedule.SHIFTED, _NoiseSchedule.PAIR],
            "features": _Features.TEXT | _Features.IMAGE,
            "stage": _Stage.TWO,
            "by member": {_PredictionType.EPS: 1},
        },
        "kinds of containers": {
            **trained,
            "ordered": _Ordered(a=1, b=[2]),
            "default": _Default(int, a=1),
            "window": _Window([0.5, 0.25], maxlen=3),
            "values": _Values([1, {"a": 2}]),
            "point": _Point((1, 2)),
            "shape": _Shape(2, 3),
            "frozen": _Frozen(),
            "order": collections.OrderedDict(a=collections.OrderedDict(b=1)),
            "chain": collections.deque([collections.Counter(a=1), {1, 2}, frozenset({"a", "b"})]),
        },
        "random states": {
            **trained,
            "generator": np.random.default_rng(0),
            "bits": [np.random.PCG64(1), np.random.Philox(2), np.random.SFC64(3)],
            "old": np.random.RandomState(0),
            "twister": np.random.Generator(np.random.MT19937(5)),
            "python": random.Random(0),
            "torch": torch.Generator(),
            "states": [np.random.default_rng(0).bit_generator.state, np.random.get_state()],
        },
        "Hydra's": {
            **trained,
            "optimizer": functools.partial(torch.optim.AdamW, lr=1e-4, betas=(0.9, 0.95)),
            "norm": functools.partial(nn.LayerNorm, elementwise_affine=False, eps=1e-6),
            "activation": functools.partial(nn.functional.gelu, approximate="tanh"),
            "filter": re.compile(r"blocks\.(\d+)\."),
            "history": array.array("d", [0.5, 0.25]),
            "scaler": torch.amp.GradScaler("cpu"),
            "layout": torch.strided,
            "dtypes": [torch.complex32, torch.quint8, torch.float8_e4m3fnuz],
            "fraction": fractions.Fraction(1, 3),
            "slices": [slice(None), slice(1, 2, 3), ...],
            "path": pathlib.PureWindowsPath("C:/x"),
        },
        "a whole network": {"state_dict": weights, "network": module},
        "a kind of dict": _AttributeDict(weights),
        "a scheduler": {
            **trained,
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10).state_dict(),
            "scaler": {"scale": 65536.0},
        },
        "DeepSpeed's": {
            "module": weights,
            "dp_world_size": 1,
            "global_steps": 3,
            "ds_config": {"train_batch_size": 8},
            "client_sd": arguments,
        },
        **{name: {**trained, **content} for name, content in benign_objects.contents().items()},
    }


def write(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """Every content in each way that torch.save has of writing it, with the weights that are in it."""
    weights, files = _trained()[0].state_dict(), {}
    with elsewhere():
        for name, content in contents().items():
            for protocol in (2, 3, 4, 5):
                path = folder / f"{name}, protocol {protocol}.ckpt"
                torch.save(content, path, pickle_protocol=protocol)
                files[path] = weights
            path = folder / f"{name}, legacy.pth"
            torch.save(content, path, _use_new_zipfile_serialization=False)
            files[path] = weights
    return files
