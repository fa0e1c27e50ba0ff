"""From the tests' figures to GO or NO-GO: one criterion a threshold, with what to try where it fails.

A criterion without a threshold, or whose value could not be measured, is shown and does not decide; a verdict that no
criterion decides is NO-GO. Two checks of the measurement itself stand beside the thresholds; where one of them fails,
no figure counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dittool.config.judging import Thresholds
from dittool.data.shards.index import TRAIN

Results = Mapping[str, Any]  # what stands in results.json (docs/validation.md), or a part of it

GO, NO_GO = "GO", "NO-GO"
MEASURED = "MEASURED"  # figures alone, which nothing says yes or no to
# name → (title, largest error, what to look for); rounding to 8 and 16 bits gives less than a tenth of these
CHECKS = {
    "truth_as_result": (
        "check: the truth fed in as the result, distance from the codec's round trip",
        0.01,
        (
            "truth and results do not go through the same normalisation: look at the checkpoint's data.norm (dit"
            " inspect-ckpt) and at LatentNorm; until then no other figure counts"
        ),
    ),
    "stored_latents": (
        "check: stored latents, relative error against the originals encoded again",
        0.05,
        (
            "the stored latents are not those of the images: stored scaled, or made by another codec. Audit the shards"
            " (dit audit SHARDS) and embed again; until then no other figure counts"
        ),
    ),
}

FEWEST = 8  # judged images of a GO: a model that is right every other time passes all of eight once in 256
_NOT_ENOUGH = {*CHECKS, "images", "grad_norm", "loss_ratio"}  # they can say no; a GO needs pictures


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict."""

    name: str
    title: str
    value: float | None  # None: not measured
    threshold: float | list[float] | None  # None: does not decide; two numbers: the value must lie between them
    lower_is_better: bool = False
    metric: str = ""  # what was measured, where there is a choice
    reason: str = ""  # why it does not decide
    advice: str = ""  # what to try when it fails

    @property
    def passed(self) -> bool | None:
        """None: this criterion does not decide. A value at its threshold passes."""
        if self.value is None or self.threshold is None:
            return None
        if isinstance(self.threshold, list):
            return self.threshold[0] <= self.value <= self.threshold[1]
        return self.value <= self.threshold if self.lower_is_better else self.value >= self.threshold

    @property
    def bound(self) -> str:
        """`≥ 0.9`, `0.1 to 10`, or "" without a threshold."""
        if self.threshold is None:
            return ""
        if isinstance(self.threshold, list):
            return f"{self.threshold[0]:g} to {self.threshold[1]:g}"
        return f"{'≤' if self.lower_is_better else '≥'} {self.threshold:g}"

    def to_json(self) -> dict[str, object]:
        extra = {"metric": self.metric, "reason": self.reason, "advice": self.advice if self.passed is False else ""}
        needed: dict[str, object] = {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "threshold": self.threshold,
            "passed": self.passed,
        }
        return needed | {"lower_is_better": self.lower_is_better} | {key: text for key, text in extra.items() if text}


def judge(results: Results, thresholds: Thresholds) -> list[Criterion]:
    """The criteria for the parts of `results.json` that are there: `reconstruction`, `dino_swap`, `text_manip`,
    `mode_losses`, `training`.
    """
    criteria = []
    if (part := results.get("reconstruction")) is not None:
        criteria += _judge_reconstruction(part, thresholds)
    if (part := results.get("dino_swap")) is not None:
        criteria += _judge_swap(part, thresholds)
    if (part := results.get("text_manip")) is not None:
        criteria += _judge_text(part, thresholds)
        criteria += _judge_captions(results.get("captions"), thresholds)
    if (part := results.get("mode_losses")) is not None:
        criteria.append(
            _criterion(
                "loss_ratio",
                "loss on held-out samples over loss on training samples",
                part["loss_ratio"]["both"],
                thresholds.loss_ratio,
                "nothing is held out",
                _LOSS_RATIO_ADVICE,
                lower_is_better=True,
            )
        )
    if (data := results.get("data")) is not None:
        criteria.append(Criterion("images", "images judged", data["images"], FEWEST, advice=_IMAGES_ADVICE))
    training = results.get("training")
    criteria.append(
        _criterion(
            "grad_norm",
            "gradient norm before clipping, median of the run",
            training["grad_norm"] if training else None,
            thresholds.grad_norm,
            "the run's log.jsonl is not there",
            _GRADIENT_ADVICE,
        )
    )
    return sorted(criteria, key=lambda criterion: criterion.passed is None)  # those that decide come first


def criteria_rows(criteria: Sequence[Criterion]) -> list[tuple[str, str, str, str]]:
    """For a table: mark, title, value, bound."""
    marks = {True: "✔", False: "✘", None: "–"}
    return [
        (marks[criterion.passed], criterion.title, value_text(criterion.value), criterion.bound)
        for criterion in criteria
    ]


def value_text(value: float | None) -> str:
    """`0.214`; `0.0001` where three digits would hide it; a dash for what was not measured."""
    return "–" if value is None else f"{value:.1g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def verdict(criteria: Sequence[Criterion]) -> str:
    """GO when at least one threshold of what the model draws was judged and nothing failed."""
    decided = [
        criterion.passed for criterion in criteria if criterion.passed is not None and criterion.name not in _NOT_ENOUGH
    ]
    failed = any(criterion.passed is False for criterion in criteria)
    return GO if decided and not failed else NO_GO


_RECONSTRUCTION_ADVICE = (
    "if the swap and text tests pass, train longer or with a larger model; if not, mend those first. Look at the"
    " pictures: torn shapes point at the latents' scaling (data.latent_scaling), right content in the wrong place at"
    " the reference's patches"
)
_SWAP_ADVICE = (
    "the reference is not followed: give it more samples of its own (dropout.reference_only 0.2), train longer, raise"
    " sample.cfg_dino, and audit the features (dit audit SHARDS)"
)
_EDIT_ADVICE = (
    "the caption is not understood: give it more samples of its own (dropout.text_only 0.2), train longer, raise"
    " sample.cfg_text; if unedited captions do not show either, the model cannot draw them yet"
)
_SHAPE_ADVICE = (
    "colours and places are learned before shapes: train longer, and give captions more samples of their own"
    " (dropout.text_only). If shapes with a reference are torn as well, the model cannot draw them yet"
)
_SENSITIVITY_ADVICE = (
    "an exchanged word changes little: the caption is hardly read. Give it more samples of its own (dropout.text_only),"
    " check that captions name what differs between images, raise sample.cfg_text"
)

_NEW_CAPTION_ADVICE = (
    "captions are known by heart and not by their words: more samples with the caption alone (dropout.text_only), more"
    " different captions, fewer updates"
)
_IMAGES_ADVICE = (
    "too few for a GO: judge more (--limit 0), hold more out (dit shard --holdout), or judge the training set"
    " (--split train)"
)
_LOSS_RATIO_ADVICE = "the training set is being learned by heart: more images, fewer steps, or a smaller model"
_GRADIENT_ADVICE = (
    "far below, hardly anything is learned: look for a cut path (dit audit CHECKPOINT) and at train.lr; far above, the"
    " clip decides every update: lower train.lr, lengthen train.warmup_steps, look at the latents' scaling"
)


def _judge_reconstruction(part: Results, thresholds: Thresholds) -> list[Criterion]:
    metrics, of = part["metrics"], "training images" if part["split"] == TRAIN else "held-out images"
    lpips = metrics.get("lpips-alex")
    criteria = [
        _criterion(
            "lpips",
            f"reconstruction of {of}, LPIPS",
            lpips["value"] if lpips else None,
            thresholds.lpips,
            "LPIPS could not run: no AlexNet weights here (--lpips-backbone)",
            _RECONSTRUCTION_ADVICE,
            lower_is_better=True,
            metric="lpips-alex",
        ),
        _criterion(
            "gap_closed",
            f"reconstruction of {of}, share of the gap closed ({part['metric']})",
            part["gap_closed"],
            thresholds.gap_closed,
            "floor and ceiling leave no gap: the codec's round trip is no better than a result of other conditions",
            _RECONSTRUCTION_ADVICE,
            metric=part["metric"],
        ),
    ]
    for name, (title, largest, advice) in CHECKS.items():
        criteria.append(
            _criterion(
                name,
                title,
                part["checks"][name],
                largest,
                "the originals are not there any more",
                advice,
                lower_is_better=True,
            )
        )
    return criteria


def _judge_swap(part: Results, thresholds: Thresholds) -> list[Criterion]:
    alone = "no two judged images share a bucket"
    return [
        _criterion(
            "swap_closer",
            "results closer to the swapped-in reference",
            part["closer_to_source"],
            thresholds.swap_closer,
            alone,
            _SWAP_ADVICE,
        ),
        _criterion(
            "swap_p",
            "chance of such margins without any influence of the reference",
            part["p_value"],
            thresholds.swap_p,
            alone,
            f"{part['pairs']} pairs may be too few to tell: judge more images (--limit). Else {_SWAP_ADVICE}",
            lower_is_better=True,
        ),
    ]


def _judge_text(part: Results, thresholds: Thresholds) -> list[Criterion]:
    no_edits = "" if part["pairs"] else "no caption holds a word of validate.edits"
    by_attribute: Mapping[str, float] = part["edit_shown_by_attribute"]
    least = min(by_attribute, key=by_attribute.__getitem__, default="")
    return [
        _criterion(
            "edit_shown",
            "edited captions whose edit shows",
            part["edit_shown"],
            thresholds.edit_shown,
            no_edits or "the checker reads captions of the drawn set only",
            _EDIT_ADVICE,
        ),
        _criterion(
            "edit_shown_least",
            f"the same, of the attribute whose edits show least{f': {least}' if least else ''}",
            by_attribute.get(least),
            thresholds.edit_shown_least,
            no_edits or "the checker reads captions of the drawn set only",
            _EDIT_ADVICE,
        ),
        *_judge_shapes(by_attribute.get("shape"), thresholds),
        _criterion(
            "sensitivity",
            f"change under an edit over change under another seed ({part['distance']})",
            part["sensitivity"],
            thresholds.sensitivity,
            no_edits or "other noise changes nothing",
            _SENSITIVITY_ADVICE,
            metric=part["distance"],
        ),
    ]


def _judge_shapes(shown: float | None, thresholds: Thresholds) -> list[Criterion]:
    """A line of its own where shapes were edited, or should have been."""
    if shown is None and thresholds.edit_shown_shape is None:
        return []
    unmeasured = "validate.edits holds no pair of shapes that the checker reads, such as circle and square"
    title = "edits of the shape that show"
    return [_criterion("edit_shown_shape", title, shown, thresholds.edit_shown_shape, unmeasured, _SHAPE_ADVICE)]


def _judge_captions(part: Results | None, thresholds: Thresholds) -> list[Criterion]:
    asked = (
        ("known_captions", "known", "trained captions", thresholds.known_captions, _EDIT_ADVICE),
        ("new_captions", "new", "captions never trained on", thresholds.new_captions, _NEW_CAPTION_ADVICE),
    )
    return [
        _criterion(
            name,
            f"{title}, drawn alone, whose pictures show all that they say",
            part[group]["text_only"]["all"]["share"] if part else None,
            threshold,
            "the checker reads captions of the drawn set only",
            advice,
        )
        for name, group, title, threshold, advice in asked
    ]


def _criterion(
    name: str,
    title: str,
    value: float | None,
    threshold: float | list[float] | None,
    unmeasured: str,
    advice: str,
    lower_is_better: bool = False,
    metric: str = "",
) -> Criterion:
    reason = unmeasured if value is None else "no threshold in the preset" if threshold is None else ""
    return Criterion(name, title, value, threshold, lower_is_better, metric, reason, advice)
