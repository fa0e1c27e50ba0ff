"""Every key acts: changing it changes something that can be seen.

## What it checks
Each key of a preset or of a checkpoint's configuration is set to other values that are valid. What is built and drawn
from it must change: the network's shapes, its answer, the bytes that it keeps for backward; timesteps, dropout modes,
learning rates, decays; buckets, stored patches, normalisation; latents drawn with its sampling. Keys that act only
while a run trains, embeds or validates are named as not judged; those of training are each shown to act by short runs
in tests/train/test_live_keys.py.

Of a foreign model's factory each keyword argument, as given or by default, its own or handed on as `**kwargs` to what
it makes, is set to other values of its type: a list with one element changed, a text to the literals that the file
compares it with, None to what its annotation says. The model is built again, a very large one with fewer blocks, and
compared: names and shapes of its tensors, its first weights, its answer, its answer in training, the bytes that it
keeps for backward, its gradients. An argument that changes none of them, at any value that the factory takes, is tried
beside the others, at another size, and further up and down; if it acts nowhere it fails. What may act where an audit
does not run, in training mode that raises or in a pipeline that reads the model's own config, is named as not seen to
act; so is what the file reads beside the device alone, and what a method reads that no pass calls, as an optimizer's
rate. A number that the model stores under its own name, as EDM's `sigma_min` for its sampler, warns. A switch whose
other value raises an error that is no refusal warns. An argument without another value to try, or whose other values
are refused or may not be legal, is named as not judged.

## Why it matters
A flag that is parsed and never read makes runs that differ in name only. Gradient checkpointing, dropout and
normalisation of queries and keys have all been such flags in published repositories.

## Example
`def DiT(depth, qk_norm=False)` whose attention never looks at `qk_norm` fails: "qk_norm: False → True changes none of 7
things".

## Fix
Let the argument act, or remove it.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, judged, skipped, warned
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "C1", "live-keys", "error", ("model",), "0.1"

_FIX = "let it act, or remove it"
_MEND = "mend what its other value reaches, or refuse it with an error that says what it needs"
_REMOVE = "remove it where nothing reads it, or say at its line who does"
_MOST_NAMED = 24  # settings that act; a configuration has more


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    options = subject.specimen.options()
    effects, note = options.effects, options.note
    dead = [f"{name}: {effect.evidence}{note}" for name, effect in effects.items() if effect.kind == "dead"]
    acting = [f"{name} ({effect.evidence})" for name, effect in effects.items() if effect.kind == "acts"]
    named = f": {', '.join(acting)}" if len(acting) <= _MOST_NAMED else ""
    act = f"{len(acting)} of {len(effects)} {options.kind} change what is built or drawn{named}{note}"
    findings = judged(dead, _FIX, act) if dead or acting else []
    broken = [f"{name}: {effect.evidence}{note}" for name, effect in effects.items() if effect.kind == "broken"]
    findings += [finding for fault in broken for finding in warned(fault, _MEND)]
    kept = [f"{name}: {effect.evidence}{note}" for name, effect in effects.items() if effect.kind == "kept"]
    findings += [finding for fault in kept for finding in warned(fault, _REMOVE)]
    reasons: dict[str, list[str]] = {}
    for name, effect in effects.items():
        if effect.kind == "unseen":
            reasons.setdefault(effect.evidence, []).append(name)
    if reasons:
        findings += skipped("; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items()))
    return findings
