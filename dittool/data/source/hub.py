"""A data set of the Hugging Face hub as a source: `hf://datasets/OWNER/NAME`, with `@REVISION` and `/PATH` behind it.

Its files are fetched once into the hub's own cache (`HF_HOME`), file by file, and read from there like any folder. What
an interrupted call fetched stays.
"""

from __future__ import annotations

import re
from pathlib import Path

from dittool.address import Address, place_of, without_secrets
from dittool.console import SILENT, Talk
from dittool.data.source.archive import ARCHIVE_SUFFIXES
from dittool.data.source.coco import COCO_SUFFIX
from dittool.data.source.embedded import EMBEDDED_SUFFIXES
from dittool.data.source.item import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from dittool.data.source.lists import LIST_SUFFIXES
from dittool.errors import StorageError, UsageError, described
from dittool.shell import command_line

# hf://datasets/OWNER/NAME@REVISION/PATH; a revision of the hub's own has slashes: @refs/convert/parquet
_DATA_SET = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+))?"
)
_READ = {*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, *LIST_SUFFIXES, *ARCHIVE_SUFFIXES, *EMBEDDED_SUFFIXES, COCO_SUFFIX}


def source_at(source: Path, talk: Talk = SILENT) -> Path:
    """The folder or file to read: that of a path as it is, of an address of the hub where its files lie now. Raises
    `UsageError` for an address of no data set, `StorageError` where it cannot be fetched.
    """
    address = place_of(str(source))
    if not isinstance(address, Address) or address.scheme != "hf":
        return source
    found = _DATA_SET.fullmatch(str(address))
    if found is None:
        raise UsageError(
            f"{address}: no data set of the hub",
            "write hf://datasets/OWNER/NAME, with @REVISION or /PATH behind it where that is meant",
        )
    talk.note(f"{address}: fetched into the hub's cache (HF_HOME), where it is not there yet")
    return _fetched(address, found["repository"], found["revision"], found["path"] or "")


def _fetched(address: Address, repository: str, revision: str | None, path: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    below = f"{path}/" if path else ""
    wanted = [path] if path else []
    wanted += [f"{below}*{spelled}" for suffix in sorted(_READ) for spelled in (suffix, suffix.upper())]
    try:
        folder = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=wanted
        )
    except GatedRepoError as error:
        raise StorageError(
            f"{address}: it is gated", "accept its terms on the hub's page, then: hf auth login"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise UsageError(
                f"{address}: the hub has no such public data set or revision", "check the address, or: hf auth login"
            ) from error
        raise _not_to_be_had(address, repository, error) from error
    except Exception as error:  # whatever the hub's HTTP library raises
        raise _not_to_be_had(address, repository, error) from error
    found = Path(folder) / path
    if not found.exists():
        raise UsageError(f"{address}: no such file or folder in the data set", "check the path behind its name")
    return found


def _not_to_be_had(address: Address, repository: str, error: Exception) -> StorageError:
    fetch = command_line("hf", "download", "--repo-type", "dataset", repository)
    return StorageError(
        f"{address}: cannot be fetched: {without_secrets(described(error))[:200]}",
        f"run the same command again: what came stays; or where there is a network: {fetch}",
    )
