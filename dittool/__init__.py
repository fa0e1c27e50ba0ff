"""The library core of `dit`: everything the commands do, importable without Typer and without printing.

`__all__` is what the documentation promises to users of the library: all of it, and in this one place. Importing
`dittool` imports no torch; a name's module is imported when the name is first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from dittool.config.load import load_config
    from dittool.data.features.embed import embed
    from dittool.data.patch_storage import decode_patches
    from dittool.data.shards.webdataset_pipeline import as_webdataset
    from dittool.sampling.one_step import OneStepPipeline
    from dittool.sampling.pipeline import Pipeline

__all__ = [
    "OneStepPipeline",
    "__version__",
    "as_webdataset",
    "decode_patches",
    "embed",
    "load",
    "load_config",
]

__version__ = "0.2.0.dev0"  # the one place: the wheel, `dit --version` and the checks of a release read it

# In a checkout `commands/` and `presets/` stand beside this folder; an installed wheel carries them inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if __name__ == "dittool" and (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "commands").is_dir():
    __path__.append(str(_CHECKOUT))


@overload
def load(run: str | Path | None = None) -> Pipeline: ...


@overload
def load(run: str | Path | None, kind: type[OneStepPipeline]) -> OneStepPipeline: ...


def load(
    run: str | Path | None = None, kind: type[Pipeline] | type[OneStepPipeline] | None = None
) -> Pipeline | OneStepPipeline:
    """A trained model to be called: `load("runs/nano")(prompt="a red circle", reference="one.png")` is a list of PIL
    images, as is `load("runs/drift-demo")("red-circle", alpha=1.5)` of a one-step generator.

    Args:
        run: a run's folder, a checkpoint or a file exported from one; None: the newest run in `runs/`.
        kind: what it must be, a `Pipeline` or a `OneStepPipeline`. Without it the checkpoint decides, and a type
        checker takes it for a `Pipeline`.

    Raises `UsageError` for a path that is not there and for a model of another kind, `BadDataError` for a run without
    an undamaged checkpoint. A damaged one that is passed over for an older one becomes a Python warning.
    """
    from dittool.ckpt.files import resolve_checkpoint
    from dittool.ckpt.inspect import config_in
    from dittool.config.load import config_from_dict
    from dittool.console import PythonWarnings
    from dittool.families.family import family_of
    from dittool.sampling.pipeline import Pipeline

    checkpoint = resolve_checkpoint(None if run is None else Path(run), talk=PythonWarnings())
    if kind is not None:
        return kind.load(checkpoint)
    if (tree := config_in(checkpoint)) is None:
        return Pipeline.load(checkpoint)  # which says what this file is not
    return family_of(config_from_dict(tree, str(checkpoint))).pipeline(checkpoint)


if not TYPE_CHECKING:  # a type checker sees the imports above, and would accept any name after this

    def __getattr__(name: str) -> object:
        match name:
            case "OneStepPipeline":
                from dittool.sampling.one_step import OneStepPipeline as found
            case "as_webdataset":
                from dittool.data.shards.webdataset_pipeline import as_webdataset as found
            case "decode_patches":
                from dittool.data.patch_storage import decode_patches as found
            case "embed":
                from dittool.data.features.embed import embed as found
            case "load_config":
                from dittool.config.load import load_config as found
            case _:
                raise AttributeError(f"module 'dittool' has no attribute '{name}'")
        return found
