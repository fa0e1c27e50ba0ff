"""`dit audit TARGET…` proves that a preset, a checkpoint, a run or data keep the rules that make training worth it.

`dit audit model.py:Model --kwargs '{"depth": 4}'` looks at somebody else's model. `dit audit --explain E1` prints a
rule's page, `--explain all` every page (that is docs/rules.md). Exit code 1 when a rule fails.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from dittool import completion
from dittool.commands.options import (
    NONE_GIVEN,
    AuditFormat,
    ExampleOption,
    FailOnOption,
    JsonOption,
    KwargsOption,
    MemoryLimitOption,
    OverridesOption,
    ProfileOption,
    QuietOption,
    TimeLimitOption,
    TrainedOption,
    VerboseOption,
    console_for,
    require_effect,
)
from dittool.console import Console

if TYPE_CHECKING:
    from dittool.audit.registry import RuleSet
    from dittool.audit.report import Audit
    from dittool.audit.rule import Profile as Severity


def _codes_option(name: str, text: str) -> OptionInfo:
    return typer.Option(name, metavar="CODES", help=text, show_default=False, autocompletion=completion.rule_codes)


def main(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET...",
            help="A preset, checkpoint, run, data folder, or a model as file.py:Name.",
            show_default=False,
            autocompletion=completion.audit_targets,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="What a checkpoint or data should fit.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ] = None,
    select: Annotated[list[str] | None, _codes_option("--select", "Only rules of these codes: E1 or E,K.")] = None,
    ignore: Annotated[list[str] | None, _codes_option("--ignore", "Not the rules of these codes.")] = None,
    kwargs: KwargsOption = None,
    example: ExampleOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    profile: ProfileOption = None,
    trained: TrainedOption = False,
    fail_on: FailOnOption = None,
    spec: Annotated[
        str | None,
        typer.Option("--spec", metavar="S", help="Hold it against a published model: drifting.", show_default=False),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="CODE",
            help="Print a rule's page, or all.",
            show_default=False,
            autocompletion=completion.rule_pages,
        ),
    ] = None,
    overrides: OverridesOption = NONE_GIVEN,
    format: Annotated[AuditFormat, typer.Option("--format", help="How to print.")] = AuditFormat.table,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check a checkpoint, preset, run, data folder or model."""
    from dittool.audit.isolation.watched import limits_of
    from dittool.audit.project import codes_of, read_project
    from dittool.audit.registry import load_rules
    from dittool.audit.report import require_fail_on
    from dittool.audit.runner import audit
    from dittool.errors import ANSWER_IS_NO, BUG, DONE, UsageError
    from dittool.families.family import specimen_of

    form, rules = AuditFormat.json if json else format, load_rules()
    console = console_for(form is AuditFormat.json, quiet, verbose)
    for line in rules.refused:
        console.warn(line)
    if explain is not None:
        require_effect(context, "with --explain", "explain")
        _explain(console, rules, explain)
        return
    own = read_project(Path.cwd())
    if own.file:
        console.note(f"settings of {own.file}, where no option says otherwise")
    if not targets or set(targets) <= set(own.targets):  # what the project says of its own
        targets, kwargs, example = targets or own.targets, kwargs or own.kwargs, example or own.example
        trained = trained or own.trained
    if not targets:
        raise UsageError("nothing to audit is named", "for example: dit audit demo, or dit audit data/shards")
    if spec is not None:
        printed = [] if form in (AuditFormat.sarif, AuditFormat.junit) else ["format"]
        require_effect(context, "with --spec", "spec", "targets", *printed)
        _show_parity(console, form, targets, spec)
        return
    limits = limits_of(time_limit or own.time_limit, memory_limit or own.memory_limit)
    severity: Severity | None = own.profile if profile is None else profile.value
    hangs_on = require_fail_on(codes_of(fail_on or own.fail_on), rules)
    chosen = codes_of(select or own.select), codes_of(ignore or own.ignore)
    asked = (targets, specimen_of, preset, *chosen, rules, console, kwargs, example, overrides)
    audits = [replace(result, fail_on=hangs_on) for result in audit(*asked, limits, severity, trained)]
    _show(console, form, audits)
    codes = {result.exit_code for result in audits}
    raise typer.Exit(ANSWER_IS_NO if ANSWER_IS_NO in codes else BUG if BUG in codes else DONE)


def _explain(console: Console, rules: RuleSet, code: str) -> None:
    from dittool.audit.report import rule_page, rules_page

    page = rules_page() if code == "all" else rule_page(rules.get(code))
    console.json({"code": code, "page": page})
    console.result(page.rstrip("\n"))


def _show(console: Console, form: AuditFormat, audits: list[Audit]) -> None:
    from dittool.audit import report
    from dittool.audit.formats import as_text

    if form is AuditFormat.json:
        each = [report.as_json(result) for result in audits]
        console.json(each[0] if len(each) == 1 else {"audits": each, "ok": all(result.ok for result in audits)})
    elif form is AuditFormat.table:
        for result in audits:
            console.result(f"{result.target}: {report.verdict(result)}")
            console.table(report.COLUMNS, report.table_rows(result))
            console.result(report.summary_line(result))
    else:
        console.result(as_text(audits, form.value))


def _show_parity(console: Console, form: AuditFormat, targets: list[str], name: str) -> None:
    from dittool.audit import spec
    from dittool.audit.targets import open_subject
    from dittool.errors import ANSWER_IS_NO
    from dittool.families.family import specimen_of

    found = [spec.parity(open_subject(target, specimen_of), name) for target in targets]
    each, ok = [spec.as_json(result) for result in found], all(result.ok for result in found)
    console.json(each[0] if len(each) == 1 else {"parities": each, "ok": ok})
    for result in found:
        if form is AuditFormat.markdown:
            console.result(spec.as_markdown(result).rstrip("\n"))
        else:
            console.table(spec.COLUMNS, spec.table_rows(result), title=result.title)
            console.result(spec.summary_line(result))
    if not ok:
        raise typer.Exit(ANSWER_IS_NO)
