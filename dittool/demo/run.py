"""From nothing to a verdict: the library calls of the real commands, in order, on a drawn data set.

draw → embed → shard → audit → train → audit → validate → sample
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dittool.audit.report import Audit
from dittool.audit.rule import FAIL
from dittool.audit.runner import audit
from dittool.ckpt.files import list_checkpoints
from dittool.config.architectures import ImageConfig, image_config
from dittool.config.load import load_config
from dittool.console import SILENT, Talk
from dittool.data.features.embed import embed
from dittool.data.shards.write import shard
from dittool.demo.checker import SCENE_CHECKER
from dittool.demo.drawing import draw_dataset
from dittool.errors import BadDataError, Interrupted
from dittool.families.family import specimen_of
from dittool.sampling.draw import draw
from dittool.sampling.repeat import DrawnImage
from dittool.sampling.request import DrawRequest
from dittool.shell import quoted
from dittool.train.loop import train
from dittool.validate.run import ValidateOptions, Validation, validate

IMAGES, SEED = 400, 0
PROMPTS = ("a blue circle at the top, a white background", "a yellow square on the right, a black background")
STAGES = ("draw", "embed", "shard", "audit", "train", "audit", "validate", "sample")


@dataclass
class Demo:
    """What the demo made."""

    folder: Path
    audits: list[Audit] = field(default_factory=list)
    validation: Validation | None = None
    images: list[DrawnImage] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each stage


def run_demo(out: Path, preset: str = "demo", talk: Talk = SILENT) -> Demo:
    """Runs everything under `out`. Called again, it makes what is missing and judges again.

    Raises what the stages raise, and `BadDataError` when the audit finds a broken rule.
    """
    config, demo = image_config(load_config(preset), f"--preset {preset}", "dit demo draws images"), Demo(out)
    images, derived, shards = out / "data" / "images", out / "data" / "derived", out / "data" / "shards"
    with _stage(demo, talk, f"{IMAGES} captioned images"):
        draw_dataset(images, IMAGES, SEED, talk)
    with _stage(demo, talk, "features from built-in encoders"):
        embed(images, derived, config, talk=talk)
    with _stage(demo, talk, "features into shards, some held out"):
        shard(derived, shards, talk=talk)
    with _stage(demo, talk, "the preset's model and the shards"):
        _audit(demo, preset, None, talk)
        _audit(demo, str(shards), preset, talk)
    with _stage(demo, talk, f"{config.train.steps} steps"):
        checkpoint = _train(config, shards, out, talk)
    with _stage(demo, talk, "the checkpoint"):
        _audit(demo, str(checkpoint), preset, talk)
    with _stage(demo, talk, "three tests of the EMA weights on the hold-out"):
        demo.validation = validate(checkpoint, shards, options=ValidateOptions(checker=SCENE_CHECKER), talk=talk)
    with _stage(demo, talk, "from a prompt, and from a reference"):
        reference = min(images.glob("*.png"))
        for number, (prompt, ref) in enumerate([*((prompt, None) for prompt in PROMPTS), (None, reference)]):
            request = DrawRequest(checkpoint, prompt, ref, count=1, seed=number, size=None, changes={})
            demo.images += draw(request, out / "samples" / f"demo_{number}.png", talk)
    return demo


def drawn_shards(root: Path, config: ImageConfig, count: int, talk: Talk = SILENT) -> Path:
    """Shards of `count` drawn images under `root`; what is there already stays."""
    images, derived, shards = root / "images", root / "derived", root / "shards"
    draw_dataset(images, count, SEED, talk)
    embed(images, derived, config, talk=talk)
    shard(derived, shards, talk=talk)
    return shards


@contextmanager
def _stage(demo: Demo, talk: Talk, what: str) -> Iterator[None]:
    number, start = len(demo.seconds), time.monotonic()
    talk.note(f"[{number + 1}/{len(STAGES)}] {STAGES[number]}: {what}")
    yield
    demo.seconds.append(time.monotonic() - start)


def _audit(demo: Demo, target: str, fits: str | None, talk: Talk) -> None:
    (found,) = audit([target], specimen_of, fits, talk=talk)
    demo.audits.append(found)
    broken = [judged for judged in found.findings if judged.finding.status == FAIL]
    if broken:
        lines = "; ".join(f"{judged.rule.code} {judged.finding.evidence}" for judged in broken)
        raise BadDataError(
            f"{target}: the audit failed: {lines}",
            f"see the whole of it with: dit audit {quoted(Path(target))}",
        )


def _train(config: ImageConfig, shards: Path, out: Path, talk: Talk) -> Path:
    existing = list_checkpoints(out / "checkpoints")
    finals = [checkpoint.path for checkpoint in existing if checkpoint.final and checkpoint.verify() is None]
    if finals:
        talk.note(f"trained before: {finals[0]}")
        return finals[0]
    done = train(config, shards, out, resume=bool(existing), talk=talk)
    assert done is not None, "only under torchrun do processes other than the first return nothing"
    if done.signal_number is not None:  # training is at its end, the demo is not
        raise Interrupted("trained, and not judged yet", "the same dit demo command goes on", done.signal_number)
    return done.checkpoint
