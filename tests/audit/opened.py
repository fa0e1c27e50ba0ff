"""The audit's entrances with our families handed in, as the commands hand them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dittool.audit import runner, targets
from dittool.families.family import specimen_of


def _handed_in(entrance: Callable[..., Any]) -> Callable[..., Any]:
    return lambda target, *others, **named: entrance(target, specimen_of, *others, **named)


audit = _handed_in(lambda target, *others, **named: runner.audit([target], *others, **named)[0])
audit_before_training = _handed_in(runner.audit_before_training)
checkpoint_subject = _handed_in(targets.checkpoint_subject)
open_subject = _handed_in(targets.open_subject)
preset_subject = _handed_in(targets.preset_subject)
