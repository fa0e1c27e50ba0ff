"""The library core of `dit`: everything the commands do, importable without Typer and without printing.

`__all__` is what the documentation promises to users of the library. Importing `dittool` imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dittool.sampling.pipeline import Pipeline

__all__ = ["__version__", "load"]

__version__ = "0.2.0.dev0"

# In a checkout `commands/` and `presets/` stand beside this folder; an installed wheel carries them inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if __name__ == "dittool" and (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "commands").is_dir():
    __path__.append(str(_CHECKOUT))


def load(run: str | Path | None = None) -> Pipeline:
    """A trained model to be called: `load("runs/nano")(prompt="a red circle", reference="one.png")` is a list of PIL
    images.

    `run` is a run's folder or a checkpoint file; without it, the newest run in `runs/`. Raises `UsageError` for a path
    that is not there, `BadDataError` for a run without an undamaged checkpoint. A damaged one that is passed over for
    an older one becomes a Python warning.
    """
    from dittool.ckpt.files import resolve_checkpoint
    from dittool.console import PythonWarnings
    from dittool.sampling.pipeline import Pipeline

    return Pipeline.load(resolve_checkpoint(None if run is None else Path(run), talk=PythonWarnings()))
