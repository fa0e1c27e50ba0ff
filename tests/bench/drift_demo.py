"""The one-step demo from nothing to figures: python -m tests.bench.drift_demo FOLDER [--steps N] [-s key=value …]

Draws 720 images in 12 class folders, embeds and shards them, trains the preset drift-demo, and says by class which
share of drawn images the pixel checker recognises, in one evaluation each, for several guidance scales. Run again, it
goes on with the training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dittool.ckpt.files import list_checkpoints
from dittool.config.load import load_config
from dittool.console import Console
from dittool.demo.class_run import contact_sheet, judge, prepare
from dittool.sampling.one_step import OneStepPipeline
from dittool.train.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-s", dest="overrides", action="append", default=[])
    parser.add_argument("--images", type=int, default=48, help="drawn for each class and scale")
    arguments = parser.parse_args()
    console, config = Console(), load_config("drift-demo", arguments.overrides)
    shards = prepare(arguments.folder, config, console)
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
        mean = {
            key: sum(getattr(one, key) for one in found.values()) / len(found) for key in ("colour", "shape", "both")
        }
        print(f"| **all** | {mean['colour']:.1%} | {mean['shape']:.1%} | {mean['both']:.1%} | |")
        contact_sheet(pipeline, arguments.folder / f"sheet_alpha{alpha:g}.png", 8, alpha)
    (arguments.folder / "recognised.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
