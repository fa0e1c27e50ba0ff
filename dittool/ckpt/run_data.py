"""Which shards a run was trained on, and where they are now.

    RUN/run.json                     {"data": "../../data/shards", "identity_hash": …, "order_hash": …}, the path seen
                                     from the run
    a checkpoint's data.folder       the same, seen from the checkpoint's folder, for one that left its run

Both tell where the data were, not that they must be there: what is not found is looked for beside the run by its
identity, and `--data` names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dittool.ckpt.load import content_of
from dittool.ckpt.opened import is_weights_alone
from dittool.errors import BadDataError, UsageError
from dittool.storage import read_json, write_json
from dittool.whereabouts import exact_place, find, remembered

DEFAULT_DATA = Path("data/shards")
_RECORD, _INDEX = "run.json", "index.json"


@dataclass(frozen=True)
class _Recorded:
    """What a file says of the shards."""

    file: Path
    key: str
    text: str  # the path, seen from the file's folder; absolute in runs of older versions
    identity_hash: object


def record_data(run: Path, shards: Path, identity_hash: str, order_hash: str) -> None:
    """Writes down which shards a run is trained on. The hashes are those of its `Provenance`."""
    record = {"data": remembered(shards, run), "identity_hash": identity_hash, "order_hash": order_hash}
    write_json(run / _RECORD, record)


def recorded_data(run: Path, again: str, checkpoint: Path | None = None) -> Path:
    """The shards that a run, or a checkpoint without one, was trained on; `data/shards` when neither says.

    Args:
        again: the command that asks, as far as `--data`, for the advice.

    Raises `UsageError` when they are not where they were and no set of their identity is beside.
    """
    recorded = _of_run(run) or (None if checkpoint is None else _of_checkpoint(checkpoint))
    if recorded is None:
        return DEFAULT_DATA
    found = find(recorded.text, recorded.file.parent, partial(_is_set, recorded.identity_hash))
    if found is not None:
        return found
    place = exact_place(recorded.text, recorded.file.parent)
    raise UsageError(
        f"{recorded.file}: {recorded.key} = '{recorded.text}': the shards of its training are not there ({place}), and"
        " no set of their identity is beside it",
        f"nothing is lost: say where they are now: {again} --data FOLDER",
    )


def _of_run(run: Path) -> _Recorded | None:
    path = run / _RECORD
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict) or not isinstance(value.get("data"), str):
        return None
    return _Recorded(path, "data", value["data"], value.get("identity_hash"))


def _of_checkpoint(checkpoint: Path) -> _Recorded | None:
    content = None if is_weights_alone(checkpoint) else content_of(checkpoint)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("folder"), str):
        return None
    return _Recorded(checkpoint, "data.folder", data["folder"], data.get("identity_hash"))


def _is_set(identity_hash: object, folder: Path) -> bool:
    """Whether a folder is a finished set of shards of this identity."""
    try:
        index = read_json(folder / _INDEX)
    except (BadDataError, OSError):
        return False
    return isinstance(index, dict) and index.get("identity_hash") == identity_hash
