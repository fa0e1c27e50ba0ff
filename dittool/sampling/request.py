"""What `dit sample` was asked for: options, a file of prompts, or a picture to draw again, checked before any model
is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from dittool.ckpt.files import resolve_checkpoint
from dittool.config.schema import Sample
from dittool.console import SILENT, Talk
from dittool.errors import UsageError
from dittool.geometry import parse_size
from dittool.nearest import did_you_mean
from dittool.sampling.arguments import require_strength
from dittool.sampling.grid import Grid, parse_grid
from dittool.sampling.picture_file import file_of, read_settings
from dittool.sampling.prompts import PromptLine, read_prompts
from dittool.sampling.repeat import Repeat


@dataclass(frozen=True)
class SampleOptions:
    """The command line's options, None where they were not given."""

    prompt: str | None = None
    prompts: Path | None = None  # a file of prompts
    ref: Path | None = None
    again: Path | None = None  # a picture whose settings come first (--from)
    checkpoint: Path | None = None
    size: str | None = None
    count: int | None = None
    seed: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)  # fields of `[sample]`, those that were given
    grid: tuple[str, str] | None = None
    init: Path | None = None
    strength: float | None = None
    negative: str | None = None
    weak: Path | None = None

    def given(self) -> list[str]:
        """The names of all options that were given."""
        others = {name: value for name, value in vars(self).items() if name != "settings"}
        return [*(name for name, value in others.items() if value is not None), *self.settings]


@dataclass(frozen=True)
class DrawRequest:
    """Images of one prompt and reference. Image i has seed + i."""

    checkpoint: Path
    prompt: str | None
    reference: Path | None
    count: int
    seed: int
    size: tuple[int, int] | None
    changes: Mapping[str, object]  # fields of `SampleSettings` that differ from the run's own
    init: Path | None = None  # an image to begin with instead of noise …
    strength: float = 1.0  # … blended with noise as at this t
    negative: str | None = None  # a prompt to draw away from
    weak: Path | None = None  # the checkpoint of a model to draw away from
    grid: Grid | None = None
    name: str = "sample"  # files are called NAME_seed000000.png
    repeat: Repeat | None = None


def plan(options: SampleOptions, talk: Talk = SILENT) -> list[DrawRequest]:
    """The requests behind a command line: one, or one for each line of a file of prompts, all of one checkpoint.

    Raises `UsageError` for what cannot be meant, `BadDataError` for files with unusable content.
    """
    for option, path in (("--ref", options.ref), ("--init", options.init)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option} {path}: no such file", did_you_mean(path, "check the path"))
    if options.prompts is not None and (options.prompt is not None or options.again is not None):
        other = "--prompt" if options.prompt is not None else "--from"
        raise UsageError(f"--prompts and {other} exclude each other", "give the prompts in the file alone")
    changes, size, grid = (
        setting_changes(options),
        wanted_size(options),
        parse_grid(options.grid) if options.grid else None,
    )
    if options.again is not None:
        return [_again(options.again, options, changes, size, grid, talk)]
    strength = require_strength(options.strength, options.init is not None, "--")
    require_weak(options.weak, changes, 0.0)
    name = "grid" if grid else "sample"
    if options.prompts is None:
        if options.prompt is None and options.ref is None:
            example = (
                'for example: dit sample --prompt "a red circle"; with a one-step generator: dit sample --class NAME'
            )
            raise UsageError("neither --prompt nor --ref: nothing to draw", example)
        wanted = [(name, PromptLine(0, options.prompt))]
    else:
        wanted = [(f"{name}_line{line.number:03d}", line) for line in read_prompts(options.prompts, talk)]
    for _, line in wanted:
        _require_effect(grid, line.prompt, line.reference or options.ref)
    checkpoint = resolve_checkpoint(options.checkpoint, talk=talk)
    weak = options.weak and resolve_checkpoint(options.weak, talk=talk, optional=False)
    return [
        DrawRequest(
            checkpoint=checkpoint,
            prompt=line.prompt,
            reference=line.reference or options.ref,
            count=options.count or 1,
            seed=(options.seed or 0) if line.seed is None else line.seed,
            size=line.size or size,
            changes=changes,
            init=options.init,
            strength=strength,
            negative=options.negative if line.negative is None else line.negative,
            weak=weak,
            grid=grid,
            name=stem,
        )
        for stem, line in wanted
    ]


def _again(
    path: Path,
    options: SampleOptions,
    changes: dict[str, object],
    size: tuple[int, int] | None,
    grid: Grid | None,
    talk: Talk,
) -> DrawRequest:
    """The request that a picture holds, with the options that were given in its place. Paths may be given anew;
    then nothing else changes.
    """
    inside = read_settings(path)
    # where its files are, and nothing else
    exact = set(options.given()) <= {"again", "checkpoint", "ref", "init", *(["weak"] if inside.weak else [])}
    checkpoint = file_of(path, inside.checkpoint, options.checkpoint, "--checkpoint")
    reference = file_of(path, inside.reference, options.ref, "--ref")
    init = file_of(path, inside.init, options.init, "--init")
    weak = file_of(path, inside.weak, options.weak, "--weak")
    require_weak(weak, changes, inside.weak_routed)
    prompt = inside.prompt if options.prompt is None else options.prompt
    grid = grid or (parse_grid(inside.grid) if inside.grid else None)
    _require_effect(grid, prompt, reference)
    if exact:
        seed, count = inside.batch or (inside.seed, 1)
    else:
        seed, count = inside.seed if options.seed is None else options.seed, options.count or 1
    same_init = options.strength is None and (init is None or inside.init is not None)
    strength = inside.strength if same_init else require_strength(options.strength, init is not None, "--")
    return DrawRequest(
        checkpoint=resolve_checkpoint(checkpoint, talk=talk),
        prompt=prompt,
        reference=reference,
        count=count,
        seed=seed,
        size=size or parse_size(inside.size),
        changes=inside.sampling() | changes,
        init=init,
        strength=strength,
        negative=inside.negative if options.negative is None else options.negative,
        weak=weak and resolve_checkpoint(weak, talk=talk, optional=False),
        grid=grid,
        name=f"{path.stem}_again",
        repeat=Repeat(path, inside, inside.seed if exact else None, exact, frozenset(changes)),
    )


def setting_changes(options: SampleOptions) -> dict[str, object]:
    """The fields of `[sample]` that options give. Raises `UsageError`."""
    for name, value in options.settings.items():
        choices = get_args(Sample.model_fields[name].annotation)
        if isinstance(value, str) and value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            guess = f"did you mean '{close[0]}'? " if close else ""
            raise UsageError(
                f"--{name} '{value}' does not exist; there are {', '.join(choices)}", f"{guess}see dit sample --help"
            )
    try:
        return Sample.model_validate(options.settings).model_dump(include=set(options.settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        text = first["msg"].removeprefix("Value error, ")
        message = (
            f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {text}"
            if first["loc"]
            else f"--{text.replace('_', '-')}"
        )
        raise UsageError(message, "see dit sample --help") from error


def require_weak(weak: Path | None, changes: Mapping[str, object], routed: float) -> None:
    """Raises `UsageError` for a scale without a weak model, and for two weak models.

    `routed`: the share that holds where `changes` says nothing of it.
    """
    routes = bool(changes.get("weak_routed", routed))
    if weak is None and "cfg_weak" in changes and not routes:
        raise UsageError(
            "--cfg-weak has no effect without --weak or --weak-routed",
            "name an earlier checkpoint of the run: --weak CHECKPOINT; or a share of tokens: --weak-routed 0.5",
        )
    if weak is not None and routes:
        raise UsageError(
            "--weak and --weak-routed exclude each other: there is one weak model", "leave one of them out"
        )


def wanted_size(options: SampleOptions) -> tuple[int, int] | None:
    """(width, height) of `--size`. Raises `UsageError`."""
    try:
        return parse_size(options.size) if options.size else None
    except ValueError as error:
        raise UsageError(f"--size {error}", "for example: --size 1216x832") from error


def _require_effect(grid: Grid | None, prompt: str | None, reference: Path | None) -> None:
    for axis in (grid.across, grid.down) if grid else ():
        condition, needed = (prompt, "a prompt") if axis.name == "cfg-text" else (reference, "a reference")
        if condition is None and len(axis.values) > 1:
            raise UsageError(
                f"--grid {axis}: no effect without {needed}: all these pictures would be the same",
                f"give {needed}, or one value",
            )
