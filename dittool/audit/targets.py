"""From a target's text to the subject that it names: files are opened, factories are called.

Which specimen a configuration of ours makes, its family knows; the audit is handed a function that asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from dittool.address import Address, place_of
from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.data_view import open_derived, open_shards
from dittool.audit.specimens.foreign.blame import ModelRefuses
from dittool.audit.specimens.foreign.factory import load_attribute, load_factory
from dittool.audit.specimens.foreign.model import ForeignModel
from dittool.audit.specimens.foreign.refused import RefusedModel
from dittool.audit.specimens.layouts import UnknownWeights, WeightsAlone
from dittool.audit.specimens.specimen import Specimen
from dittool.audit.subject import CHECKPOINT, DERIVED, PRESET, RUN, SHARDS, Checkpoint, Data, Foreign, Preset, Subject
from dittool.ckpt.files import list_checkpoints, newest_checkpoint
from dittool.ckpt.folders import weights_in
from dittool.ckpt.load import CHECKPOINT_SUFFIXES, INDEX_ENDING, is_named_as_checkpoint
from dittool.ckpt.sharded import is_sharded
from dittool.config.architectures import AnyConfig, require_whole_buckets
from dittool.config.load import load_config
from dittool.config.presets import named_presets
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, UsageError, listed
from dittool.nearest import did_you_mean

# The specimen of a configuration, with a checkpoint's weights where there are some: `families.family.specimen_of`.
SpecimenOf: TypeAlias = Callable[[AnyConfig, CheckpointView | None], Specimen]

_KINDS = (
    "audit a preset's name, a .toml, a checkpoint (.pt, .safetensors and the like), a run's folder, a shards or a"
    " derived folder, or a model as file.py:Name"
)


def open_subject(
    target: str,
    specimen_of: SpecimenOf,
    preset: str | None = None,
    kwargs: str | None = None,
    example: str | None = None,
    talk: Talk = SILENT,
    overrides: Sequence[str] = (),
    trained: bool = False,
) -> Subject:
    """The subject that a target's text names.

    Args:
        preset: of --preset, what a checkpoint or data should fit.
        kwargs: of --kwargs, a JSON object, the keyword arguments of a model factory.
        example: of --example, `file.py:function` that makes the inputs of the factory's model.
        overrides: of -s, changes of the preset that is the target or that --preset names.
        trained: of --trained, whether the factory's model has weights of a training.

    Raises `UsageError` for a target of no known kind, `BadDataError` and `UnsafeFileError` for a file that is refused.
    """
    if overrides and preset is None and not _names_a_preset(target):
        raise UsageError(f"-s: no effect on {target}, which is no preset", "leave it out, or add --preset P")
    if names_a_factory(target):
        return open_factory(target, kwargs, example, trained)
    if kwargs is not None or example is not None or trained:
        raise UsageError(
            f"{target}: --kwargs, --example and --trained belong to a model factory",
            "name it as file.py:Name or package.module:Name",
        )
    expected = None if preset is None else load_config(preset, overrides)
    path = place_of(target)
    if isinstance(path, Address):
        return Data(
            str(path),
            open_shards(path),
            SHARDS,
            None if expected is None else preset_subject(PRESET, specimen_of, expected),
        )
    if is_sharded(path):
        return _open_checkpoint(path, specimen_of, expected, talk)
    if path.is_dir():
        return _open_folder(path, specimen_of, expected, talk)
    if is_named_as_checkpoint(path) or path.name.endswith(INDEX_ENDING):
        if not path.exists():
            raise UsageError(f"{path}: no such file", did_you_mean(path, _KINDS))
        return _open_checkpoint(path, specimen_of, expected, talk)
    if _names_a_preset(target) or not path.exists():
        return _open_preset(target, specimen_of, expected, overrides)
    raise UsageError(f"{target}: not a checkpoint, which ends in {', '.join(CHECKPOINT_SUFFIXES)}", _KINDS)


def open_factory(target: str, kwargs: str | None = None, example: str | None = None, trained: bool = False) -> Foreign:
    """The model of a factory, built and called in this process; of one whose own code would not run here what its
    structure shows. Arguments and errors as of `open_subject`.
    """
    function = None if example is None else load_attribute(example)
    factory = load_factory(target, kwargs)
    try:
        return Foreign(target, ForeignModel(factory, function, trained))
    except ModelRefuses as refuses:
        return Foreign(target, RefusedModel(factory, refuses.refusal))


def names_a_factory(target: str) -> bool:
    """Whether a target has the form `file.py:Name` or `package.module:Name`."""
    module, colon, name = target.rpartition(":")
    return (
        bool(colon)
        and name.isidentifier()
        and (module.endswith(".py") or all(part.isidentifier() for part in module.split(".")))
    )


def preset_subject(target: str, specimen_of: SpecimenOf, config: AnyConfig, kind: str = PRESET) -> Preset:
    """A configuration under a name."""
    return Preset(target, config, specimen_of(config, None), kind)


def checkpoint_subject(
    target: str,
    specimen_of: SpecimenOf,
    view: CheckpointView,
    config: AnyConfig | None,
    expected: AnyConfig | None = None,
    kind: str = CHECKPOINT,
) -> Checkpoint:
    """A file of weights with the network that its configuration, or the layout of its names, tells."""
    if config is not None:
        specimen = specimen_of(config, view)
    else:
        known, found = view.layout, view.part is not None
        specimen = WeightsAlone(view.weights(), known) if known else UnknownWeights(view.weights() if found else {})
    wanted = None if expected is None else Preset(PRESET, expected, specimen_of(expected, view))
    return Checkpoint(target, view, specimen, config, wanted, kind)


def _names_a_preset(target: str) -> bool:
    return target.lower().endswith(".toml") or (target in named_presets() and not Path(target).is_dir())


def _open_preset(
    target: str, specimen_of: SpecimenOf, expected: AnyConfig | None, overrides: Sequence[str] = ()
) -> Preset:
    if "/" in target and not target.lower().endswith(".toml"):
        raise UsageError(f"{target}: no such file or folder", did_you_mean(Path(target), _KINDS))
    if expected is not None:
        raise UsageError(
            f"{target}: --preset says what a checkpoint or data should fit, and this is itself a preset",
            "leave --preset out",
        )
    config = load_config(target, overrides)
    require_whole_buckets(config)
    return preset_subject(target, specimen_of, config)


def _open_folder(path: Path, specimen_of: SpecimenOf, expected: AnyConfig | None, talk: Talk) -> Subject:
    wanted = None if expected is None else preset_subject(PRESET, specimen_of, expected)
    if (path / "records.jsonl").is_file():
        return Data(str(path), open_derived(path), DERIVED, wanted)
    ours = (path / "resolved.toml").is_file() or list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if ours or ((path / "checkpoints").is_dir() and not weights_in(path)):
        return _open_run(path, specimen_of, expected, talk)
    if (path / "index.json").is_file() or any(path.glob("**/*.tar")):
        return Data(str(path), open_shards(path), SHARDS, wanted)
    if weights_in(path):
        return _open_checkpoint(path, specimen_of, expected, talk)
    seen = "resolved.toml, index.json, records.jsonl, *.tar, weights"
    raise BadDataError(f"{path}: neither a run, nor shards, nor a derived folder: it holds none of {seen}", _KINDS)


def _open_checkpoint(path: Path, specimen_of: SpecimenOf, expected: AnyConfig | None, talk: Talk) -> Checkpoint:
    view = CheckpointView(path)
    if view.ours:
        return checkpoint_subject(str(path), specimen_of, view, view.config, expected)
    if view.part is not None and (view.part.keys or view.part.prefix):
        talk.note(f"{path}: judged are {view.part}")
    if view.opened.beside:
        talk.note(f"{path}: judged is {view.opened.path}; beside it lie {listed(view.opened.beside)}")
    return checkpoint_subject(str(path), specimen_of, view, view.config, expected)


def _open_run(path: Path, specimen_of: SpecimenOf, expected: AnyConfig | None, talk: Talk) -> Preset | Checkpoint:
    """A run is its newest valid checkpoint; before the first one it is its configuration."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    resolved = path / "resolved.toml"
    written = load_config(str(resolved)) if resolved.is_file() else None
    if not list_checkpoints(folder):
        if written is None:
            raise BadDataError(
                f"{path}: a run without a checkpoint and without resolved.toml",
                "train first with: dit train --preset P",
            )
        return preset_subject(str(path), specimen_of, written, RUN)
    view = CheckpointView(newest_checkpoint(folder, talk).path, resolved=written)
    return checkpoint_subject(str(path), specimen_of, view, view.config or written, expected, RUN)
