"""Images of a benchmark in one file: the same bits whatever was killed and however many processes drew."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dittool.data.features.parts import Part
from dittool.errors import BadDataError, UsageError
from dittool.sampling import sample_set
from dittool.sampling.request import SampleOptions
from dittool.sampling.sample_set import SampleSet, draw_set
from dittool.sampling.sets_of_prompts import set_of_prompts

COUNT = 70  # images: five batches, the last one short


@pytest.fixture
def numbered():
    """A set whose image i is of the colour i; `drawn` counts the batches, `dies_at` ends the process in one."""

    class Numbered:
        drawn = 0
        dies_at = None

        def draw(self, rows):
            self.drawn += 1
            if self.dies_at == self.drawn:
                raise KeyboardInterrupt
            return np.stack([np.full((4, 6, 3), row, np.uint8) for row in rows])

        def asked(self, **described):
            return SampleSet(COUNT, (6, 4), self.draw, {"prompts": ["x"] * COUNT, **described}, list(range(COUNT)))

    return Numbered()


def colours(path):
    with np.load(path) as file:
        assert file["arr_0"].shape == (COUNT, 4, 6, 3) and file["arr_0"].dtype == np.uint8
        assert file["arr_1"].tolist() == list(range(COUNT))
        return file["arr_0"][:, 0, 0, 0].tolist()


def test_what_was_drawn_before_a_kill_is_not_drawn_again(numbered, tmp_path, listener):
    out = tmp_path / "s.npz"
    numbered.dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        draw_set(numbered.asked(), out, Part(), listener)
    assert not out.exists() and len(list((tmp_path / "s.npz.parts").glob("*.npy"))) == 2
    numbered.drawn, numbered.dies_at = 0, None
    assert draw_set(numbered.asked(), out, Part(), listener) == out
    assert numbered.drawn == 3 and colours(out) == list(range(COUNT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.npz"]
    assert draw_set(numbered.asked(), out, Part(), listener) == out and numbered.drawn == 3, "there is nothing to do"


def test_parts_in_any_order_give_the_file_of_one_process(numbered, tmp_path, listener):
    draw_set(numbered.asked(), tmp_path / "alone.npz", Part(), listener)
    written = [draw_set(numbered.asked(), tmp_path / "s.npz", Part(i, 3), listener) for i in (2, 0, 1)]
    assert written == [None, None, tmp_path / "s.npz"]
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()


def test_another_set_is_neither_mixed_in_nor_overwritten(numbered, tmp_path, listener):
    out = tmp_path / "s.npz"
    draw_set(numbered.asked(), out, Part(0, 2), listener)
    with pytest.raises(UsageError, match="begun with other prompts"):
        draw_set(numbered.asked(step=2), out, Part(1, 2), listener)
    draw_set(numbered.asked(), out, Part(1, 2), listener)
    with pytest.raises(UsageError, match="another file stands there"):
        draw_set(numbered.asked(step=2), out, Part(), listener)
    assert draw_set(numbered.asked(step=2), out, Part(), listener, force=True) == out


def test_a_kill_while_the_file_is_written_leaves_every_batch(numbered, tmp_path, listener, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sample_set, "_write_npz", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_set(numbered.asked(), tmp_path / "s.npz", Part(), listener)
    assert not (tmp_path / "s.npz").exists()
    draw_set(numbered.asked(), tmp_path / "s.npz", Part(), listener)
    assert numbered.drawn == 5 and colours(tmp_path / "s.npz") == list(range(COUNT))


def test_a_file_of_prompts_becomes_a_file_of_samples_with_seeds_by_index(checkpoint, tmp_path, dit):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square on the left\n")
    line = ("sample", "--checkpoint", checkpoint, "--prompts", prompts, "-n", 2, "--seed", 5, "--quiet")
    ended = dit(*line, "--out", tmp_path / "s.npz", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {"samples": str(tmp_path / "s.npz"), "images": 4, "complete": True}
    as_from = ("--from" if word == "--prompts" else word for word in line)
    assert dit(*as_from, "--out", tmp_path / "s.npz", "--json").out == ended.out, "a list is no picture to draw again"
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["seeds"] == [5, 6, 7, 8] and record["prompts"][1:3] == ["a red circle", "a blue square on the left"]
    assert record["sampling"]["steps"] == 2 and record["checkpoint_sha256"] and record["made_with"]["threads"]
    with np.load(tmp_path / "s.npz") as file:
        samples = file["arr_0"]
    alone = ("--prompt", "a blue square on the left", "--seed", 7, "--quiet", "--out", tmp_path / "alone.png")
    assert dit("sample", "--checkpoint", checkpoint, *alone).code == 0
    with Image.open(tmp_path / "alone.png") as picture:
        assert np.abs(np.asarray(picture).astype(int) - samples[2]).max() <= 1, "but for rounding"


def test_options_and_lines_that_a_set_cannot_have_are_refused(checkpoint, tmp_path, dit, listener):
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a", "size": "64x64"}\n{"prompt": "b"}\n')
    with pytest.raises(BadDataError, match="several sizes"):
        set_of_prompts(SampleOptions(prompts=lines, checkpoint=checkpoint), listener)
    lines.write_text('{"prompt": "a", "negative": "b"}\n')
    with pytest.raises(BadDataError, match=r"p\.jsonl:1: .*prompts alone"):
        set_of_prompts(SampleOptions(prompts=lines, checkpoint=checkpoint), listener)
    ended = dit("sample", "--prompt", "a", "--init", lines, "--out", tmp_path / "s.npz")
    assert ended.code == 2 and "--init: no effect with --out F.npz" in ended.err
    ended = dit("sample", "--prompt", "a", "--part", "0/2")
    assert ended.code == 2 and "--part: no effect" in ended.err
