"""`dit sample --prompt "a red circle"` draws images from a prompt, a reference image, or both.

`dit sample --class red-circle --alpha 1.5` draws from a one-step generator: a class and a guidance scale.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dittool.commands.options import (
    NONE_GIVEN,
    DeviceOption,
    ForceOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    console_for,
)
from dittool.commands.options_of_sample import (
    AlphaOption,
    CfgDinoOption,
    CfgTextOption,
    CfgWeakOption,
    CheckpointOption,
    ClassOption,
    CountOption,
    FromOption,
    GridOption,
    GuidanceOption,
    InitOption,
    IntervalOption,
    MomentumOption,
    NegativeOption,
    NormOption,
    OutOption,
    ParallelOption,
    PartOption,
    PromptOption,
    PromptsOption,
    RefOption,
    SeedOption,
    SizeOption,
    SolverOption,
    StepsOption,
    StrengthOption,
    WeakOption,
    WeakRoutedOption,
)
from dittool.config.schema import Sample
from dittool.console import Console

if TYPE_CHECKING:
    from dittool.sampling.request import SampleOptions


def main(
    prompt: PromptOption = None,
    negative: NegativeOption = None,
    ref: RefOption = None,
    prompts: PromptsOption = None,
    again: FromOption = None,
    checkpoint: CheckpointOption = None,
    size: SizeOption = None,
    count: CountOption = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    cfg_text: CfgTextOption = None,
    cfg_dino: CfgDinoOption = None,
    guidance: GuidanceOption = None,
    guidance_interval: IntervalOption = None,
    guidance_parallel: ParallelOption = None,
    guidance_norm: NormOption = None,
    guidance_momentum: MomentumOption = None,
    weak: WeakOption = None,
    cfg_weak: CfgWeakOption = None,
    weak_routed: WeakRoutedOption = None,
    grid: GridOption = None,
    init: InitOption = None,
    strength: StrengthOption = None,
    classes: ClassOption = NONE_GIVEN,
    alpha: AlphaOption = None,
    out: OutOption = Path("samples"),
    part: PartOption = None,
    force: ForceOption = False,
    device: DeviceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw images with a trained model (its EMA weights). Each picture carries the settings that made it."""
    options_given = locals()  # each field of `[sample]` is a parameter of its name
    settings = {name: options_given[name] for name in Sample.model_fields if options_given[name] is not None}
    from dittool.errors import UsageError
    from dittool.sampling.draw import draw_all
    from dittool.sampling.one_step import asks_for_one_step, draw_classes, one_step_request
    from dittool.sampling.request import SampleOptions, plan

    console = console_for(json, quiet, verbose)
    if prompts is None and again is not None and again.suffix.lower() in (".txt", ".jsonl"):
        prompts, again = again, None
    options = SampleOptions(
        prompt=prompt,
        prompts=prompts,
        ref=ref,
        again=again,
        checkpoint=checkpoint,
        size=size,
        count=count,
        seed=seed,
        settings=settings,
        grid=grid,
        init=init,
        strength=strength,
        negative=negative,
        weak=weak,
    )
    if out.suffix.lower() == ".npz":
        _draw_set(options, classes, alpha, out, part, force, console)
        return
    if part is not None:
        raise UsageError("--part: no effect without --out F.npz", "leave it out")
    if asks_for_one_step(options, classes, alpha):
        drawn = draw_classes(one_step_request(options, tuple(classes), alpha, console), out, console, force)
    else:
        drawn = draw_all(plan(options, console), out, console, force)
    console.json({"images": [image.to_json() for image in drawn]})
    for image in drawn:
        console.result(str(image.path))


def _draw_set(
    options: SampleOptions,
    classes: list[str],
    alpha: float | None,
    out: Path,
    part: str | None,
    force: bool,
    console: Console,
) -> None:
    from dittool.data.features.parts import Part, use_own_gpu
    from dittool.sampling.one_step import asks_for_one_step, one_step_request
    from dittool.sampling.sample_set import draw_set
    from dittool.sampling.sets_of_prompts import set_of_classes, set_of_prompts

    use_own_gpu(os.environ)
    share = Part.parse(part) if part else Part.from_environment(os.environ)
    if asks_for_one_step(options, classes, alpha):
        asked = set_of_classes(one_step_request(options, tuple(classes), alpha, console))
    else:
        asked = set_of_prompts(options, console)
    written = draw_set(asked, out, share, console, force)
    console.json({"samples": str(out), "images": asked.count, "complete": written is not None})
    if written is not None:
        console.result(str(written))
