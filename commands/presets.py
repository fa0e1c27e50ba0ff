"""`dit presets` lists the shipped presets; `dit presets nano > mine.toml` prints one, complete with defaults.

What is printed is a preset itself: `dit train --preset mine.toml` takes it.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dittool.commands.options import JsonOption, OverridesOption, QuietOption, VerboseOption, console_for


def main(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A preset's name, or a path ending in .toml.", show_default=False)] = None,
    overrides: OverridesOption = (),
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the presets, or print one.

    Printed is the whole configuration as TOML, so `dit presets nano > mine.toml` begins a preset of your own.
    """
    from dittool.config.load import config_to_dict, config_to_toml, load_config
    from dittool.config.presets import preset_names
    from dittool.errors import UsageError

    console = console_for(json, quiet, verbose)
    if name is not None:
        config = load_config(name, overrides)
        console.json({"name": name, "config": config_to_dict(config)})
        console.result(config_to_toml(config).rstrip("\n"))
        console.note(_size_text(config))
        return
    if overrides:
        raise UsageError("--set changes one preset, and no preset is named", "for example: dit presets nano -s train.steps=1000")

    rows = [_summary(name, load_config(name)) for name in preset_names()]
    console.json({"presets": rows})
    shown = ("name", "depth/width/heads", "conditions", "area", "precision", "steps", "batch")
    console.table(shown, [[_cell(row, column) for column in shown] for row in rows])
    for row in rows:
        console.result(f"  {row['name']:<14}{row['description']}")
    console.note("\nprint one with: dit presets NAME")


def _size_text(config: Any) -> str:
    """How many parameters the model has as built; its input layers depend on the encoders' widths."""
    from dittool.encoders.known import known_dims
    from dittool.models.build import parameter_count

    names = config.encoders
    dims = known_dims(names.image, names.text, names.vae)
    if dims is None:
        return "the number of parameters depends on the widths of these encoders; dit train says it"
    widths = f"text features of width {dims['text_dim']}, image features of width {dims['image_dim']}"
    return f"{parameter_count(config, **dims):,} parameters as built, for {widths}"


def _summary(name: str, config: Any) -> dict[str, Any]:
    model, data, train = config.model, config.data, config.train
    return {
        "name": name,
        "description": config.description,
        "depth": model.depth,
        "width": model.width,
        "heads": model.heads,
        "conditions": ["text", "CLS", "patches"] if model.patches else ["text", "CLS"],
        "area": data.area or data.buckets,
        "precision": train.precision,
        "steps": train.steps,
        "warmup_steps": train.warmup_steps,
        "batch": train.batch_size or f"{train.tokens_per_batch:,} tokens",
    }


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "depth/width/heads":
        return f"{row['depth']}/{row['width']}/{row['heads']}"
    if column == "conditions":
        return " + ".join(row["conditions"])
    if column == "area":
        return row["area"] if isinstance(row["area"], str) else f"{len(row['area'])} buckets"
    return f"{row[column]:,}" if isinstance(row[column], int) else row[column]
