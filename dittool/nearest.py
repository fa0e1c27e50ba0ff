"""The file that was probably meant by a path where nothing is.

data/shardz              did you mean data/shards?
run/nano/checkpoints     did you mean runs/nano/checkpoints?
"""

from __future__ import annotations

import difflib
import os
from itertools import islice
from pathlib import Path

from dittool.shell import quoted

_MOST_NAMES = 10_000  # of a folder that are compared: one of a million images must not take seconds


def did_you_mean(path: Path, otherwise: str) -> str:
    """A hint for a path that is not there: what stands in its place under a name like it, quoted for the shell, or
    `otherwise` where no name is near.
    """
    missing = next((one for one in (*reversed(path.parents), path) if not one.exists()), None)
    if missing is None:
        return otherwise
    try:
        with os.scandir(missing.parent) as entries:
            beside = sorted(entry.name for entry in islice(entries, _MOST_NAMES))
    except OSError:  # it cannot be listed
        return otherwise
    rest = path.relative_to(missing)
    by_small_letters = {name.casefold(): name for name in beside}
    close = difflib.get_close_matches(missing.name.casefold(), by_small_letters)
    near = [missing.with_name(by_small_letters[name]) / rest for name in close]
    there = [quoted(candidate) for candidate in near if candidate.exists()]
    return f"did you mean {' or '.join(there)}?" if there else otherwise
