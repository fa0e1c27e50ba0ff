"""A foreign model as often as a rule needs it: built again, or of a large one copies that share its weights.

Drawing the weights of a large model takes many seconds and gigabytes, so that one is built once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager

import torch
from torch import nn

from dittool.audit.specimens.foreign.accounts import as_it_was
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.fewer_blocks import FewerBlocks, with_fewer_blocks
from dittool.audit.specimens.gates import is_closed, wake, woken_for_now
from dittool.audit.specimens.parts import parameter_of
from dittool.audit.specimens.watching import Inputs


class Builds:
    """Of one factory; all with the weights of the same seed."""

    def __init__(
        self, factory: Factory, prepared: Callable[[nn.Module], nn.Module], large: nn.Module | None, inputs: Inputs
    ) -> None:
        """
        Args:
            prepared: makes of what the factory builds what the audit calls.
            large: the first one that was built, where it is too large to be built again and again.
            inputs: one batch.
        """
        self._factory, self._prepared, self._large = factory, prepared, large
        self.fewer: FewerBlocks | None = with_fewer_blocks(large, inputs) if large is not None else None

    def fresh(self, seed: int = 0, **changes: object) -> nn.Module:
        """With fewer of its blocks where structure can be judged on that. Who changes weights that are not zero puts
        them back.
        """
        if self.fewer is None:
            return self.at_full_size(seed, **changes)
        changes = self._really_changed(changes)
        if seed or changes:
            return self.fewer.of(self.at_full_size(seed, **changes))
        return _sharing_weights(self.fewer.model)

    def at_full_size(self, seed: int = 0, **changes: object) -> nn.Module:
        """The same with all of its blocks."""
        changes = self._really_changed(changes)
        if self._large is None or seed or changes:
            return self._prepared(self._factory.build(seed, **changes))
        try:
            return _sharing_weights(self._large)
        except Exception:  # it holds something that cannot be copied
            self._large = None
            return self._prepared(self._factory.build())

    def _really_changed(self, changes: dict[str, object]) -> dict[str, object]:
        settings = self._factory.settings
        return {name: value for name, value in changes.items() if settings.get(name, not value) != value}

    @property
    def whole(self) -> nn.Module | None:
        """The model of which there is a copy with fewer blocks, only to be looked at."""
        return self._large if self.fewer else None

    def untouched(self) -> nn.Module:
        """The network at its real size, only to be run."""
        if self._large is None or self.fewer is None:
            return self.fresh()
        return copy.deepcopy(self._large, {id(parameter): parameter for parameter in self._large.parameters()})

    @contextmanager
    def woken(self, fewer: FewerBlocks) -> Iterator[nn.Module]:
        """The network at its real size with open gates, inside the `with`."""
        with woken_for_now(self.untouched(), fewer.closed) as model, as_it_was(model):
            yield model

    def of_other_weights(self, blocks: Sequence[str]) -> nn.Module | None:
        """A large one with open gates and other weights outside of its blocks; None where it can be built again."""
        base = self.fewer.model if self.fewer else self._large
        if base is None:
            return None
        inside = tuple(f"{block}." for block in blocks)
        outside = [name for name, _ in base.named_parameters() if not name.startswith(inside)]
        model = _sharing_weights(base, own=set(outside))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (parameter_of(model, name) for name in outside):
                mean, spread = float(parameter.mean()), float(parameter.std(correction=0))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)
        wake(model, seed=1)
        return model


def _sharing_weights(model: nn.Module, own: Set[str] = frozenset()) -> nn.Module:
    """A copy whose parameters, but for its own, are those of the model; so are not the ones that are zero throughout,
    which `wake` writes to.
    """
    shared = [tensor for name, tensor in model.named_parameters() if name not in own and not is_closed(tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
