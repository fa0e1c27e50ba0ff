"""Prompts: what of one the model cannot follow, and a file of them, one a line, or `.jsonl` with a prompt, a reference
and a seed on each line.
"""

from __future__ import annotations

import difflib
import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from dittool.console import Talk, escaped
from dittool.data.source.captions import CaptionRefused, check_caption
from dittool.encoders.interfaces import TextEncoder
from dittool.errors import BadDataError, UsageError
from dittool.storage import utf8_text

_KEYS = {"prompt": str, "ref": str, "seed": int}
_LARGEST_FILE = 16 << 20  # bytes
_SHOWN = 40  # characters of what is cut
_HINT = 'a line of a .jsonl is for example: {"prompt": "a red circle", "ref": "one.png", "seed": 7}'


@dataclass(frozen=True)
class PromptLine:
    """What one line asks for; None is what the command line says."""

    number: int  # of the line, from 1
    prompt: str | None
    reference: Path | None
    seed: int | None


def warn_of_prompt(prompt: str, encoder: TextEncoder, talk: Talk) -> None:
    """Says what the model cannot have learned from a caption: control characters, and what is cut off."""
    try:
        check_caption(prompt)
    except CaptionRefused as error:
        talk.warn(f"the prompt: {error.detail}; dit embed refuses such captions, so the model has never seen one")
    tokens, limit = encoder.count_tokens(prompt), encoder.card.max_tokens
    if tokens <= limit:
        return

    def tokens_until(end: int) -> int:
        return encoder.count_tokens(prompt[: end + 1])

    kept = bisect_right(range(len(prompt)), limit, key=tokens_until)  # characters: not every script has words
    talk.warn(
        f"the prompt has {tokens:,} tokens and the text encoder takes {limit:,}: the last {len(prompt) - kept:,} of its"
        f" {len(prompt):,} characters are cut and have no effect, from '{escaped(prompt[kept:][:_SHOWN])}' on"
    )


def read_prompts(path: Path) -> list[PromptLine]:
    """The lines of a file that are not empty. A `ref` is looked for beside the file.

    Raises `UsageError` when there is no such file and `BadDataError` naming the line that cannot be used.
    """
    if not path.is_file():
        raise UsageError(f"--prompts {path}: no such file", "check the path")
    if path.stat().st_size > _LARGEST_FILE:
        raise BadDataError(
            f"{path}: {path.stat().st_size:,} bytes, a file of prompts has at most {_LARGEST_FILE:,}",
            "is this the right file?",
        )
    try:
        text = utf8_text(path.read_bytes())
    except ValueError as error:
        raise BadDataError(f"{path}: {error}", "is this the right file? Prompts are UTF-8 text") from error
    numbered = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise BadDataError(f"{path}: no prompt in it", "write one prompt a line")
    if path.suffix.lower() == ".jsonl":
        return [_from_json(path, number, line) for number, line in numbered]
    return [PromptLine(number, line, None, None) for number, line in numbered]


def _from_json(path: Path, number: int, line: str) -> PromptLine:
    where = f"{path}:{number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{where}: not valid JSON: {error}", _HINT) from error
    _check(value, where)
    reference = path.parent / value["ref"] if "ref" in value else None
    if reference is not None and not reference.is_file():
        raise BadDataError(
            f"{where}: ref: {reference}: no such file", "paths are looked for beside the file of prompts"
        )
    return PromptLine(number, value.get("prompt"), reference, value.get("seed"))


def _check(value: object, where: str) -> None:
    """Raises `BadDataError` unless it is an object with a prompt or a reference and known keys of their types."""
    if not isinstance(value, dict) or not ("prompt" in value or "ref" in value):
        raise BadDataError(f"{where}: neither prompt nor ref", _HINT)
    for key, given in value.items():
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            raise BadDataError(
                f"{where}: unknown key '{key}'",
                f"did you mean '{close[0]}'?" if close else f"there are {', '.join(_KEYS)}",
            )
        if type(given) is not _KEYS[key] or (isinstance(given, int) and given < 0):
            wanted = "a whole number of at least 0" if key == "seed" else "text"
            raise BadDataError(f"{where}: {key} is {json.dumps(given)[:80]}, not {wanted}", _HINT)
