"""The weights in a checkpoint that anybody may have made: where its trainer put them, the averaged ones first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dittool.ckpt.averages import is_tensor_list
from dittool.ckpt.load import keys_of
from dittool.ckpt.opened import SHARDED, Opened, open_checkpoint
from dittool.ckpt.parts import RAW_KEYS, Part, at, entries_of, find_part, named_by_order, state_dicts, tensors_of
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError
from dittool.shell import command_line


def load_weights(path: Path, weights: str | None = None, talk: Talk = SILENT) -> Mapping[str, Tensor]:
    """The model's tensors by name, on the CPU, from one of our checkpoints or of anybody's: a file, an index of several
    files, or a folder.

    `weights` picks a key ("ema", "model"); by default the averaged weights are taken where there are any, and `talk` is
    told which. Wrappers before the names are taken off. Tensors of a `.pt` are mapped from the file and read when they
    are used; those of a checkpoint in parts are joined at each look and not kept (`LazyTensors`). Raises `BadDataError`
    and `UnsafeFileError`.
    """
    return weights_of(open_checkpoint(path), weights, talk)


def weights_of(opened: Opened, weights: str | None = None, talk: Talk = SILENT) -> Mapping[str, Tensor]:
    """`load_weights` of a checkpoint that was opened."""
    part = choose_part(opened.content, opened.path, None if opened.weights_only else weights)
    if part.keys or part.prefix:
        talk.note(f"{opened.path}: taking {part}")
    if part.unpaired:
        talk.warn(f"{opened.path}: the average is not taken: {part.unpaired}")
    elif part.keys and weights is None and not part.averaged:
        talk.warn(f"{opened.path}: holds no averaged (EMA) weights, so the raw ones are taken")
    if opened.kind == SHARDED:
        state = tensors_of(opened.content, part)
        return opened.load({short: state[name] for name, short in part.bare.items()})
    loaded: dict[str, Tensor] = {}
    for one in (part.raw, part):
        if one is not None:
            tensors = opened.load(tensors_of(opened.content, one))
            loaded |= {short: tensors[name] for name, short in one.bare.items()}
    return loaded


def choose_part(content: object, path: Path, weights: str | None = None) -> Part:
    """The part of a checkpoint that is its model, the averaged weights where there are any. `content` holds tensors or
    their `TensorSpec`.

    Raises `BadDataError` when there are no weights, or none under the key asked for.
    """
    unpaired = ""
    for keys in state_dicts(content):
        if weights is None or weights in keys[:1]:
            listed = is_tensor_list(at(content, keys))
            part = named_by_order(content, keys) if listed else find_part(content, keys)
            if not listed or part.listed:
                return replace(part, unpaired=unpaired)
            unpaired = unpaired or part.unpaired
    wanted = unpaired or (
        f"no weights under '{weights}'"
        if weights
        else f"no state dict, neither at the top nor under {', '.join(RAW_KEYS[:6])} or a name with ema, swa or average"
    )
    raise BadDataError(
        f"{path}: {wanted}; it has {keys_of(entries_of(content) or content)}",
        f"see what is in it with: {command_line('dit', 'inspect-ckpt', path, '--tree')}",
    )
