"""Two validations side by side: which figure is better, whether it is luck, and what else differs."""

from __future__ import annotations

import json
import shutil

import pytest

from dittool.errors import BadDataError, UsageError
from dittool.validate.compare import compare, newest_results
from dittool.validate.compare_page import write_comparison
from tests.validate.oracle import judge


@pytest.fixture(scope="module")
def runs(drawn, oracle, tmp_path_factory):
    """Two runs: one that sees no condition, one without fault."""
    root = tmp_path_factory.mktemp("runs")
    for name, faults in (("blind", {"cut": ["text", "reference"]}), ("good", {})):
        judge(oracle(**faults), drawn[0], root / name / "validation" / "step0001234", limit=8)
    return root / "blind", root / "good"


def rewritten(run, out, change):
    shutil.copytree(run, out)
    path = newest_results(out)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return out


def test_the_better_side_of_every_figure_is_found(runs):
    found = compare(*runs)
    assert [side.name for side in found.sides] == ["blind, step 1,234", "good, step 1,234"]
    better = {row.title: row.better for row in found.rows}
    for words in (
        "share of the gap closed (ssim)",
        "closer to the swapped-in reference",
        "whose edit shows",
        "mean PSNR",
        "swap, mean margin",
    ):
        assert [side for title, side in better.items() if words in title] == [1], words
    assert [row.title for row in found.rows] == list(dict.fromkeys(row.title for row in found.rows)), (
        "no figure stands there twice"
    )
    assert [side for title, side in better.items() if title.startswith("check:")] == [None, None], (
        "a check holds or does not"
    )
    turned = compare(*reversed(runs))
    assert {row.title: row.better for row in turned.rows} == {
        title: None if side is None else 1 - side for title, side in better.items()
    }


def test_images_are_compared_in_pairs_with_the_chance_of_luck(runs):
    pairs = compare(*runs).pairs
    assert len(pairs.ids) == 8 and pairs.second_better == 1 and pairs.metric == "ssim"
    assert pairs.p_value == pytest.approx(2 / 2**8)
    alike = compare(runs[1], runs[1])
    assert alike.pairs.second_better == 0 and alike.pairs.p_value == 1
    assert all(row.better is None for row in alike.rows) and alike.differences == []


def test_what_differs_beside_the_models_is_said(runs, tmp_path):
    def change(results):
        results["settings"]["steps"] = 4
        results["data"]["identity_hash"] = "f" * 64
        return results

    other = rewritten(runs[1], tmp_path / "other", change)
    assert [line.split(":")[0] for line in compare(runs[1], other).differences] == [
        "data identity",
        "steps of the solver",
    ]


def test_a_run_stands_for_its_newest_validation_on_the_hold_out(runs, tmp_path):
    run = tmp_path / "run"
    for name in ("step0000500", "step0002000", "step0009000_train"):
        shutil.copytree(runs[1] / "validation" / "step0001234", run / "validation" / name)
    assert newest_results(run).parent.name == "step0002000"
    assert newest_results(run / "validation" / "step0000500").parent.name == "step0000500"


def test_what_was_not_validated_cannot_be_compared(runs, tmp_path):
    with pytest.raises(UsageError, match="no validation here") as refused:
        compare(tmp_path, runs[0])
    assert "dit validate" in refused.value.hint
    (tmp_path / "x.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"not the results\.json of a validation") as refused:
        compare(runs[0], tmp_path / "x.pt")
    assert "judge it first with: dit validate" in refused.value.hint
    odd = tmp_path / "results.json"
    odd.write_text('{"step": 3}')
    with pytest.raises(BadDataError, match="verdict"):
        compare(odd, runs[0])


def test_older_results_without_later_figures_are_still_compared(runs, tmp_path):
    def older(results):
        for key in ("mode_losses", "diagnosis", "training"):
            results.pop(key)
        results["criteria"] = [
            {key: one[key] for key in ("name", "value", "threshold", "passed")} for one in results["criteria"]
        ]
        return results

    found = compare(rewritten(runs[1], tmp_path / "older", older), runs[0])
    assert {row.title: row.better for row in found.rows}["reconstruction, mean PSNR"] == 0
    assert write_comparison(found, tmp_path / "page.html").is_file()


def test_the_page_shows_truth_a_and_b_of_each_image_and_loads_nothing(runs, tmp_path):
    html = write_comparison(compare(*runs), tmp_path / "page.html").read_text("utf-8")
    assert html.count("data:image/webp;base64,") == 3 * 8 == html.count("<img ")
    assert "blind, step 1,234" in html and "good, step 1,234" in html
    assert "http" not in html.replace("http-equiv", "") and "default-src 'none'" in html


def test_the_loss_curves_of_both_runs_share_one_plot(runs, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for copy, losses in zip(copies, ((1.0, 0.9), (1.0, 0.5)), strict=True):
        (copy / "log.jsonl").write_text(
            "".join(f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in enumerate(losses, start=1))
        )
    with_logs = write_comparison(compare(*copies), tmp_path / "page.html").read_text("utf-8")
    assert with_logs.count("data:image/png;base64,") == 1
    assert "data:image/png" not in write_comparison(compare(*runs), tmp_path / "page.html").read_text("utf-8")


def test_hostile_results_stay_text_and_reach_no_other_file(runs, tmp_path):
    def hostile(results):
        results["verdict"] = "<script>alert(1)</script>"
        results["diagnosis"] = "<img src=x onerror=alert(1)>\u202e"
        for row in results["reconstruction"]["per_image"]:
            row["caption"], row["file"] = "</p><script>alert(2)</script>", "../../../secret.png"
        return results

    bad = rewritten(runs[1], tmp_path / "bad", hostile)
    shutil.copy(next((runs[1] / "validation" / "step0001234" / "reconstruction").iterdir()), tmp_path / "secret.png")
    html = write_comparison(compare(runs[0], bad), tmp_path / "page.html").read_text("utf-8")
    assert (
        "<script" not in html
        and "onerror=alert" not in html.replace("&lt;img src=x onerror=alert", "")
        and "\u202e" not in html
    )
    assert html.count("<figcaption>B</figcaption>") == 0, "the strip of the bad side is not found"


def test_the_command_prints_a_table_an_object_and_where_the_page_is(runs, tmp_path, dit):
    shown = dit("validate", "--compare", *runs, "--out", tmp_path / "side")
    assert shown.code == 0, shown.err
    assert "NO-GO  blind, step 1,234" in shown.out and "GO     good, step 1,234" in shown.out
    assert str(tmp_path / "side" / "compare.html") in shown.out.replace("\n", "")
    printed = json.loads(dit("validate", "--compare", *runs, "--json").out)
    assert [side["verdict"] for side in printed["sides"]] == ["NO-GO", "GO"] and printed["pairs"]["images"] == 8
    assert (runs[1] / "validation" / "step0001234" / "compare_with_blind_step0001234.html").is_file()
    assert dit("validate", runs[0], "--compare", *runs).code == 2


def test_two_equal_validations_are_as_near_as_each_other(perfect):
    pairs = compare(perfect.folder, perfect.folder).pairs
    assert (pairs.second_better, pairs.equal, pairs.p_value) == (0, 1, 1)
    assert "images are as near to the truth in B as in A" in pairs.line and "0%" not in pairs.line
