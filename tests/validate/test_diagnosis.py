"""What failed criteria mean together, and what the log says."""

from __future__ import annotations

import pytest

from dittool.validate.diagnosis import diagnose, training_figures

FINE = {"gap_closed": True, "swap_closer": True, "edit_shown": True, "truth_as_result": True, "grad_norm": True}
TESTS_OF = {"caption": ("edit_shown", "sensitivity"), "reference": ("swap_closer", "swap_p")}


def results(gap=0.8, text=0.4, reference=0.5, none=1.0, both=1.0):
    return {
        "reconstruction": {"gap_closed": gap},
        "mode_losses": {"loss_ratio": {"none": none, "both": both}, "effect": {"text": text, "reference": reference}},
    }


def failing(*names):
    return FINE | dict.fromkeys(names, False)


def test_where_nothing_failed_there_is_nothing_to_say():
    assert diagnose(results(), FINE, go=True) == ""


def test_a_no_go_in_which_nothing_failed_says_that_nothing_decided():
    assert "could decide" in diagnose({}, {"lpips": None, "truth_as_result": True, "grad_norm": True}, go=False)


@pytest.mark.parametrize(
    ("failed", "found", "said"),
    [
        (
            ["swap_closer"],
            {"reference": 0.0},
            "The reference is not followed: another one changes the velocity by 0.0%, so its path",
        ),
        (
            ["swap_closer", "gap_closed"],
            {"reference": 0.2},
            "reference is not followed: another one changes the velocity by 20.0%, so it arrives",
        ),
        (
            ["edit_shown"],
            {"text": 0.001},
            "The caption is not followed: another one changes the velocity by 0.1%, so its path into",
        ),
        (["sensitivity"], {"text": 0.3}, "The caption is not followed"),
        (
            ["edit_shown", "swap_closer", "gap_closed"],
            {"gap": 0.0, "text": 0.0, "reference": 0.0},
            "(other ones leave the velocity as it is).",
        ),
        (
            ["edit_shown", "swap_closer", "gap_closed"],
            {"gap": 0.02, "none": 4.0},
            "The training images were learned by heart without looking",
        ),
        (
            ["edit_shown", "swap_closer"],
            {"gap": 0.7},
            "Neither condition works on its own, while both together close 70%",
        ),
        (["gap_closed"], {}, "Both conditions are followed, and the pictures are not near enough: train longer"),
        (["lpips"], {"both": 3.0}, "so it needs more data"),
        (["grad_norm"], {}, "the gradients on the way were not healthy"),
        (["truth_as_result", "gap_closed", "swap_closer"], {}, "The measurement is wrong, not the model"),
        (["stored_latents", "gap_closed"], {}, "The data are wrong"),
    ],
)
def test_each_pattern_names_its_cause(failed, found, said):
    assert said in diagnose(results(**found), failing(*failed), go=False)


@pytest.mark.parametrize(("condition", "other"), [("caption", "reference"), ("reference", "caption")])
def test_a_condition_whose_test_did_not_decide_is_never_said_to_be_followed(condition, other):
    undecided = dict.fromkeys(TESTS_OF[condition])
    too_far = diagnose(results(), failing("gap_closed") | undecided, go=False)
    assert "Both conditions" not in too_far and f"The {other} is followed" in too_far
    not_known = f"Whether the {condition} is followed is not known: its test did not decide"
    assert not_known in too_far and not_known in diagnose(results(), FINE | undecided, go=True)
    fails = diagnose({}, failing(TESTS_OF[other][0]) | undecided, go=False)
    assert "works" not in fails and "the other condition's test did not decide" in fails


def test_where_neither_test_decided_neither_condition_is_said_to_be_followed():
    said = diagnose(
        results(), failing("gap_closed") | dict.fromkeys((*TESTS_OF["caption"], *TESTS_OF["reference"])), go=False
    )
    assert "caption" in said and "reference" in said and "is followed is not known: their tests did not decide" in said
    assert "The pictures are not near enough: train longer" in said and "reference is followed." not in said


def test_pictures_that_no_test_judged_do_not_pass():
    said = diagnose({}, {"grad_norm": False, "gap_closed": None, "lpips": None}, go=False)
    assert "The pictures pass" not in said and "the gradients on the way were not healthy" in said


def test_without_mode_losses_the_pattern_alone_speaks():
    assert "the other condition works" in diagnose({}, failing("swap_closer"), go=False)


LOG = [
    {"step": 10, "loss": 2.0, "grad_norm": 50.0},
    {"step": 20, "loss": 1.0, "grad_norm": 0.6},
    {"step": 30, "eval_loss": 0.9},
    {"step": 30, "loss": 0.8, "grad_norm": 0.2},
    {"step": 40, "loss": 0.7, "grad_norm": 0.4},
    {"step": 50, "loss": 0.6, "grad_norm": 99.0},
]


def test_the_log_is_read_up_to_the_checkpoint_and_after_the_warm_up():
    assert training_figures(LOG, step=40, warmup_steps=10) == {
        "rows": 3,
        "grad_norm": 0.4,
        "loss": 0.7,
        "eval_loss": 0.9,
    }


def test_a_run_still_in_its_warm_up_is_judged_by_what_there_is():
    assert training_figures(LOG, step=20, warmup_steps=1000)["grad_norm"] == pytest.approx(25.3)


def test_no_log_is_no_figure():
    assert training_figures([], 40, 0) is None is training_figures([{"step": 1, "eval_loss": 1.0}], 40, 0)
