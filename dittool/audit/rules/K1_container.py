"""Nothing in the file could run code, found out without loading it, and it is what its sidecar says.

## What it checks
A `.pt` is walked byte by byte and opcode by opcode: one root folder, nothing compressed, encrypted or doubled, nothing
called but what rebuilds tensors and plain data, storages as large as their shapes. Settings of other programs, such as
an `argparse.Namespace`, are read as names and values and never imported; the evidence lists their classes. It warns
where a file calls another program's class with words and nothing says that it is an enumeration's: `Color("red")` and
`Popen("reboot")` are the same bytes, and whoever unpickles the file makes the call. A `.safetensors` header is parsed
here: no name twice, no gap or overlap, no path as a name. A sidecar beside the file must agree with its size, hash and
step.

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
from dittool.ckpt.load import named_tensors
from dittool.errors import UnsafeFileError, listed
from dittool.storage import bytes_text

CODE, NAME, SEVERITY, SCOPE, SINCE = "K1", "container", "error", ("checkpoint",), "0.1"

_SHOWN = 5


def check(subject: Checkpoint) -> list[Finding]:
    path = subject.view.path
    try:
        opened = subject.view.opened
    except UnsafeFileError as error:
        return failed(error.message, error.hint)
    size, tensors = bytes_text(opened.bytes), len(named_tensors(opened.entries or opened.content))
    part = f"; judged are {subject.view.part}" if not subject.view.ours and subject.view.part else ""
    part += f"; beside it lie {listed(opened.beside, _SHOWN)}" if opened.beside else ""
    others = f", beside classes of other programs, never imported: {listed(opened.foreign, _SHOWN)}"
    if subject.view.weights_only_file and not opened.foreign:
        return passed(f"{size}, {tensors} tensors by headers without gap, overlap or doubled name{part}")
    content = f"{size}, {tensors} tensors and plain values{others if opened.foreign else ' only'}"
    if opened.unknown_calls:
        calls = listed(opened.unknown_calls, _SHOWN)
        return warned(
            f"{content}; whoever unpickles it calls {calls}: a member of an enumeration is written so, and a call that"
            f" acts too{part}",
            "look at these classes before any program unpickles the file; torch.load(…, weights_only=True) calls none",
        )
    if not subject.view.ours:
        return passed(f"{content}; another program's file, without a sidecar{part}")
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
