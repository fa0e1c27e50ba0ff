"""What embedding will cost, before it is spent: bytes by feature and bucket against the free disk, and time from a
measured batch.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool.config.architectures import ImageConfig, with_patch_storage
from dittool.console import SILENT, Talk
from dittool.data.features.passes import EmbedPass, Input, batch_size, captions_to_encode, load_pass
from dittool.data.features.pipeline import Decoded, decoded, decoder_count
from dittool.data.features.store import FeatureStore
from dittool.data.identity import features_of
from dittool.data.patch_storage import STORED_DTYPE, stored_shape
from dittool.data.records import IMAGE_CLS, STAGES, TEXT, Feature, Record
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan
from dittool.encoders.cards import EncoderCard, ImageCard, TextCard, VaeCard
from dittool.geometry import Bucket, patch_grid

_HEADER = 128  # bytes of a .npy file before its array
_BLOCK = 4096  # bytes in which file systems give out space
_TEXT_BATCH = 16
_BYTES_A_TOKEN = 4.0  # of a caption, where nothing was measured: about right for T5 and English


@dataclass(frozen=True)
class EstimateRow:
    """Disk that one feature takes in one bucket, for what is still to be made."""

    feature: str
    bucket: str  # "" for text
    count: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    rows: list[EstimateRow]
    seconds: dict[str, float]  # stage → time that it will take here; a stage with nothing to do is left out
    free: int  # bytes on the disk of the output folder

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)


def estimate(
    source: Path, out: Path, config: ImageConfig, stages: Sequence[str] = STAGES, talk: Talk = SILENT
) -> Estimate:
    """Bytes and time for what `dit embed` would make now. Writes nothing; encodes two batches a pass to see how long
    one takes.

    Raises `BadDataError`, `WeightsMissingError`.
    """
    store = FeatureStore(out)
    config = with_patch_storage(config, store.patch_storage)
    records = scan(
        source, config.data.bucket_sizes(), talk, config.data.flip, Pairing.of(config.data), keep=config.data.keep
    )
    used = [record for record in records if record.used]
    journal = store.read_journal()
    rows, seconds = [], {}
    for stage in [stage for stage in STAGES if stage in stages]:
        missing = store.missing(stage, used, journal)
        talk.note(f"{stage}: measuring a batch")
        ready = load_pass(stage, config, talk)
        bytes_a_token = _BYTES_A_TOKEN
        if missing:
            seconds[stage], bytes_a_token = (
                _text_time(ready, missing) if stage == "t5" else (_image_time(ready, missing, source), _BYTES_A_TOKEN)
            )
        rows += disk_rows(stage, ready.card, missing, config.data.patch_storage, bytes_a_token)
    return Estimate(rows, seconds, free_bytes(out))


def disk_rows(
    stage: str,
    card: EncoderCard,
    records: Sequence[Record],
    patch_storage: str,
    bytes_a_token: float = _BYTES_A_TOKEN,
) -> list[EstimateRow]:
    """Disk that the features of a stage will take, by feature and bucket, in whole blocks. Text lengths are guessed
    from the captions' bytes.
    """
    if isinstance(card, TextCard):
        texts = [text for record in records for text in record.texts]
        sizes = [_on_disk(_tokens(text, card, bytes_a_token) * card.width * 2) for text in texts]
        return [EstimateRow(TEXT.name, "", len(sizes), sum(sizes))] if sizes else []
    counts = Counter(record.bucket for record in records)
    return [
        EstimateRow(
            feature.name,
            bucket,
            count,
            count * _on_disk(_image_bytes(feature, card, Bucket.from_name(bucket), patch_storage)),
        )
        for feature in features_of(patch_storage)
        if feature.stage == stage
        for bucket, count in sorted(counts.items())
    ]


def free_bytes(folder: Path) -> int:
    """Free space where the folder is, or would be."""
    existing = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    return shutil.disk_usage(existing).free


def _image_bytes(feature: Feature, card: ImageCard | VaeCard, bucket: Bucket, patch_storage: str) -> int:
    if isinstance(card, VaeCard):
        return 2 * card.channels * bucket.area // card.stride**2
    if feature is IMAGE_CLS:
        return 2 * card.width
    shape = stored_shape(patch_grid(bucket.width, bucket.height, card.patch_size), card.width, patch_storage)
    return math.prod(shape) * STORED_DTYPE[patch_storage].itemsize


def _tokens(text: str, card: TextCard, bytes_a_token: float) -> int:
    return min(card.max_tokens, math.ceil(len(text.encode()) / bytes_a_token) + 1)


def _on_disk(array_bytes: int) -> int:
    return -(-(_HEADER + array_bytes) // _BLOCK) * _BLOCK


def _image_time(ready: EmbedPass[Any], records: Sequence[Record], source: Path) -> float:
    """Seconds for all the images: the slower of decoding and encoding, for they overlap; measured in the commonest
    bucket, by area elsewhere.
    """
    bucket = Counter(record.bucket for record in records).most_common(1)[0][0]
    chosen = [record for record in records if record.bucket == bucket]
    images, started = [], time.perf_counter()
    for record in chosen[: batch_size(bucket)]:
        if isinstance(image := decoded(record, source), Decoded):  # what is refused is counted when it is embedded
            images.append(image)
    decoding = (time.perf_counter() - started) / min(len(chosen), batch_size(bucket)) / decoder_count()
    encoding = _seconds(ready, images) / len(images) if images else 0.0
    area = Bucket.from_name(bucket).area
    return sum(Bucket.from_name(record.bucket).area / area for record in records) * max(decoding, encoding)


def _text_time(ready: EmbedPass[Any], records: Sequence[Record]) -> tuple[float, float]:
    """(seconds for all the captions, bytes of caption a token), from captions spread over all lengths."""
    by_length = sorted(records, key=lambda record: sum(map(len, record.texts)))
    sample = [captions_to_encode(record) for record in by_length[:: max(1, len(by_length) // _TEXT_BATCH)]]
    seconds = _seconds(ready, sample[:_TEXT_BATCH]) / len(sample[:_TEXT_BATCH]) * len(records)
    tokens = sum(len(array) for encoded in ready.encode(sample[:_TEXT_BATCH]) for array in encoded.arrays.values())
    size = sum(len(text.encode()) for captions in sample[:_TEXT_BATCH] for _, text in captions)
    return seconds, max(size / tokens, 0.1)


def _seconds(ready: EmbedPass[Input], inputs: Sequence[Input]) -> float:
    """For one batch, the second time: the first pays for what is set up once."""
    ready.encode(inputs)
    started = time.perf_counter()
    ready.encode(inputs)
    return time.perf_counter() - started
