"""Other inputs of a foreign model, which may reach what the example's do not: of another size, of more frames, with
what is true or false turned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from dittool.audit.specimens.foreign.feeding import Feed
from dittool.audit.specimens.specimen import Grid
from dittool.audit.specimens.watching import Inputs, answers_without_gradient


class VariedInputs:
    """Of one model; those with which it runs, and answers with finite values."""

    def __init__(self, feed: Feed, model: nn.Module, patch_and_grid: Callable[[], tuple[int, Grid]]) -> None:
        """`patch_and_grid` may raise where the latent's tokens are not found."""
        self._feed, self._model, self._patch_and_grid = feed, model, patch_and_grid

    @property
    def all(self) -> list[Inputs]:
        """The example's, those of another size and of more frames, and those with forward's flags turned."""
        inputs = self._feed.inputs()
        flags = [self._feed.filled(inputs, *switch) for switch in self.switches if switch[0] in self._feed.flags]
        sized = [self._feed.inputs(size=self.other_size)] if self.other_size else []
        return [inputs, *sized, *([self.more_frames] if self.more_frames else []), *flags]

    def of_pass(self, number: int, passes: int) -> Inputs:
        """Of a training pass: after some of the example's size also of another, which may reach what the first does
        not; in every second one something of zeros and ones, which may switch inputs off, is zero or one throughout. A
        video has several frames at last.
        """
        if number >= passes - 2 and self.more_frames:
            return self.more_frames
        inputs = self._feed.inputs(seed=number, size=None if number < passes // 2 else self.other_size)
        if not self.switches or number % 2 == 0:
            return inputs
        return self._feed.filled(inputs, *self.switches[number // 2 % len(self.switches)])

    def turned(self, inputs: Inputs, but: str) -> list[Inputs]:
        """With each but one that may switch others off at another value."""
        return [self._feed.filled(inputs, switch, value) for switch, value in self.switches if switch != but]

    @cached_property
    def switches(self) -> list[tuple[str, int]]:
        """Forward's flags, each turned, and inputs of zeros and ones, each with 0 and with 1."""
        inputs = self._feed.inputs()
        found = [(name, int(not value)) for name, value in self._feed.default_of_flags.items()]
        found += [(name, value) for name in self._feed.switches for value in (0, 1)]
        return [turned for turned in found if self._is_finite_with(self._feed.filled(inputs, *turned))]

    @cached_property
    def more_frames(self) -> Inputs | None:
        """A batch of videos with several frames."""
        inputs = self._feed.of_more_frames(self._feed.inputs())
        return inputs if inputs and self._is_finite_with(inputs) else None

    @cached_property
    def other_size(self) -> tuple[int, int] | None:
        """(H, W) in latent cells, odd in tokens."""
        try:
            patch, (rows, columns) = self._patch_and_grid()
            size = ((rows + 1) * patch, (columns // 2 + 1) * patch)
            answers_without_gradient(self._model, self._feed.inputs(size=size))
        except Exception:  # its tokens were not found, or it refuses the size
            return None
        return size if self._feed.sizes_can_change else None

    def _is_finite_with(self, inputs: Inputs) -> bool:
        try:
            given = answers_without_gradient(self._model, inputs)
        except Exception:  # everything is hidden, or nothing left
            return False
        return all(bool(torch.isfinite(tensor).all()) for tensor in given)
