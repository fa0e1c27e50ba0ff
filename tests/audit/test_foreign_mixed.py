"""Each habit and fault in each of three styles of models: judged as it deserves."""

from __future__ import annotations

import pytest

from tests.audit.foreign_matrix import alarms_of_kind
from tests.audit.foreign_mixed import HABITS
from tests.audit.foreign_styles import STYLES

QUICK = {("Clean", "configured"), ("NoisyExchanged", "fed"), ("EncoderDecoderOpen", "plain")}
CASES = [(habit.__name__, style) for habit in HABITS for style in STYLES]
WANTED = {habit.__name__: set(wanted) for habit, wanted in HABITS.items()}


@pytest.mark.parametrize(
    ("habit", "style"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_kind_is_judged_alike_in_each_style(habit, style):
    assert alarms_of_kind(style, habit) == WANTED[habit]
