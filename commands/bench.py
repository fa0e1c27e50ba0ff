"""`dit bench --preset P` measures this machine on a preset: what training will reach, beside what the machine can
do.
"""

from __future__ import annotations

from dittool.commands.options import (
    NONE_GIVEN,
    JsonOption,
    OverridesOption,
    PresetOption,
    QuietOption,
    VerboseOption,
    console_for,
)


def main(
    preset: PresetOption = "nano",
    overrides: OverridesOption = NONE_GIVEN,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure this machine on a preset.

    Steps are real ones on features of noise in the preset's sizes; no weights and no images are needed. Nothing is left
    behind.
    """
    from dataclasses import asdict

    from dittool.config.load import load_config
    from dittool.storage import bytes_text
    from dittool.train.bench import bench

    console = console_for(json, quiet, verbose)
    done = bench(load_config(preset, overrides), console)
    console.json({"preset": preset, **asdict(done)})

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    rows = [
        (
            one.part,
            cell(one.images_per_second, ".3g"),
            cell(one.tflops, ".3g"),
            cell(one.mfu, ".1%"),
            cell(one.of_step, ".2f"),
        )
        for one in done.figures
    ]
    console.table(("part", "images/s", "TFLOP/s", "of the product", "of the step"), rows)
    console.result(
        f"{preset} on {done.device}: {done.precision}, batches of {done.batch} at {done.bucket}, {done.tokens} latent"
        " tokens"
    )
    console.result(f"{done.parameters:,} parameters, {done.flops_per_image / 1e9:.3g} GFLOP an image forward")
    console.result(f"peak memory {bytes_text(done.peak_memory_bytes)}")
    for one in done.figures:
        if one.remark:
            console.note(f"{one.part}: {one.remark}")
