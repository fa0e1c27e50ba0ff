"""`dit inspect-ckpt FILE` says what is in a checkpoint, without running any of it.

`--tree` adds every key with its shape, `--diff OTHER` compares two, `--export F.safetensors` writes the averaged
weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.commands.options import ForceOption, JsonOption, QuietOption, VerboseOption, console_for, require_effect
from dittool.console import Console

if TYPE_CHECKING:
    from dittool.ckpt.difference import CheckpointDiff
    from dittool.ckpt.inspect import Inspection

_SHOWN = 20  # rows of a difference


def main(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A file or a folder of weights, or a run's folder.",
            show_default=False,
            autocompletion=completion.runs_and_checkpoints,
        ),
    ],
    tree: Annotated[bool, typer.Option("--tree", help="Every key, with shapes and counts.")] = False,
    diff: Annotated[
        Path | None,
        typer.Option(
            "--diff",
            metavar="OTHER",
            help="Compare with this file.",
            show_default=False,
            autocompletion=completion.runs_and_checkpoints,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="F.safetensors", help="Write the weights there.", show_default=False),
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Which weights to export: ema or model.")] = "ema",
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is in a checkpoint without running any of it.

    A file that could run code or exhaust the machine is refused with exit code 4, before anything in it is loaded.
    """
    from dittool.ckpt import inspect as ckpt
    from dittool.ckpt.difference import diff as compare
    from dittool.ckpt.folders import checkpoint_at
    from dittool.errors import UsageError
    from dittool.storage import require_replaceable

    console = console_for(json, quiet, verbose)
    if export is None:
        require_effect(context, "without --export", "file", "tree", "diff")
    elif export.suffix.lower() != ".safetensors":
        raise UsageError(
            f"--export {export}: the name must end in .safetensors", "for example: --export weights.safetensors"
        )
    path = checkpoint_at(file, console)
    if export is not None:
        require_replaceable(export, [path], force, ckpt.is_export, "--export")
    found = ckpt.inspect(path)
    answer: dict[str, object] = found.as_dict()
    _show(console, found)
    if tree:
        tree_text = ckpt.tree(found.content)
        answer["tree"] = tree_text
        console.result(f"\n{tree_text}")
    if diff is not None:
        other = checkpoint_at(diff, console)
        change = compare(path, other, console)
        answer["diff"] = _diff_dict(change, other)
        _show_diff(console, change, other)
    if export is not None:
        ckpt.export_safetensors(path, export, weights, console)
        answer["export"] = str(export)
        console.result(f"exported '{weights}' to {export}")
    console.json(answer)


def _show(console: Console, found: Inspection) -> None:
    from dittool.storage import bytes_text

    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in found.dtypes.items())
    rows = [
        ("file", f"{found.path} ({bytes_text(found.bytes)})"),
        ("kind", found.kind + (f", format {found.format_version}" if found.format_version is not None else "")),
        ("parameters", f"{found.parameters:,} ({dtypes})"),
        ("weights", ", ".join(found.weights) or "the file itself"),
        ("taken", found.taken),
        ("beside it", ", ".join(found.beside) or "–"),
        ("other programs' classes", ", ".join(found.foreign[:_SHOWN]) or "–"),
        ("tensors in all", f"{len(found.tensors):,}"),
        ("step", "–" if found.step is None else f"{found.step:,}"),
        ("samples seen", "–" if found.samples_seen is None else f"{found.samples_seen:,}"),
        ("configuration", (found.config or {}).get("description", "–" if found.config is None else "present")),
        ("data identity", found.data_identity or "–"),
        (
            "sidecar",
            f"{'✔ ' if found.sidecar == 'verified' else '' if found.sidecar == 'none' else '✘ '}{found.sidecar}",
        ),
        (
            "finite",
            "✔ every tensor" if not found.non_finite else f"✘ {len(found.non_finite)} tensors hold NaN or infinity",
        ),
    ]
    console.table(("", "value"), rows)
    for name in found.non_finite[:_SHOWN]:
        console.warn(f"{name} holds NaN or infinity")


def _show_diff(console: Console, change: CheckpointDiff, other: Path) -> None:
    from dittool.ckpt.pairing import names_of_pairs

    shape = "×".join
    rows = [("missing there", name, "") for name in change.missing]
    rows += [("only there", name, "") for name in change.unexpected]
    rows += [
        ("shape", name, f"{shape(map(str, old))} → {shape(map(str, new))}")
        for name, (old, new) in change.reshaped.items()
    ]
    rows += [
        ("values", moved.name, f"largest {moved.largest:.3g}, relative {moved.relative:.3g}")
        for moved in change.changed
    ]
    rows += [("configuration", key, f"{old!r} → {new!r}") for key, (old, new) in change.config.items()]
    rows += [("other name", *names) for names in names_of_pairs(change.paired)]
    if rows:
        console.table(("difference", "name", "how"), rows[:_SHOWN], title=f"against {other}")
    if len(rows) > _SHOWN:
        console.result(f"and {len(rows) - _SHOWN} more differences (all of them with --json)")
    if change.paired:
        fused = sum(pair.how == "fused" for pair in change.paired)
        console.result(
            f"the files name their tensors in two ways: {len(change.paired)} were paired by equal values,"
            f" {fused} of them fused layers with their parts"
        )
    rounded = f" ({change.rounded} of them but for their precision)" if change.rounded else ""
    console.result(
        f"{change.equal} tensors equal{rounded}, {len(change.changed)} changed, {len(change.reshaped)} of another"
        f" shape, {len(change.missing)} missing, {len(change.unexpected)} unexpected;"
        f" {len(change.config)} configuration keys differ"
    )


def _diff_dict(change: CheckpointDiff, other: Path) -> dict[str, object]:
    def number(value: float) -> float | str:
        return value if math.isfinite(value) else str(value)  # JSON has no NaN

    return {
        "other": str(other),
        "missing": change.missing,
        "unexpected": change.unexpected,
        "paired": [{"old": pair.old, "new": pair.new, "how": pair.how} for pair in change.paired],
        "reshaped": change.reshaped,
        "changed": [
            {"name": moved.name, "largest": number(moved.largest), "relative": number(moved.relative)}
            for moved in change.changed
        ],
        "equal": change.equal,
        "rounded": change.rounded,
        "config": change.config,
    }
