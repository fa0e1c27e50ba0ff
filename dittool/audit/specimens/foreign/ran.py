"""What is asked of guessed inputs with which a model ran: whether they are meant so.

B batch
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from dittool.audit.specimens.foreign.attempt import Attempt, tried
from dittool.audit.specimens.foreign.forms import BATCH, kind_of
from dittool.audit.specimens.gates import wake
from dittool.audit.specimens.leaves import leaves, other_value, with_leaves
from dittool.audit.specimens.trial import LARGEST_BUILT
from dittool.audit.specimens.watching import answer_without_gradient


class Ran:
    """Asks a model about attempts that ran."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    @cached_property
    def _awake(self) -> nn.Module | None:
        """A copy with open gates; None of a large model, or of one that cannot be copied."""
        if sum(parameter.numel() for parameter in self._model.parameters()) > LARGEST_BUILT:
            return None
        try:
            model = copy.deepcopy(self._model)
        except Exception:  # it holds something that cannot be copied
            return None
        wake(model, 0)
        return model

    def mixes(self, attempt: Attempt) -> bool:
        """Whether other inputs of the first sample move the answer of the second."""
        if self._awake is None:
            return False
        inputs = attempt.inputs(self._dtype)
        own = {name: tensor for name, tensor in leaves(inputs).items() if tensor.shape[:1] == (BATCH,)}
        others = {name: torch.cat([other_value(tensor)[:1], tensor[1:]]) for name, tensor in own.items()}
        try:
            given = [answer_without_gradient(self._awake, each) for each in (inputs, with_leaves(inputs, others))]
        except Exception:  # other values are refused
            return False
        return given[0].shape[:1] == (BATCH,) and not torch.equal(given[0][1:], given[1][1:])

    def uses(self, attempt: Attempt, wider: Attempt, name: str) -> bool:
        """Whether a model computes with one argument more, and with nothing less beside it; with one whose name says
        nothing modules must run that did not.
        """
        before, given = tried(self._model, attempt.inputs(self._dtype)), wider.inputs(self._dtype)
        after = tried(self._model, given)
        read = after.read & {id(tensor) for tensor in leaves({name: given[name]}).values()}
        return bool(read) and before.ran <= after.ran and (bool(kind_of(name)) or before.ran < after.ran)

    def in_training(self, attempt: Attempt, latent: str) -> Attempt:
        """The attempt, or where it does not run in training mode one with a text that has the axis of length 1 that
        PixArt's has, if that runs in both.
        """
        texts = attempt.texts(latent)
        if not texts or self._runs(attempt, training=True):
            return attempt
        for path, form in texts:
            other = attempt.with_form(path, replace(form, sizes=(BATCH, 1, *form.sizes[1:])))
            if self._runs(other, training=False) and self._runs(other, training=True):
                return other
        return attempt

    def _runs(self, attempt: Attempt, training: bool) -> bool:
        self._model.train(training)
        try:
            return not tried(self._model, attempt.inputs(self._dtype)).error
        finally:
            self._model.eval()
