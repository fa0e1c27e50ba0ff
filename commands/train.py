"""`dit train --preset P` trains on data/shards and leaves checkpoints, log and pictures under runs/P."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.address import place_of
from dittool.commands.options import (
    NONE_GIVEN,
    PLACE,
    DeviceOption,
    JsonOption,
    OverridesOption,
    QuietOption,
    VerboseOption,
    console_for,
)
from dittool.console import Console
from dittool.shell import command_line, quoted

if TYPE_CHECKING:
    from dittool.config.architectures import AnyConfig
    from dittool.train.estimate import Plan


def main(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="A preset's name, or a path ending in .toml.",
            show_default="with --resume: the run's own",
            autocompletion=completion.presets,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", parser=place_of, metavar=PLACE, help="Shards.", show_default="data/shards, or those of before"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The run's folder.", show_default="runs/P, or the newest", autocompletion=completion.runs
        ),
    ] = None,
    overrides: OverridesOption = NONE_GIVEN,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint as if never stopped.")
    ] = False,
    continue_: Annotated[
        bool,
        typer.Option(
            "--continue", help="Begin, or go on where there is a checkpoint, or end with 0 where the run is finished."
        ),
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option(
            "--resume-from",
            metavar="CHECKPOINT",
            help="Go on from this checkpoint; newer ones are set aside.",
            autocompletion=completion.runs_and_checkpoints,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --resume: refuse when the newest checkpoint is damaged.")
    ] = False,
    init: Annotated[Path | None, typer.Option(metavar="W", help="Weights to start from: a file or a run.")] = None,
    copies: Annotated[
        Path | None, typer.Option(parser=place_of, metavar="ADDRESS", help="Keep copies of checkpoints in this store.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure what the run would cost, and stop.")] = False,
    device: DeviceOption = None,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Train without auditing configuration and data first.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model. A signal or a closed terminal ends it after its step, saved; --resume goes on from there."""
    from dittool.ckpt.files import list_checkpoints, newest_checkpoint
    from dittool.ckpt.run_data import DEFAULT_DATA, recorded_data
    from dittool.config.load import load_config
    from dittool.demo.checker import SCENE_CHECKER
    from dittool.errors import UsageError
    from dittool.train.beginning import Beginning, require_one_beginning, run_folders
    from dittool.train.copies import bring_back, copies_place
    from dittool.train.estimate import estimate
    from dittool.train.loop import train

    console = console_for(json, quiet, verbose)
    require_one_beginning(preset, resume, continue_, resume_from, init, strict)
    out, own = run_folders(preset, out, resume_from, resume)
    if data is None:
        going_on = ("--resume-from", resume_from) if resume_from else ("--resume",)
        again = command_line("dit", "train", *going_on, "--out", out)
        data = recorded_data(own, again, resume_from) if resume or continue_ or resume_from else DEFAULT_DATA
    named = preset or str(own / "resolved.toml")
    config = load_config(named, overrides)
    if (store := copies_place(copies)) and (resume or continue_) and not dry_run:
        bring_back(out, store, console)
    if continue_ and list_checkpoints(out / "checkpoints"):
        resume, newest = True, newest_checkpoint(out / "checkpoints", strict=strict)
        if newest.step is not None and newest.step >= config.train.steps:
            if os.environ.get("RANK", "0") == "0":
                console.json({"run": str(out), "checkpoint": str(newest.path), "step": newest.step, "finished": True})
                console.result(f"{out}: finished at step {newest.step} of {config.train.steps}")
            return
    audits = not (no_audit or resume or resume_from)
    changes = [override.partition("=")[0].strip() for override in overrides]
    if dry_run:
        if no_audit:
            raise UsageError("--no-audit: no effect with --dry-run, which audits nothing", "leave it out")
        beginning = Beginning(resume, resume_from, strict, set(changes), init)
        begun = beginning.step(out / "checkpoints", config.train.steps, console)
        _show_plan(estimate(beginning.configured(config, console), data, console, begun), out, console)
        return
    done = train(
        config,
        data,
        out,
        resume=resume,
        resume_from=resume_from,
        strict=strict,
        named_changes=changes,
        init=init,
        copies=store,
        audit=partial(_require_audited, config, named, data, out, console) if audits else None,
        checker=SCENE_CHECKER,
        talk=console,
    )
    if done is None:  # only computes, under torchrun
        return
    console.json(done.to_json())
    console.result(f"{done.line}\n{done.checkpoint}")
    following = f"; next: {done.conclusion.next} {quoted(done.folder)}" if done.conclusion.next else ""
    console.note(f"log, plot and pictures in {done.folder}{following}")


def _require_audited(config: AnyConfig, name: str, data: Path, out: Path, console: Console) -> None:
    """Ends with exit code 1 when a rule fails."""
    from dittool.audit.report import COLUMNS, as_json, summary_line, table_rows
    from dittool.audit.runner import audit_before_training
    from dittool.errors import ANSWER_IS_NO
    from dittool.families.family import specimen_of

    if (result := audit_before_training(config, specimen_of, name, data, out, console)) is None:
        return
    if result.ok:
        console.note(summary_line(result))
        return
    console.json(as_json(result))
    console.table(COLUMNS, table_rows(result), title=name)
    console.error(
        f"{name}: the audit failed: {summary_line(result)}",
        "do what stands under the rules that failed, or train without the audit: --no-audit",
    )
    raise typer.Exit(ANSWER_IS_NO)


def _show_plan(plan: Plan, out: Path, console: Console) -> None:
    disk = plan.room_in(out)
    console.json(plan.to_json() | {"out": str(out), "disk": disk.what})
    console.table(*plan.table)
    for line in (*plan.lines, f"disk    {out}: {disk.what}"):
        console.result(line)
    if disk.remedy:
        console.warn(f"{disk.what}; {disk.remedy}")
