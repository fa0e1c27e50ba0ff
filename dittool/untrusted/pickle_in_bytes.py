"""Pickles inside the bytes that an object of another program holds.

Classes that pass functions between processes (the `CloudpickleWrapper` of reinforcement learning's environments)
unpickle in their own `__setstate__` the bytes that they are given, so a file of nothing but an object and its state
runs what those bytes say. Bytes that are packed are not looked into.
"""

from __future__ import annotations

import pickletools
from itertools import islice

_IMPORTING = {"GLOBAL", "STACK_GLOBAL", "INST"}
_CALLING = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_MOST_INSTRUCTIONS = 100_000  # followed in one text of bytes; other data stops making sense after a few


def holds_pickle(data: bytes) -> bool:
    """Whether an unpickler that is given these bytes would import something and call it, or would never end."""
    imported = False
    instructions = islice(pickletools.genops(data), _MOST_INSTRUCTIONS)
    try:
        for opcode, _, _ in instructions:
            imported = imported or opcode.name in _IMPORTING
            if opcode.name == "STOP" or (imported and opcode.name in _CALLING):
                return imported and opcode.name != "STOP"
    except ValueError:  # no instruction, or cut short
        return False
    return True
