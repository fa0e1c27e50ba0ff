"""`dit train` under torchrun in which all that the first process does alone takes longer than a collective may wait:
what judging a large model is to NCCL's ten minutes, in seconds.

    torchrun --standalone --nproc-per-node 2 -m tests.train.slow_first_process train --preset demo …
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from dittool.audit import runner
from dittool.cli import run
from dittool.families import flow
from dittool.train import distributed, saving

COLLECTIVES_WAIT, ALONE = 5, 7  # seconds


def slowly(work: Callable[..., Any], name: str, *arguments: Any, **options: Any) -> Any:
    time.sleep(ALONE)
    print(f"slow: {name}", file=sys.stderr, flush=True)
    return work(*arguments, **options)


if __name__ == "__main__":
    distributed.COLLECTIVE_TIMEOUT = timedelta(seconds=COLLECTIVES_WAIT)
    runner.audit_before_training = partial(slowly, lambda *_: None, "audit")
    saving.save_checkpoint = partial(slowly, saving.save_checkpoint, "save")
    parts = {name: partial(slowly, getattr(flow.FAMILY, name), name) for name in ("evaluate", "draw", "judge")}
    flow.FAMILY = replace(flow.FAMILY, **parts)
    sys.exit(run(sys.argv[1:]))
