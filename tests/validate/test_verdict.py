"""From figures to GO and NO-GO."""

from __future__ import annotations

import pytest

from dittool.config.judging import Thresholds
from dittool.validate.verdict import judge, value_text, verdict

ALL = Thresholds(
    lpips=0.2,
    gap_closed=0.5,
    swap_closer=0.9,
    edit_shown=0.8,
    sensitivity=0.3,
    swap_p=0.05,
    loss_ratio=1.5,
    grad_norm=[0.1, 10.0],
    edit_shown_least=0.6,
    edit_shown_shape=0.7,
    known_captions=0.9,
    new_captions=0.5,
)


def results(
    lpips=0.1,
    gap=0.8,
    path=0.001,
    stored=0.001,
    closer=1.0,
    shown=0.9,
    sensitivity=1.0,
    pairs=8,
    p=0.004,
    ratio=1.1,
    gradient=0.5,
    least=0.8,
    shape=0.9,
    known=0.95,
    new=0.75,
):
    metrics = {"ssim": {"value": 0.8, "floor": 0.9}, "psnr": {"value": 20.0, "floor": 30.0}}
    if lpips is not None:
        metrics["lpips-alex"] = {"value": lpips, "floor": 0.01}
    return {
        "reconstruction": {
            "split": "holdout",
            "metric": "ssim" if lpips is None else "lpips-alex",
            "gap_closed": gap,
            "metrics": metrics,
            "checks": {"truth_as_result": path, "stored_latents": stored},
        },
        "dino_swap": {"pairs": pairs, "closer_to_source": closer, "p_value": p},
        "text_manip": {
            "pairs": pairs,
            "edit_shown": shown,
            "edit_shown_by_attribute": {} if shown is None else {"place": least, "shape": shape},
            "sensitivity": sensitivity,
            "distance": "pixel-rms",
        },
        "captions": {
            group: {"text_only": {"all": {"share": share}}} for group, share in (("known", known), ("new", new))
        },
        "mode_losses": {"loss_ratio": {"none": ratio, "both": ratio}, "effect": {"text": 0.4, "reference": 0.5}},
        "training": {"grad_norm": gradient},
    }


def row(criteria, name):
    return next(one for one in criteria if one.name == name)


def test_all_criteria_met_is_go_with_a_line_for_each_threshold():
    criteria = judge(results(), ALL)
    assert verdict(criteria) == "GO"
    assert {one.name for one in criteria} >= set(Thresholds.model_fields)
    assert all(one.passed for one in criteria)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"lpips": 0.21}, "lpips"),
        ({"gap": 0.49}, "gap_closed"),
        ({"closer": 0.89}, "swap_closer"),
        ({"shown": 0.79}, "edit_shown"),
        ({"sensitivity": 0.29}, "sensitivity"),
        ({"path": 0.1}, "truth_as_result"),
        ({"stored": 0.4}, "stored_latents"),
        ({"p": 0.06}, "swap_p"),
        ({"ratio": 1.6}, "loss_ratio"),
        ({"least": 0.59}, "edit_shown_least"),
        ({"shape": 0.69}, "edit_shown_shape"),
        ({"known": 0.89}, "known_captions"),
        ({"new": 0.49}, "new_captions"),
        ({"gradient": 0.09}, "grad_norm"),
        ({"gradient": 10.1}, "grad_norm"),
    ],
)
def test_one_criterion_missed_is_no_go_and_says_what_to_try(fault, name):
    criteria = judge(results(**fault), ALL)
    assert verdict(criteria) == "NO-GO"
    assert [one.name for one in criteria if one.passed is False] == [name]
    assert row(criteria, name).to_json()["advice"]


def test_the_attribute_whose_edits_show_least_is_named():
    assert row(judge(results(least=0.3), ALL), "edit_shown_least").title.endswith("least: place")


def test_a_model_whose_captions_no_checker_reads_is_not_judged_by_captions():
    unread = {name: part for name, part in results().items() if name != "captions"}
    criteria = judge(unread, ALL)
    assert verdict(criteria) == "GO"
    assert {row(criteria, name).passed for name in ("known_captions", "new_captions")} == {None}


def test_a_value_exactly_at_its_threshold_passes():
    assert (
        verdict(judge(results(lpips=0.2, gap=0.5, closer=0.9, shown=0.8, sensitivity=0.3, p=0.05, ratio=1.5), ALL))
        == "GO"
    )
    assert all(verdict(judge(results(gradient=norm), ALL)) == "GO" for norm in (0.1, 10.0))


def test_what_could_not_be_measured_does_not_decide_and_says_why():
    criteria = judge(results(lpips=None, shown=None, stored=None), ALL)
    assert verdict(criteria) == "GO"
    assert row(criteria, "lpips").passed is None and "AlexNet" in row(criteria, "lpips").reason
    assert row(criteria, "edit_shown").passed is None and "checker" in row(criteria, "edit_shown").reason
    assert row(criteria, "edit_shown_least").passed is None
    assert row(criteria, "stored_latents").passed is None and "originals" in row(criteria, "stored_latents").reason
    assert row(criteria, "gap_closed").metric == "ssim"


def test_what_has_no_threshold_is_shown_and_does_not_decide():
    criteria = judge(results(sensitivity=0.0), Thresholds(lpips=0.2))
    assert verdict(criteria) == "GO"
    assert row(criteria, "sensitivity").value == 0 and row(criteria, "sensitivity").passed is None


def test_a_verdict_that_nothing_decides_is_no_go_even_when_the_checks_hold():
    nothing = judge(results(lpips=None), Thresholds())
    assert row(nothing, "truth_as_result").passed is True
    assert verdict(nothing) == "NO-GO"
    assert verdict([]) == "NO-GO"


def test_healthy_gradients_and_losses_alone_are_no_go():
    without_pictures = {key: results()[key] for key in ("mode_losses", "training")}
    criteria = judge(without_pictures, ALL)
    assert all(one.passed for one in criteria) and len(criteria) == 2
    assert verdict(criteria) == "NO-GO"


def test_only_tests_that_ran_are_judged():
    criteria = judge({"dino_swap": {"pairs": 9, "closer_to_source": 1.0, "p_value": 0.002}}, ALL)
    assert [one.name for one in criteria if one.passed is not None] == ["swap_closer", "swap_p"]
    assert row(criteria, "grad_norm").reason == "the run's log.jsonl is not there"
    assert verdict(criteria) == "GO"


def test_a_small_chance_is_not_rounded_to_nothing():
    assert (
        value_text(0.0001) == "0.0001"
        and value_text(0.0) == "0.000"
        and value_text(0.21449) == "0.214"
        and value_text(None) == "–"
    )


def test_bounds_read_like_bounds():
    shown = {one.name: one.bound for one in judge(results(), ALL)}
    assert (shown["lpips"], shown["swap_closer"], shown["grad_norm"]) == ("≤ 0.2", "≥ 0.9", "0.1 to 10")


def test_a_gradient_range_must_not_be_empty():
    with pytest.raises(ValueError, match=r"\[10, 0.1\] is empty"):
        Thresholds(grad_norm=[10.0, 0.1])
