"""`dit audit TARGET…` proves that a preset, a checkpoint, a run or data keep the rules that make training worth it.

`dit audit model.py:Model --kwargs '{"depth": 4}'` looks at somebody else's model. `dit audit --explain E1` prints a
rule's page, `--explain all` every page (that is docs/rules.md). Exit code 1 when a rule fails.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from dittool import completion
from dittool.commands.options import (
    NONE_GIVEN,
    ExampleOption,
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


class Format(str, Enum):
    table = "table"
    json = "json"
    markdown = "markdown"
    sarif = "sarif"
    junit = "junit"


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
    time_limit: TimeLimitOption = 900.0,
    memory_limit: MemoryLimitOption = None,
    profile: ProfileOption = None,
    trained: TrainedOption = False,
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
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check a checkpoint, preset, run, data folder or model."""
    from dittool.audit.isolation.watched import Limits
    from dittool.audit.registry import load_rules
    from dittool.audit.runner import audit
    from dittool.errors import ANSWER_IS_NO, BUG, DONE, UsageError
    from dittool.families.family import specimen_of

    form, rules = Format.json if json else format, load_rules()
    console = console_for(form is Format.json, quiet, verbose)
    for line in rules.refused:
        console.warn(line)
    if explain is not None:
        require_effect(context, "with --explain", "explain")
        _explain(console, rules, explain)
        return
    if not targets:
        raise UsageError("nothing to audit is named", "for example: dit audit demo, or dit audit data/shards")
    if spec is not None:
        printed = [] if form in (Format.sarif, Format.junit) else ["format"]
        require_effect(context, "with --spec", "spec", "targets", *printed)
        _show_parity(console, form, targets, spec)
        return
    limits = Limits(time_limit, *([] if memory_limit is None else [int(memory_limit * 1e9)]))
    severity: Severity | None = None if profile is None else profile.value
    asked = (targets, specimen_of, preset, _codes(select), _codes(ignore), rules, console, kwargs, example, overrides)
    audits = audit(*asked, limits, severity, trained)
    _show(console, form, audits)
    codes = {result.exit_code for result in audits}
    raise typer.Exit(ANSWER_IS_NO if ANSWER_IS_NO in codes else BUG if BUG in codes else DONE)


def _codes(options: list[str] | None) -> list[str]:
    """`["e1,K"]` → `["E1", "K"]`."""
    return [code.strip().upper() for option in options or () for code in option.split(",") if code.strip()]


def _explain(console: Console, rules: RuleSet, code: str) -> None:
    from dittool.audit.report import rule_page, rules_page

    page = rules_page() if code == "all" else rule_page(rules.get(code))
    console.json({"code": code, "page": page})
    console.result(page.rstrip("\n"))


def _show(console: Console, form: Format, audits: list[Audit]) -> None:
    from dittool.audit import report
    from dittool.audit.formats import as_text

    if form is Format.json:
        each = [report.as_json(result) for result in audits]
        console.json(each[0] if len(each) == 1 else {"audits": each, "ok": all(result.ok for result in audits)})
    elif form is Format.table:
        for result in audits:
            console.result(f"{result.target}: {report.verdict(result)}")
            console.table(report.COLUMNS, report.table_rows(result))
            console.result(report.summary_line(result))
    else:
        console.result(as_text(audits, form.value))


def _show_parity(console: Console, form: Format, targets: list[str], name: str) -> None:
    from dittool.audit import spec
    from dittool.audit.targets import open_subject
    from dittool.errors import ANSWER_IS_NO
    from dittool.families.family import specimen_of

    found = [spec.parity(open_subject(target, specimen_of), name) for target in targets]
    each, ok = [spec.as_json(result) for result in found], all(result.ok for result in found)
    console.json(each[0] if len(each) == 1 else {"parities": each, "ok": ok})
    for result in found:
        if form is Format.markdown:
            console.result(spec.as_markdown(result).rstrip("\n"))
        else:
            console.table(spec.COLUMNS, spec.table_rows(result), title=result.title)
            console.result(spec.summary_line(result))
    if not ok:
        raise typer.Exit(ANSWER_IS_NO)
