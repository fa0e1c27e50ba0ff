"""`dit train` under torchrun in which the second process cannot write its part of the checkpoint of step 6.

FAILURE=disk|kill torchrun --standalone --nproc-per-node 2 -m tests.train.failing_part train …
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

from dittool.ckpt.sharded import write_part
from dittool.cli import run
from dittool.train import saving


def failing(folder: Any, number: int, count: int, tensors: Any) -> Any:
    if number == 1 and "step0000006" in folder.name:
        if os.environ["FAILURE"] == "kill":
            (folder / ".tmp-dit-half.safetensors").write_bytes(bytes(1000))
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write_part(folder, number, count, tensors)


if __name__ == "__main__":
    saving.write_part = failing
    sys.exit(run(sys.argv[1:]))
