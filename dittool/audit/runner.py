"""Runs the rules on subjects. A rule that breaks is named and harms nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from dittool.audit.data_view import open_shards
from dittool.audit.isolation.messages import Request
from dittool.audit.isolation.outside import judge_elsewhere
from dittool.audit.isolation.watched import Limits
from dittool.audit.registry import RuleSet, load_rules
from dittool.audit.report import Audit, Crash, Judged, as_json, as_markdown
from dittool.audit.rule import (
    FAIL,
    PASS,
    SKIP,
    WARN,
    WARNING,
    BrokenRule,
    Finding,
    Profile,
    Rule,
    failed,
    or_skipped,
    skipped,
    warned,
)
from dittool.audit.specimens.foreign.blame import strangers_fault
from dittool.audit.specimens.watching import uncompiled
from dittool.audit.subject import SHARDS, Data, Foreign, Subject, usual_profile, why_unfit
from dittool.audit.targets import SpecimenOf, names_a_factory, open_subject, preset_subject
from dittool.ckpt.files import list_checkpoints
from dittool.config.architectures import AnyConfig, reads_patches
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, DitError, described
from dittool.plugins import REMEDY
from dittool.storage import output_folder, write_atomic, write_json

JSON_NAME, REVIEW_NAME = "audit.json", "audit.md"

# Before a training: rules that need no more than a sample of the data, and say in seconds that it is wrong
_OF_DATA, _OF_PATCHES = frozenset({"D1", "D2", "D3", "D10"}), frozenset({"D2", "D3"})
_MOST_BEFORE_TRAINING = 200  # samples


def audit(
    targets: Sequence[str],
    specimen_of: SpecimenOf,
    preset: str | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    rules: RuleSet | None = None,
    talk: Talk = SILENT,
    kwargs: str | None = None,
    example: str | None = None,
    overrides: Sequence[str] = (),
    limits: Limits | None = None,
    profile: Profile | None = None,
    trained: bool = False,
) -> list[Audit]:
    """Audits targets, after all of them were opened; a model factory is opened and judged in a process of its own.

    Args:
        targets: each a preset's name, a `.toml`, a checkpoint, a run's folder, a shards or a derived folder, or a model
        factory as `file.py:Name`.
        specimen_of: the specimen of a configuration: `families.family.specimen_of`.
        preset: what a checkpoint or data should fit.
        select, ignore: prefixes of codes.
        kwargs, example: of a model factory, as `open_subject` takes them.
        overrides: of the preset.
        limits: of the process in which a factory's model is judged.
        profile: how severe the rules are; by default `usual_profile` of each subject.
        trained: whether a factory's model has weights of a training, where that is not to be seen.

    Raises `UsageError` for an unknown target or code, `UnsafeFileError` for a file that is refused, `BadDataError` for
    one that is none.
    """
    rules = rules or load_rules()
    chosen = rules.selected(select, ignore)
    strangers = [target for target in targets if names_a_factory(target) and (preset is not None or not overrides)]
    opened = {
        target: open_subject(target, specimen_of, preset, kwargs, example, talk, overrides, trained)
        for target in targets
        if target not in strangers
    }
    asked = Request("", [], bool(select), kwargs, example, profile, trained)
    return [
        judge_elsewhere(replace(asked, target=target), chosen, limits or Limits(), talk)
        if target in strangers
        else audit_subject(opened[target], chosen, named=bool(select), talk=talk, profile=profile)
        for target in targets
    ]


def audit_before_training(
    config: AnyConfig, specimen_of: SpecimenOf, name: str, data: Path, run: Path, talk: Talk
) -> Audit | None:
    """Audits a configuration that is about to be trained and a sample of the data that it is trained on; leaves
    audit.json and audit.md in the run's folder. None, and nothing is done, for a folder that already holds checkpoints.

    Raises `BadDataError` and `UnsafeFileError` for data that cannot be read.
    """
    if list_checkpoints(run / "checkpoints"):
        return None
    rules = load_rules()
    for line in rules.refused:
        talk.warn(line)
    plan = preset_subject(name, specimen_of, config)
    result = audit_subject(plan, rules.rules, talk=talk)
    if "preset" in plan.parts:  # one-step generators train on latents alone
        codes = _OF_DATA if reads_patches(config) else _OF_DATA - _OF_PATCHES
        sample = Data(str(data), open_shards(data).sampled(_MOST_BEFORE_TRAINING, "before training"), SHARDS)
        chosen = [rule for rule in rules.rules if rule.code in codes]
        found = audit_subject(sample, chosen, talk=talk, damage_ends=True)
        result = replace(result, findings=result.findings + found.findings, crashes=result.crashes + found.crashes)
    write_json(output_folder(run) / JSON_NAME, as_json(result))
    write_atomic(run / REVIEW_NAME, as_markdown(result).encode())
    return result


def audit_subject(
    subject: Subject,
    rules: Sequence[Rule],
    named: bool = False,
    talk: Talk = SILENT,
    damage_ends: bool = False,
    profile: Profile | None = None,
) -> Audit:
    """Runs those rules whose scope the subject has; the others are listed as skipped when they were asked for by
    name. With `damage_ends` a file that cannot be read is an error, else a finding. A finding that ends the audit
    stands alone.
    """
    profile = profile or usual_profile(subject)
    fitting = [rule for rule in rules if not subject.parts.isdisjoint(rule.scopes)]
    findings: list[Judged] = []
    crashes: list[Crash] = []
    with talk.progress(f"audit {subject.target}", len(fitting), "rule") as task:
        for rule in rules:
            if rule not in fitting:
                reason, said_unasked = why_unfit(subject, rule.scopes)
                if named or said_unasked:
                    findings += [Judged(rule, finding) for finding in skipped(reason)]
                continue
            try:
                found = [finding.under(profile) for finding in _run(rule, subject, damage_ends)]
                if any(finding.ends for finding in found):
                    return Audit(subject.target, subject.kind, [Judged(rule, each) for each in found], [], profile)
                findings += [Judged(rule, finding) for finding in found]
            except (Exception, SystemExit) as error:
                if damage_ends and isinstance(error, DitError):
                    raise
                if isinstance(error, OSError) and not rule.package:
                    raise  # the disk's fault, not the rule's
                crashes.append(Crash(rule, described(error), counts=named or not rule.package))
                owner = f" of {rule.package}" if rule.package else ""
                talk.warn(f"rule {rule.title}{owner} broke: {described(error)}" + (f"; {REMEDY}" if owner else ""))
            task.advance()
    return Audit(subject.target, subject.kind, findings, crashes, profile)


def _run(rule: Rule, subject: Subject, damage_ends: bool) -> list[Finding]:
    try:
        talking = redirect_stdout(sys.stderr) if rule.package else nullcontext()  # the result is ours to print
        with talking, uncompiled() if isinstance(subject, Foreign) else nullcontext():
            findings = list(or_skipped(lambda: rule.check(subject)) or ())
    except BadDataError as error:  # a sample or a tensor that cannot be read
        if damage_ends:
            raise
        return (warned if rule.severity == WARNING else failed)(error.message, error.hint)
    except (Exception, SystemExit) as error:
        fault = strangers_fault(error) if isinstance(subject, Foreign) else ""
        if not fault:
            raise
        return skipped(f"the model's own code {fault}, so what this rule asks could not be tried")
    if not findings:
        raise BrokenRule(f"{rule.code} found nothing, not even that all is well")
    for finding in findings:
        if not (isinstance(finding.evidence, str) and isinstance(finding.fix, str)):
            raise BrokenRule(f"{rule.code} gave evidence or a fix that is no text")
        if finding.status not in (PASS, WARN, FAIL, SKIP) or (finding.status == FAIL and rule.severity == WARNING):
            raise BrokenRule(f"{rule.code}, of severity {rule.severity}, gave the status '{finding.status}'")
    return findings
