"""The presets that are shipped: where they are and what they are called."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittool.errors import UsageError
from dittool.nearest import did_you_mean

if TYPE_CHECKING:
    from dittool.config.architectures import AnyConfig


def preset_folder() -> Path:
    """The folder of shipped presets, in a checkout and in an installed wheel alike."""
    import dittool.presets

    return Path(dittool.presets.__file__).parent


def preset_names() -> list[str]:
    """Names of the shipped presets, in alphabetical order."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def preset_path(name: str) -> Path:
    """The file behind a preset's name, or behind a path ending in `.toml`. Raises `UsageError` with the nearest
    name.
    """
    if name.lower().endswith(".toml"):
        if not os.path.isfile(name):
            raise UsageError(
                f"preset {name}: no such file",
                did_you_mean(Path(name), "check the path, or see the shipped presets with: dit presets"),
            )
        return Path(name)
    if name in preset_names():
        return preset_folder() / f"{name}.toml"
    close = difflib.get_close_matches(name, preset_names(), n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    raise UsageError(
        f"preset '{name}' does not exist; shipped are {', '.join(preset_names())}", f"{guess}see them with: dit presets"
    )


def preset_summary(name: str, config: AnyConfig) -> dict[str, Any]:
    """One row of the list of presets. `heads` and `area` are None for a family that has none."""
    from dittool.config.architectures import ImageConfig, architecture
    from dittool.config.drift_schema import DriftConfig
    from dittool.config.schema import Config

    train, conditions = config.train, list(architecture(config).conditions)
    heads: int | None = None
    area: str | list[str] | None = None
    if isinstance(config, (Config, DriftConfig)):
        heads = config.model.heads
    if isinstance(config, ImageConfig):
        area = config.data.area or config.data.buckets
    if isinstance(config, Config) and config.model.patches:
        conditions.append("patches")
    return {
        "name": name,
        "description": config.description,
        "arch": config.model.arch,
        "depth": config.model.depth,
        "width": config.model.width,
        "heads": heads,
        "conditions": conditions,
        "area": area,
        "precision": train.precision,
        "steps": train.steps,
        "warmup_steps": train.warmup_steps,
        "batch": train.batch_size or f"{train.tokens_per_batch:,} tokens",
    }
