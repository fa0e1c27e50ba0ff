"""Rectified flow with two conditions, a caption and a reference image: `model.arch = "dit"`.

train/loop.py → this file → objective/flow.py → models/dit.py
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dittool.audit.specimens.ours import FlowNetwork
from dittool.config.schema import Config
from dittool.console import Talk
from dittool.data.patch_storage import FP32, INT8, NONE, stored_grid
from dittool.data.provenance import Provenance
from dittool.data.shards.caption_draw import require_known_kinds, shares_drawn
from dittool.data.shards.columns import Samples
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import Batch, BatchStream, sizes_within
from dittool.encoders import known
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError, UsageError
from dittool.families.family import BatchBytes, BatchKind, Conclusion, Evaluated, Family, Forward
from dittool.families.flow_evaluation import FlowEvaluation
from dittool.families.synthetic import write_noise
from dittool.geometry import Bucket, patch_grid, require_whole_tokens
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT
from dittool.objective.alignment import Alignment
from dittool.objective.flow import MODES, FlowLoss, dropout_modes, flow_loss, shift_at, timesteps
from dittool.objective.routing import FEWEST_TOKENS, passing_tokens
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.preview import draw_preview
from dittool.seeding import derive_seed
from dittool.shell import command_line
from dittool.validate.mode_losses import QUANTILES, sample_losses
from dittool.validate.run import judge_during_training
from dittool.validate.samples import choose
from dittool.validate.text_edit import CaptionChecker

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks

_LOOKED_AT = 2000  # micro-batches, to see how often each bucket comes
_CAPTIONS_COUNTED = 20_000  # samples, to say how often each kind of caption is drawn


@dataclass
class FlowData:
    """The shards of a run."""

    config: Config
    folder: Path
    provenance: Provenance
    refs: Samples  # the training samples
    stream: BatchStream
    device: torch.device
    evaluation: FlowEvaluation | None  # None: nothing is held out, or nobody asks
    preview: Callable[[Pipeline, Path], None]
    pipeline: Pipeline | None = None  # of the pictures drawn on the way: its codec is loaded once


def build(config: Config, widths: FeatureWidths) -> DiT:
    return build_model(config, widths.text, widths.image, widths.latent_channels, to_train=True)


def known_widths(config: Config) -> FeatureWidths | None:
    names = config.encoders
    return known.known_widths(names.image, names.text, names.vae)


def open_data(config: Config, folder: Path, ranks: Ranks) -> FlowData:
    """Raises `BadDataError` for features of other encoders, `UsageError` when a batch does not divide among the
    processes.
    """
    shards = ShardSet.open(folder)
    require_features(config, shards)
    refs, held, evaluation = shards.split(TRAIN), shards.split(HOLDOUT), None
    provenance = Provenance.of(shards, refs, config)
    stream = training_stream(config, shards, refs, provenance, ranks)
    if ranks.first and config.train.eval_every and held:
        evaluation = FlowEvaluation(shards, held, provenance.norm, config)
    return FlowData(config, folder, provenance, refs, stream, ranks.device, evaluation, draw_preview(folder))


def training_stream(
    config: Config, shards: ShardSet, refs: Samples, provenance: Provenance, ranks: Ranks
) -> BatchStream:
    """The run's micro-batches, this process's share of each: of one size, or of as many samples of each bucket as a
    budget of latent tokens allows.
    """
    train = config.train
    sizes: int | dict[str, int]
    if train.batch_size is not None:
        sizes = train.batch_size
    else:
        assert train.tokens_per_batch is not None  # the schema wants one of the two
        cell = shards.card.vae.stride * config.model.patch_size
        buckets = sorted(refs.bucket_counts())
        sizes = sizes_within(train.tokens_per_batch, buckets, cell, train.batch_multiple or 1)
    return BatchStream(
        shards,
        refs,
        provenance.norm,
        sizes,
        train.seed,
        config.reads_patches,
        rank=ranks.rank,
        ranks=ranks.count,
        accumulate=train.accumulate,
        caption_weights=config.data.caption_weights,
    )


def batches(data: FlowData, first: int, end: int) -> Iterator[Batch]:
    train = data.config.train
    return data.stream.batches(first * train.accumulate, end * train.accumulate, train.workers, data.device)


def loss(data: FlowData, model: Forward, batch: Batch) -> FlowLoss:
    """E ‖v(z_t, t, conditions) − (ε − x0)‖², with conditions dropped in the shares of `[dropout]`."""
    config = data.config
    shift = shift_at(config.flow.shift, batch.latents)
    t = timesteps(batch.timestep_draw, config.flow.timestep_sampling, shift).to(batch.latents.device, non_blocking=True)
    d = config.dropout
    modes = dropout_modes(batch.mode_draw, d.shares)
    aligned = alignment_of(config, batch.number // config.train.accumulate)
    route = route_of(config, batch)
    return flow_loss(model, batch.latents, batch.noise, t, batch.conditions, modes, aligned, route)


def route_of(config: Config, batch: Batch) -> Tensor | None:
    """(B, K) the tokens that pass the routed blocks: f(seed, number of the sample in the run)."""
    if config.tread.share == 0:
        return None
    numbers = range(batch.first_sample, batch.first_sample + len(batch))
    seeds = [derive_seed(config.train.seed, "route", number) for number in numbers]
    tokens = batch.latents[0, 0].numel() // config.model.patch_size**2
    return passing_tokens(seeds, tokens, config.tread.share).to(batch.latents.device, non_blocking=True)


def begin(data: FlowData, _saved: Mapping[str, object], talk: Talk) -> dict[str, float]:
    """Says which captions are drawn, where an image has several, and where routing is asked for with few tokens."""
    shares = shares_of_captions(data)
    if shares:
        drawn = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
        talk.note(f"captions drawn in the first pass over the data: {drawn}")
    config, card = data.config, data.provenance.card
    cell = card.vae.stride * config.model.patch_size
    fewest = min(Bucket.from_name(name).area // cell**2 for name in card.buckets)
    if config.tread.share and fewest < FEWEST_TOKENS:
        talk.warn(
            f"tread.share {config.tread.share:g}: pictures of {fewest} tokens; routing was found to help from"
            f" {FEWEST_TOKENS:,} on and to hurt at 256"
        )
    return {f"captions_{kind}": share for kind, share in shares.items()}


def shares_of_captions(data: FlowData) -> dict[str, float]:
    """Kind → its share of the captions of the first pass; nothing where an image has one. Of a large set some samples
    are counted, evenly spread.
    """
    if not data.provenance.card.captions:
        return {}
    counted = range(0, len(data.refs), -(-len(data.refs) // _CAPTIONS_COUNTED))
    refs, config = [data.refs[place] for place in counted], data.config
    return shares_drawn(refs, config.data.caption_weights or {}, config.train.seed)


def alignment_of(config: Config, step: int) -> Alignment | None:
    """What `[repa]` asks of update `step`, counted from 0."""
    if config.repa.weight == 0:
        return None
    active = step < (config.repa.until or 1.0) * config.train.steps
    return Alignment(config.repa.weight, config.model.patch_size, active)


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Conditions]:
    """What the network is called with, nothing dropped: latents, timesteps, conditions."""
    return batch.latents, batch.timestep_draw.float().to(batch.latents.device), batch.conditions


def figures(losses: Sequence[FlowLoss], ranks: Ranks) -> dict[str, float]:
    """The loss of each dropout mode and of each third of the timesteps, and the alignment's."""
    per_sample, t, modes = (
        ranks.gather(torch.cat([getattr(loss, name).detach() for loss in losses]))
        for name in ("per_sample", "t", "modes")
    )
    norm = float(ranks.mean(torch.stack([loss.velocity_norm for loss in losses]).mean()))
    groups = {f"loss_{name}": modes == index for index, name in enumerate(MODES)}
    groups |= {"loss_t_low": t < 1 / 3, "loss_t_mid": (t >= 1 / 3) & (t < 2 / 3), "loss_t_high": t >= 2 / 3}
    means = {name: float(per_sample[chosen].mean()) for name, chosen in groups.items() if chosen.any()}
    if aligned := [loss.alignment.detach() for loss in losses if loss.alignment is not None]:
        of_alignment = ranks.gather(torch.cat(aligned))
        means |= {"loss_repa": float(of_alignment[of_alignment != 0].mean())} if of_alignment.any() else {}
    return {"velocity_norm": norm, **means}


def evaluate(data: FlowData, model: DiT, device: torch.device) -> Evaluated:
    return Evaluated() if data.evaluation is None else data.evaluation.losses(model, device)


def draw(data: FlowData, model: DiT, step: int, path: Path) -> None:
    """Hold-out samples above, what the model makes of their captions and references below."""
    data.pipeline = data.pipeline or Pipeline(model, data.config, data.provenance, step)
    data.pipeline.model, data.pipeline.step = model, step
    data.preview(data.pipeline, path)


def judge(data: FlowData, model: DiT, step: int, run: Path, checker: CaptionChecker | None, talk: Talk) -> None:
    """The tests of `dit validate`, into `run`/validation. `checker` reads edited captions back from pictures."""
    judge_during_training(Pipeline(model, data.config, data.provenance, step), data.folder, run, checker, talk)


def losses(checkpoint: Path, shards: Path, most: int) -> tuple[list[str], list[str], Tensor]:
    """loss(mode, t) of held-out samples at the quantiles of one density of timesteps, logit-normal without shift, and
    with the noise that belongs to each id: `flow.*` and shares of dropout of the run have no say. One column for each
    mode and timestep, `both 0.50`.
    """
    opened = ShardSet.open(shards)
    refs = [subject.ref for subject in choose(opened, most, HOLDOUT)[1]]
    times = timesteps(torch.tensor(QUANTILES), "logit_normal", 1.0)
    found = sample_losses(Pipeline.load(checkpoint), opened, refs, times)  # (samples, modes, timesteps)
    columns = [f"{mode} {float(t):.2f}" for mode in MODES for t in times]
    return [ref.id for ref in refs], columns, found.flatten(start_dim=1)


def kinds(data: FlowData) -> list[BatchKind[Batch]]:
    """One for each bucket that comes."""
    stream, refs, found = data.stream, data.refs, []
    of_batch = partial(_bucket_of_batch, data)
    shares = Counter(of_batch(number) for number in range(_LOOKED_AT))
    samples = refs.bucket_counts()
    for name, times in shares.items():
        batch = stream[next(number for number in count() if of_batch(number) == name)]
        tokens = batch.latents[0, 0].numel() // data.config.model.patch_size**2
        c = batch.conditions
        model = data.config.model
        attended = c.patches if model.patches and model.patch_fusion == "attended" else None
        context = (0 if c.text is None else c.text.shape[1]) + 1 + (0 if attended is None else attended.shape[1])
        size, share = stream.plan.sizes[name], times / _LOOKED_AT
        found.append(BatchKind(name, samples[name], size, tokens, context, size, share, batch))
    return found


def _bucket_of_batch(data: FlowData, number: int) -> str:
    return data.refs[data.stream.plan.batch(number)[0]].bucket


def require_features(config: Config, shards: ShardSet) -> None:
    """Raises `BadDataError` when the data come from other encoders than the configuration names, `UsageError` when its
    patch size does not divide their latents, or that adds patches to tokens of another grid.
    """
    card, wanted = shards.card, config.encoders
    for made, name in ((card.image, wanted.image), (card.text, wanted.text), (card.vae, wanted.vae)):
        if made.id != name:
            raise BadDataError(
                f"{shards.folder}: features come from {made.kind} encoder '{made.id}', the configuration says '{name}'",
                "embed with this preset into another folder, or say what the data are:"
                f" {command_line('-s', f'encoders.{made.kind}={made.id}')}",
            )
    if config.reads_patches and shards.patch_storage == NONE:
        raise BadDataError(
            f"{shards.folder}: its samples have no patches (data.patch_storage = none), and {config.description} reads"
            " them",
            "embed with this preset into another folder; or train one that reads none, such as nano",
        )
    require_known_kinds(config.data.caption_weights or {}, card.captions, str(shards.folder))
    buckets = [Bucket.from_name(name) for name in sorted(shards.samples.bucket_counts())]
    require_whole_tokens(buckets, card.vae.stride, config.model.patch_size, str(shards.folder))
    if config.model.patch_fusion == "added":
        for bucket in buckets:
            _require_patch_for_each_token(config, shards, bucket)


def _require_patch_for_each_token(config: Config, shards: ShardSet, bucket: Bucket) -> None:
    card, cell = shards.card, shards.card.vae.stride * config.model.patch_size
    patches = stored_grid(patch_grid(bucket.width, bucket.height, card.image.patch_size), card.patch_storage)
    tokens = bucket.height // cell, bucket.width // cell
    if patches != tokens:
        raise UsageError(
            f'{shards.folder}: model.patch_fusion = "added" needs a patch for each token, and bucket {bucket.name} has'
            f" {patches[0]}×{patches[1]} patches ({card.patch_storage}) and {tokens[0]}×{tokens[1]} tokens",
            "let the tokens attend to them: -s model.patch_fusion=attended; patches of 16 pixels, not pooled, fit a"
            " stride of 8 with model.patch_size 2",
        )


_STRIDE, _PATCH, _TEXT_TOKENS = 8, 16, 64  # of a usual codec, image encoder and caption
_NOISE, _STORED = 4, 2  # bytes of a value: noise is float32, features are stored as float16


def batch_bytes(config: Config, widths: FeatureWidths) -> int:
    """Of the largest batch with its noise, as it travels, before there are data to look at."""
    model, train = config.model, config.train

    def values(bucket: Bucket) -> int:
        latent = widths.latent_channels * math.prod(bucket.latent_grid(_STRIDE))
        patches = bucket.area // _PATCH**2 if config.reads_patches else 0
        stored = latent + widths.image + _TEXT_TOKENS * widths.text
        return _NOISE * latent + _STORED * stored + patches * widths.image * wide

    def samples(bucket: Bucket) -> int:
        tokens = bucket.area // (_STRIDE * model.patch_size) ** 2
        return train.batch_size or max(1, (train.tokens_per_batch or 0) // tokens)

    wide = _NOISE if config.data.patch_storage in (FP32, INT8) else _STORED  # int8 is decoded before it travels
    return max(samples(bucket) * values(bucket) for bucket in config.data.bucket_sizes())


FAMILY = Family(
    build=build,
    known_widths=known_widths,
    open_data=open_data,
    batches=batches,
    loss=loss,
    inputs=inputs,
    figures=figures,
    begin=begin,
    evaluate=evaluate,
    draw=draw,
    losses=losses,
    measured_on_holdout=True,
    judge_every=lambda config: config.validate_.every,
    judge=judge,
    conclude=lambda _data, _figures: Conclusion(next="dit validate"),
    largest_batch=lambda data: BatchBytes(*data.stream.largest_batch),
    kinds=kinds,
    pipeline=Pipeline.load,
    noise=write_noise,
    specimen=FlowNetwork,
    batch_bytes=batch_bytes,
    codec=lambda config: config.encoders.vae,
)
