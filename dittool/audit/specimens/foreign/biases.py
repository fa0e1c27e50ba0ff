"""E3 on a foreign model: biases in the linear layers of its blocks that tokens go through."""

from __future__ import annotations

from torch import nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.model import ForeignModel

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
FIX = "build these layers with bias=False"


def check_biases(foreign: ForeignModel) -> list[Finding]:
    anatomy, model = foreign.anatomy, foreign.shared_awake
    if not anatomy.blocks:
        return skipped(f"no blocks were found: {anatomy.why_not}")
    biases = {name: parameter.numel() for name, parameter in model.named_parameters() if _is_bias(name)}
    wrong, layers = [], 0
    for block in anatomy.blocks:
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if name in anatomy.inner[block] or _is_norm(module):
                continue
            layers += isinstance(module, _LAYERS)
            wrong += [
                f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False) if _is_bias(parameter)
            ]
    if wrong:
        cost = sum(biases[name] for name in wrong)
        return failed(
            f"{len(wrong)} biases in the blocks' attention and MLP, first {wrong[0]}; {cost:,} parameters,"
            f" {cost / foreign.parameters:.3%} of {foreign.parameters:,}",
            FIX,
        )
    cost = sum(biases.values())
    return passed(
        f"none in {layers} layers of {anatomy.where} that tokens go through; {len(biases)} elsewhere, {cost:,}"
        f" parameters, {cost / foreign.parameters:.3%} of {foreign.parameters:,}"
    )


def _is_norm(module: nn.Module) -> bool:
    """A leaf with parameters that is no layer of ours to judge: LayerNorm and its many relatives."""
    return not any(module.children()) and not isinstance(module, _LAYERS)


def _is_bias(name: str) -> bool:
    """By torch's own names: bias, in_proj_bias, bias_k; and q_bias, as many write it."""
    leaf = name.rpartition(".")[2]
    return leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_")
