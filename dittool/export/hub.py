"""An exported folder to the hub: after the question whether, as one commit.

What the hub's library raises may quote requests; a message here is made of the status alone, so that no token is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, validate_repo_id

from dittool.errors import StorageError, UsageError
from dittool.storage import bytes_text

_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests")  # of the hub's, by version
_LOG_IN = "make a token that may write at https://huggingface.co/settings/tokens, then: hf auth login (or set HF_TOKEN)"
_NEXT = {
    401: ("the hub does not accept the token", _LOG_IN),
    403: ("the token may not write there", f"name a repository of your own account or organisation; or {_LOG_IN}"),
    404: ("there is no such account or organisation, or the token does not see it", f"correct the name; or {_LOG_IN}"),
    409: ("somebody else is changing the repository", "run the same command again"),
    413: ("the hub takes no files of that size", "make them smaller with --largest-file"),
    429: ("the hub asks to wait", "run the same command again in a few minutes"),
}


def require_pushable(repository: str) -> None:
    """Before anything is made: raises `UsageError` for a name that is none, without a token, and offline."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"--push {repository}: no name of a repository", "for example: --push me/my-model") from error
    if repository.count("/") != 1:
        raise UsageError(f"--push {repository}: whose repository it is is not said", "for example: --push me/my-model")
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"--push {repository}: HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE, or leave --push out")
    if get_token() is None:
        raise UsageError(f"--push {repository}: there is no token of the hub on this machine", _LOG_IN)


def push(
    folder: Path, repository: str, private: bool, agreed: Callable[[str], bool], message: str, bars: bool = False
) -> str | None:
    """Uploads the folder to the hub's repository, which is made where there is none. Returns its address; None when the
    answer was no.

    Args:
        agreed: the question → whether to upload.
        message: of the commit.
        bars: whether the hub's library shows on stderr how far it is.

    Raises `UsageError` for a token that is missing or may not, `StorageError` where the hub cannot be reached or fails.
    """
    require_pushable(repository)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size, address = bytes_text(sum(path.stat().st_size for path in files)), f"{constants.ENDPOINT}/{repository}"
    who = "you and those you let in" if private else "everybody"
    if not agreed(f"upload {len(files)} files, {size}, to {address}, where {who} can read them?"):
        return None
    api = HfApi()
    (enable_progress_bars if bars else disable_progress_bars)()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        raise _refused(repository, error) from None
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
            raise
        raise StorageError(
            f"--push {repository}: {address} cannot be reached, or the upload broke off: {type(error).__name__}",
            f"the export stands in {folder}: run the same command again, with --force, when there is a network",
        ) from None
    return address


def _refused(repository: str, error: HfHubHTTPError) -> UsageError | StorageError:
    status = error.response.status_code if error.response is not None else 0
    status = 404 if isinstance(error, RepositoryNotFoundError) and status == 0 else status
    if status in _NEXT:
        why, hint = _NEXT[status]
        kind = UsageError if status in (401, 403, 404) else StorageError
        return kind(f"--push {repository}: {why} ({status})", hint)
    return StorageError(f"--push {repository}: the hub answers {status}", "run the same command again later")
