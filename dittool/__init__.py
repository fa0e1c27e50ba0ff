"""The library core of `dit`: everything the commands do, importable without Typer and without printing."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `commands/` and `presets/` stand beside this folder; an installed wheel carries them inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "commands").is_dir():
    __path__.append(str(_CHECKOUT))
