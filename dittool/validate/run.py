"""`dit validate`: three tests of a checkpoint's EMA weights, the verdict, the report.

RUN/validation/step0001000/            reconstruction/ dino_swap/ text_manip/   strips of pictures
                                       results.json  report.html  contact_sheet.png
RUN/validation/step0001000_dino_swap/  the same of a part: some of the tests, or fewer images than `validate.limit`

A judgement is made in a folder of its own inside and takes the place of an earlier one when it is complete: whatever
ends it before leaves the earlier one as it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dittool.ckpt.files import run_folder
from dittool.ckpt.run_log import read_log
from dittool.console import SILENT, Talk
from dittool.data.identity import IdentityCard, differences
from dittool.data.provenance import Provenance
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError, DitError, UsageError, from_os_error
from dittool.geometry import parse_size
from dittool.sampling.pipeline import Pipeline
from dittool.storage import (
    folder_lock,
    nothing_left_of_refusal,
    output_folder,
    write_atomic,
    write_json,
)
from dittool.validate.captions import ALONE, draw_captions
from dittool.validate.diagnosis import diagnose, training_figures
from dittool.validate.figures.drawn import FigureOptions, FigurePlan, measure_drawn, plan_figures
from dittool.validate.figures.figure import FIGURE_TESTS, Figure
from dittool.validate.making import made_of, made_with
from dittool.validate.mode_losses import measure_modes
from dittool.validate.perceptual import find_inception, find_lpips, lpips_file
from dittool.validate.pictures import contact_sheet
from dittool.validate.place import RESULTS, place_to_judge, take_the_place
from dittool.validate.reconstruction import reconstruct
from dittool.validate.report import Tested, write_report
from dittool.validate.samples import Trial, choose
from dittool.validate.set_metrics import measure_set
from dittool.validate.swap import swap_references
from dittool.validate.text_edit import CaptionChecker, edit_captions, find_edits
from dittool.validate.verdict import GO, MEASURED, NO_GO, Criterion, Results, judge, verdict
from dittool.whereabouts import find, remembered

TESTS = ("reconstruction", "dino_swap", "text_manip", "mode_losses")
OPTIONAL = ("set_metrics", *FIGURE_TESTS)  # by name only: they draw many more images
_WITH_LPIPS = {"reconstruction", "text_manip"}
_SCENES = 36  # that are asked for, of each kind
_MODE_SAMPLES = 64  # of each split at most: the mean of their losses is settled long before


@dataclass(frozen=True)
class ValidateOptions:
    """What is asked of a validation. Raises `UsageError` for an unknown test or split."""

    tests: Sequence[str] = TESTS  # some of `TESTS` and `OPTIONAL`
    limit: int | None = None  # at most so many images, pairs and edits, 0: all; None: `validate.limit` of the run
    split: str | None = (
        None  # "holdout" or "train"; None: the hold-out, or what was trained on when nothing is held out
    )
    # AlexNet weights; None: `validate.lpips_backbone`, then DIT_LPIPS_BACKBONE, then torchvision's cache
    lpips_backbone: Path | None = None
    checker: CaptionChecker | None = None  # reads the pictures of edited captions back
    figures: FigureOptions = field(default_factory=FigureOptions)  # of `FIGURE_TESTS`

    def __post_init__(self) -> None:
        known = (*TESTS, *OPTIONAL)
        unknown = [name for name in self.tests if name not in known]
        if unknown or not self.tests:
            raise UsageError(
                f"no test is called '{unknown[0]}'" if unknown else "no test is named", f"there are {', '.join(known)}"
            )
        if self.lpips_backbone is not None and not _WITH_LPIPS & set(self.tests):
            raise UsageError(
                f"--lpips-backbone: no effect with --tests {','.join(self.tests)}, which measure no LPIPS",
                f"leave it out, or name one that does: {', '.join(sorted(_WITH_LPIPS))}",
            )
        if self.limit is not None and self.limit < 0:
            raise UsageError(
                f"--limit {self.limit}: a number of images cannot be negative",
                "0 judges all, and without it validate.limit of the run holds",
            )
        if self.split not in (None, HOLDOUT, TRAIN):
            raise UsageError(f"no split is called '{self.split}'", f"there are {HOLDOUT} and {TRAIN}")

    def seen_from(self, folder: Path) -> dict[str, object]:
        """What a repetition is asked for, with paths as a file in `folder` remembers them."""
        files = {"lpips_backbone": self.lpips_backbone, "reference": self.figures.reference}
        return {
            "tests": list(self.tests),
            "limit": self.limit,
            "split": self.split,
            "images": self.figures.images,
            "checker": self.checker is not None,
            **{name: path and remembered(path, folder) for name, path in files.items()},
        }

    @property
    def only_measures(self) -> bool:
        """Whether nothing is asked for that a verdict could come from."""
        return set(self.tests) <= set(FIGURE_TESTS)

    @property
    def left_out(self) -> list[str]:
        """The tests of a complete judgement that are not asked for."""
        return [name for name in TESTS if name not in self.tests]

    def part_of(self, configured_limit: int) -> list[str]:
        """What the name of a part says: its tests, its limit; nothing for a complete judgement."""
        tests = [name for name in (*TESTS, *OPTIONAL) if name in self.tests] if self.left_out else []
        fewer = self.limit and (configured_limit == 0 or self.limit < configured_limit)
        return [*tests, f"limit{self.limit}"] if fewer else tests


@dataclass(frozen=True)
class Validation:
    """The outcome."""

    verdict: str  # "GO", "NO-GO"; "MEASURED" where only figures were asked for
    criteria: list[Criterion]
    results: Results
    folder: Path
    report: Path
    figures: Sequence[Figure] = ()

    @property
    def go(self) -> bool:
        return self.verdict == GO

    @property
    def answer_is_no(self) -> bool:
        """Figures alone are no answer."""
        return self.verdict == NO_GO


def validate(
    checkpoint: Path,
    shards: Path,
    out: Path | None = None,
    options: ValidateOptions = ValidateOptions(),
    talk: Talk = SILENT,
) -> Validation:
    """Judges a checkpoint's EMA weights on the hold-out of the shards that it was trained on.

    `out` is the folder of this validation; by default `validation/stepNNNNNNN` in the checkpoint's run, for the
    training set when it was asked for `stepNNNNNNN_train`, and with what was asked for behind it when that is a part.

    Raises `BadDataError` when the shards have another identity than the training data or the model draws NaN,
    `WeightsMissingError` for a named LPIPS backbone that cannot serve, `StorageError` for the output folder.
    """
    run = run_folder(checkpoint)
    parent = out if out is not None else run / "validation"
    with nothing_left_of_refusal(parent):
        output_folder(parent)  # found unwritable now, not after the work
        opened, pipeline = ShardSet.open(shards), Pipeline.load(checkpoint)
        kind = ["train"] if options.split == TRAIN else []
        name = "_".join([f"step{pipeline.step:07d}", *kind, *options.part_of(pipeline.config.validate_.limit)])
        return validate_pipeline(pipeline, opened, out or parent / name, options, talk, run, checkpoint)


# encoders and metrics draw weights before they load them: a training run in this process must not notice
@torch.random.fork_rng(devices=[])
def validate_pipeline(
    pipeline: Pipeline,
    shards: ShardSet,
    folder: Path,
    options: ValidateOptions = ValidateOptions(),
    talk: Talk = SILENT,
    run: Path | None = None,
    checkpoint: Path | None = None,
) -> Validation:
    """The same for a model that is loaded already. `run` is the folder of its log, `checkpoint` the file that it
    came from.
    """
    start = time.monotonic()
    config = pipeline.config.validate_
    _require_same_data(pipeline, shards)
    backbone = options.lpips_backbone or _backbone(config.lpips_backbone)
    perceptual = find_lpips(backbone, _smallest_side(shards), talk)
    plan = plan_figures(options.tests, options.figures, talk)
    limit = config.limit if options.limit is None else options.limit
    split, subjects = choose(shards, limit, options.split)
    with nothing_left_of_refusal(folder), folder_lock(output_folder(folder)), place_to_judge(folder) as place:
        trial = Trial(pipeline, shards, split, subjects, limit, place, perceptual, talk)
        data = _about_data(trial, folder)
        talk.note(f"judging the EMA weights of step {pipeline.step} on {len(subjects)} {data['described']}")
        tested = _run_tests(trial, options, plan)
        results: dict[str, object] = {
            "step": pipeline.step,
            "weights": "ema",
            "checkpoint": remembered(checkpoint, folder) if checkpoint else "",
            "data": data,
            "left_out": options.left_out,
            "settings": pipeline.settings.to_json(),
            "training": (
                training_figures(read_log(run), pipeline.step, pipeline.config.train.warmup_steps) if run else None
            ),
            **{name: part.to_json() for name, part in tested.parts().items() if part is not None},
            "asked": options.seen_from(folder),
            "made_of": made_of(
                pipeline,
                checkpoint,
                shards.identity_hash,
                lpips_backbone=lpips_file(backbone),
                reference=options.figures.reference,
            ),
            "made_with": made_with(pipeline.device),
        }
        criteria = [] if options.only_measures else judge(results, config.thresholds)
        outcome = MEASURED if options.only_measures else verdict(criteria)
        results |= {
            "criteria": [criterion.to_json() for criterion in criteria],
            "verdict": outcome,
            "diagnosis": diagnose(results, {criterion.name: criterion.passed for criterion in criteria}, outcome == GO)
            if criteria
            else "",
            "seconds": round(time.monotonic() - start, 1),
        }
        write_atomic(place / "contact_sheet.png", _contact_sheet(tested))
        report = write_report(place, results, criteria, tested, pipeline.config, run)
        write_json(place / RESULTS, results)
        take_the_place(place, folder)
    figures = tested.figures.figures if tested.figures else ()
    return Validation(outcome, criteria, results, folder, folder / report.name, figures)


def judge_during_training(
    pipeline: Pipeline, shards: Path, run: Path, checker: CaptionChecker | None = None, talk: Talk = SILENT
) -> None:
    """Judges the EMA weights of a run that goes on, into `validation/stepNNNNNNN` in the folder `run`.

    Training never notices: noise comes from the samples' ids, and the global random state is given back. What a
    judgement cannot do (a codec's weights are missing, the model still draws NaN, the disk is full) becomes a warning.
    The pipeline should be the judge's own, so that its encoders leave the memory with it: training needs the room.
    """
    folder = run / "validation" / f"step{pipeline.step:07d}"
    try:
        options = ValidateOptions(checker=checker)
        done = validate_pipeline(pipeline, ShardSet.open(shards), folder, options, talk, run)
    except (DitError, OSError) as error:
        known = error if isinstance(error, DitError) else from_os_error(error)
        if known is None:
            raise
        talk.warn(f"step {pipeline.step}: not judged: {known.message}; training goes on. {known.hint}")
        return
    failed = ", ".join(criterion.name for criterion in done.criteria if criterion.passed is False)
    talk.note(f"step {pipeline.step}: {done.verdict}{f' ({failed})' if failed else ''}: {done.report}")


def _require_same_data(pipeline: Pipeline, shards: ShardSet) -> None:
    of_now, trained = Provenance.of(shards, shards.split(TRAIN), pipeline.config), pipeline.data
    same = shards.identity_hash == trained.identity_hash or of_now.is_same_data(trained)
    if not same and not _is_subset(shards.card, trained.card):
        found = (
            "; ".join(differences(shards.card.to_json(), pipeline.data.identity.to_json()))
            or "the identity hashes differ"
        )
        raise BadDataError(
            f"{shards.folder}: other features than this checkpoint was trained on: {found}",
            "name the shards of its training with --data, or judge a checkpoint that was trained on these",
        )


def _is_subset(found: IdentityCard, trained: IdentityCard) -> bool:
    """Whether features were made as those of the training, of some of its buckets."""
    return replace(found, buckets=trained.buckets).sha256 == trained.sha256 and set(found.buckets) <= set(
        trained.buckets
    )


def _about_data(trial: Trial, folder: Path) -> dict[str, object]:
    """Which images are judged, and whether it is certain that the model has not seen them. `folder`: of the results."""
    pipeline, shards, split, talk = trial.pipeline, trial.shards, trial.split, trial.talk
    same_split = Provenance.of(shards, shards.split(TRAIN), pipeline.config).order_hash == pipeline.data.order_hash
    if split == TRAIN and shards.split(HOLDOUT):
        described = "training images, as asked for"
    elif split == TRAIN:
        described = "training images, as nothing is held out"
        talk.warn(f"{shards.folder}: nothing is held out, so the model is judged on images that it was trained on")
    elif not same_split:
        described = "held-out images, which this checkpoint may have been trained on"
        talk.warn(
            f"{shards.folder}: sharded differently than at training time, so held-out images may be among those"
            " trained on"
        )
    else:
        described = "held-out images"
    unseen = split == HOLDOUT and same_split
    return {
        "shards": remembered(shards.folder, folder),
        "identity_hash": shards.identity_hash,
        "split": split,
        "images": len(trial.subjects),
        "unseen": unseen,
        "described": described,
    }


def _run_tests(trial: Trial, options: ValidateOptions, plan: FigurePlan | None) -> Tested:
    reconstruction = swap = text = captions = modes = sets = None
    tests, config = options.tests, trial.pipeline.config.validate_
    if "reconstruction" in tests:
        reconstruction = reconstruct(trial)
    if "dino_swap" in tests:
        swap = swap_references(trial)
    if "text_manip" in tests:
        text = edit_captions(trial, find_edits(trial, config.edits), options.checker)
        if options.checker and options.checker.scenes:
            captions = draw_captions(trial.pipeline, options.checker, options.checker.scenes(_SCENES), trial.talk)
    if "mode_losses" in tests:  # for the loss ratio on as many of the other split
        judged = [subject.ref for subject in trial.subjects[:_MODE_SAMPLES]]
        modes = measure_modes(trial, {trial.split: judged} | _of_other_split(trial, len(judged)))
    if "set_metrics" in tests:
        judged = [subject.ref for subject in choose(trial.shards, config.set_images, trial.split)[1]]
        others = [ref for refs in _of_other_split(trial, len(judged)).values() for ref in refs]
        sets = measure_set(trial, judged, others, find_inception(trial.talk))
    figures = measure_drawn(trial, plan) if plan else None
    return Tested(reconstruction, swap, text, captions, modes, sets, figures)


def _of_other_split(trial: Trial, count: int) -> dict[str, list[SampleRef]]:
    """At most `count` samples of the split that is not judged, by its name; empty where it has none."""
    other = TRAIN if trial.split == HOLDOUT else HOLDOUT
    subjects = choose(trial.shards, count, other)[1] if trial.shards.split(other) else []
    return {other: [subject.ref for subject in subjects]} if subjects else {}


def _backbone(configured: str | None) -> str | Path | None:
    """The file that the configuration names; where the project was moved, where it is now."""
    return configured and (find(configured, Path.cwd()) or configured)


def _smallest_side(shards: ShardSet) -> int:
    return min(min(parse_size(name)) for name in shards.samples.bucket_counts())


def _contact_sheet(tested: Tested) -> bytes:
    sections = []
    if tested.reconstruction:
        groups = [
            [image.pictures[key] for key in ("truth", "result", "difference")] for image in tested.reconstruction.images
        ]
        sections.append(("reconstruction: truth, result, difference", groups))
    if tested.swap and tested.swap.pairs:
        groups = [[pair.pictures[key] for key in ("original", "reference", "result")] for pair in tested.swap.pairs]
        sections.append(("reference swap: noise of, reference, result", groups))
    if tested.text and tested.text.images:
        groups = [[image.pictures[key] for key in ("original", "edited", "other")] for image in tested.text.images]
        sections.append(("text: original caption, one word exchanged, original caption with other noise", groups))
    if tested.captions:
        for known, kind in ((True, "trained on"), (False, "never seen")):
            groups = [[one.picture] for one in tested.captions.of(known, ALONE)]
            sections.append((f"captions that were {kind}, drawn alone", groups))
    return contact_sheet(sections)
