"""What tests ask of a derived folder."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager


def digests(derived):
    return {str(path.relative_to(derived)): path.read_bytes() for path in derived.rglob("*.npy")}


@contextmanager
def held(lock):
    """Another process that holds a lock, killed at the end."""
    code = f"""
import time
from pathlib import Path
from dittool.data.features.parts import Part, writer_lock
with {lock}:
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
