"""What the failed criteria mean together: one sentence that names the part of the model, or of the measurement, to look
at first.

A single figure has many causes; the pattern over the tests has few. A reference path that is cut leaves the text test
standing and takes the swap test down; a model that draws without looking at anything takes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from dittool.validate.verdict import CHECKS, Results

_OVERFITTED = 1.5  # loss on held-out over training samples
_NO_EFFECT = 0.01  # of the velocity
_TESTED_BY = {  # condition → the criteria that say whether it is followed
    "reference": ("swap_closer", "swap_p"),
    "caption": ("edit_shown", "sensitivity"),
}
_OF_PICTURES = ("lpips", "gap_closed")
_NO_GAP = 0.1  # share of the gap closed: as good as nothing


def training_figures(
    rows: Sequence[Mapping[str, float]], step: int, warmup_steps: int
) -> dict[str, float | None] | None:
    """From the rows of `log.jsonl` up to `step`: the median gradient norm before clipping, after the warm-up, and the
    last losses.

    None when the log holds no row that early. The median is over rows after the warm-up, or over all when there is none
    after it.
    """
    until = [row for row in rows if row["step"] <= step]
    norms = [row for row in until if "grad_norm" in row]
    if not norms:
        return None
    settled = [row for row in norms if row["step"] > warmup_steps] or norms
    return {
        "rows": len(settled),
        "grad_norm": median(row["grad_norm"] for row in settled),
        "loss": norms[-1]["loss"],
        "eval_loss": next((row["eval_loss"] for row in reversed(until) if "eval_loss" in row), None),
    }


def diagnose(results: Results, passed: Mapping[str, bool | None], go: bool) -> str:
    """The sentence for a NO-GO. For a GO, which condition no test could judge; "" when both were judged.

    Args:
        results: the parts of `results.json`.
        passed: criterion → whether it passed; None for those that do not decide.
    """
    if go:
        return _what_is_not_known(passed)
    failed = {name for name, answer in passed.items() if answer is False}
    if broken := [name for name in CHECKS if name in failed]:
        return _broken_measurement(broken[0])
    reference_fails, text_fails = (not failed.isdisjoint(names) for names in _TESTED_BY.values())
    if reference_fails and text_fails:
        return _neither_followed(results)
    if reference_fails:
        return f"The reference is not followed: {_condition_not_followed(results, 'reference', passed)}."
    if text_fails:
        return f"The caption is not followed: {_condition_not_followed(results, 'text', passed)}."
    if failed.intersection(_OF_PICTURES):
        return f"{_what_is_followed(passed)}: {_too_far(results)}."
    pictures = "The pictures pass" if any(passed.get(name) for name in _OF_PICTURES) else "No test judged the pictures"
    if "grad_norm" in failed:
        return (
            f"{pictures}, and the gradients on the way were not healthy: do not train on from here before that is"
            " understood."
        )
    if "loss_ratio" in failed:
        return (
            f"{pictures}, and the loss on held-out samples is far above that on training samples: the set is"
            " being learned by heart."
        )
    if "images" in failed:
        return f"{pictures}, and too few were judged to say more."
    return "No criterion of what the model draws could decide: set thresholds in the preset, or run more tests."


def _broken_measurement(check: str) -> str:
    if check == "truth_as_result":
        return (
            "The measurement is wrong, not the model: truth and results are decoded through different normalisations,"
            " so no figure here counts."
        )
    return (
        "The data are wrong: the stored latents are not what the codec makes of the originals, so no figure here"
        " counts."
    )


def _undecided(passed: Mapping[str, bool | None]) -> list[str]:
    """The conditions of which no test could say whether they are followed."""
    return [name for name, tests in _TESTED_BY.items() if all(passed.get(test) is None for test in tests)]


def _what_is_followed(passed: Mapping[str, bool | None]) -> str:
    """Of conditions of which none failed."""
    followed = [name for name in _TESTED_BY if name not in _undecided(passed)]
    if len(followed) == len(_TESTED_BY):
        return "Both conditions are followed, and the pictures are not near enough"
    seen = f"The {followed[0]} is followed. " if followed else ""
    return f"{seen}{_what_is_not_known(passed)} The pictures are not near enough"


def _what_is_not_known(passed: Mapping[str, bool | None]) -> str:
    """ "" when both conditions were judged."""
    undecided = _undecided(passed)
    their_test = "its test" if len(undecided) == 1 else "their tests"
    return (
        f"Whether the {' and the '.join(undecided)} is followed is not known: {their_test} did not decide."
        if undecided
        else ""
    )


def _condition_not_followed(results: Results, condition: str, passed: Mapping[str, bool | None]) -> str:
    effect = _effect(results, condition)
    if effect is None:
        other = "the other condition's test did not decide" if _undecided(passed) else "the other condition works"
        return f"{other}, so look at this one's way into the model"
    if effect < _NO_EFFECT:
        return f"another one changes the velocity by {effect:.1%}, so its path into the model is cut"
    return f"another one changes the velocity by {effect:.1%}, so it arrives and is not understood yet"


def _neither_followed(results: Results) -> str:
    closed = results.get("reconstruction", {}).get("gap_closed")
    if closed is not None and closed > _NO_GAP:
        return (
            f"Neither condition works on its own, while both together close {closed:.0%} of the gap: give each more"
            " samples alone (dropout)."
        )
    effects = [effect for name in ("text", "reference") if (effect := _effect(results, name)) is not None]
    seen = " (other ones leave the velocity as it is)" if effects and max(effects) < _NO_EFFECT else ""
    ratio = (results.get("mode_losses") or {}).get("loss_ratio", {}).get("none")
    if ratio is not None and ratio > _OVERFITTED:
        overfitted = f"without conditions, held-out loss is {ratio:.2g} × theirs"
        return f"The training images were learned by heart without looking at the conditions{seen}: {overfitted}."
    return f"The model draws without looking at its conditions{seen}."


def _too_far(results: Results) -> str:
    ratio = (results.get("mode_losses") or {}).get("loss_ratio", {}).get("both")
    if ratio is not None and ratio > _OVERFITTED:
        return f"held-out loss is {ratio:.2g} × that of training images, so it needs more data before more steps"
    return "train longer, or with a larger model"


def _effect(results: Results, name: str) -> float | None:
    return (results.get("mode_losses") or {}).get("effect", {}).get(name)
