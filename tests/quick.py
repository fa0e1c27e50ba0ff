"""Which of many alike cases every run of the tests tries; `pytest -m slow` tries the others."""

from __future__ import annotations

from collections.abc import Container, Iterable

import pytest


def others_slow(cases: Iterable, quick: Container) -> list:
    """The cases for `parametrize`, those that are not among `quick` marked slow."""
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


def every_third(cases: Iterable) -> list:
    """The cases for `parametrize`, each third of them quick."""
    cases = list(cases)
    return others_slow(cases, cases[::3])
