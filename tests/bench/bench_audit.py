"""What `dit audit` of a model of half a billion parameters takes: wall and CPU seconds, and the largest memory.

    python -m tests.bench.bench_audit [DiT MMDiT UViT pixart sd3 flux]

CPU seconds are those of all its processes; they say more than the wall where other work goes on beside it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

_MODELS = Path(__file__).with_name("half_billion.py")
_NAMES = ("DiT", "MMDiT", "UViT", "pixart", "sd3", "flux")


def measure(name: str) -> str:
    """One row of a table."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "dittool", "audit", f"{_MODELS}:{name}", "--json", "--quiet"]
    ran = subprocess.run(command, capture_output=True, text=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    try:
        counts = Counter(finding["status"] for finding in json.loads(ran.stdout)["findings"])
    except ValueError:
        return f"| {name} | {ran.stderr.strip()[-200:]} |"
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"| {name} | {said} | {wall:.0f} s | {cpu:.0f} s | {after.ru_maxrss / 1e6:.1f} GB |"


if __name__ == "__main__":
    print("| model | findings | wall | CPU | largest process so far |\n| --- | --- | --- | --- | --- |")
    for name in sys.argv[1:] or _NAMES:
        print(measure(name), flush=True)
