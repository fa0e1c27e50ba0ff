"""`dit presets` lists the shipped presets; `dit presets nano > mine.toml` prints one, complete with defaults.

What is printed is a preset itself: `dit train --preset mine.toml` takes it.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dittool.commands.options import NONE_GIVEN, JsonOption, OverridesOption, QuietOption, VerboseOption, console_for
from dittool.console import Console


def main(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A preset's name, or a path ending in .toml.", show_default=False),
    ] = None,
    params: Annotated[
        bool, typer.Option("--params", help="The tensors of its model, one by one, with totals.")
    ] = False,
    overrides: OverridesOption = NONE_GIVEN,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the presets, or print one.

    Printed is the whole configuration as TOML, so `dit presets nano > mine.toml` begins a preset of your own.
    """
    from dittool.config.load import config_to_dict, config_to_toml, load_config
    from dittool.config.presets import preset_names, preset_summary
    from dittool.errors import UsageError

    console = console_for(json, quiet, verbose)
    if name is not None:
        config = load_config(name, overrides)
        if params:
            _show_params(console, name, config)
            return
        console.json({"name": name, "config": config_to_dict(config)})
        console.result(config_to_toml(config).rstrip("\n"))
        console.note(_size_text(config))
        return
    if params:
        raise UsageError(
            "--params lists one preset's tensors, and no preset is named", "for example: dit presets nano --params"
        )
    if overrides:
        raise UsageError(
            "--set changes one preset, and no preset is named", "for example: dit presets nano -s train.steps=1000"
        )

    rows = [preset_summary(name, load_config(name)) for name in preset_names()]
    console.json({"presets": rows})
    shown = ("name", "depth/width/heads", "conditions", "area", "precision", "steps", "batch")
    console.table(shown, [[_cell(row, column) for column in shown] for row in rows])
    for row in rows:
        console.result(f"  {row['name']:<16}{row['description']}")
    console.note("\nprint one with: dit presets NAME")


def _show_params(console: Console, name: str, config: Any) -> None:
    from dittool.models.parameters import family_totals, parameter_table

    tensors = parameter_table(config, **_widths(config))
    total = sum(tensor.parameters for tensor in tensors)
    groups = family_totals(tensors)
    console.json({"name": name, "parameters": total, "tensors": [vars(tensor) for tensor in tensors], "groups": groups})
    console.table(
        ("tensor", "shape", "parameters"),
        [(one.name, "×".join(map(str, one.shape)), f"{one.parameters:,}") for one in tensors],
    )
    rows = [(part, tensors, f"{count:,}", f"{count / total:.2%}") for part, (tensors, count) in groups.items()]
    console.table(("part", "tensors", "parameters", "of all"), rows)
    console.result(f"{total:,} parameters in {len(tensors)} tensors")
    if config.model.arch == "dit":
        console.note(_size_text(config))


def _widths(config: Any) -> dict[str, int]:
    """Feature widths that the first model takes from its encoders. Raises `UsageError` where they are not known
    without the data.
    """
    from dittool.encoders.known import known_dims
    from dittool.errors import UsageError

    if config.model.arch != "dit":
        return {"text_dim": 0, "image_dim": 0, "latent_channels": 0}
    names = config.encoders
    if (dims := known_dims(names.image, names.text, names.vae)) is None:
        raise UsageError(
            "the widths of these encoders are not known before there are features",
            "dit train --preset P --dry-run says the size",
        )
    return dims


def _size_text(config: Any) -> str:
    """How many parameters the model has as built; the first model's input layers depend on the encoders' widths."""
    from dittool.errors import UsageError
    from dittool.models.build import parameter_count

    try:
        dims = _widths(config)
    except UsageError:
        return "the number of parameters depends on the widths of these encoders; dit train says it"
    widths = (
        f", for text features of width {dims['text_dim']}, image features of width {dims['image_dim']}"
        if dims["text_dim"]
        else ""
    )
    return f"{parameter_count(config, **dims):,} parameters as built{widths}"


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "depth/width/heads":
        return "/".join(str(row[key]) for key in ("depth", "width", "heads") if row[key] is not None)
    if column == "conditions":
        return " + ".join(row["conditions"]) or "–"
    if column == "area":
        area = row["area"] or "–"
        return area if isinstance(area, str) else area[0] if len(area) == 1 else f"{len(area)} buckets"
    return f"{row[column]:,}" if isinstance(row[column], int) else row[column]
