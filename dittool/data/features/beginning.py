"""How every embed run begins: the records of a source, remembered in the folder, and the pairs that are shown first."""

from __future__ import annotations

import time
from pathlib import Path

from dittool.config.architectures import ImageConfig
from dittool.config.load import config_to_toml
from dittool.console import Talk
from dittool.data.embed_again import CONFIGURATION_NAME
from dittool.data.features.parts import Part, shared_files, wait_for_others
from dittool.data.features.store import FeatureStore
from dittool.data.records import Record
from dittool.data.source.item import Pairing, SourceItem, shown
from dittool.data.source.preview import pairs_to_show
from dittool.data.source.scan import scan, summary
from dittool.data.source.seen import Seen
from dittool.errors import BadDataError
from dittool.storage import write_atomic
from dittool.whereabouts import find

_SHOWN_OF_A_CAPTION = 120  # characters, of the pairs that are shown first


def scanned(
    source: Path, store: FeatureStore, config: ImageConfig, held: Path, part: Part, talk: Talk
) -> tuple[list[Record], Seen]:
    """A record for every input, some of them shown with their captions, and what the scan saw of their files. Raises
    `BadDataError` when none can be used.

    Args:
        held: the folder whose lock the parts hold.
    """
    buckets = config.data.bucket_sizes()
    seen = Seen(store.folder / "scanned.rows", store.earlier_records(), buckets, Pairing.of(config.data))
    if part.is_everything:
        for path in store.folder.glob("scanned-*of*.jsonl"):  # what parts told each other stands in scanned.rows
            path.unlink()
    share = None if part.is_everything else _ShareOfParts(store.folder, held, part, talk)
    records = scan(source, buckets, talk, config.data.flip, Pairing.of(config.data), seen, share, config.data.keep)
    if seen.kept:
        talk.note(f"{seen.kept} of {len(records)} inputs have the sizes and times of before and are not read again")
    require_usable(source, records, store)
    for record in pairs_to_show(records):
        talk.note(f"  {shown(record.image)}: {record.caption[:_SHOWN_OF_A_CAPTION]}")
    return records, seen


class _ShareOfParts:
    """Each part reads and hashes its own stretch of the listing, and takes over what others have read. Those that are
    at work are waited for; what nobody reads, each reads itself.
    """

    def __init__(self, folder: Path, held: Path, part: Part, talk: Talk) -> None:
        self._folder, self._held, self._part, self._talk = folder, held, part, talk
        self._began = time.monotonic()
        self._path(part).unlink(missing_ok=True)  # of an earlier run

    def mine(self, items: list[SourceItem]) -> list[SourceItem]:
        self._began = time.monotonic()
        first, end = (len(items) * place // self._part.count for place in (self._part.index, self._part.index + 1))
        return items[first:end]

    def exchange(self, seen: Seen) -> None:
        seen.publish(self._path(self._part))
        took = time.monotonic() - self._began
        wait_for_others(self._held, self._part, lambda other: self._path(other).exists(), took, self._talk.note)
        for path in sorted(self._folder.glob(f"scanned-*of{self._part.count}.jsonl")):
            if path != self._path(self._part):
                seen.learn(path)

    def _path(self, part: Part) -> Path:
        return self._folder / f"scanned-{part.name}.jsonl"


def remember(source: Path, store: FeatureStore, config: ImageConfig, talk: Talk) -> None:
    """Writes the source and the configuration into the folder."""
    out = store.folder
    if (before := store.write_source(str(source.resolve()))) and not _moved(before, source, out):
        talk.warn(f"{out} was embedded from {before}; from now on it holds what {source} has, and forgets the rest")
    with shared_files(out):
        write_atomic(out / CONFIGURATION_NAME, config_to_toml(config).encode())


def require_usable(source: Path, records: list[Record], store: FeatureStore) -> None:
    """Raises `BadDataError` when no input can be used, and leaves each one's reason in records.jsonl where no
    features are that it described.
    """
    if any(record.used for record in records):
        return
    if not store.has_card:
        store.write_records(records)
    counts = summary(records)
    counted = ", ".join(f"{count} {reason}" for reason, count in counts.reasons.items())
    first = next(record for record in records if record.detail)
    counted += f". {shown(first.name)}: {first.detail}"
    where = (
        f"each one's reason stands in {store.records_path}"
        if not store.has_card
        else "look at the source: the features of before are untouched"
    )
    raise BadDataError(
        f"{source}: none of {counts.total} images can be used: {counted}", f"each image needs a caption; {where}"
    )


def _moved(before: str, source: Path, out: Path) -> bool:
    """Whether the source of before is gone and `source` is what stands beside `out` in its place: a moved project."""
    found = None if Path(before).exists() else find(before, out)
    return found is not None and found.resolve() == source.resolve()
