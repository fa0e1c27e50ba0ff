"""What a run is made of and how it becomes a checkpoint and comes back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dittool.ckpt.load import FORMAT_VERSION
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import EXCLUSIVE, MUON_DEFAULTS
from dittool.data.identity import differences
from dittool.data.provenance import Provenance
from dittool.errors import BadDataError, UsageError
from dittool.families.family import TrainingData, family_of
from dittool.seeding import derive_seed
from dittool.train.averages import PowerAverages
from dittool.train.distributed import Ranks, gathered, parts_like
from dittool.train.optim import EmaModel, Optimizer

COMPILER = "inductor"  # backend of torch.compile


class TrainState:
    """Model, EMA, optimizer and the number of updates made, the same in every process of a run; and what the family
    opened for it.
    """

    def __init__(self, config: AnyConfig, data: TrainingData, ranks: Ranks) -> None:
        require_readable(config, data.provenance)
        keys = config.train
        torch.manual_seed(derive_seed("first weights", keys.seed, keys.init_draw) if keys.init_draw else keys.seed)
        self.family, self.config, self.data = family_of(config), config, data
        self.ranks, self.device = ranks, ranks.device
        self.model = self._build()
        self.ema = EmaModel(self.model, config.ema)
        if compiles(config, ranks.device):
            compile_blocks(self.model)
        for model in (self.model, self.ema.model):
            ranks.shard(model, config.train.precision)
        self.averages = PowerAverages(self.model, config.ema.averages)
        self.replica = ranks.replica(self.model)  # the same weights; its backward averages gradients over the processes
        self.optimizer = Optimizer(self.model, config.train, ranks)
        self.step = 0  # optimizer updates made
        self.samples_seen = 0  # by all processes together
        self.skipped_updates = 0  # steps without an update, because loss or gradient was not finite

    def _build(self) -> nn.Module:
        return self.family.build(self.config, self.data.provenance.widths).to(self.device)

    def forward(self, *inputs: Any) -> Tensor:
        """The network in the run's precision; its backward averages gradients over the processes."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            return self.replica(*inputs)

    def gathered_ema(self) -> nn.Module:
        """The averaged model in one piece, to evaluate and to draw with, in the first process alone: what the others
        get is not to be called. All processes must ask together.
        """
        if not self.ranks.sharded:
            return self.ema.model
        model = self.ema.model
        if self.ranks.first:
            with torch.random.fork_rng(devices=[]):
                model = self._build().eval().requires_grad_(False)
        for mine, part in zip(model.state_dict().values(), self.ema.model.state_dict().values(), strict=True):
            tensor = gathered(part)  # one at a time, so that no process holds all of them beside its own
            if self.ranks.first:
                mine.copy_(tensor)
        return model

    def to_checkpoint(self) -> dict[str, Any]:
        """`content` in one piece whatever the number of processes. All processes must ask together."""
        return gathered(self.content())

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds, tensors and plain values only; the tensors as they lie in this process, to be read
        before the next step changes them.
        """
        require_readable(self.config, self.data.provenance)
        return {
            "format_version": FORMAT_VERSION,
            "config": config_to_dict(self.config),
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.model.state_dict()),
            "optimizer": self.optimizer.state(),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "skipped_updates": self.skipped_updates,
            "rng": {"torch": torch.get_rng_state()},
            "data": self.data.provenance.to_json(),
            **self.averages.state(),
            **self.family.state(self.data),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continues where the checkpoint stood. The caller has compared configuration and data, and lets the family
        begin from the same checkpoint.
        """
        for model, part in ((self.model, "model"), (self.ema.model, "ema")):
            model.load_state_dict(parts_like(checkpoint[part], model.state_dict()))
        self.averages.load(checkpoint.get("snapshots", {}), self.model, checkpoint["step"])
        self.optimizer.load(checkpoint["optimizer"])
        self.step, self.samples_seen = checkpoint["step"], checkpoint["samples_seen"]
        self.skipped_updates = checkpoint.get("skipped_updates", 0)  # format version 1 did not always have it
        torch.set_rng_state(checkpoint["rng"]["torch"])


def require_readable(config: AnyConfig, data: Provenance) -> None:
    """Raises before anything is written when a resumed run could not read what a checkpoint would say of the run.
    The tensors are looked at once more in the file itself (`ckpt/files.py`).
    """
    if config_from_dict(config_to_dict(config), "the configuration of this run") != config:
        raise ValueError("the configuration of this run is not the same after it was written and read")
    Provenance.from_json(data.to_json(), "the data of this run")


INDEX_IS_CLAIM = (
    "the index of the data is another one, made later (dit shard --index): its samples and statistics are those of the"
    " checkpoint, and that its encoders made them is a claim in one of the two"
)


def require_same_run(checkpoint: dict[str, Any], config: AnyConfig, data: Provenance, named: set[str]) -> list[str]:
    """The differences between a checkpoint and the run that would continue it, all of them named on the command line.

    Args:
        named: dotted keys given with `-s`; one that takes another's place names both.

    Raises `UsageError` for a changed key that was not named and `BadDataError` for other data. Data whose index alone
    was made again are the same.
    """
    # keys younger than the checkpoint have their defaults
    before = config_from_dict(checkpoint["config"], "the checkpoint's configuration")
    changed = differences(config_to_dict(config), config_to_dict(before))
    replaced = {f"{section}.{other}" for (section, key), other in EXCLUSIVE.items() if f"{section}.{key}" in named}
    if "train.optimizer" in named:
        replaced |= {f"train.{key}" for key in MUON_DEFAULTS}
    if "train.schedule" in named:
        replaced.add("train.cooldown_steps")
    unnamed = [line for line in changed if line.split(":")[0] not in named | replaced]
    if unnamed:
        raise UsageError(
            f"the configuration differs from the checkpoint's: {'; '.join(unnamed)}",
            "resume without --preset, or name each change with -s key=value",
        )
    old = Provenance.from_json(checkpoint["data"], "the checkpoint")
    is_claim = old.identity_hash != data.identity_hash and old.is_same_data(data)
    if old.identity_hash != data.identity_hash and not is_claim:
        raise BadDataError(
            "the data have another identity than the checkpoint's:"
            f" {'; '.join(differences(data.identity.to_json(), old.identity.to_json()))}",
            "train on the data of before (--data), or start a new run with another --out",
        )
    if old.order_hash != data.order_hash or old.norm != data.norm:
        if of_data := [line for line in changed if line.startswith("data.")]:
            raise UsageError(
                f"{'; '.join(of_data)}: with that the training samples or their statistics are not the checkpoint's",
                "leave that change out, or start a new run from these weights with --init",
            )
        raise BadDataError(
            "the training samples or their statistics are not the checkpoint's: images were added, removed, or sharded"
            " differently",
            "train on the shards of before (--data), or start a new run from these weights with --init",
        )
    return [*changed, INDEX_IS_CLAIM] if is_claim else changed


def compiles(config: AnyConfig, device: torch.device) -> bool:
    """Whether a run is compiled on this device."""
    wanted = config.train.compile
    return device.type == "cuda" if wanted == "gpu" else wanted


def saves_in_background(config: AnyConfig, device: torch.device) -> bool:
    """Whether checkpoints are written beside the steps that follow, from copies in the host's memory."""
    wanted = config.checkpoint.background
    return device.type == "cuda" if wanted == "gpu" else wanted


def compile_blocks(model: nn.Module) -> None:
    """torch.compile of the blocks in place, at their first call: their graph is the same, so one compilation serves all
    of them. Names of parameters stay.

    Samples, latent tokens and context tokens are symbols in it from the first call on, so buckets and caption lengths
    add no graph. There are two: with an attention mask and without. A batch of a single sample has two of its own,
    because the compiler takes a size of 1 as fixed. Nothing is specialised first and generalised later, so a resumed
    run computes with the graphs of the uninterrupted one.
    """
    for block in model.get_submodule("blocks").children():
        block.compile(dynamic=True, backend=COMPILER)
