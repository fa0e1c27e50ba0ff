"""E1 on a foreign model: is every block the identity at step 0, because of gates and not by another accident?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.specimens.foreign.anatomy import Call, alike_blocks, modulation_tables
from dittool.audit.specimens.foreign.model import ForeignModel
from dittool.audit.specimens.ours import LARGEST_BUILT

FIX = (
    "multiply each branch by its own gate, and set weight and bias of the modulation's last layer to zero when the"
    " model is built"
)
_INPUTS = 3


def check_zero_init(foreign: ForeignModel) -> list[Finding]:
    anatomy = foreign.anatomy
    if not anatomy.blocks:
        return skipped(f"no blocks were found: {anatomy.why_not}")
    model = foreign.fresh()
    runs = [foreign.block_calls(model, foreign.example.inputs(seed=seed)) for seed in range(_INPUTS)]
    moved = {name: max(_change(run[name]) for run in runs) for name in anatomy.blocks}
    large = foreign.parameters > LARGEST_BUILT
    tried = [alike[0] for alike in alike_blocks(model, anatomy.blocks).values()] if large else anatomy.blocks
    gateless = {name: _change_without_modulation(foreign, model, name, runs[0][name]) for name in tried}
    awake = foreign.shared_awake
    opened = {name: _change(call) for name, call in foreign.block_calls(awake, foreign.example.inputs()).items()}
    left = _modulation_left(foreign, model)

    faults: list[Finding] = []
    worst = max(anatomy.blocks, key=moved.get)
    without = max(tried, key=gateless.get)
    gates = (
        f"no gate closes {without}: with its modulation at zero and its other weights redrawn it still moves tokens by"
        f" {gateless[without]:.2g}"
    )
    if moved[worst] > 0:
        reason = (
            gates if gateless[without] > 0 else f"its gates are there but open: {left or 'the modulation is not zero'}"
        )
        faults += failed(
            f"max |block(x) − x| is {moved[worst]:.3g} in {worst}, not 0, of {anatomy.where}; {reason}", FIX
        )
    elif gateless[without] > 0:
        faults += failed(f"the blocks are the identity only because projections are zero; {gates}", FIX)
    if dead := [name for name, change in opened.items() if change == 0]:
        faults += failed(
            f"{dead[0]} returns its input whatever its weights are: it can never learn; {len(dead)} of {len(opened)}"
            " blocks",
            FIX,
        )
    if not faults and left:
        faults += warned(f"every block is the identity, yet the modulation is not all zero at step 0: {left}", FIX)
    redrawn = f"with all other weights redrawn too{', tried on one block of each kind' if large else ''}"
    return faults or passed(
        f"max |block(x) − x| = 0 in {anatomy.where}, {redrawn}; {min(opened.values()):.2g} or more with open gates"
    )


def _change(call: Call) -> float:
    """max |block(x) − x| over the streams of tokens; a NaN counts as a change."""
    changes = [float((after - before).abs().max()) for before, after in call.streams]
    return max(float("inf") if change != change else change for change in changes)


@torch.no_grad()
def _change_without_modulation(foreign: ForeignModel, model: nn.Module, name: str, call: Call) -> float:
    """How far a block moves tokens when its modulation is zero and every other weight is drawn again."""
    block = copy.deepcopy(model.get_submodule(name))
    modulation = {one.removeprefix(f"{name}.") for one in foreign.anatomy.modulation[name]}
    held = set(modulation_tables(block))
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in block.named_parameters():
        layer = parameter_name.rpartition(".")[0]
        a_gate_of_its_own = parameter.dim() == 1 and not parameter.any() and not parameter_name.endswith("bias")
        if layer in modulation or parameter_name in held or a_gate_of_its_own:
            parameter.zero_()
        else:
            parameter.normal_(std=0.05, generator=generator)
    return _change(_with_zero_vectors(foreign, model, call).again(block))


def _with_zero_vectors(foreign: ForeignModel, model: nn.Module, call: Call) -> Call:
    """The call with what shared modulation layers gave it replaced by zeros."""
    if not foreign.anatomy.shared:
        return call
    widths = {model.get_submodule(name).out_features for name in foreign.anatomy.shared}

    def closed(value: Any) -> Any:
        from_shared = isinstance(value, Tensor) and value.is_floating_point() and value[0].numel() in widths
        return torch.zeros_like(value) if from_shared else value

    return Call(tuple(map(closed, call.args)), {name: closed(value) for name, value in call.kwargs.items()}, None)


def _modulation_left(foreign: ForeignModel, model: nn.Module) -> str:
    """Names the first part of the modulation that is not zero, "" when there is none."""
    anatomy = foreign.anatomy
    layers = dict.fromkeys([*(one for block in anatomy.blocks for one in anatomy.modulation[block]), *anatomy.shared])
    tensors = {
        f"{layer}.{name}": one for layer in layers for name, one in model.get_submodule(layer).named_parameters()
    }
    for block in anatomy.blocks:
        tensors |= {f"{block}.{name}": one for name, one in modulation_tables(model.get_submodule(block)).items()}
    left = {name: float(tensor.detach().abs().max()) for name, tensor in tensors.items() if tensor.any()}
    if not left:
        return ""
    name, largest = next(iter(left.items()))
    return f"{len(left)} of {len(tensors)} of its tensors are not zero, first {name} (up to {largest:.2g})"
