"""The checkpoint holds everything that an exact resume needs.

## What it checks
All keys are there; raw and averaged weights have the same tensors; the optimizer has both moments of every parameter,
in its shape; the random state, the data's identity and order, and a valid configuration are remembered. In a run's
folder, resolved.toml says what the checkpoint remembers.

## Why it matters
A run that resumes without its optimizer's moments, its place in the data or its own configuration is another run under
the same name.

## Example
A checkpoint of weights alone that was saved under the name of a full one fails: "2 of 9 keys are missing: optimizer,
rng".

## Fix
Start from such weights with `dit train --init`, as a new run; keep full checkpoints for resuming.
"""

from __future__ import annotations

from dittool.audit.checkpoint_view import ADAMW, MUON, Moments
from dittool.audit.rule import Finding, failed, judged, skipped
from dittool.audit.subject import Checkpoint
from dittool.ckpt.load import FORMAT_VERSION
from dittool.ckpt.plain_state import STATE_KEYS
from dittool.config.load import config_to_dict
from dittool.data.identity import differences

CODE, NAME, SEVERITY, SCOPE, SINCE = "K5", "complete", "error", ("checkpoint",), "0.1"

_FIX = "resume from another checkpoint of the run, or start a new run from these weights with: dit train --init"
_DATA_KEYS = ("identity", "identity_hash", "dims", "norm", "order_hash")


def check(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours:
        return skipped("weights alone: nothing to resume")
    if missing := [key for key in STATE_KEYS if key not in view.content]:
        return failed(f"{len(missing)} of {len(STATE_KEYS)} keys are missing: {', '.join(missing)}", _FIX)
    content = view.content
    faults = []
    if content["format_version"] != FORMAT_VERSION:
        faults.append(f"format {content['format_version']!r}, this program resumes {FORMAT_VERSION}")
    if view.config is None:
        faults.append(view.config_problem or "no configuration")
    raw, ema = ({name: tuple(tensor.shape) for name, tensor in content[key].items()} for key in ("model", "ema"))
    if raw != ema:
        faults.append(f"raw and averaged weights differ in {len(raw.items() ^ ema.items())} names or shapes")
    moments: Moments | None = view.moments() if content["step"] else {}
    if moments is None:
        faults.append(
            f"the optimizer has the state of {len(content['optimizer']['state'])} parameters, not of the model's"
            f" {len(raw)}"
        )
        moments = {}
    if lacking := [name for name, state in moments.items() if not (state.keys() >= ADAMW or state.keys() >= MUON)]:
        faults.append(f"the optimizer lacks moments of {len(lacking)} parameters, first {lacking[0]}")
    if lacking := [key for key in _DATA_KEYS if key not in content["data"]]:
        faults.append(f"of the data it does not remember {', '.join(lacking)}")
    widths = [] if view.config is None else [f"{width:g}" for width in view.config.ema.averages]
    if lacking := [width for width in widths if width not in content.get("snapshots", {}).get("weights", {})]:
        faults.append(f"it lacks the averages of width {', '.join(lacking)}")
    if not content["rng"]:
        faults.append("the random state is empty")
    if view.resolved is not None and view.config is not None:
        lines = differences(config_to_dict(view.resolved), config_to_dict(view.config))
        faults += [f"resolved.toml is not what the checkpoint remembers: {'; '.join(lines[:3])}"] if lines else []
    beside = "; resolved.toml says the same" if view.resolved is not None else ""
    figures = f"{len(raw)} tensors raw and averaged, moments of {len(moments)}"
    held = f"step {content['step']:,}: {figures}, random state, data, configuration{beside}"
    return judged(["; ".join(faults)] if faults else [], _FIX, held)
