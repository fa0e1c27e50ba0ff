"""Faults of checkpoint files. Each function plants one; see `planted.py`."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.specimens.layouts import UnknownWeights
from dittool.audit.subject import Checkpoint, Subject
from dittool.config.load import config_to_toml, load_config
from dittool.objective.schedule import is_decayed
from tests.audit.planted import plants
from tests.audit.workshop import Workshop


@plants("K1", "a file that was changed after it was saved")
def changed_after_saving(shop: Workshop) -> Subject:
    path = shop.run() / "checkpoints/checkpoint_final.pt"
    content = torch.load(path, weights_only=True)
    content["ema"]["output.weight"] += 1
    torch.save(content, path)
    return shop.open(path)


@plants("K1", "a pickle that calls a function")
def hostile_pickle(shop: Workshop) -> Subject:
    class Canary:
        def __reduce__(self):
            return (Path.touch, (Path(shop.bench / "canary"),))

    torch.save({"model": Canary()}, shop.bench / "hostile.pt")
    return Checkpoint("hostile.pt", CheckpointView(shop.bench / "hostile.pt"), UnknownWeights(), None)


@plants("K2", "NaN in an averaged weight")
def nan_weight(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content["ema"]["output.weight"].fill_(math.nan)))


@plants("K3", "weights of another depth")
def other_depth(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content["config"]["model"].update(depth=3)))


@plants("K3", "weights of another width than the preset's")
def other_preset(shop: Workshop) -> Subject:
    return shop.open(shop.clean / "run/checkpoints/checkpoint_final.pt", load_config("demo"))


@plants("K4", "a gate that never left zero")
def closed_gate(shop: Workshop) -> Subject:
    width = 32
    return shop.open(
        shop.checkpoint(lambda content: content["model"]["blocks.1.modulation.weight"][2 * width : 3 * width].zero_())
    )


@plants("K4", "a null token that was never used")
def unused_null(shop: Workshop) -> Subject:
    def forget(content):
        names = [name for name, tensor in content["model"].items() if not is_decayed(name, tensor.dim())]
        decayed = len(content["model"]) - len(names)
        content["optimizer"]["state"][decayed + names.index("conditioning.null_text")]["exp_avg_sq"].zero_()

    return shop.open(shop.checkpoint(forget))


@plants("K5", "weights without the optimizer")
def no_optimizer(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content.pop("optimizer")))


@plants("K5", "a run whose configuration was edited afterwards")
def edited_configuration(shop: Workshop) -> Subject:
    run = shop.run()
    config = load_config(str(run / "resolved.toml"), ["train.lr=1e-4", "train.min_lr=0.0"])
    (run / "resolved.toml").write_text(config_to_toml(config))
    return shop.open(run)


@plants("K6", "an average that is a copy")
def copied_average(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content.update(ema=content["model"])))


@plants("K6", "raw and averaged weights under each other's name")
def exchanged_names(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content.update(ema=content["model"], model=content["ema"])))
