"""`dit warmups PRESET…` prints which share of its steps each preset warms up for."""

from __future__ import annotations

from typing import Annotated

import typer


def main(presets: Annotated[list[str], typer.Argument(metavar="PRESET...", show_default=False)]) -> None:
    """Print which share of its steps each preset warms up for."""
    from dittool import load_config

    for name in presets:
        train = load_config(name).train
        print(f"{name} {train.warmup_steps / train.steps:.1%}")
