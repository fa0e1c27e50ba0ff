"""E5 on a foreign model: does its switch for gradient checkpointing make every block run again in backward?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.gradients import gradients_to
from dittool.audit.specimens.foreign.model import ForeignModel, answer
from dittool.audit.specimens.saved_bytes import SavedBytes
from dittool.storage import bytes_text

FIX = (
    "wrap each block in torch.utils.checkpoint.checkpoint(..., use_reentrant=False) when the switch is on and the model"
    " trains"
)
_METHODS = {  # of diffusers, transformers and timm
    True: ("enable_gradient_checkpointing", "gradient_checkpointing_enable", "set_grad_checkpointing"),
    False: ("disable_gradient_checkpointing", "gradient_checkpointing_disable", None),
}
_TOLERANCE = 1e-5  # of gradients, relative to the largest
_KEPT_ENTRIES = 100_000

Build = Callable[[bool], nn.Module]


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward."""

    runs: Counter[str]  # forward passes of each block
    saved: int  # bytes kept for backward, outside of recomputation
    gradients: dict[str, Tensor]  # of a large parameter some entries, see `_some`
    answer: Tensor


def check_checkpointing(foreign: ForeignModel) -> list[Finding]:
    if not foreign.anatomy.blocks:
        return skipped(f"no blocks were found: {foreign.anatomy.why_not}")
    switch, build = _switch(foreign)
    if build is None:
        return skipped(
            "no switch was found: no keyword argument, attribute or method of it has 'checkpoint' in its name"
        )
    off, on = (training_pass(foreign, build(wanted)) for wanted in (False, True))
    blocks = foreign.anatomy.blocks
    faults = []
    if wrong := [name for name in blocks if off.runs[name] != 1]:
        faults.append(f"{switch} off: {wrong[0]} runs {off.runs[wrong[0]]} times, not once")
    if wrong := [name for name in blocks if on.runs[name] < 2]:
        faults.append(
            f"{switch} on: {wrong[0]} does not run again in backward; {len(wrong)} of {len(blocks)} blocks are not"
            " recomputed"
        )
    if on.saved >= off.saved:
        faults.append(
            f"{switch} on: {bytes_text(on.saved)} are kept for backward, off: {bytes_text(off.saved)}; nothing is saved"
        )
    name, apart = largest_gradient_difference(off, on)
    if apart > _TOLERANCE:
        faults.append(f"gradients of {name} differ by {apart:.1g} of the largest gradient between on and off")
    if faults:
        return [finding for fault in faults for finding in failed(fault, FIX)]
    return passed(
        f"{switch}: each of {len(blocks)} blocks runs again in backward and {bytes_text(on.saved)} are kept instead of"
        f" {bytes_text(off.saved)} ({1 - on.saved / off.saved:.0%} less), gradients equal within {apart:.1g}"
    )


def training_pass(foreign: ForeignModel, model: nn.Module, seed: int = 0) -> TrainingPass:
    """Forward and backward in training mode, with seeded random draws."""
    model.train()
    # ahead, lest they split the heap
    kept = {name: torch.zeros_like(_some(parameter)) for name, parameter in model.named_parameters()}
    reached: set[str] = set()

    def take(name: str, gradient: Tensor) -> None:
        kept[name] += _some(gradient)
        reached.add(name)

    with torch.random.fork_rng(devices=[]), _counted(model, foreign.anatomy.blocks) as runs, gradients_to(take, model):
        torch.manual_seed(seed)
        with SavedBytes(model) as saved:
            given = answer(model, foreign.example.inputs())
        given.float().square().sum().backward()
    return TrainingPass(
        runs, saved.bytes, {name: gradient for name, gradient in kept.items() if name in reached}, given.detach()
    )


@torch.no_grad()
def _some(gradient: Tensor) -> Tensor:
    """A gradient, or of a large one its mean and some 100,000 entries from all its rows and columns."""
    if gradient.numel() <= _KEPT_ENTRIES:
        return gradient
    step = gradient.numel() // _KEPT_ENTRIES | 1  # odd, so that widths of an even number do not hide columns
    return torch.cat([gradient.flatten()[::step], gradient.mean()[None]])


@contextmanager
def _counted(model: nn.Module, blocks: Sequence[str]) -> Iterator[Counter[str]]:
    """Counts how often each block's forward runs, also where it is not called through the module."""
    counts: Counter[str] = Counter()

    def counting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return forward(*args, **kwargs)

        return counted

    modules = {name: model.get_submodule(name) for name in blocks}
    for name, module in modules.items():
        module.forward = counting(name, module.forward)
    try:
        yield counts
    finally:
        for module in modules.values():
            del module.forward


def largest_gradient_difference(one: TrainingPass, other: TrainingPass) -> tuple[str, float]:
    """The parameter whose gradients differ most between two passes, and by how much of the largest gradient."""
    largest = max(float(gradient.abs().max()) for gradient in one.gradients.values())
    missing = one.gradients.keys() ^ other.gradients.keys()
    if missing:
        return min(missing), float("inf")
    apart = {
        name: float((one.gradients[name] - other.gradients[name]).abs().max()) / max(largest, 1e-30)
        for name in one.gradients
    }
    name = max(apart, key=apart.get)
    return name, apart[name]


def _switch(foreign: ForeignModel) -> tuple[str, Build | None]:
    """What turns checkpointing on, in words, and how to build the model with it on or off."""
    for name, value in foreign.factory.settings.items():
        if "checkpoint" in name and isinstance(value, bool):
            return name, partial(_built, foreign, name)
    model = foreign.shared_awake
    for on, off in zip(_METHODS[True], _METHODS[False], strict=True):
        if callable(getattr(model, on, None)):
            return f"{on}()", partial(_called, foreign, on, off)
    for name, value in vars(model).items():
        if "checkpoint" in name and isinstance(value, bool):
            return name, partial(_set, foreign, name)
    return "", None


def _built(foreign: ForeignModel, name: str, wanted: bool) -> nn.Module:
    return foreign.awake(**{name: wanted})


def _called(foreign: ForeignModel, on: str, off: str | None, wanted: bool) -> nn.Module:
    model = foreign.awake()
    method: Any = getattr(model, on if wanted or off is None else off)
    method(*([wanted] if off is None else []))
    return model


def _set(foreign: ForeignModel, name: str, wanted: bool) -> nn.Module:
    model = foreign.awake()
    for module in model.modules():
        if hasattr(module, name):
            setattr(module, name, wanted)
    return model
