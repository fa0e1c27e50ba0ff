"""What a command line asks for, and what it cannot mean."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dittool.config.schema import Sample
from dittool.errors import BadDataError, UsageError
from dittool.sampling.grid import labelled, parse_grid
from dittool.sampling.prompts import read_prompts
from dittool.sampling.request import SampleOptions, plan


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one.png")
    return tmp_path / "one.png"


def asked(**options):
    """The options of a command line; the fields of `[sample]` among them stand in `settings`."""
    settings = {name: options.pop(name) for name in Sample.model_fields if name in options}
    return SampleOptions(settings=settings, **options)


def planned(checkpoint, **options):
    return plan(asked(checkpoint=checkpoint, **options))


def test_what_is_not_given_is_the_runs_own(checkpoint):
    (request,) = planned(checkpoint, prompt="x")
    assert (request.count, request.seed, request.size, request.changes, request.strength) == (1, 0, None, {}, 1.0)


def test_options_become_changes(checkpoint, picture):
    (request,) = planned(
        checkpoint,
        prompt="x",
        steps=3,
        solver="heun",
        cfg_text=0.0,
        guidance="nested",
        guidance_interval=(0.2, 0.8),
        size="64x32",
        init=picture,
    )
    assert request.changes == {
        "steps": 3,
        "solver": "heun",
        "cfg_text": 0.0,
        "guidance": "nested",
        "guidance_interval": [0.2, 0.8],
    }
    assert request.size == (64, 32) and request.strength == 0.6


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({}, "nothing to draw", "--prompt"),
        (
            {"prompt": "x", "solver": "hein"},
            "--solver 'hein' does not exist; there are euler, heun, ab2",
            "did you mean 'heun'?",
        ),
        ({"prompt": "x", "guidance": "adaptive"}, "--guidance 'adaptive'", "did you mean 'additive'?"),
        ({"prompt": "x", "cfg_text": float("nan")}, "--cfg-text nan", "help"),
        (
            {"prompt": "x", "guidance_interval": (0.8, 0.2)},
            "--guidance-interval [0.8, 0.2] ends before it begins",
            "help",
        ),
        ({"prompt": "x", "guidance_interval": (0.0, 1.5)}, "--guidance-interval", "help"),
        ({"prompt": "x", "strength": 0.5}, "--strength has no effect without --init", "--init"),
        ({"prompt": "x", "size": "64"}, "WIDTHxHEIGHT", "1216x832"),
        (
            {"prompt": "x", "grid": ("cfg-text=1,2", "cfg-dino=1,2")},
            "no effect without a reference",
            "give a reference",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(options, said, hint):
    with pytest.raises(UsageError) as raised:
        plan(asked(**options))
    assert said in raised.value.message and hint in raised.value.hint


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_of_0_to_1_is_refused(picture, strength):
    with pytest.raises(UsageError, match="outside of 0 to 1"):
        plan(SampleOptions(prompt="x", init=picture, strength=strength))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("cfg-test=1", "cfg-dino=1"), "'cfg-test' is no axis"),
        (("cfg-text=1", "cfg-text=2"), "both axes are cfg-text"),
        (("cfg-text", "cfg-dino=1"), "no values"),
        (("cfg-text=", "cfg-dino=1"), "not a list of numbers"),
        (("cfg-text=1,,2", "cfg-dino=1"), "not a list of numbers"),
        (("cfg-text=1,x", "cfg-dino=1"), "not a list of numbers"),
        (("cfg-text=-1", "cfg-dino=1"), "-1 is no guidance scale"),
        (("cfg-text=nan", "cfg-dino=1"), "nan is no guidance scale"),
        (("cfg-text=" + ",".join("1" * 11), "cfg-dino=" + ",".join("1" * 10)), "110 cells"),
    ],
)
def test_a_malformed_grid_is_refused(texts, said):
    with pytest.raises(UsageError) as raised:
        parse_grid(texts)
    assert said in raised.value.message and raised.value.hint


def test_a_grid_runs_across_and_down_and_is_written_as_it_is_read():
    grid = parse_grid(("cfg-dino=0,0.123456789", "cfg-text=1"))
    assert grid.settings() == [[{"cfg_dino": 0.0, "cfg_text": 1.0}, {"cfg_dino": 0.123456789, "cfg_text": 1.0}]]
    assert parse_grid((str(grid.across), str(grid.down))) == grid


def test_the_axes_of_a_grid_are_labelled_and_its_cells_stand_in_their_places():
    grid = parse_grid(("cfg-text=1,2,3", "cfg-dino=0,1"))
    cells = [[np.full((40, 60, 3), (10, 50 * row, 50 * column), np.uint8) for column in range(3)] for row in range(2)]
    sheet = np.asarray(labelled(cells, grid)).astype(int)
    for row in range(2):
        for column in range(3):
            found = np.argwhere((sheet == (10, 50 * row, 50 * column)).all(axis=2))
            assert len(found) == 40 * 60
            top, left = found.min(axis=0)
            above, beside = sheet[: top - 1, left : left + 60], sheet[top : top + 40, : left - 1]
            assert row > 0 or (above.sum(axis=2) < 300).any(), "a label over each column"
            assert column > 0 or (beside.sum(axis=2) < 300).any(), "a label to the left of each row"


# A file of prompts


def test_comments_of_a_file_of_prompts_are_said_and_not_drawn(tmp_path, listener):
    (tmp_path / "p.txt").write_text("# my prompts\na red circle\n#2\n")
    assert [line.prompt for line in read_prompts(tmp_path / "p.txt", listener)] == ["a red circle"]
    assert "2 lines that begin with # are comments" in listener.notes[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "a cat --w 512 --h 512", "p.txt:1: --w: options in a line"),
        ("p.txt", "ok\na castle --ar 3:2", "p.txt:2: --ar"),
        ("p.txt", '{"prompt": "a cat"}', "p.txt:1: JSON"),
        ("p.json", '["a cat"]', "not .json"),
        ("p.csv", "prompt\na cat", "not .csv"),
        ("p.jsonl", '{"prompt": "a", "size": "12"}', "p.jsonl:1: size"),
        ("p.jsonl", '{"prompt": "a", "negative": 3}', "negative is 3"),
    ],
)
def test_what_would_be_drawn_as_words_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadDataError) as raised:
        read_prompts(tmp_path / name)
    assert said in raised.value.message


def test_a_dash_in_prose_is_no_option(tmp_path):
    (tmp_path / "p.txt").write_text("a dog -- running\na well-kept garden\n")
    assert len(read_prompts(tmp_path / "p.txt")) == 2


def test_a_line_says_its_own_size_and_what_to_draw_away_from(checkpoint, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "size": "64x96", "negative": "b"}\n{"prompt": "c"}\n')
    own, shared = planned(checkpoint, prompts=tmp_path / "p.jsonl", size="128x128", negative="d")
    assert (own.size, own.negative) == ((64, 96), "b")
    assert (shared.size, shared.negative) == ((128, 128), "d")


def test_a_text_file_has_a_prompt_a_line(checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  ein grünes Quadrat \n", encoding="utf-8")
    requests = planned(checkpoint, prompts=tmp_path / "prompts.txt", seed=4, count=2)
    assert [(one.prompt, one.seed, one.count, one.name) for one in requests] == [
        ("a red circle", 4, 2, "sample_line001"),
        ("ein grünes Quadrat", 4, 2, "sample_line003"),
    ]


def test_a_jsonl_line_may_have_its_own_reference_and_seed(checkpoint, picture, tmp_path):
    lines = [{"prompt": "x"}, {"ref": "one.png", "seed": 9}, {"prompt": "y", "seed": 0}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    requests = planned(checkpoint, prompts=tmp_path / "p.jsonl", seed=4)
    assert [(one.prompt, one.reference, one.seed) for one in requests] == [
        ("x", None, 4),
        (None, picture, 9),
        ("y", None, 0),
    ]
    assert planned(checkpoint, prompts=tmp_path / "p.jsonl", ref=picture)[0].reference == picture


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "neither prompt nor ref"),
        ("{}", "neither prompt nor ref"),
        ('{"prompt": 3}', "prompt is 3, not text"),
        ('{"prompt": "x", "seed": -1}', "not a whole number"),
        ('{"prompt": "x", "seed": true}', "not a whole number"),
        ('{"prompt": "x", "sed": 1}', "unknown key 'sed'"),
        ('{"ref": "missing.png"}', "missing.png: no such file"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, said):
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(BadDataError) as raised:
        read_prompts(tmp_path / "p.jsonl")
    assert "p.jsonl:2" in raised.value.message and said in raised.value.message and raised.value.hint


def test_a_file_without_prompts_or_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\0x")
    for name, said in (("empty.txt", "no prompt"), ("binary.txt", "not UTF-8")):
        with pytest.raises(BadDataError, match=said):
            read_prompts(tmp_path / name)


# The command line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "neither --prompt nor --ref"),
        (["--prompt", "x", "--ref", "missing.png"], 2, "missing.png"),
        (["--prompt", "x", "--init", "missing.png"], 2, "--init missing.png"),
        (["--prompts", "missing.txt"], 2, "missing.txt"),
        (["--prompts", "missing.txt", "--prompt", "x"], 2, "exclude each other"),
        (["--prompt", "x", "--size", "100"], 2, "WIDTHxHEIGHT"),
        (["--prompt", "x", "--solver", "magic"], 2, "magic"),
        (["--prompt", "x", "--solver", "eule"], 2, "did you mean 'euler'?"),
        (["--prompt", "x", "--checkpoint", "nothing.pt"], 2, "nothing.pt"),
        (["--prompt", "x", "--grid", "cfg-text=1,2"], 2, "--grid"),
        (["--prompt", "x", "--grid", "cfg-txt=1,2", "cfg-dino=1"], 2, "did you mean 'cfg-text'?"),
        (["--from", "missing.png"], 2, "missing.png"),
        (["--prompt", "x", "--guidance-interval", "0.5", "2"], 2, "--guidance-interval"),
    ],
)
def test_wrong_options_are_told_in_one_line(dit, arguments, code, said):
    outcome = dit("sample", *arguments)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err


def test_the_help_names_every_solver(dit):
    assert "|".join(get_args(Sample.model_fields["solver"].annotation)) in dit("sample", "--help").out


def test_a_size_that_is_not_whole_tokens_is_a_usage_error(dit, checkpoint, tmp_path):
    outcome = dit("sample", "--prompt", "x", "--checkpoint", checkpoint, "--size", "100x100", "--out", tmp_path)
    assert outcome.code == 2 and "multiples of 16" in outcome.err


def test_a_picture_with_unreadable_settings_is_bad_data(dit, picture):
    outcome = dit("sample", "--from", picture)
    assert outcome.code == 3 and "no settings inside" in outcome.err


def test_from_the_command_line_to_pictures_and_one_object_of_json(dit, checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square")
    outcome = dit(
        "sample",
        "--prompts",
        tmp_path / "prompts.txt",
        "-n",
        2,
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "out",
        "--json",
    )
    images = json.loads(outcome.out)["images"]
    assert [(one["settings"]["prompt"], one["settings"]["seed"]) for one in images] == [
        ("a red circle", 0),
        ("a red circle", 1),
        ("a blue square", 0),
        ("a blue square", 1),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sample_line001_seed000000.png",
        "sample_line001_seed000001.png",
        "sample_line002_seed000000.png",
        "sample_line002_seed000001.png",
    ]
    again = dit("sample", "--from", images[3]["file"], "--out", tmp_path / "again.png", "--json")
    assert json.loads(again.out)["images"][0]["same_pixels"] is True
