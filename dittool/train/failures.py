"""What ends a step for reasons outside of the model's code, said as errors of ours: a reader that was killed, a
compiler that is missing, values that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dittool.errors import NonFiniteError, StorageError, UsageError, listed
from dittool.families.family import Loss
from dittool.train.distributed import Ranks

_SHOWN = 8  # suspects that a message names


@contextmanager
def reader_errors_explained() -> Iterator[None]:
    """Inside, the death of a process that reads batches is a `StorageError`.

    The loader notices it by a signal, so the error may come from anywhere, in the midst of an update too: what is in
    memory then is no state to save.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_reader_gone(error):
            raise
        raise StorageError(
            f"a process that reads batches is gone: {str(error).splitlines()[0]}",
            "memory or /dev/shm ran full (see df /dev/shm): go on from the last checkpoint with fewer workers, dit"
            " train --resume -s train.workers=N",
        ) from error


def is_reader_gone(error: BaseException) -> bool:
    """Whether torch says that a process that reads batches has died."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


@contextmanager
def compiler_errors_explained() -> Iterator[None]:
    """Inside, a failure of the compiler is a `UsageError` that says what is missing."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().splitlines()[:2])  # then come stack traces and advice to programmers
        raise UsageError(
            f"train.compile: the model cannot be compiled on this machine: {reason}",
            "install a C++ compiler (for a GPU also Triton), or go on without: -s train.compile=false",
        ) from error


def require_finite_step(
    step: int, loss: Tensor, grad_norm: Tensor, losses: Sequence[Loss], ids: list[str], ranks: Ranks
) -> None:
    """Raises `NonFiniteError` in all processes alike: the loss and the gradient that it looks at are those of all.

    Args:
        ids: of this process's samples, one for each value of `losses`.
    """
    if torch.isfinite(loss) and torch.isfinite(grad_norm):
        return
    finite = torch.cat([torch.isfinite(one.per_sample) for one in losses]).tolist()
    broken = ranks.gather_names([sample for sample, good in zip(ids, finite, strict=True) if not good])
    suspects = list(dict.fromkeys(broken or ranks.gather_names(ids)))
    raise NonFiniteError(
        f"step {step}: loss {float(loss):g}, gradient norm {float(grad_norm):g}; stopped before the update. "
        f"Samples: {listed(suspects, _SHOWN)}",
        "check these samples with dit shard --verify and dit audit, lower train.lr, then dit train --resume",
        suspects,
    )
