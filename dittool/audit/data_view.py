"""Features as the audit sees them: shards and a derived folder alike, with or without an index, opened even when
they are damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dittool.data.choice import representative
from dittool.data.features.store import FeatureStore
from dittool.data.identity import Card, IdentityCard, features_of
from dittool.data.patch_storage import FP16, INT8, NONE, decode_patches, stored_grid
from dittool.data.records import IMAGE_PATCHES, TEXT, TEXT_MASK_MEMBER, Feature, Record, text_features, text_members
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import TRAIN, ShardIndex
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError
from dittool.geometry import Bucket, patch_grid
from dittool.shell import command_line

NO_PATCHES = "no patches are stored, because nothing that these data were made for reads them (data.patch_storage)"
_MOST_SAMPLES = 2000  # that a rule looks into
_MOST_BYTES = 1 << 30  # that a rule reads


@dataclass(frozen=True)
class DataView:
    """A set of features. Its readers raise `BadDataError` naming what is missing or damaged."""

    folder: Path
    refs: Sequence[SampleRef]  # of a derived folder: all in the training split
    card: IdentityCard | None  # None: the set has none
    index: ShardIndex | None  # of shards
    # as stored, but patches as a model would get them; `TEXT` is the first caption of a sample that has several
    array: Callable[[SampleRef, Feature], np.ndarray]
    record: Callable[[SampleRef], Record]
    mask: Callable[[SampleRef], np.ndarray | None]  # of older sets: (512,), which rows of the text are text
    problem: str = ""  # why the set could not be opened; then it has no samples

    def spread(self, *features: Feature) -> list[SampleRef]:
        """Samples spread evenly over the set: all of them, or as many as a rule that reads these features may take."""
        count, most = len(self.refs), self._affordable(*features)
        return list(self.refs) if count <= most else [self.refs[i * count // most] for i in range(most)]

    def chosen(self, most: int, purpose: str, *features: Feature) -> list[SampleRef]:
        """At most so many samples by a hash of their ids, of each bucket its share."""
        return representative(self.refs, min(most, self._affordable(*features)), purpose)

    def sampled(self, most: int, purpose: str) -> DataView:
        """The same set as if it held only so many of its samples, chosen by a hash of their ids."""
        return replace(self, refs=representative(self.refs, most, purpose))

    def _affordable(self, *features: Feature) -> int:
        bytes_each = sum(self.array(self.refs[0], feature).nbytes for feature in features) if self.refs else 0
        return max(min(_MOST_SAMPLES, _MOST_BYTES // max(bytes_each, 1)), 16)

    def bucket(self, ref: SampleRef) -> Bucket | None:
        """None for a sample whose folder does not name a size."""
        try:
            return Bucket.from_name(ref.bucket)
        except ValueError:
            return None

    @property
    def patch_storage(self) -> str:
        """How the patches were stored: one of `patch_storage.STORAGES`, or `NONE`."""
        return _patch_storage(self.card)

    @property
    def has_patches(self) -> bool:
        return self.patch_storage != NONE

    @property
    def features(self) -> tuple[Feature, ...]:
        """What each sample has."""
        return features_of(self.patch_storage)

    def patch_count(self, bucket: Bucket, patch_size: int) -> int:
        """Patches that an encoder of this patch size gives for the bucket, as many as are kept of them."""
        rows, columns = stored_grid(patch_grid(bucket.width, bucket.height, patch_size), self.patch_storage)
        return rows * columns

    def encoder(self, kind: type[Card]) -> Card | None:
        """The card of the image, text or latent encoder; None where no identity card names one."""
        return self.card.find(kind) if self.card else None


def open_shards(folder: Path) -> DataView:
    """A folder of shards."""
    try:
        shards = ShardSet.open(folder)
    except BadDataError as error:
        nothing = partial(_nothing, folder)
        return DataView(folder, [], None, None, nothing, nothing, nothing, error.message)
    card = shards.index.identity if shards.index else None

    def array(ref: SampleRef, feature: Feature) -> np.ndarray:
        member = feature.member
        if feature is TEXT and TEXT.member not in ref.members:  # of several captions the first
            member = next(iter(text_members(ref.members)), member)
        return _as_given(shards.read_array(ref, member), feature, card)

    def mask(ref: SampleRef) -> np.ndarray | None:
        return (
            shards.read_array(ref, TEXT_MASK_MEMBER).reshape(-1).astype(bool)
            if TEXT_MASK_MEMBER in ref.members
            else None
        )

    return DataView(folder, shards.samples, card, shards.index, array, shards.read_record, mask)


def open_derived(folder: Path) -> DataView:
    """A derived folder, as `dit embed` leaves it."""
    store = FeatureStore(folder)
    try:
        records = {record.id: record for record in store.read_records() if record.used}
        card = store.card()
    except BadDataError as error:
        nothing = partial(_nothing, folder)
        return DataView(folder, [], None, None, nothing, nothing, nothing, error.message)
    refs = [SampleRef(record.id, record.bucket, TRAIN, "", {}) for record in records.values()]

    def array(ref: SampleRef, feature: Feature) -> np.ndarray:
        stored = text_features(records[ref.id])[0] if feature is TEXT else feature
        return _as_given(store.read(stored, ref.id), feature, card)

    return DataView(folder, refs, card, None, array, lambda ref: records[ref.id], lambda _: None)


def _as_given(stored: np.ndarray, feature: Feature, card: IdentityCard | None) -> np.ndarray:
    """Patches decoded from int8, the one storage that is not plain floats; anything else as it is."""
    return decode_patches(stored, INT8) if feature is IMAGE_PATCHES and _patch_storage(card) == INT8 else stored


def _patch_storage(card: IdentityCard | None) -> str:
    return FP16 if card is None else card.patch_storage  # sets without a card hold plain floats


def _nothing(folder: Path, ref: SampleRef, *_: object) -> Any:
    raise BadDataError(
        f"{ref.id}: the set could not be opened", f"see why: {command_line('dit', 'audit', folder, '--select', 'D7')}"
    )
