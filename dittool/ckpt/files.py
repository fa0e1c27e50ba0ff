"""The checkpoints of a run as files: saved whole, found by step number, deleted only behind a newer one that verifies.

    checkpoint_step0001000.pt     the state dict, tensors and plain values only
    checkpoint_step0001000        instead of it a folder, the same in parts (`ckpt/sharded.py`)
    checkpoint_step0001000.json   its sidecar: {"file", "bytes", "sha256", "step", "summary"}
    checkpoint_final.pt, .json    the end of the run; its step stands in the sidecar

A checkpoint counts when its sidecar is there and agrees with the file's bytes. The sidecar is written last, so a
process that is killed between the two leaves a file that does not count, and the resumed run saves that step again over
it. A file that counts is never overwritten. Times of files decide nothing within a run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dittool.ckpt.exported import export_folder, exported_weights
from dittool.ckpt.load import check_own
from dittool.ckpt.plain_state import require_plain, state_bytes
from dittool.ckpt.sharded import checkpoint_sha256, differs_from_index, is_sharded
from dittool.ckpt.write import write_pt
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, StorageError, UsageError, from_os_error
from dittool.nearest import did_you_mean
from dittool.shell import command_line
from dittool.storage import (
    bytes_text,
    file_sha256,
    output_folder,
    read_json,
    require_free,
    sync_folder,
    write_json,
)

FINAL_NAME = "checkpoint_final.pt"
_STEP_NAME = re.compile(r"checkpoint_step(\d{7,})(\.pt)?")
_TRASH_PREFIX = ".trash-"


@dataclass(frozen=True)
class Sidecar:
    """What stands beside a checkpoint, in JSON. `summary`: what the run says of it, for people."""

    file: str
    bytes: int
    sha256: str
    step: int
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointFile:
    """One `.pt`, or folder of parts, in a checkpoints folder. `step` is None for a final one whose sidecar is
    missing.
    """

    path: Path
    step: int | None
    sidecar: Sidecar | None  # None: missing or unreadable

    @property
    def final(self) -> bool:
        return self.path.stem == Path(FINAL_NAME).stem

    def verify(self) -> str | None:
        """None when the file is what its sidecar says, else the reason in a few words. Reads all of it."""
        if self.sidecar is None:
            return "no readable sidecar beside it, so it was not saved to the end"
        if self.sidecar.step != self.step:
            return f"its sidecar belongs to step {self.sidecar.step}"
        if self.path.is_dir():
            if not is_sharded(self.path):
                return "its index is not there"
            different = checkpoint_sha256(self.path) != self.sidecar.sha256
            return "sha256 of its index differs from its sidecar's" if different else differs_from_index(self.path)
        size = self.path.stat().st_size
        if size != self.sidecar.bytes:
            return f"{size:,} bytes, its sidecar says {self.sidecar.bytes:,}"
        if file_sha256(self.path) != self.sidecar.sha256:
            return "sha256 differs from its sidecar's"
        return None


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, final: bool = False, summary: dict[str, Any] | None = None
) -> Path:
    """Saves the training state under its step's name, or as the final one, and returns the path.

    A valid checkpoint of the same name and step is kept and returned: a run resumes from its newest valid checkpoint
    and repeats itself exactly, so that file holds this very state. A valid final one of an earlier step, from a run
    that was continued, first gets its step's name. Raises `StorageError` (disk full, permission) with nothing valid
    lost, TypeError for a state that is not plain.
    """
    require_plain(state)
    step = state["step"]
    path = output_folder(folder) / (FINAL_NAME if final else step_name(step))
    if (kept := already_saved(path, step)) is not None:
        return kept
    needed = state_bytes(state)
    require_free(folder, needed, f"the checkpoint of step {step}", again_after_failure(path))
    with saving_errors_explained(path, needed):
        written = write_pt(path, state)
        check_own(path)  # what this program cannot read back must not count
        write_json(sidecar_path(path), asdict(Sidecar(path.name, written.bytes, written.sha256, step, summary)))
    return path


def already_saved(path: Path, step: int) -> Path | None:
    """The valid checkpoint of this step under a `.pt`'s name, or under that of a folder of parts, if there is one. A
    valid final one of an earlier step gets its step's name. Raises `StorageError` for something else in the way.
    """
    for place in (path.with_suffix(".pt"), path.with_suffix("")):
        if place.is_dir() != (not place.suffix) and place.exists():
            kind = "folder" if place.is_dir() else "file"
            raise StorageError(f"{place}: a {kind} stands where the checkpoint should be", "move it away")
        existing = _checkpoint_file(place) if place.exists() else None
        if existing and existing.sidecar and existing.verify() is None:
            if existing.step == step:
                return place
            _give_step_name(place, existing.sidecar)
    return None


@contextmanager
def saving_errors_explained(path: Path, needed: int) -> Iterator[None]:
    """Inside, what the disk refuses of a checkpoint is a `StorageError` with both numbers."""
    try:
        yield
    except OSError as error:
        if from_os_error(error) is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"{path}: {error.strerror}: the checkpoint needs {bytes_text(needed)}, the disk has {bytes_text(free)}"
            " free",
            again_after_failure(path),
        ) from error


def again_after_failure(path: Path) -> str:
    """What to do when a checkpoint could not be saved."""
    return (
        "older checkpoints are intact; free some space or correct the permissions, then:"
        f" {command_line('dit', 'train', '--resume', '--out', run_folder(path))}"
    )


def list_checkpoints(folder: Path) -> list[CheckpointFile]:
    """All checkpoints in a folder by step, valid or not; a final one whose step is unknown comes last. Empty when
    there is no folder.
    """
    if not folder.is_dir():
        return []
    paths = [
        path
        for path in folder.iterdir()
        if is_checkpoint_name(path.name) and (path.is_file() if path.suffix else path.is_dir())
    ]
    return sorted(
        (_checkpoint_file(path) for path in paths), key=lambda file: (file.step is None, file.step or 0, file.final)
    )


def newest_valid(folder: Path) -> CheckpointFile | None:
    """The newest checkpoint that verifies, if there is one."""
    return next((file for file in reversed(list_checkpoints(folder)) if file.verify() is None), None)


def newest_checkpoint(folder: Path, talk: Talk = SILENT, strict: bool = False) -> CheckpointFile:
    """The newest checkpoint that verifies. Each newer one that does not is reported to `talk` with the steps that it
    costs.

    Raises `BadDataError` when there is none, and with `strict` also when the newest is not valid.
    """
    faults: list[tuple[CheckpointFile, str]] = []
    for file in reversed(list_checkpoints(folder)):
        reason = file.verify()
        if reason is None:
            for fallen, why in faults:
                lost = "how many steps are lost is unknown"
                if fallen.step is not None and file.step is not None:
                    lost = f"{fallen.step - file.step} steps are lost"
                talk.warn(f"{fallen.path}: skipped: {why}; {lost}, going back to step {file.step}")
            return file
        if strict:
            raise BadDataError(
                f"{file.path}: {reason}", "restore the file, or run without --strict to fall back to the one before"
            )
        faults.append((file, reason))
    if not faults:
        raise BadDataError(f"{folder}: no checkpoint there", "check the folder, or train first with: dit train")
    found = "; ".join(f"{file.path.name}: {why}" for file, why in faults)
    raise BadDataError(
        f"{folder}: none of its {len(faults)} checkpoints is valid: {found}",
        "restore one from a copy, or start a new run in another folder (--out)",
    )


def rotate(folder: Path, keep: int, keep_every: int = 0) -> list[Path]:
    """Deletes older checkpoints and returns their paths; does nothing unless the newest verifies.

    The newest `keep` (at least two), every `keep_every`-th step (0: none) and the final one stay. Only the newest is
    hashed; of the others those without a sidecar do not count as kept. A file is renamed out of sight before it goes,
    so that no moment shows half of one.
    """
    if keep < 2:
        raise ValueError(f"keep {keep}: at least two checkpoints must stay")
    files = list_checkpoints(folder)
    if not files or files[-1].verify() is not None:
        return []
    for leftover in folder.glob(f"{_TRASH_PREFIX}*"):
        _delete(leftover)
    complete = [file for file in files if not file.final and file.sidecar is not None]
    for_good = {file.path for file in complete if keep_every and file.step is not None and file.step % keep_every == 0}
    stay = {file.path for file in complete[-keep:]} | for_good
    removed = [file for file in files if not file.final and file.path not in stay]
    for file in removed:
        if file.sidecar is not None or not _twin(file.path).exists():
            # from here on it does not count; the next rotation finishes what is left
            sidecar_path(file.path).unlink(missing_ok=True)
        discard(file.path)
    return [file.path for file in removed]


def resolve_checkpoint(
    target: Path | None, runs: Path = Path("runs"), talk: Talk = SILENT, optional: bool = True
) -> Path:
    """The checkpoint file that a file means, a run's folder, its checkpoints folder, an exported folder, or None: the
    newest run in `runs`.

    Within a run the newest is the highest valid step; between runs that whose log.jsonl (before the first line,
    resolved.toml) was written last. `optional`: whether the caller's user may name none.

    Raises `UsageError` for a path that is not there and `BadDataError` when no checkpoint is found.
    """
    if target is None:
        target = newest_run(runs)
        talk.note(f"using the newest run: {target}")
    if target.is_dir() and not is_sharded(target):
        folder = target / "checkpoints" if (target / "checkpoints").is_dir() else target
        found = exported_weights(target) if not list_checkpoints(folder) else None
        return found or newest_checkpoint(folder, talk).path
    if not target.exists():
        otherwise = ", or leave it out to use the newest run" if optional else ""
        hint = did_you_mean(target, f"name a checkpoint file or a run's folder{otherwise}")
        raise UsageError(f"{target}: no such file or folder", hint)
    return target


def is_checkpoint_name(name: str) -> bool:
    return name.removesuffix(".pt") == Path(FINAL_NAME).stem or _STEP_NAME.fullmatch(name) is not None


def is_one_file(name: str) -> bool:
    """Whether a checkpoint of this name is a file, and not a folder of parts."""
    return name.endswith(".pt")


def step_name(step: int) -> str:
    """`checkpoint_step0001000.pt`."""
    return f"checkpoint_step{step:07d}.pt"


def sidecar_path(path: Path) -> Path:
    """The `.json` beside a `.pt` or a folder of parts."""
    return path.with_suffix(".json")


def _read_sidecar(path: Path) -> Sidecar | None:
    try:
        found = sidecar_of(read_json(sidecar_path(path)))
    except BadDataError:
        return None
    # a file and a folder of one step share its name
    return found if found is not None and Path(found.file).suffix == path.suffix else None


def sidecar_of(value: object) -> Sidecar | None:
    """What JSON says of a checkpoint; None where it is no sidecar."""
    kinds = {"file": str, "bytes": int, "sha256": str, "step": int}
    if not isinstance(value, dict) or not all(type(value.get(key)) is kind for key, kind in kinds.items()):
        return None
    return Sidecar(value["file"], value["bytes"], value["sha256"], value["step"], value.get("summary"))


def _checkpoint_file(path: Path) -> CheckpointFile:
    sidecar, numbered = _read_sidecar(path), _STEP_NAME.fullmatch(path.name)
    return CheckpointFile(path, int(numbered[1]) if numbered else sidecar.step if sidecar else None, sidecar)


def _give_step_name(final: Path, sidecar: Sidecar) -> None:
    """Renames a valid final checkpoint to its step's name; sidecar first, so that it counts under one name or the
    other at any moment.
    """
    target = final.with_name(step_name(sidecar.step)).with_suffix(final.suffix)
    if not (target.exists() and _checkpoint_file(target).verify() is None):
        write_json(sidecar_path(target), asdict(replace(sidecar, file=target.name)))
        discard(target)
        os.replace(final, target)
    os.unlink(sidecar_path(final))
    sync_folder(target.parent)


def _twin(path: Path) -> Path:
    """Of a file the folder, of a folder the file, that would have the same sidecar."""
    return path.with_suffix("" if path.suffix else ".pt")


def discard(path: Path) -> None:
    """Deletes a checkpoint's file or folder, if it is there: first out of sight, so that no moment shows half of it."""
    if path.exists():
        trash = path.with_name(_TRASH_PREFIX + path.name)
        _delete(trash)
        os.replace(path, trash)
        _delete(trash)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def newest_run(runs: Path) -> Path:
    """The run in `runs` that was written to last. Raises `BadDataError` when no run there has a checkpoint."""

    def last_written(run: Path) -> tuple[float, str]:
        traces = [run / "log.jsonl", run / "resolved.toml", run / "checkpoints"]
        return next(trace for trace in traces if trace.exists()).stat().st_mtime, run.name

    candidates = [run for run in runs.iterdir() if list_checkpoints(run / "checkpoints")] if runs.is_dir() else []
    if not candidates:
        raise BadDataError(
            f"{runs}: no run with a checkpoint there", "train first with: dit train --preset P, or name a checkpoint"
        )
    return max(candidates, key=last_written)


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: two folders up within `checkpoints/`, else its folder, or the export's."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else export_folder(checkpoint) or folder
