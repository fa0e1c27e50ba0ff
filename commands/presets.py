"""`dit presets` lists the presets; `dit presets nano > mine.toml` prints one, complete with defaults.

What is printed is a preset itself: `dit train --preset mine.toml` takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dittool import completion
from dittool.commands.options import NONE_GIVEN, JsonOption, OverridesOption, QuietOption, VerboseOption, console_for
from dittool.console import Console

if TYPE_CHECKING:
    from dittool.config.architectures import AnyConfig

_UNKNOWN_WIDTHS = "the widths of these encoders are not known before there are features"


def main(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A preset's name, or a path ending in .toml.",
            show_default=False,
            autocompletion=completion.presets,
        ),
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

    rows = _listed(console)
    console.json({"presets": rows})
    shown = ("name", "depth/width/heads", "conditions", "area", "precision", "steps", "batch")
    console.table(shown, [[_cell(row, column) for column in shown] for row in rows])
    for row in rows:
        console.result(f"  {row['name']:<16}{row['description']}")
    console.note("\nprint one with: dit presets NAME")


def _listed(console: Console) -> list[dict[str, Any]]:
    """A row for each preset. What another package brings and nobody can read becomes a warning."""
    from dittool.config.load import load_config
    from dittool.config.presets import plugin_presets, preset_names, preset_summary
    from dittool.errors import UsageError

    rows = [preset_summary(name, load_config(name)) for name in preset_names()]
    others, refused = plugin_presets()
    for name, path in others.items():
        try:
            rows.append(preset_summary(name, load_config(name)))
        except UsageError as error:
            refused.append(f"preset {name} cannot be used ({path}): {' '.join(error.message.split())}")
    for line in refused:
        console.warn(line)
    return rows


def _show_params(console: Console, name: str, config: AnyConfig) -> None:
    from dittool.errors import UsageError
    from dittool.families.family import family_of
    from dittool.models.build import parameter_table, totals_by_part

    family = family_of(config)
    if (widths := family.known_widths(config)) is None:
        raise UsageError(_UNKNOWN_WIDTHS, "dit train --preset P --dry-run says the size")
    tensors = parameter_table(lambda: family.build(config, widths))
    total, groups = sum(tensor.parameters for tensor in tensors), totals_by_part(tensors)
    console.json({"name": name, "parameters": total, "tensors": [vars(tensor) for tensor in tensors], "groups": groups})
    console.table(
        ("tensor", "shape", "parameters"),
        [(one.name, "×".join(map(str, one.shape)), f"{one.parameters:,}") for one in tensors],
    )
    rows = [(part, count, f"{held:,}", f"{held / total:.2%}") for part, (count, held) in groups.items()]
    console.table(("part", "tensors", "parameters", "of all"), rows)
    console.result(f"{total:,} parameters in {len(tensors)} tensors")
    if widths.text:
        console.note(_size_text(config))


def _size_text(config: AnyConfig) -> str:
    """How many parameters the model has as built, and for which widths of features."""
    from dittool.families.family import family_of
    from dittool.models.build import parameter_count

    family = family_of(config)
    if (widths := family.known_widths(config)) is None:
        return f"{_UNKNOWN_WIDTHS}; dit train says the size"
    for_widths = (
        f", for text features of width {widths.text}, image features of width {widths.image}" if widths.text else ""
    )
    return f"{parameter_count(lambda: family.build(config, widths)):,} parameters as built{for_widths}"


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "depth/width/heads":
        return "/".join(str(row[key]) for key in ("depth", "width", "heads") if row[key] is not None)
    if column == "conditions":
        return " + ".join(row["conditions"]) or "–"
    if column == "area":
        area = row["area"] or "–"
        return area if isinstance(area, str) else area[0] if len(area) == 1 else f"{len(area)} buckets"
    return f"{row[column]:,}" if isinstance(row[column], int) else row[column]
