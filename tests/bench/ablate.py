"""Ablations of the one-step generator on its demo: python -m tests.bench.ablate FOLDER [--matrix FILE.toml] [--seeds
0,1] [--steps 300]

Every row of the matrix changes some keys of the preset drift-demo; each is trained with every seed, then judged by
energy distance to real latents and by the share of drawn images that the pixel checker recognises. FOLDER gets
results.csv, results.md and results.png. A row that stands in results.csv is not run again, and a run that was stopped
goes on where it was, so the script may be killed and started again at will. The task is the shapes of some colours,
`--colours red` by default, so that a row takes minutes; a folder belongs to the colours that it was begun with.

A matrix file: one table a row, `["l2 norm"]` with `overrides = ["model.qk_norm=l2"]`. Without one, the rows below are
run.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev

from dittool.ckpt.files import list_checkpoints
from dittool.config.load import load_config, read_toml
from dittool.console import Console
from dittool.data.shards.read import ShardSet
from dittool.demo.class_run import judge, prepare
from dittool.sampling.one_step import OneStepPipeline
from dittool.train.loop import train

MATRIX: dict[str, list[str]] = {
    "as it is": [],
    "no rotary positions": ["model.rope=none"],
    "rotary in one row": ["model.rope=1d"],
    "q/k norm with gains": ["model.qk_norm=rms_gain"],
    "q/k norm l2": ["model.qk_norm=l2"],
    "no q/k norm": ["model.qk_norm=none"],
    "no registers": ["model.registers=0"],
    "no style": ["model.style_tokens=0"],
    "embeddings N(0, 1)": ["model.embedding_std=1.0"],
    "output from zero": ["model.zero_output=true"],
    "distances not normalised": ["drift.normalise_distances=false"],
    "drift not normalised": ["drift.normalise_drift=false"],
    "τ 0.05 alone": ["drift.temperatures=[0.05]"],
    "raw input alone": ['drift.features=["raw"]', "drift.encoder=seeded", "drift.maps_weight=1.0"],
    "maps of the seeded encoder": ["drift.encoder=seeded"],
    "maps of an encoder without labels": ["feature_encoder.labels=false"],
    "maps weigh as much as raw input": ["drift.maps_weight=1.0"],
    "16 drawn samples a group": ["drift.generated=16"],
    "attraction only": ["drift.repulsion=0.0"],
    "repulsion × 2": ["drift.repulsion=2.0"],
}
FIELDS = ("name", "seed", "steps", "energy", "colour", "shape", "both", "seconds")


def run_one(
    folder: Path, shards: Path, name: str, overrides: list[str], seed: int, steps: int, console: Console
) -> dict[str, object]:
    config = load_config(
        "drift-demo",
        [
            *overrides,
            f"model.classes={len(ShardSet.open(shards).classes)}",
            f"train.seed={seed}",
            f"train.steps={steps}",
            f"train.warmup_steps={min(50, steps // 4)}",
            "train.sample_every=0",
            f"train.eval_every={steps}",
        ],
    )
    run = folder / "runs" / f"{'-'.join(name.split())}_seed{seed}".replace("/", "-")
    done = train(config, shards, run, resume=bool(list_checkpoints(run / "checkpoints")), talk=console)
    found = judge(OneStepPipeline.load(done.checkpoint), 16, 1.0)
    shares = {key: mean(getattr(one, key) for one in found.values()) for key in ("colour", "shape", "both")}
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "energy": done.figures["eval_energy"],
        **shares,
        "seconds": done.seconds,
    }


def read_results(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_report(folder: Path, rows: list[dict[str, str]], order: list[str]) -> None:
    """results.md and results.png: means and deviations over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_name = defaultdict(list)
    for row in rows:
        by_name[row["name"]].append(row)
    names = [name for name in order if name in by_name]
    energies = {name: [float(row["energy"]) for row in by_name[name]] for name in names}
    lines = [
        "| changed | seeds | steps | energy distance | recognised | colour | shape |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        shares = [f"{mean(float(row[key]) for row in by_name[name]):.0%}" for key in ("both", "colour", "shape")]
        spread = f" ± {pstdev(energies[name]):.3f}" if len(energies[name]) > 1 else ""
        lines.append(
            f"| {name} | {len(by_name[name])} | {by_name[name][0]['steps']} | {mean(energies[name]):.3f}{spread} |"
            f" {' | '.join(shares)} |"
        )
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    for place, name in enumerate(reversed(names)):
        axis.plot(energies[name], [place] * len(energies[name]), "o", alpha=0.7)
    axis.set(
        yticks=range(len(names)),
        yticklabels=list(reversed(names)),
        xlabel="energy distance to real latents (one dot a seed)",
        xscale="symlog",
    )
    axis.grid(alpha=0.3)
    figure.savefig(folder / "results.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--colours", default="red")
    arguments = parser.parse_args()
    console, folder = Console(), arguments.folder
    matrix = (
        MATRIX
        if arguments.matrix is None
        else {name: table["overrides"] for name, table in read_toml(arguments.matrix).items()}
    )
    for name, overrides in matrix.items():  # every mistake before the first hour is spent
        load_config("drift-demo", overrides)
        console.note(f"{name}: {' '.join(overrides) or 'the preset'}")
    shards = prepare(folder, load_config("drift-demo"), console, arguments.colours.split(","))
    results = folder / "results.csv"
    for seed in map(int, arguments.seeds.split(",")):
        for name, overrides in matrix.items():
            rows = read_results(results)
            if any((row["name"], row["seed"], row["steps"]) == (name, str(seed), str(arguments.steps)) for row in rows):
                continue
            row = run_one(folder, shards, name, overrides, seed, arguments.steps, console)
            with results.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if not rows:
                    writer.writeheader()
                writer.writerow(row)
            write_report(folder, read_results(results), list(matrix))
            console.result(f"{name}, seed {seed}: energy {row['energy']:.3f}, recognised {row['both']:.0%}")
    write_report(folder, read_results(results), list(matrix))
    console.result((folder / "results.md").read_text())


if __name__ == "__main__":
    main()
