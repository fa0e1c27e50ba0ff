"""What a copy with fewer blocks says, asked again of the whole model where the copy could be the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from dittool.audit.specimens.changes import OWN, neighbours_shift
from dittool.audit.specimens.specimen import Independence

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel


def dead_in_whole(
    foreign: ForeignModel, dead_of: Callable[[nn.Module], list[str]], dead: Sequence[str], training: bool
) -> list[str]:
    """Of parameters that no gradient reaches in the copy, and those of equal blocks, the ones that none reaches in the
    whole model.
    """
    doubtful = foreign.with_equals(dead)
    with foreign.woken() as whole:
        for name, parameter in whole.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in doubtful)
        return dead_of(whole.train(training))


def has_deaf_sample(found: Independence) -> bool:
    """Whether an input moves the answers of some samples only."""
    return any(found.own[name] <= OWN < most for name, most in found.most.items())


def may_mix(foreign: ForeignModel, whole: nn.Module, found: Independence) -> bool:
    """Whether in the whole model one sample, all of it, moves another's answer, where in the copy none did."""
    if any(change > OWN for changes in (found.others, found.in_training) for change in changes.values()):
        return False
    inputs, least = foreign.inputs(), max(OWN, 3 * foreign.unsteadiness)
    modes, others = [False] if foreign.fault_in_training else [False, True], foreign.of_each_sample(inputs)
    return any(neighbours_shift(whole.train(mode), inputs, others, foreign.feed.batch) > least for mode in modes)
