"""Each condition moves the prediction and can be learned: text, the reference's CLS, its patches, and the timestep.

## What it checks
On the network with open gates, or with a checkpoint's weights: exchanging the text, the CLS or the patches for others
changes the prediction; gradient reaches every parameter when all four dropout modes stand in a batch; the timestep's
embedding varies over [0, 1]; padding and the length of a caption do not show, neither under the mask nor when the text
is dropped. Of a foreign model each tensor of its inputs is exchanged in turn, also inside of dictionaries, lists and
dataclasses, and it is live if any tensor of the answer moves, be it only where another input of zeros and ones, which
may switch it off, is zero or one throughout, or where a flag of forward is turned; what dropping a condition means to
it cannot be known. What a mask hides must not show in the picture; a text's own states may hold it. A video is also
trained with several frames before parameters are called dead. A time that is cut to whole numbers is told. A block that
never runs, while others of its list do, fails. Under the profile `any` parameters that no gradient reaches warn.

## Why it matters
A condition that is projected and never read trains to an unconditional model without any error. With t fed without its
factor of 1000 the embedding is nearly constant. A dropped text that keeps its mask tells its length, and guidance is
spoiled.

## Example
A context without the patch tokens fails: "patches: the prediction does not change".

## Fix
The evidence names the condition; follow it through `models/conditioning.py` into the context, the mask and the
condition vector.
"""

from __future__ import annotations

from dittool.audit.rule import FAIL, Finding, chosen, judged, passed, skipped, warned
from dittool.audit.specimens.specimen import Liveness
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "C6", "live-conditions", "error", ("model",), "0.1"

FIX = "follow the input through the model's forward: it must reach the blocks or their modulation"
_DEAD = (
    "They cost memory and never learn. What the last of two-stream blocks computes for its text is such a part in many"
    " models; a flag or another size may reach others"
)
_LEAST = 1e-5  # relative change that counts as one
# relative change of t's embedding over a fifth of its range; without the factor of 1000 it is 0.04, with it 1.2
_LEAST_TURN = 0.2


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found = subject.specimen.liveness()
    return judge(found, "prediction", _time_fault(found), _turns_text(found))


def judge(found: Liveness, answer: str, fault: str = "", more: str = "") -> list[Finding]:
    """What inputs do to an answer, called so; `fault` and `more` are what else was found."""
    least = max(_LEAST, 3 * found.unsteady)
    unchanged = {name: change for name, change in found.changes.items() if change < least}
    leaking = {name: change for name, change in found.leaks.items() if change > least}
    faults = [f"{name}: the {answer} does not change ({change:.1g})" for name, change in unchanged.items()]
    faults += [f"{name}: shows in the {answer} (relative change {change:.2g})" for name, change in leaking.items()]
    faults += [fault] if fault else []
    shown = ", ".join(f"{name} {change:.2g}" for name, change in found.changes.items())
    gradient = "" if found.dead else "gradient reaches every parameter"
    parts = (f"relative change of the {answer}: {shown}", more, gradient, found.sealed)
    held = "; ".join(part for part in (*parts, found.network) if part)
    if found.idle:
        which = f"{', '.join(found.idle[:3])}{' …' if len(found.idle) > 3 else ''}"
        many = f"{which} never run{'s' * (len(found.idle) == 1)}, while other blocks of the same list do"
        faults.append(f"{many}: no gradient reaches any of their parameters")
    if faults or not found.dead:
        return judged([f"{fault}, {found.network}" for fault in faults], FIX, held) + _unreached(found)
    return ([] if found.truncated else passed(held)) + _unreached(found)


def _unreached(found: Liveness) -> list[Finding]:
    """Parameters without a gradient, and times that are cut to whole numbers."""
    findings: list[Finding] = []
    if found.truncated:
        cut = f"{found.time} is cut to whole numbers: two times within one give the same answer"
        findings += (
            [Finding(FAIL, cut, FIX)]
            if found.time_known
            else warned(f"{cut}; a flow's t in [0, 1] would be lost, steps of 1 to 1000 are not", FIX)
        )
    if found.spare:
        chosen_from = "others of the same list do: a setting may choose among them"
        findings += skipped(f"{', '.join(found.spare)}: the answer does not change, and {chosen_from}")
    if not found.dead:
        return findings
    which = f"no gradient reaches {len(found.dead)} parameters, first {', '.join(found.dead[:3])}"
    if found.not_fed:
        why = f"forward's {', '.join(found.not_fed)} were not given, which may be what reaches them"
        return findings + skipped(f"{which}; {why}: name them in --example")
    return findings + chosen(f"{which}, {found.network}", FIX, _DEAD)


def _time_fault(found: Liveness) -> str:
    if not found.time:
        return "no input is a timestep: it is not a diffusion model that can be conditioned on t"
    if not found.unit_time or found.turns[1.0] >= _LEAST_TURN:
        return ""
    turn = f"changes by {found.turns[1.0]:.2g} over a fifth of [0, 1], at least {_LEAST_TURN} is wanted"
    return f"{found.time}'s embedding {turn} (t times 1000?)"


def _turns_text(found: Liveness) -> str:
    turns = [
        f"{turn:.2g}" + f" over a fifth of [0, {span:g}]" * (len(found.turns) > 1) for span, turn in found.turns.items()
    ]
    unknown = ", whichever the training feeds" if not found.time_known else ""
    return f"t's embedding {' and '.join(turns)}{unknown}" if turns else ""
