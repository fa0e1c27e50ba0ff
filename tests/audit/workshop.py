"""Where faults are planted: copies of the clean data and of the clean checkpoint, opened as subjects of the audit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dittool.audit.subject import Checkpoint, Subject
from dittool.config.load import load_config
from dittool.config.schema import Config
from dittool.data.features.store import FeatureStore
from dittool.data.records import FEATURES, STAGES, Record
from dittool.data.shards.write import shard
from dittool.storage import write_json
from tests.audit.opened import checkpoint_subject, open_subject, preset_subject

Arrays = dict[str, np.ndarray]  # by the feature's name
Change = Callable[[Record, Arrays], Arrays]


@dataclass(frozen=True)
class Workshop:
    """The clean folder, an empty one for copies, and pytest's monkeypatch."""

    clean: Path
    bench: Path
    monkeypatch: pytest.MonkeyPatch

    def preset(self, *overrides: str, **sections: dict[str, Any]) -> Subject:
        """The demo's preset; `sections` set keys past the schema, as a file of an older version might hold them."""
        config = load_config("demo", overrides)
        for name, values in sections.items():
            config = config.model_copy(update={name: getattr(config, name).model_copy(update=values)})
        return preset_subject("demo", config)

    def derived(
        self, change: Change | None = None, records: Callable[[list[Record]], list[Record]] | None = None
    ) -> Path:
        """A changed copy of the derived folder. `change` returns the arrays to replace; a record with a new id has
        the first one's features.
        """
        derived = self.bench / "derived"
        shutil.copytree(self.clean / "derived", derived)
        store = FeatureStore(derived)
        old = store.read_records()
        new = records(old) if records else old
        for record in new:
            source = record if record.id in {kept.id for kept in old} else old[0]
            arrays = {feature.name: store.read(feature, source.id) for feature in FEATURES}
            for name, array in (arrays | (change(record, arrays) if change else {})).items():
                np.save(derived / name / f"{record.id}.npy", array)
        store.write_records(new)
        for stage in STAGES:
            store.append_journal(stage, new)
        return derived

    def shards(
        self, change: Change | None = None, records: Callable[[list[Record]], list[Record]] | None = None
    ) -> Path:
        """Shards of such a copy."""
        shard(self.derived(change, records), self.bench / "shards", shard_size=20)
        return self.bench / "shards"

    def without_index(self, shards: Path) -> Path:
        """The same set as an older program would have left it."""
        for path in [shards / "index.json", *shards.glob("**/*.members.json")]:
            path.unlink()
        return shards

    def edit_index(self, shards: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
        index = json.loads((shards / "index.json").read_text())
        edit(index)
        write_json(shards / "index.json", index)
        return shards

    def run(self) -> Path:
        """A copy of the clean run."""
        shutil.copytree(self.clean / "run", self.bench / "run")
        return self.bench / "run"

    def checkpoint(self, edit: Callable[[dict[str, Any]], None]) -> Path:
        """The clean run's last checkpoint with its content edited, under another name and without a sidecar."""
        content = torch.load(self.clean / "run/checkpoints/checkpoint_final.pt", weights_only=True)
        edit(content)
        torch.save(content, self.bench / "edited.pt")
        return self.bench / "edited.pt"

    def open(self, path: Path, preset: Config | None = None) -> Subject:
        subject = open_subject(str(path))
        if preset is None:
            return subject
        if isinstance(subject, Checkpoint):
            return checkpoint_subject(subject.target, subject.view, subject.config, preset, subject.kind)
        return replace(subject, expected=preset_subject("preset", preset))
