"""Reads shards: a set of samples with exact random access to each.

Sets with an index are opened from it. Older sets of the same member names without an index are scanned, and have no
identity until `dit shard --index` gives them one (older_sets.py). verify.py reads every byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dittool.address import Address
from dittool.data.identity import IdentityCard, features_of
from dittool.data.patch_storage import FP16, INT8, NONE, decode_patches
from dittool.data.records import (
    FEATURES,
    IMAGE_CLS,
    IMAGE_PATCHES,
    LATENT,
    RECORD_MEMBER,
    TEXT,
    TEXT_MASK_MEMBER,
    Feature,
    Record,
    record_from_json,
    text_members,
)
from dittool.data.remote.cache import Cache
from dittool.data.remote.requests import read_object, require_library
from dittool.data.shards.columns import SampleRef, Samples
from dittool.data.shards.elsewhere import RemoteShards
from dittool.data.shards.index import (
    AGAIN,
    INDEX_NAME,
    ShardIndex,
    read_index,
    require_local,
    samples_of,
    samples_of_lists,
    scan_tar,
    split_by_name,
)
from dittool.data.shards.open_files import OpenFiles, Turn
from dittool.data.shards.statistics import SetStatistics
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.shell import quoted
from dittool.untrusted.npy import parse_npy
from dittool.whereabouts import find

_GAP = 4096  # bytes between two members that are read along with them: a tar header is 512


@dataclass(frozen=True)
class Sample:
    """The features of one sample, as stored."""

    ref: SampleRef
    cls: np.ndarray  # (C,)
    patches: np.ndarray | None  # (N, C), float, as the model gets them; None: not asked for, or none stored
    latent: np.ndarray  # (channels, h, w), unscaled
    text: np.ndarray  # (L, D), L = true length
    patch_storage: str = FP16  # how the patches were stored; pooled ones fill a smaller grid

    def arrays(self) -> dict[Feature, np.ndarray]:
        """By feature, of a sample that was read with its patches."""
        arrays = {IMAGE_CLS: self.cls, LATENT: self.latent, TEXT: self.text}
        return arrays if self.patches is None else {**arrays, IMAGE_PATCHES: self.patches}


@dataclass
class ShardSet:
    """An opened shards folder."""

    folder: Path
    samples: Samples
    index: ShardIndex | None  # None: a set without index.json
    storage: str = FP16  # of the patches in a set without index.json
    remote: RemoteShards | None = None  # where `folder` is an address
    _files: OpenFiles = field(default_factory=OpenFiles, repr=False, compare=False)
    _one_at_a_time: Turn = field(default_factory=Turn, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.samples = Samples.of(self.samples)

    @staticmethod
    def open(folder: Path) -> ShardSet:
        """Opens a folder or an address. Raises `UsageError` when there is no such folder, `BadDataError` when it is no
        finished set of shards, `StorageError` when a store does not give it.
        """
        if isinstance(folder, Address):
            return _opened_at(folder)
        if not folder.is_dir():
            require_local(str(folder))
            hint = "check the path (--data), or make shards with: dit embed IMAGES, then dit shard"
            raise UsageError(f"{folder}: no such folder of shards", did_you_mean(folder, hint))
        if not (folder / INDEX_NAME).is_file():
            return ShardSet(folder, Samples.of(_scan(folder)), None)
        index = read_index(folder)
        return ShardSet(folder, samples_of(folder, index), index)

    def split(self, name: str) -> Samples:
        return self.samples.of_split(name)

    @property
    def card(self) -> IdentityCard:
        """Raises `BadDataError` for a set without an index; what follows likewise."""
        return self._require_index().identity

    @property
    def identity_hash(self) -> str:
        return self._require_index().identity_hash

    @property
    def statistics(self) -> SetStatistics:
        return self._require_index().statistics

    @property
    def widths(self) -> FeatureWidths:
        return self._require_index().widths

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers; empty for a set without classes."""
        return list(self._require_index().classes or ())

    @property
    def source(self) -> Path:
        """The folder of images that were embedded, also after the project was moved; it may be gone or on another
        machine.
        """
        source = self._require_index().source
        return (find(source, self.folder) if source else None) or Path(source)

    @property
    def patch_storage(self) -> str:
        """How patches are stored: one of patch_storage.STORAGES, or NONE."""
        return self.storage if self.index is None else self.index.identity.patch_storage

    def read(self, ref: SampleRef, patches: bool = True, text: str = "") -> Sample:
        """The features of a sample; of several captions those of the member `text`, else of the first. Raises
        `BadDataError` naming the member that is missing or damaged.
        """
        features = features_of(self.patch_storage if patches else NONE)
        text = text or next(iter(text_members(ref.members)), TEXT.member)
        wanted = [text if feature is TEXT else feature.member for feature in features]
        if TEXT_MASK_MEMBER in ref.members:
            wanted.append(TEXT_MASK_MEMBER)
        arrays = decoded_members(self._read_members(ref, wanted), self._place(ref), self.patch_storage)
        return Sample(
            ref, arrays[IMAGE_CLS], arrays.get(IMAGE_PATCHES), arrays[LATENT], arrays[TEXT], self.patch_storage
        )

    def read_all(
        self, refs: Sequence[SampleRef], patches: bool = True, texts: Sequence[str] | None = None
    ) -> list[Sample]:
        """The samples in this order; where they are elsewhere, requests for several at a time. `texts`: the member of
        each one's caption, "" for the first.
        """

        def read(place: int) -> Sample:
            return self.read(refs[place], patches, texts[place] if texts else "")

        return list(map(read, range(len(refs)))) if self.remote is None else self.remote.each(read, range(len(refs)))

    def read_arrays(self, ref: SampleRef) -> dict[Feature, np.ndarray]:
        """All features of a sample, of all its captions."""
        arrays = self.read(ref).arrays()
        if TEXT.member in ref.members or not (texts := text_members(ref.members)):
            return arrays
        del arrays[TEXT]
        return arrays | {replace(TEXT, member=member): self.read_array(ref, member) for member in texts}

    def tar(self, shard: str) -> Path:
        """A whole shard as a file of this machine; one that is elsewhere is fetched."""
        return self.folder / shard if self.remote is None else self.remote.whole(shard)

    def read_array(self, ref: SampleRef, member: str) -> np.ndarray:
        """One array as stored."""
        return parse_npy(self.read_member(ref, member), self._name(ref, member))

    def read_record(self, ref: SampleRef) -> Record:
        source = self._name(ref, RECORD_MEMBER)
        try:
            value = json.loads(self.read_member(ref, RECORD_MEMBER))
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{source}: not valid JSON: {error}", AGAIN) from error
        # older sets call it differently
        if (self.index is None or self.card.claimed) and isinstance(value, dict):
            value = {"name": ref.id, "image": "", "status": "used", **value, "id": ref.id}
        return record_from_json(value, source)

    def read_member(self, ref: SampleRef, member: str) -> bytes:
        """The bytes of one member, by position: nothing before it is read."""
        return bytes(self._read_members(ref, [member])[member])

    def _read_members(self, ref: SampleRef, wanted: list[str]) -> dict[str, memoryview]:
        """Members of one sample, neighbours in one read. Writable, and no byte is copied after the kernel has
        delivered it.
        """
        if absent := [member for member in wanted if member not in ref.members]:
            raise BadDataError(
                f"{self.folder / ref.shard}: sample '{ref.id}' has no {', '.join(absent)}",
                AGAIN,
            )
        found, places = {}, sorted((*ref.members[member], member) for member in wanted)
        while places:
            run = [places.pop(0)]
            while places and 0 <= places[0][0] - sum(run[-1][:2]) <= _GAP:
                run.append(places.pop(0))
            start, end = run[0][0], sum(run[-1][:2])
            data = np.empty(end - start, dtype=np.uint8).data
            read = self._read_into(ref.shard, start, data)
            for offset, size, member in run:
                if offset - start + size > read:
                    present = max(read - offset + start, 0)
                    raise BadDataError(
                        f"{self._name(ref, member)} has {present:,} of {size:,} bytes",
                        f"the shard was cut. {AGAIN}",
                    )
                found[member] = data[offset - start : offset - start + size]
        return found

    def _read_into(self, shard: str, start: int, into: memoryview) -> int:
        """Fills `into` from byte `start` of a shard, and says how many bytes there were."""
        if self.remote is None:
            return _read_at(self._files.descriptor(self.folder / shard), into, start)
        self.remote.fetch_meanwhile()
        with self._one_at_a_time:
            try:
                path = self.remote.here(shard)
                if path is not None:
                    return _read_at(self._files.descriptor(path), into, start)
            except FileNotFoundError:  # it has just made way for another
                pass
        return self.remote.read(shard, start, into)

    def _place(self, ref: SampleRef) -> str:
        return f"{self.folder / ref.shard}: {ref.id}"

    def _name(self, ref: SampleRef, member: str) -> str:
        return f"{self._place(ref)}.{member}"

    def _require_index(self) -> ShardIndex:
        if self.index is None:
            raise BadDataError(
                f"{self.folder}: no index.json, so the identity of these shards is unknown",
                f"a lost index is made again from the folder that dit embed made: dit shard DERIVED --index"
                f" {quoted(self.folder)}; of another program's shards say which encoders made them, with --preset P",
            )
        return self.index


def _opened_at(address: Address) -> ShardSet:
    """The set at an address."""
    require_library(address)
    path, cache = address / INDEX_NAME, Cache.of_environment()
    try:
        value = json.loads(read_object(path))
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{path}: not valid JSON: {error}", "copy the set there again, the index last") from error
    index = ShardIndex.from_json(value, path)
    remote = RemoteShards(address, index.shards, cache)
    return ShardSet(address, samples_of_lists(index, remote.lists), index, remote=remote)


def _read_at(file: int, into: memoryview, start: int) -> int:
    """Fills `into` from byte `start` of an open file, and says how many bytes there were."""
    if not len(into):
        return 0
    if hasattr(os, "preadv"):
        return os.preadv(file, [into], start)
    found = os.pread(file, len(into), start)  # macOS before 11: one copy more
    into[: len(found)] = found
    return len(found)


def decoded_members(members: Mapping[str, bytes | memoryview], where: str, storage: str) -> dict[Feature, np.ndarray]:
    """The arrays of one sample as a model gets them: text without its padding, of several the first; patches decoded
    from int8.

    Args:
        members: suffix → bytes, of the features that are wanted and the text's mask where there is one.
        where: tar and key, for messages.

    Raises `BadDataError` for a member that is damaged.
    """
    text = next(iter(text_members(members)), TEXT.member)
    names = {feature: text if feature is TEXT else feature.member for feature in FEATURES}
    arrays = {
        feature: parse_npy(members[name], f"{where}.{name}") for feature, name in names.items() if name in members
    }
    if TEXT_MASK_MEMBER in members:
        mask_name = f"{where}.{TEXT_MASK_MEMBER}"
        length = _true_length(arrays[TEXT], parse_npy(members[TEXT_MASK_MEMBER], mask_name), mask_name)
        arrays[TEXT] = arrays[TEXT][:length]
    if IMAGE_PATCHES in arrays and storage == INT8:
        arrays[IMAGE_PATCHES] = decode_patches(arrays[IMAGE_PATCHES], INT8)
    return arrays


def _true_length(text: np.ndarray, mask: np.ndarray, mask_name: str) -> int:
    """Tokens of a padded text. The mask of an older set must be one run of ones and then zeros."""
    valid = mask.reshape(-1).astype(bool)
    length = int(valid.sum())
    if len(valid) != len(text) or length == 0 or not valid[:length].all():
        raise BadDataError(
            f"{mask_name}: a mask of {len(valid)} with {length} ones for a text of {len(text)} rows, where the ones"
            " should come first and be one at least",
            AGAIN,
        )
    return length


def _scan(folder: Path) -> list[SampleRef]:
    refs = []
    for path in tars_of(folder):
        bucket, shard = path.parent.name.removeprefix("bucket_"), path.relative_to(folder).as_posix()
        for key, members in scan_tar(path).items():
            refs.append(
                SampleRef(
                    key,
                    bucket,
                    split_by_name(shard),
                    shard,
                    {suffix: (member.offset, member.size) for suffix, member in members.items()},
                )
            )
    return refs


def tars_of(folder: Path) -> list[Path]:
    """The tars of a set without an index. Raises `BadDataError` when there is none."""
    if paths := sorted(folder.glob("**/*.tar")):
        return paths
    raise BadDataError(
        f"{folder}: neither {INDEX_NAME} nor any .tar in it", "make shards with: dit embed IMAGES, then dit shard"
    )
