"""The network runs, its weights have been given values, and its answer is finite.

## What it checks
Before anything else the network runs once as it begins and once with everything that begins at zero drawn at random.
Every value that it answers with must be finite; if one is not, nothing else is judged, and the evidence tells weights
that are not finite, memory that was taken and never written (`torch.empty`), and half precision apart. It runs once
more in training mode, and every gradient must be finite. Weights in half precision are judged cast to float32, and run
once as they are: given numbers of their kind, else float32, else under autocast. The evidence names the blocks that
were found and the share of the parameters that stands in them: what the rules of structure (E1, E3, E5) look at.

## Why it matters
On NaN every comparison is silent or false. What raises in training mode, as `.cuda()` on a machine without a GPU,
keeps from being judged what acts there, and that is said once and here.

## Example
`nn.Parameter(torch.empty(width))` that nothing fills fails or warns: "scale was never written".

## Fix
The evidence names the tensor or the line.
"""

from __future__ import annotations

from dittool.audit.rule import FAIL, Finding, chosen, failed, passed, warned
from dittool.audit.specimens.specimen import AsBuilt, ForwardRun
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "R1", "runs", "error", ("model", "generator"), "0.2"

_MOST_OUTSIDE = 0.5  # share of the parameters that may stand outside of the blocks


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.forward_run(), subject.specimen.note
    if found.not_finite:
        many = f"{found.not_finite:,} of {found.values:,} values of the answer are NaN or infinite"
        why, fix = _why_not_finite(found)
        return [Finding(FAIL, f"{many}{why}; nothing else can be judged{note}", fix, ends=True)]
    half = found.as_built
    if half and half.not_finite:
        many = f"{half.not_finite:,} of {half.values:,} values of the answer are NaN or infinite"
        cast = f"its weights are {half.kinds}, and cast to float32 the same network answers with finite values"
        return [Finding(FAIL, f"{many}: {cast}; nothing else can be judged", "build it in float32", ends=True)]
    findings: list[Finding] = []
    if found.wild:
        many = f"{len(found.wild)} parameters, first {found.wild[0]}, are NaN or infinite"
        findings += failed(
            f"in training mode, at the example's size or another, gradients of {many}",
            "look for a root, a norm or a quotient at zero, and for a softmax over nothing, also of what is cut away",
        )
    if half and not half.way:
        findings += warned(
            f"its weights are {half.kinds}, and as it was built it does not run on a CPU, neither given these numbers"
            f" nor under autocast: it {half.error}; judged cast to float32",
            "cast what it computes with to the weights' kind of number, or build it in float32",
        )
    if found.never_written:
        which = f"{len(found.never_written)} tensors of the weights were never written, first {found.never_written[0]}"
        fix = "initialise it where it is made"
        findings += chosen(
            f"{which}: they hold what their memory held",
            fix,
            "A class that is only ever loaded may leave them so; trained from scratch it begins anywhere",
        )
    if found.in_training:
        skipped = "what acts in training mode (E5) is not judged, gradients are those of evaluation mode"
        findings += warned(
            f"in training mode the model's own code {found.in_training}: {skipped}",
            "let it run on a CPU too: take the device from an input, make what a package offers optional",
        )
    if not found.share and found.outside:
        findings += warned(
            f"no blocks were found: {found.where}. So nothing is known of gates, biases and gradient checkpointing (E1,"
            f" E3, E5): not judged are {', '.join(found.outside)} of the parameters",
            "read no verdict into this audit; put what is repeated into a list of modules that hand tokens on",
        )
    elif found.share < _MOST_OUTSIDE and found.outside:
        findings += warned(
            f"only {found.share:.0%} of the parameters stand in blocks that were found ({found.where}), which is all"
            f" that E1, E3 and E5 look at; outside: {', '.join(found.outside)}",
            "name a smaller or deeper model with --kwargs, or read what these rules say with that in mind",
        )
    copies = f"; left out, neither trained nor run: {', '.join(found.copies)}" if found.copies else ""
    outside = f", outside of them {', '.join(found.outside)}" if found.outside else ""
    looked = f"{found.share:.1%} of the parameters stand in the blocks found ({found.where}){outside}{copies}"
    compiled = f"; compiled code was not run, but what it is made of: {found.compiled}" if found.compiled else ""
    shapes = ", ".join("×".join(map(str, shape)) for shape in found.shapes)
    cast = _how_half_runs(half) if half else ""
    return findings or passed(f"answers {shapes}, all finite; {looked}{compiled}{cast}{note}")


def _how_half_runs(half: AsBuilt) -> str:
    fails = f" ({half.error} otherwise)" if half.error else ""
    return f"; its weights are {half.kinds}: judged cast to float32; as it was built it runs {half.way}{fails}"


def _why_not_finite(found: ForwardRun) -> tuple[str, str]:
    if found.never_written:
        first = f"{len(found.never_written)} tensors were never written, first {found.never_written[0]}"
        return f": {first}", "initialise it where it is made: torch.empty gives whatever its memory held"
    if found.not_finite_weights:
        first = f"{len(found.not_finite_weights)} tensors of the weights are not finite, first"
        return f": {first} {found.not_finite_weights[0]}", "look at how this tensor is initialised or loaded"
    finite = "its weights are finite, so a computation is not"
    return (
        f": {finite}",
        "look for a division by zero, a root or a logarithm of what may be negative, a row masked whole",
    )
