"""The command that makes features of a derived folder once more, as they were made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dittool.errors import BadDataError
from dittool.shell import command_line
from dittool.storage import read_json
from dittool.whereabouts import find

SOURCE_NAME, CONFIGURATION_NAME = "source.json", "resolved.toml"


def source_in(folder: Path) -> str | None:
    """The folder or list that was embedded into a derived folder; None where the file that says it is not there or
    damaged.
    """
    try:
        value = read_json(folder / SOURCE_NAME)
    except BadDataError:
        return None
    return value["folder"] if isinstance(value, dict) and isinstance(value.get("folder"), str) else None


def embed_again(folder: Path, stages: Iterable[str] = (), rebuild: bool = False) -> str:
    """`dit embed IMAGES --out FOLDER --preset FOLDER/resolved.toml --pass STAGE`: with the source and the configuration
    that the folder remembers, `SOURCE` where it remembers none.
    """
    source, configuration = source_in(folder), folder / CONFIGURATION_NAME
    place = "SOURCE" if source is None else find(source, folder) or Path(source)
    words: list[str | Path] = ["dit", "embed", place, "--out", folder]
    words += ["--preset", configuration] * configuration.is_file()
    words += [word for stage in stages for word in ("--pass", stage)]
    return command_line(*words, *["--rebuild"] * rebuild)
