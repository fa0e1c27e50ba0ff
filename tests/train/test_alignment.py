"""REPA in a run: where its head lives, which checkpoints begin with or without it, and when it ends."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.inspect import export_safetensors
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError
from dittool.models.alignment import drawing_weights, is_training_only
from dittool.sampling.pipeline import Pipeline
from dittool.train.loop import train

REPA = ("repa.weight=0.5", "train.steps=3")


def test_weights_without_a_head_begin_a_run_that_aligns_and_the_other_way_round(tiny_run, tiny_shards, tmp_path):
    train(tiny_shards.config_with(*REPA), tiny_shards.folder, tmp_path / "aligned", init=tiny_run)
    final = tmp_path / "aligned" / "checkpoints" / "checkpoint_final.pt"
    content = load_checkpoint(final)
    head = {name for name in content["model"] if is_training_only(name)}
    assert len(head) == 6 and head <= content["ema"].keys()
    train(tiny_shards.config_with("train.steps=3"), tiny_shards.folder, tmp_path / "plain", init=final)
    plain = load_checkpoint(tmp_path / "plain" / "checkpoints" / "checkpoint_final.pt")["model"]
    assert plain.keys() == content["model"].keys() - head


def test_weights_that_lack_anything_else_are_refused(tiny_run, tiny_shards, tmp_path):
    weights = load_weights(tiny_run / "checkpoints" / "checkpoint_final.pt")
    del weights["output.bias"]
    save_file(weights, tmp_path / "lacking.safetensors")
    with pytest.raises(BadDataError, match=r"output\.bias: missing"):
        init = tmp_path / "lacking.safetensors"
        train(tiny_shards.config_with(*REPA), tiny_shards.folder, tmp_path / "run", init=init)


def test_drawing_takes_the_weights_without_the_head(tiny_run, tiny_shards, tmp_path, dit):
    train(tiny_shards.config_with(*REPA), tiny_shards.folder, tmp_path / "run")
    final, exported = tmp_path / "run" / "checkpoints" / "checkpoint_final.pt", tmp_path / "exported.safetensors"
    assert not any(is_training_only(name) for name in Pipeline.load(final).model.state_dict())
    export_safetensors(final, exported)
    (whole,), (again,) = (Pipeline.load(path)("a red circle", size=(64, 64)) for path in (final, exported))
    assert whole.tobytes() == again.tobytes()
    content = load_checkpoint(final)
    content["ema"] = drawing_weights(content["ema"])
    (without,) = Pipeline.load(save_checkpoint(tmp_path / "less", content, final=True))("a red circle", size=(64, 64))
    assert whole.tobytes() == without.tobytes()


def test_an_alignment_ends_with_its_share_of_the_run(tiny_shards, tmp_path):
    keys = ("repa.weight=0.5", "train.steps=4", "train.log_every=1", "train.accumulate=2")
    train(tiny_shards.config_with(*keys, "repa.until=0.5"), tiny_shards.folder, tmp_path / "half")
    train(tiny_shards.config_with(*keys), tiny_shards.folder, tmp_path / "whole")
    of_half, of_whole = (
        {row["step"] for row in read_log(tmp_path / run) if "loss_repa" in row} for run in ("half", "whole")
    )
    assert max(of_half) <= 2 < max(of_whole)
