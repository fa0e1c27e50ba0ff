"""A run's folder beyond its checkpoints: which run a checkpoint belongs to, and which shards it was trained on."""

from __future__ import annotations

from pathlib import Path

from dittool.storage import read_json, write_json

DEFAULT_DATA = Path("data/shards")
_RECORD = "run.json"


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: two folders up within `checkpoints/`, else where it lies."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def record_data(run: Path, shards: Path, identity_hash: str) -> None:
    """Writes down which shards a run is trained on."""
    write_json(run / _RECORD, {"data": str(shards.resolve()), "identity_hash": identity_hash})


def recorded_data(run: Path) -> Path:
    """The shards that a run was trained on; `data/shards` when it does not say."""
    path = run / _RECORD
    value = read_json(path) if path.is_file() else {}
    return Path(value["data"]) if isinstance(value, dict) and isinstance(value.get("data"), str) else DEFAULT_DATA
