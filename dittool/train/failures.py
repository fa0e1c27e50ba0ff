"""What ends a step for reasons outside of the model's code, said as errors of ours: a batch that cannot be read, a
compiler that is missing, values that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dittool.errors import NonFiniteError, StorageError, UsageError, listed
from dittool.families.family import MicroBatch
from dittool.train.distributed import Ranks
from dittool.train.log import StepFigures

B = TypeVar("B", bound=MicroBatch)

_SHOWN = 8  # suspects that a message names


class ReadingError(Exception):
    """A micro-batch that could not be read by some process. All processes of a run raise it together, between two
    updates: the state is that of the last whole step.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def next_batch(batches: Iterator[B], ranks: Ranks) -> B:
    """The next micro-batch. Raises `ReadingError` in all processes when one of them cannot read its share."""
    batch, reason = None, None
    try:
        batch = next(batches)
    except Exception as error:
        reason = error
    if ranks.any(batch is None):
        elsewhere = StorageError("another process could not read its share of a batch", "its message says why")
        raise ReadingError(reason or elsewhere) from reason
    assert batch is not None
    return batch


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


def not_finite(step: StepFigures, ranks: Ranks) -> NonFiniteError:
    """What is to be said of a step whose loss or gradient was not finite. All processes ask together: the loss and the
    gradient are those of all. Its figures lie on the host.
    """
    finite = torch.cat([torch.isfinite(part.per_sample) for part in step.losses]).tolist()
    broken = ranks.gather_names([sample for sample, good in zip(step.ids, finite, strict=True) if not good])
    suspects = list(dict.fromkeys(broken or ranks.gather_names(step.ids)))
    return NonFiniteError(
        f"step {step.step}: loss {float(step.loss):g}, gradient norm {float(step.grad_norm):g}; stopped before the"
        f" update. Samples: {listed(suspects, _SHOWN)}",
        "check these samples with dit shard --verify and dit audit, lower train.lr",
        suspects,
    )
