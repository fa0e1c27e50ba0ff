"""Makes torchvision importable where its build does not fit torch's, so that transformers, diffusers and lpips import
too.

The package registry's torchvision is a CUDA build. Beside a CPU build of torch its compiled operators cannot be loaded,
and `import torchvision` ends in "operator torchvision::nms does not exist": it describes two operators to torch that
nobody defined. All three libraries import torchvision, although nothing that we use calls those operators. Defining
their schemas, without code behind them, is enough.
"""

from __future__ import annotations

import importlib
import sys

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept_alive: list[object] = []  # torch forgets the schemas when the Library object goes


def ensure_torchvision() -> None:
    """Call it before the first import of transformers, diffusers or lpips. Changes nothing where torchvision loads.

    Raises whatever `import torchvision` raises when it is not the missing operator.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        # Not installed: transformers and diffusers do without it, lpips says so itself.
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _define_operators()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        importlib.import_module("torchvision")


def _define_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _kept_alive.append(library)
