"""The three embed passes: which encoder each has, what it stores, and in which batches it goes over the records.

Features may depend on the batch in their last bits, so batches are formed over all records of a bucket, made or not,
before they are split into parts and before those that are there are left out: an interrupted run, or one in parts,
encodes the same batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from dittool.config.architectures import ImageConfig
from dittool.console import SILENT, Talk
from dittool.data.features.parts import Part
from dittool.data.features.pipeline import Arrays, Decoded, FeatureWriter, Refusal, decoded, decoders, loaded_ahead
from dittool.data.features.refusals import refused_while_decoding, refused_while_encoding, with_unknown_words
from dittool.data.features.store import FeatureStore
from dittool.data.patch_storage import INT8, NONE, decode_patches, encode_patches
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, Feature, Record, text_features
from dittool.encoders.cards import EncoderCard
from dittool.encoders.image import load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError
from dittool.geometry import Bucket, patch_grid, require_whole_tokens

CAPTIONS = 256  # in a batch; the text encoder groups them by length
_FEWEST, _MOST = 16, 128  # images in a batch
# in a batch of images, where these limits allow: small images in batches of 16 would leave the encoder waiting
_PIXELS = 4 << 20

Captions = tuple[tuple[Feature, str], ...]  # of one image
Input = TypeVar("Input")  # what an encoder takes of a record: Decoded or Captions


@dataclass(frozen=True)
class Encoded:
    """What is stored of one record."""

    arrays: Arrays
    cut: int = 0  # captions that were longer than the encoder's limit
    unknown: int = 0  # words of the captions that the tokenizer does not know


@dataclass(frozen=True)
class EmbedPass(Generic[Input]):
    """An encoder that is ready: pixels of one bucket, or captions, to stored arrays."""

    stage: str
    card: EncoderCard
    load: Callable[[Record, Path], Input | Refusal]  # what it encodes of a record; the path is the source's
    encode: Callable[[Sequence[Input]], list[Encoded]]


@dataclass(frozen=True)
class PassResult:
    made: int
    refused: list[Record]
    cut_captions: int = 0
    flagged: list[Record] = field(default_factory=list)  # used ones, with a flag that only the encoder could give


def load_pass(stage: str, config: ImageConfig, talk: Talk = SILENT) -> EmbedPass[Any]:
    """Loads the stage's encoder. `talk` says when features had to be computed again in fp32. Raises
    `WeightsMissingError`.
    """
    ready: dict[str, Callable[[ImageConfig, Talk], EmbedPass[Any]]]
    ready = {"dinov3": _image_pass, "vae": _vae_pass, "t5": _text_pass}
    return ready[stage](config, talk)


def encoder_cards(config: ImageConfig) -> tuple[EncoderCard, ...]:
    """What the image, text and latent encoder of a configuration say of themselves, each loaded in turn for it."""
    return tuple(load_pass(stage, config).card for stage in ("dinov3", "t5", "vae"))


def batch_size(bucket: str) -> int:
    """Images of this bucket in one batch."""
    return max(_FEWEST, min(_MOST, _PIXELS // Bucket.from_name(bucket).area))


def plan_batches(stage: str, candidates: Sequence[Record], missing: Sequence[Record], part: Part) -> list[list[Record]]:
    """What this part of the pass encodes, batch by batch; image batches hold one bucket.

    Args:
        candidates: every record that was, or might be, encoded: used ones and those refused at work.
        missing: the used ones whose features are to be made.

    A batch of which nothing is made keeps all its candidates; what is missing from others is gathered into batches of
    its own.
    """
    wanted = {record.id for record in missing}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in candidates:
        groups["" if stage == "t5" else record.bucket].append(record)
    planned, number = [], 0
    for name in sorted(groups):
        size, rest = batch_size(name) if name else CAPTIONS, []
        for batch in _chunks(groups[name], size):
            mine, number = part.takes(number), number + 1
            used, lacking = (
                [record for record in batch if record.used],
                [record for record in batch if record.id in wanted],
            )
            if not mine or not lacking:
                continue
            if len(lacking) == len(used):
                planned.append(batch)
            else:
                rest += lacking
        planned += _chunks(rest, size)
    return planned


def run_pass(
    ready: EmbedPass[Input],
    batches: list[list[Record]],
    store: FeatureStore,
    source: Path,
    talk: Talk,
    wanted_thumbnails: set[str],
) -> PassResult:
    """Encodes the batches and stores what is used of them. An image or caption that cannot be encoded is refused, and
    the rest goes on. Of the images that are decoded on the way, the thumbnails that are wanted are kept.

    Raises `StorageError` when the disk is full, `BadDataError` when the encoder fails on everything that it is given.
    """
    of_text = ready.stage == "t5"
    total = sum(record.used for batch in batches for record in batch)
    # Captions of refused records are encoded too, for the sake of the others' padding; their images cannot be.
    to_load = batches if of_text else ([record for record in batch if record.used] for batch in batches)
    refused: list[Record] = []
    flagged: list[Record] = []
    cut = 0
    with (
        talk.progress(ready.stage, total, "caption" if of_text else "image") as task,
        decoders([] if of_text else [record for batch in batches for record in batch]) as pool,
        FeatureWriter(store, ready.stage, task.advance) as writer,
    ):
        for batch, loaded in loaded_ahead(to_load, ready.load, source, pool):
            store.add_thumbnails(take_thumbnails(batch, loaded, wanted_thumbnails))
            good, bad = encode_batch(ready, list(zip(batch, loaded, strict=True)), anything_made=writer.written > 0)
            if good:
                writer.put([record for record, _ in good], [encoded.arrays for _, encoded in good])
                cut += sum(encoded.cut for _, encoded in good)
                flagged += [with_unknown_words(record, encoded.unknown) for record, encoded in good if encoded.unknown]
            if bad:
                refused += bad
                task.advance(len(bad), refused=len(refused))
    return PassResult(writer.written, refused, cut, flagged)


def take_thumbnails(batch: Sequence[Record], loaded: Sequence[object], wanted: set[str]) -> dict[str, np.ndarray]:
    """Image (sha256) → thumbnail of what was decoded and is wanted; from then on it is wanted no longer."""
    made = {
        record.image_sha256: item.thumbnail
        for record, item in zip(batch, loaded, strict=True)
        if record.image_sha256 in wanted and isinstance(item, Decoded)
    }
    wanted.difference_update(made)
    return made


def captions_to_encode(record: Record, _source: Path | None = None) -> Captions:
    """The record's captions, each with the feature that it becomes."""
    return tuple(zip(text_features(record), record.texts, strict=True))


def encode_batch(
    ready: EmbedPass[Input], loaded: list[tuple[Record, Input | Refusal]], anything_made: bool
) -> tuple[list[tuple[Record, Encoded]], list[Record]]:
    """The used records with what is stored of them, and those that turned out to be unusable."""
    bad = [
        refused_while_decoding(record, item.reason, item.detail) for record, item in loaded if isinstance(item, Refusal)
    ]
    inputs = [(record, item) for record, item in loaded if not isinstance(item, Refusal)]
    if not inputs:
        return [], bad
    try:
        made = list(zip((record for record, _ in inputs), ready.encode([item for _, item in inputs]), strict=True))
    except BadDataError:  # something in the batch: what, shows one by one
        made, failed = _encode_one_by_one(ready, inputs)
        if not made and not anything_made:
            raise  # nothing works: that is the encoder's fault, not the images'
        bad += failed
    good = []
    for record, encoded in made:
        if record.used and (problem := _problem(encoded.arrays)):
            bad.append(refused_while_encoding(record, ready.stage, *problem))
        elif record.used:
            good.append((record, encoded))
    return good, bad


def _encode_one_by_one(
    ready: EmbedPass[Input], inputs: list[tuple[Record, Input]]
) -> tuple[list[tuple[Record, Encoded]], list[Record]]:
    made, failed = [], []
    for record, item in inputs:
        try:
            made.append((record, ready.encode([item])[0]))
        except BadDataError as error:
            if record.used:
                failed.append(refused_while_encoding(record, ready.stage, "not-encodable", error.message))
    return made, failed


def _problem(made: Arrays) -> tuple[str, str] | None:
    """(reason, detail) of arrays that no encoder should have made of a picture or a caption."""
    for feature, stored in made.items():
        values = _values(feature, stored)
        if count := int((~np.isfinite(values)).sum()):
            return (
                "not-finite",
                (
                    f"{count} of {values.size} values of {feature.name} are not finite, or too large for their storage"
                    f" ({stored.dtype})"
                ),
            )
        if values.size > 1 and values.min() == values.max():
            return "constant", f"all {values.size} values of {feature.name} are {values.flat[0]:g}"
    return None


def _values(feature: Feature, stored: np.ndarray) -> np.ndarray:
    return decode_patches(stored, INT8) if feature is IMAGE_PATCHES and stored.dtype == np.int8 else stored


def _half(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found
        return array.astype(np.float16)


def _stacked(images: Sequence[Decoded]) -> np.ndarray:
    return np.stack([image.pixels for image in images])  # (B, H, W, 3)


def _image_pass(config: ImageConfig, talk: Talk) -> EmbedPass[Decoded]:
    encoder = load_image_encoder(config.encoders.image, config.encoders.dtype, talk)

    def encode(images: Sequence[Decoded]) -> list[Encoded]:
        height, width = images[0].pixels.shape[:2]
        grid = patch_grid(width, height, encoder.patch_size)
        features = encoder.encode(_stacked(images))
        if config.data.patch_storage == NONE:
            return [Encoded({IMAGE_CLS: _half(cls)}) for cls in features.cls.numpy()]
        return [
            Encoded({IMAGE_CLS: _half(cls), IMAGE_PATCHES: encode_patches(patches, grid, config.data.patch_storage)})
            for cls, patches in zip(features.cls.numpy(), features.patches.numpy(), strict=True)
        ]

    return EmbedPass("dinov3", encoder.card, decoded, encode)


def _vae_pass(config: ImageConfig, _: Talk) -> EmbedPass[Decoded]:
    codec = load_codec(config.encoders.vae)
    # the model that the configuration describes could not read what is made
    require_whole_tokens(config.data.bucket_sizes(), codec.card.stride, config.model.patch_size, "data.buckets")
    return EmbedPass(
        "vae",
        codec.card,
        decoded,
        lambda images: [Encoded({LATENT: _half(latent)}) for latent in codec.encode(_stacked(images)).numpy()],
    )


def _text_pass(config: ImageConfig, talk: Talk) -> EmbedPass[Captions]:
    names = config.encoders
    encoder = load_text_encoder(names.text, names.dtype, names.max_text_tokens, talk, names.text_layer)

    def encode(of_images: Sequence[Captions]) -> list[Encoded]:
        found = iter(encoder.encode([text for captions in of_images for _, text in captions]))
        encoded = []
        for captions in of_images:
            made = list(zip((feature for feature, _ in captions), found, strict=False))
            arrays = {feature: _half(text.hidden.numpy()) for feature, text in made}
            encoded.append(Encoded(arrays, sum(text.cut for _, text in made), sum(text.unknown for _, text in made)))
        return encoded

    return EmbedPass("t5", encoder.card, captions_to_encode, encode)


def _chunks(items: list[Record], size: int) -> list[list[Record]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
