"""Can the demo's model learn 32 real images by heart? Run: python -m tests.bench.overfit_clipart FOLDER [--steps 6000]
[--out runs/overfit]

FOLDER holds images with .txt captions. The first 32 are embedded by the built-in encoders at 128² and trained on;
nothing is held out. Then each is drawn again from its own caption and reference, unguided (v = v_full) and with the
preset's guidance, and compared with the original.

Within 15% of the codec floor means: the mean SSIM of what the model draws, unguided, is at least 0.85 of the mean SSIM
of the codec's own round trip. LPIPS (with --lpips FILE) and PSNR are printed beside it. Figures go to OUT/overfit.md
and overfit.json, the pictures to OUT/judged. Run again with the same OUT, it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dittool.ckpt.files import list_checkpoints
from dittool.config.load import load_config
from dittool.console import Console
from dittool.console import duration_text as duration
from dittool.train.loop import train
from tests.bench.reconstructed import judge, lpips_at_hand, shards_of, table

NEEDED = 0.85  # of the floor's SSIM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--lpips", type=Path)
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of the demo preset")
    options = parser.parse_args()
    config = load_config(
        "demo",
        [
            f"train.steps={options.steps}",
            f"train.warmup_steps={min(100, options.steps // 10)}",
            "train.batch_size=16",
            "train.eval_every=0",
            "train.sample_every=0",
            "data.holdout=0.0",
            "dropout.none=0.05",
            "dropout.text_only=0.05",
            "dropout.reference_only=0.05",
            "dropout.both=0.85",
            f"checkpoint.every={max(options.steps // 10, 1)}",
            *options.set,
        ],
    )
    talk = Console()
    shards = shards_of(options.source, options.out, options.count, config, talk)
    checkpoints, seconds = list_checkpoints(options.out / "run" / "checkpoints"), 0.0
    if checkpoints and checkpoints[-1].step == options.steps and checkpoints[-1].final:
        checkpoint = checkpoints[-1].path
    else:
        done = train(
            config,
            shards.folder,
            options.out / "run",
            resume=bool(checkpoints),
            named_changes=["train.steps"],
            talk=talk,
        )
        checkpoint, seconds = done.checkpoint, done.seconds
    perceptual = lpips_at_hand(options.lpips, 128, talk)
    rows = judge(checkpoint, shards, perceptual, options.out / "judged", options.count, options.sampling_steps, talk)
    unguided = next(row for row in rows if row.sampling == "unguided" and row.metric == "ssim")
    share = unguided.value / unguided.floor
    verdict = (
        f"SSIM {unguided.value:.3f} is {share:.1%} of the codec floor's {unguided.floor:.3f}; {NEEDED:.0%} is asked for"
    )
    head = f"{len(shards.samples)} images, {options.steps} steps of 16, {duration(seconds)} of training in this call"
    (options.out / "overfit.md").write_text(f"{head}\n\n{table(rows)}\n\n{verdict}\n")
    (options.out / "overfit.json").write_text(
        json.dumps({"share_of_floor": share, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    print((options.out / "overfit.md").read_text())


if __name__ == "__main__":
    main()
