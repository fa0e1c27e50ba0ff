"""What `model.arch` may be: the schema of its configuration, and where the family behind it is defined.

A new family is one module in dittool/families, one schema here, and one line in the table; or a row of another
package, through the entry-point group `dit.families` (docs/plugins.md). Light: the family's module, which needs torch,
is imported when it is first used (`families/family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dittool.config.drift_schema import DriftConfig, MaeConfig, ToyConfig
from dittool.config.schema import Config
from dittool.errors import UsageError
from dittool.geometry import require_whole_tokens
from dittool.plugins import REMEDY, load_plugin, named_plugins, package_of

AnyConfig = Config | DriftConfig | MaeConfig | ToyConfig
ImageConfig = Config | DriftConfig | MaeConfig  # with [encoders] and [data]: what is embedded and sharded
Schema = type[AnyConfig]  # a plugin's is another class of the same base
PLUGIN_GROUP = "dit.families"
C = TypeVar("C")
_STRIDE = 8  # pixels a latent cell, of a usual codec


@dataclass(frozen=True)
class Architecture:
    """One name in `model.arch`."""

    schema: Schema
    family: str  # module of dittool/families; with a dot in it, of another package
    title: str  # for messages: "… is a one-step generator, which …"
    conditions: tuple[str, ...]  # what it is given beside noise
    served_by: str  # the command to run instead of one that cannot serve it


ARCHITECTURES = {
    "dit": Architecture(
        Config,
        "flow",
        "a rectified-flow transformer, which knows prompts and references and no classes",
        ("text", "CLS"),
        "draw with: dit sample --prompt T",
    ),
    "drift": Architecture(
        DriftConfig,
        "drift",
        "a one-step generator, which knows classes and neither prompts nor references",
        ("class", "alpha"),
        "draw with: dit sample --class C --alpha A; how far its pictures are from held-out ones is measured while it"
        " trains: eval_energy in its log.jsonl (train.eval_every)",
    ),
    "latent-mae": Architecture(
        MaeConfig,
        "latent_mae",
        "a feature encoder of latents, which draws nothing",
        (),
        "it serves a one-step generator: dit train --preset drift-b2-paper -s drift.encoder_run=FOLDER",
    ),
    "drift-toy": Architecture(
        ToyConfig,
        "toy",
        "a toy of points in the plane, which has no images and no data set",
        (),
        "dit train --preset drift-toy trains, draws and judges it in seconds",
    ),
}


def architecture_names() -> list[str]:
    """All that `model.arch` may be, ours first."""
    return [*ARCHITECTURES, *(name for name in named_plugins(PLUGIN_GROUP) if name not in ARCHITECTURES)]


def architecture_named(name: str) -> Architecture | None:
    """The row of a name, ours or another package's; None for a name that is none. Raises `UsageError` for a plugin that
    is no row.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    plugin = named_plugins(PLUGIN_GROUP).get(name)
    if plugin is None:
        return None
    row = load_plugin(plugin, "family")
    if not isinstance(row, Architecture):
        raise UsageError(
            f"family '{name}' of {package_of(plugin)}: {plugin.value} is no dittool.config.architectures.Architecture",
            REMEDY,
        )
    return row


def architecture(config: AnyConfig) -> Architecture:
    """The row of a configuration."""
    row = architecture_named(config.model.arch)
    assert row is not None  # it was read with its schema
    return row


def of_kind(config: AnyConfig, source: str, what: str, *kinds: type[C], instead: str = "") -> C:
    """The configuration, when it is of one of these schemas.

    Args:
        source: names it in the error: a preset, a checkpoint.
        what: a sentence on the command or option that serves these schemas alone.
        instead: the command for a configuration of another schema; else that of its row.

    Raises `UsageError` that says what it is and which command serves it.
    """
    if isinstance(config, kinds):
        return config
    raise _of_another_kind(config, source, what, instead)


def require_whole_buckets(config: AnyConfig) -> None:
    """Raises `UsageError` for buckets of the configuration that its patch size cuts."""
    if isinstance(config, Config):
        require_whole_tokens(config.data.bucket_sizes(), _STRIDE, config.model.patch_size, "data.buckets")


def image_config(config: AnyConfig, source: str, what: str) -> ImageConfig:
    """The configuration, when it has images. Arguments and errors as for `of_kind`."""
    if isinstance(config, (Config, DriftConfig, MaeConfig)):
        return config
    raise _of_another_kind(config, source, what)


def _of_another_kind(config: AnyConfig, source: str, what: str, instead: str = "") -> UsageError:
    row = architecture(config)
    return UsageError(f"{source}: {what}, and this is {row.title}", instead or row.served_by)


def encoders_of(config: AnyConfig) -> dict[str, str]:
    """Kind → name of each encoder that its features need; none for what has no images."""
    if not isinstance(config, (Config, DriftConfig, MaeConfig)):
        return {}
    names = config.encoders
    return {"image": names.image, "text": names.text, "vae": names.vae}


def reads_patches(config: AnyConfig) -> bool:
    """Whether training reads the reference's patches, so that data must hold them."""
    return isinstance(config, Config) and config.reads_patches


def with_patch_storage(config: ImageConfig, there: str | None = None) -> ImageConfig:
    """The configuration with "auto" of `data.patch_storage` decided: patches are stored only where training reads them.

    Args:
        there: how the features of a folder that exists are stored, which is kept where it will do.
    """
    if config.data.patch_storage != "auto":
        return config
    read = reads_patches(config)
    storage = there if there is not None and (there != "none" or not read) else "fp16" if read else "none"
    return config.model_copy(update={"data": config.data.model_copy(update={"patch_storage": storage})})
