"""The list of planted faults: which rule must find each, what it is, and how it is planted in a twin of something
clean.

A planter gets the workshop and returns the subject with the fault in it; the planters stand in `planted_*.py`. Many of
the faults are from real failed runs. `test_audit_rules.py` runs all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dittool.audit.subject import Subject
from tests.audit.workshop import Workshop


@dataclass(frozen=True)
class Planted:
    """A fault: which rule must find it, what it is, and how to plant it."""

    code: str
    fault: str
    plant: Callable[[Workshop], Subject]
    status: str
    slow: bool  # others like it are planted in every run of the tests


PLANTED: list[Planted] = []


def plants(code: str, fault: str, status: str = "fail", slow: bool = False):
    def add(plant: Callable[[Workshop], Subject]):
        PLANTED.append(Planted(code, fault, plant, status, slow))
        return plant

    return add
