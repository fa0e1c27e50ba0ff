"""The one-step demo from nothing to figures: python -m tests.bench.drift_demo FOLDER [-s key=value …]

Draws 720 images in 12 class folders, embeds and shards them, trains the preset drift-demo, and says by class which
share of drawn images the pixel checker recognises, in one evaluation each, for several guidance scales. Run again, it
goes on with the training.

For `dit ablate` on these data (drift_classes.toml): --only-data leaves the training out, --colours red makes three
classes of one colour, and --judge FOLDER/ablate/runs says the shares of each run of a plan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from dittool.ckpt.files import list_checkpoints
from dittool.config.load import load_config
from dittool.console import Console
from dittool.demo.class_run import contact_sheet, judge, prepare
from dittool.demo.drawing import COLOURS
from dittool.sampling.one_step import OneStepPipeline
from dittool.train.loop import train


def judge_runs(runs: Path, images: int) -> None:
    """Prints the shares of each run, over all classes, at the guidance scale 1."""
    print("| run | colour | shape | both |\n| --- | --- | --- | --- |")
    for checkpoint in sorted(runs.rglob("checkpoint_final.pt")):
        found = judge(OneStepPipeline.load(checkpoint), images, 1.0).values()
        shares = [mean(getattr(one, key) for one in found) for key in ("colour", "shape", "both")]
        name = checkpoint.parents[1].relative_to(runs)
        print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-s", dest="overrides", action="append", default=[])
    parser.add_argument("--images", type=int, default=48, help="drawn for each class and scale")
    parser.add_argument("--colours", default=",".join(COLOURS))
    parser.add_argument("--only-data", action="store_true")
    parser.add_argument("--judge", type=Path, help="runs of a plan")
    arguments = parser.parse_args()
    console, config = Console(), load_config("drift-demo", arguments.overrides)
    shards = prepare(arguments.folder, config, console, arguments.colours.split(","))
    if arguments.judge:
        judge_runs(arguments.judge, arguments.images)
    if arguments.judge or arguments.only_data:
        return
    run = arguments.folder / "run"
    existing = list_checkpoints(run / "checkpoints")
    if not any(checkpoint.final for checkpoint in existing):
        print(train(config, shards, run, resume=bool(existing), talk=console).line)
    pipeline = OneStepPipeline.load(run / "checkpoints/checkpoint_final.pt")
    report = {}
    for alpha in sorted({1.0, config.sample.alpha, config.drift.alpha_max}):
        found = judge(pipeline, arguments.images, alpha)
        report[str(alpha)] = {name: vars(one) for name, one in found.items()}
        print(
            f"\nguidance scale {alpha:g}\n| class | colour | shape | both | backgrounds |\n| --- | --- | --- | --- |"
            " --- |"
        )
        for name, one in found.items():
            print(f"| {name} | {one.colour:.0%} | {one.shape:.0%} | {one.both:.0%} | {one.kinds} |")
        means = {
            key: sum(getattr(one, key) for one in found.values()) / len(found) for key in ("colour", "shape", "both")
        }
        print(f"| **all** | {means['colour']:.1%} | {means['shape']:.1%} | {means['both']:.1%} | |")
        contact_sheet(pipeline, arguments.folder / f"sheet_alpha{alpha:g}.png", 8, alpha)
    (arguments.folder / "recognised.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
