"""Biases of a network by their names, inside and outside of the blocks' attention and MLP."""

from __future__ import annotations

from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.specimen import Biases

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def biases_of(model: nn.Module, anatomy: Anatomy, parameters: int) -> Biases:
    """`parameters` are those of the network at its real size."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if is_bias(name)}
    wrong, layers = [], 0
    for block in anatomy.blocks:
        whole = part_of(model, block)
        for name, module in whole.named_modules(prefix=block):
            is_norm = not any(module.children()) and not isinstance(module, _LAYERS)  # or one of its relatives
            if name in anatomy.inner[block] or is_norm:
                continue
            layers += isinstance(module, _LAYERS)
            own = module.named_parameters(recurse=False)
            biases = [leaf for leaf, parameter in own if is_bias(leaf) and not is_table(parameter, whole)]
            wrong += [f"{name}.{leaf}" for leaf in biases]
    elsewhere = {name: size for name, size in sizes.items() if name not in wrong}
    return Biases({name: sizes[name] for name in wrong}, layers, elsewhere, parameters)


def is_table(parameter: Tensor, block: nn.Module) -> bool:
    """Whether what is called a bias has several axes, and is as wide as nothing that a layer of the block gives: of
    attention's logits, by the distance of two places, and no layer's.
    """
    weights = (weight for name, weight in block.named_parameters() if weight.dim() > 1 and not is_bias(name))
    widths = {side for weight in weights for side in weight.shape}
    return sum(side > 1 for side in parameter.shape) > 1 and parameter.shape[-1] not in widths


def is_bias(name: str) -> bool:
    """By torch's own names: bias, in_proj_bias, bias_k; and q_bias, as many write it."""
    leaf = name.rpartition(".")[2]
    return leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_")
