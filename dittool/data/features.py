"""The derived store: one `.npy` file a feature and sample, and a journal that says what each was made from.

A feature counts when its file is there and the journal names the same source (hash of the image's bytes, or of the caption).
An edited image or caption therefore makes its features stale, and a file without a journal line is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dittool.data.arrays import npy_bytes, read_npy
from dittool.data.identity import ENCODER_OF_STAGE, new_card, require_same_identity
from dittool.data.records import FEATURES, Feature, Record, read_records, write_records
from dittool.errors import BadDataError
from dittool.storage import read_json, read_json_lines, write_atomic, write_json

_STORED_DTYPE = {"fp16": np.float16, "fp32": np.float32}


class FeatureStore:
    """A derived folder: records, identity card, features and their journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self._identity_path = folder / "identity.json"
        self._journal_path = folder / "journal.jsonl"

    def read_records(self) -> list[Record]:
        return read_records(self.records_path)

    def write_records(self, records: list[Record]) -> None:
        write_records(self.records_path, records)

    def card(self) -> dict[str, Any]:
        """The identity card. Raises `BadDataError` when there is none."""
        return read_json(self._identity_path)

    def open_card(self, buckets: list[str], patch_storage: str) -> dict[str, Any]:
        """The folder's card, made now when there is none. Raises `BadDataError` when its buckets, crop rule or storage differ."""
        fresh = new_card(buckets, patch_storage)
        if not self._identity_path.exists():
            write_json(self._identity_path, fresh)
            return fresh
        card = self.card()
        require_same_identity(fresh, card | {"encoders": {}}, str(self.folder), "embed into another folder with --out, or remove this one")
        return card

    def register_encoder(self, stage: str, encoder_card: dict[str, Any]) -> None:
        """Enters an encoder into the card. Raises `BadDataError` when the folder holds features of another one."""
        card, name = self.card(), ENCODER_OF_STAGE[stage]
        if name in card["encoders"]:
            folders = " ".join(str(self.folder / feature.name) for feature in FEATURES if feature.stage == stage)
            require_same_identity(
                {name: encoder_card}, {name: card["encoders"][name]}, f"{self.folder}: {stage} features",
                f"embed into another folder with --out, or drop the old features (rm -r {folders}), "
                f"remove '{name}' from identity.json, and run: dit embed --pass {stage}",
            )  # fmt: skip
            return
        card["encoders"][name] = encoder_card
        write_json(self._identity_path, card)

    def path(self, feature: Feature, record_id: str) -> Path:
        return self.folder / feature.name / f"{record_id}.npy"

    def write(self, feature: Feature, record_id: str, array: np.ndarray, storage: str = "fp16") -> None:
        """Stores one feature atomically. Raises `BadDataError` when it is not finite or does not fit the stored dtype."""
        with np.errstate(over="ignore"):  # overflow is looked for below, and named
            stored = array.astype(_STORED_DTYPE[storage])
        if not np.isfinite(stored).all():
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0))
            raise BadDataError(
                f"{record_id}: {feature.name} has {int((~np.isfinite(stored)).sum())} values that are not finite in {storage} "
                f"(largest finite one {largest:.3g})",
                'run the encoder in fp32: -s encoders.dtype="fp32"',
            )
        path = self.path(feature, record_id)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, npy_bytes(stored))

    def read(self, feature: Feature, record_id: str) -> np.ndarray:
        return read_npy(self.path(feature, record_id))

    def read_journal(self) -> dict[tuple[str, str], str]:
        """(record id, stage) → what the features were made from."""
        if not self._journal_path.exists():
            return {}
        return {(row["id"], row["stage"]): row["source"] for row in read_json_lines(self._journal_path)}

    def compact_journal(self, used: Iterable[Record]) -> dict[tuple[str, str], str]:
        """Rewrites the journal without torn, superseded and orphaned lines. Returns what it says now."""
        known = {record.id for record in used}
        journal = {key: source for key, source in self.read_journal().items() if key[0] in known}
        lines = (json.dumps({"id": record_id, "stage": stage, "source": source}) + "\n" for (record_id, stage), source in journal.items())
        write_atomic(self._journal_path, "".join(lines).encode())
        return journal

    def append_journal(self, stage: str, records: Iterable[Record]) -> None:
        """Enters features that are already on disk."""
        lines = (json.dumps({"id": record.id, "stage": stage, "source": source_of(stage, record)}) + "\n" for record in records)
        with self._journal_path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def missing(self, stage: str, records: Iterable[Record], journal: dict[tuple[str, str], str]) -> list[Record]:
        """Records whose features of this stage are absent or stale."""
        features = [feature for feature in FEATURES if feature.stage == stage]
        return [
            record for record in records
            if journal.get((record.id, stage)) != source_of(stage, record)
            or not all(self.path(feature, record.id).is_file() for feature in features)
        ]  # fmt: skip


def source_of(stage: str, record: Record) -> str:
    """What a stage's features are made from: the image's bytes and bucket, or the caption."""
    if stage == "t5":
        return hashlib.sha256(record.caption.encode()).hexdigest()
    return f"{record.image_sha256} {record.bucket}"
