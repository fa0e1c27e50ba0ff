"""`dit validate` on a command line: its files, its exit codes."""

from __future__ import annotations

import json
import shutil

import pytest

from dittool.ckpt.files import run_folder
from dittool.ckpt.run_data import recorded_data
from dittool.data.shards.older_sets import index_older_set
from dittool.errors import UsageError
from dittool.sampling.pipeline import Pipeline
from dittool.storage import write_json
from dittool.validate.run import ValidateOptions, validate
from tests.run_states import fresh_state


def test_a_checkpoint_with_random_weights_is_judged_from_its_files_and_is_no_go(tiny_shards, tmp_path, dit):
    from dittool.ckpt.files import save_checkpoint

    state = fresh_state(tiny_shards.config, tiny_shards.folder)
    for parameter in state.model.parameters():  # only the EMA weights can draw
        parameter.data.fill_(float("nan"))
    run = tmp_path / "runs" / "tiny"
    checkpoint = save_checkpoint(run / "checkpoints", state.to_checkpoint(), final=True)
    write_json(run / "run.json", {"data": str(tiny_shards.folder)})
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.9}\n')
    assert recorded_data(run_folder(checkpoint), "") == tiny_shards.folder

    ended = dit("validate", run, "--limit", 3, "--quiet")
    assert ended.code == 1, ended.err
    assert "NO-GO" in ended.out and "report.html" in ended.out
    folder = run / "validation" / "step0000000_limit3"
    assert {
        "results.json",
        "report.html",
        "contact_sheet.png",
        "loss.png",
        "reconstruction",
        "dino_swap",
        "text_manip",
    } <= {path.name for path in folder.iterdir()}
    assert "data:image/png;base64," in (folder / "report.html").read_text(), "the loss curve stands in the page"

    ended = dit("validate", checkpoint, "--limit", 2, "--tests", "dino_swap", "--json", "--quiet")
    assert ended.code == 1
    printed = json.loads(ended.out)
    assert printed["verdict"] == "NO-GO" and "reconstruction" not in printed


def test_go_is_exit_code_0(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    ended = dit("validate", checkpoint, "--data", drawn[0].folder, "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.rstrip().endswith(str(tmp_path / "validation" / "step0001234" / "report.html"))


def test_a_named_backbone_that_is_not_there_is_exit_code_7_before_anything_is_drawn(
    drawn, oracle, tmp_path, monkeypatch, dit
):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    ended = dit("validate", checkpoint, "--data", drawn[0].folder, "--lpips-backbone", tmp_path / "gone.pth", "--quiet")
    assert ended.code == 7
    assert not (tmp_path / "validation").exists()


def test_an_output_folder_that_cannot_be_is_exit_code_5_before_the_checkpoint_is_read(tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: pytest.fail("loaded")))
    checkpoint = tmp_path / "checkpoint_final.pt"
    checkpoint.touch()
    (tmp_path / "validation").write_text("a file")
    assert dit("validate", checkpoint, "--data", tmp_path).code == 5


@pytest.mark.parametrize(("tests", "message"), [(["fyd"], "'fyd'"), ([], "no test")])
def test_an_unknown_test_is_a_usage_error_that_lists_those_there_are(tests, message):
    with pytest.raises(UsageError, match=message) as caught:
        ValidateOptions(tests)
    assert "reconstruction, dino_swap, text_manip" in caught.value.hint


def test_the_training_set_has_a_folder_of_its_own(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    for arguments in ((), ("--split", "train")):
        dit(
            "validate",
            tmp_path / "checkpoint_final.pt",
            "--data",
            drawn[0].folder,
            "--limit",
            2,
            "--tests",
            "reconstruction",
            "--quiet",
            *arguments,
        )
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == [
        "step0001234_reconstruction_limit2",
        "step0001234_train_reconstruction_limit2",
    ]


def test_a_part_has_a_place_of_its_own_and_says_what_it_left_out(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    line = ("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--quiet")
    ended = dit(*line, "--tests", "dino_swap", "--limit", "1")
    assert ended.code == 1
    assert "NO-GO  step 1234, EMA weights, 1 held-out images; not judged: reconstruction, text_manip" in ended.out
    assert dit(*line, "--tests", "mode_losses").code == 1
    names = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert names == ["step0001234_dino_swap_limit1", "step0001234_mode_losses"]
    ended = dit("validate", "--compare", tmp_path, tmp_path)
    assert ended.code == 2 and "no validation here" in ended.err, "a part never passes for the complete judgement"


def test_a_comparison_refuses_what_it_would_ignore(tmp_path, dit):
    for option, value in (("--limit", 3), ("--tests", "dino_swap"), ("--data", tmp_path), ("--split", "train")):
        ended = dit("validate", "--compare", tmp_path, tmp_path, option, value)
        assert ended.code == 2 and f"{option}: no effect with --compare" in ended.err


def test_shards_whose_index_was_made_again_as_a_claim_are_those_of_the_training(tiny_run, tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    for path in [folder / "index.json", *folder.rglob("*.members.json")]:
        path.unlink()
    index_older_set(folder, tiny_shards.config)
    checkpoint = tiny_run / "checkpoints" / "checkpoint_final.pt"
    done = validate(checkpoint, folder, tmp_path / "out", ValidateOptions(["mode_losses"], limit=2))
    assert done.results["data"]["unseen"]
