"""What is audited: a preset, a checkpoint, data or a foreign model, each with exactly what it has.

A rule's SCOPE says which parts of a subject it needs: `preset`, the configuration of a rectified flow; `model`, a
network that can be built or loaded; `checkpoint`, a file of weights, and `weights` when that does not say which network
they belong to; `data`, features. A one-step generator's network is a `generator` instead, and its configuration a
`plan`: steps, rates and averages, which every family has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.data_view import DataView
from dittool.audit.rule import Profile
from dittool.audit.specimens.specimen import NotAnswered, Scope, Specimen
from dittool.config.architectures import AnyConfig

PRESET, CHECKPOINT, RUN, SHARDS, DERIVED, FOREIGN = "preset", "checkpoint", "run", "shards", "derived", "foreign model"


@dataclass(frozen=True)
class Preset:
    """A configuration that is to be trained: a preset's, or a run's before its first checkpoint."""

    target: str
    config: AnyConfig
    specimen: Specimen
    kind: str = PRESET

    @property
    def parts(self) -> frozenset[Scope]:
        return self.specimen.scopes


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, or a run as its newest one."""

    target: str
    view: CheckpointView
    specimen: Specimen  # its network with its weights; weights alone when it does not say which network
    config: AnyConfig | None  # what it remembers, or its run's folder says; None for weights alone
    expected: Preset | None = None  # of --preset: what it should fit
    kind: str = CHECKPOINT

    @property
    def parts(self) -> frozenset[Scope]:
        return self.specimen.scopes | {"checkpoint"}


@dataclass(frozen=True)
class Data:
    """Shards or a derived folder."""

    target: str
    data: DataView
    kind: str  # shards or derived
    expected: Preset | None = None  # of --preset: what it should fit

    @property
    def parts(self) -> frozenset[Scope]:
        return frozenset({"data"})

    @property
    def opened(self) -> DataView:
        """The set with its samples. Raises `NotAnswered` when it could not be opened."""
        if not self.data.refs:
            raise NotAnswered("the set could not be opened; see rule D7")
        return self.data


@dataclass(frozen=True)
class Foreign:
    """Somebody else's model, behind the factory that the target names."""

    target: str
    specimen: Specimen
    kind: str = FOREIGN

    @property
    def parts(self) -> frozenset[Scope]:
        return self.specimen.scopes


Subject = Preset | Checkpoint | Data | Foreign


def usual_profile(subject: Subject) -> Profile:
    """Somebody else's model and weights of unknown make are not held to our recipe."""
    foreign = isinstance(subject, Foreign) or (isinstance(subject, Checkpoint) and subject.config is None)
    return "any" if foreign else "scratch"


def why_unfit(subject: Subject, scopes: Collection[Scope]) -> tuple[str, bool]:
    """Why a rule cannot judge a subject that has none of its scopes, and whether that is said also unasked."""
    if isinstance(subject, Foreign):
        reason = "a model alone: what this rule judges stands in the training that is planned with it"
        return reason, "preset" in scopes
    if isinstance(subject, Checkpoint) and subject.config is None and {"model", "preset"} & set(scopes):
        layout = subject.view.layout
        weights = f"weights of the layout {layout.name}; " if layout else ""
        unknown = "the file does not say which configuration it belongs to, so there is no network to try out"
        return weights + unknown, True
    said_unasked = isinstance(subject, Checkpoint) and subject.config is None and "data" not in scopes
    return f"judges a {' or '.join(scopes)}, and this is {subject.kind}", said_unasked
