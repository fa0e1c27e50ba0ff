"""Shards for people who train elsewhere: a ready WebDataset pipeline, decoded to what our own reader gives.

    from dittool.data.shards import as_webdataset
    for sample in as_webdataset("data/shards", "train").shuffle(1000): …

Keys of a sample, tensors as stored and nothing normalised:

    cls      (C,)                      latent  (channels, h, w), as the codec gave it
    patches  (N, C), row-major         text    (L, D), L the caption's true length
    bucket   "WIDTHxHEIGHT"            record  caption, image and crop as the set holds them       __key__  the id
    texts    {KIND: [(L, D), …]} where the set keeps several captions of an image; `text` is the first of them

The pipeline reads tars from front to back. Nothing in it notices a tar that was cut or a key that comes twice: that is
what `dit shard --verify` and our own reader are for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dittool.data.identity import features_of
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, RECORD_MEMBER, TEXT, text_members
from dittool.data.shards.index import AGAIN, TRAIN
from dittool.data.shards.read import ShardSet, decoded_members
from dittool.errors import BadDataError, UsageError
from dittool.untrusted.npy import parse_npy

if TYPE_CHECKING:
    from webdataset import FluidWrapper

_KEYS = {"cls": IMAGE_CLS, "patches": IMAGE_PATCHES, "latent": LATENT, "text": TEXT}


def as_webdataset(folder: str | Path, split: str = TRAIN, bucket: str | None = None) -> FluidWrapper:
    """The samples of a split in the order of the shards, each shard for one process and one worker of its loader.

    Args:
        folder: what `dit shard` wrote, or an older set of the same member names, which is all "train".
        split: "train" or "holdout".
        bucket: only images of this size, so that their latents can be stacked into a batch.

    Only files below `folder` are opened: no address, no `pipe:`. Raises `UsageError` when no sample is left,
    `BadDataError` or `UnsafeFileError` as `ShardSet.open` does, and while reading `BadDataError` for a sample that
    lacks a member or has a damaged one.
    """
    import webdataset as wds

    shards = ShardSet.open(Path(folder))
    chosen = [ref for ref in shards.split(split) if bucket in (None, ref.bucket)]
    if not chosen:
        known = sorted({f"{shard.split} {shard.bucket}" for shard in shards.samples.shards})
        wanted = split if bucket is None else f"{split} {bucket}"
        raise UsageError(f"{folder}: no sample of {wanted}", f"there are {', '.join(known)}")
    buckets = {str(shards.folder / ref.shard): ref.bucket for ref in chosen}
    return wds.FluidWrapper(partial(iter, list(buckets))).compose(
        wds.split_by_node,
        wds.split_by_worker,
        _opened,
        wds.tariterators.tar_file_expander,
        wds.tariterators.group_by_keys,
        wds.map(partial(_decoded, buckets=buckets, storage=shards.patch_storage)),
    )


def _opened(tars: Iterable[str]) -> Iterator[dict[str, str | BinaryIO]]:
    """Each tar as WebDataset's next stage takes it. Its own opener would run what follows `pipe:`."""
    for tar in tars:
        with open(tar, "rb") as stream:
            yield {"url": tar, "stream": stream}


def _decoded(sample: dict[str, Any], buckets: dict[str, str], storage: str) -> dict[str, Any]:
    import torch

    tar, key = sample["__url__"], sample["__key__"]
    where = f"{tar}: {key}"
    texts = text_members(sample)
    names = [next(iter(texts), TEXT.member) if f is TEXT else f.member for f in features_of(storage)]
    wanted = (RECORD_MEMBER, *names)
    if absent := [name for name in wanted if name not in sample]:
        raise BadDataError(f"{where} has no {', '.join(absent)}", "the tar was cut or edited. " + AGAIN)
    arrays = decoded_members(sample, where, storage)
    tensors: dict[str, Any] = {
        name: torch.tensor(arrays[feature]) for name, feature in _KEYS.items() if feature in arrays
    }
    if TEXT.member not in sample:
        of_kinds: dict[str, list[torch.Tensor]] = {kind: [] for kind in texts.values()}
        for member, kind in texts.items():
            of_kinds[kind].append(torch.tensor(parse_npy(sample[member], f"{where}.{member}")))
        tensors["texts"] = of_kinds
    return {"__key__": key, "bucket": buckets[tar], "record": json.loads(sample[RECORD_MEMBER]), **tensors}
