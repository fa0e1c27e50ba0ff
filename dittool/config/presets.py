"""The presets that there are, by name: the shipped ones, and those of other packages (entry points `dit.presets`)."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittool.errors import UsageError, described
from dittool.nearest import did_you_mean
from dittool.plugins import REMEDY, named_plugins, package_of

if TYPE_CHECKING:
    from dittool.config.architectures import AnyConfig

PLUGIN_GROUP = "dit.presets"


def preset_folder() -> Path:
    """The folder of shipped presets, in a checkout and in an installed wheel alike."""
    import dittool.presets

    return Path(dittool.presets.__file__).parent


def preset_names() -> list[str]:
    """Names of the shipped presets, in alphabetical order."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def plugin_presets() -> tuple[dict[str, Path], list[str]]:
    """Name → file of the presets of other packages, whose entry points name a package with `.toml` files in it; and a
    line for each that cannot be looked into. A shipped name stays ours.
    """
    files: dict[str, Path] = {}
    refused = []
    for plugin in named_plugins(PLUGIN_GROUP).values():
        try:
            spec = importlib.util.find_spec(plugin.module)  # imports nothing but the packages that it stands in
            if spec is None or not spec.submodule_search_locations:
                raise ModuleNotFoundError(f"{plugin.module} is no package that can be found")
            found = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.toml")]
        except (Exception, SystemExit) as error:  # somebody else's module
            title = f"presets '{plugin.name}' of {package_of(plugin)}"
            refused.append(f"{title} cannot be found: {described(error)}; {REMEDY}")
            continue
        files = {path.stem: path for path in found} | files
    shipped = set(preset_names())
    return {name: files[name] for name in sorted(files) if name not in shipped}, refused


def named_presets() -> list[str]:
    """All names that `preset_path` knows, the shipped ones first."""
    return [*preset_names(), *plugin_presets()[0]]


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
    others, refused = plugin_presets()
    if name in others:
        return others[name]
    theirs = [f"other packages have {', '.join(others)}"] if others else []
    close = difflib.get_close_matches(name, [*preset_names(), *others], n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    raise UsageError(
        "; ".join([f"preset '{name}' does not exist; shipped are {', '.join(preset_names())}", *theirs, *refused]),
        f"{guess}see them with: dit presets",
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
