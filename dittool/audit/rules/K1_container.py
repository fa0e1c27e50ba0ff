"""Nothing in the file could run code, found out without loading it, and it is what its sidecar says.

## What it checks
A `.pt` is walked byte by byte and opcode by opcode: one root folder, nothing compressed, encrypted or doubled, nothing
called but what rebuilds tensors and plain data, storages as large as their shapes. Settings of other programs, such as
an `argparse.Namespace`, are read as names and values and never imported; the evidence lists their classes. A
`.safetensors` header is parsed here: no name twice, no gap or overlap, no path as a name. A sidecar beside the file
must agree with its size, hash and step.

## Why it matters
A `.pt` is a program in disguise: loading a stranger's runs what it says. A file that was cut or changed after it was
saved is no longer the run's.

## Example
A pickle that calls `os.system` is refused with exit code 4 before anything in it is loaded.

## Fix
Do not load such a file; ask its maker for `.safetensors`. Restore one that its sidecar does not know.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, failed, passed, warned
from dittool.audit.subject import Checkpoint
from dittool.ckpt.files import list_checkpoints, sidecar_path
from dittool.ckpt.load import check_pt, check_safetensors, named_tensors
from dittool.errors import UnsafeFileError, listed
from dittool.storage import bytes_text

CODE, NAME, SEVERITY, SCOPE, SINCE = "K1", "container", "error", ("checkpoint",), "0.1"

_SHOWN = 5


def check(subject: Checkpoint) -> list[Finding]:
    path = subject.view.path
    size = bytes_text(path.stat().st_size)
    try:
        if subject.view.weights_only_file:
            return passed(
                f"{size}, a safetensors header of {len(check_safetensors(path).tensors)} tensors without gap, overlap"
                " or doubled name"
            )
        report = check_pt(path)
    except UnsafeFileError as error:
        return failed(error.message, error.hint)
    others = f", beside classes of other programs, never imported: {listed(report.foreign, _SHOWN)}"
    values = f"{size}, {len(named_tensors(report.content))} tensors and plain values"
    content = f"{values}{others if report.foreign else ' only'}"
    if not subject.view.ours:
        return passed(f"{content}; another program's file, without a sidecar")
    known = [file for file in list_checkpoints(path.parent) if file.path.name == path.name]
    if not known or not sidecar_path(path).exists():
        return warned(
            f"{content}; no sidecar {sidecar_path(path).name} beside it, so its hash cannot be compared",
            "copy the sidecar along with it",
        )
    if reason := known[0].verify():
        return failed(
            f"{content}; its sidecar disagrees: {reason}",
            "restore the file from a copy, or go back to an earlier checkpoint",
        )
    return passed(f"{content}; size, sha256 and step as its sidecar says")
