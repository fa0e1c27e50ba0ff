"""The weights in a checkpoint that anybody may have made: where its trainer put them, the averaged ones first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dittool.ckpt.load import check_pt, check_safetensors, keys_of, load_safetensors
from dittool.ckpt.parts import RAW_KEYS, Part, at, entries_of, find_part, state_dicts
from dittool.ckpt.tensors import load_mapped
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError
from dittool.shell import command_line


def load_weights(path: Path, weights: str | None = None, talk: Talk = SILENT) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU, from a `.safetensors` file, one of our checkpoints, or a foreign `.pt`.

    `weights` picks a key ("ema", "model"); by default the averaged weights are taken where there are any, and `talk` is
    told which. Wrappers before the names are taken off. Tensors of a `.pt` are mapped from the file and read when they
    are used. Raises `BadDataError` and `UnsafeFileError`.
    """
    if path.suffix.lower() == ".safetensors":
        content: Mapping[str, object] = check_safetensors(path).tensors
        part = choose_part(content, path)
        return _named(load_safetensors(path), part)
    report = check_pt(path)
    part = choose_part(report.content, path, weights)
    if part.keys or part.prefix:
        talk.note(f"{path}: taking {part}")
    if part.keys and weights is None and not part.averaged:
        talk.warn(f"{path}: holds no averaged (EMA) weights, so the raw ones are taken")
    state = entries_of(at(report.content, part.keys))
    return _named(load_mapped(report, {name: state[name] for name in part.bare}), part)


def choose_part(content: object, path: Path, weights: str | None = None) -> Part:
    """The part of a checkpoint that is its model, the averaged weights where there are any. `content` holds tensors or
    their `TensorSpec`.

    Raises `BadDataError` when there are no weights, or none under the key asked for.
    """
    for keys in state_dicts(content):
        if weights is None or weights in keys[:1]:
            return find_part(content, keys)
    wanted = (
        f"no weights under '{weights}'"
        if weights
        else f"no state dict, neither at the top nor under {', '.join(RAW_KEYS[:6])} or a name with ema, swa or average"
    )
    raise BadDataError(
        f"{path}: {wanted}; it has {keys_of(entries_of(content) or content)}",
        f"see what is in it with: {command_line('dit', 'inspect-ckpt', path, '--tree')}",
    )


def _named(state: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    return {short: state[name] for name, short in part.bare.items()}
