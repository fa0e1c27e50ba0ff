"""Prompts: what of one the model cannot follow, and a file of them, one a line, or `.jsonl` with a prompt, a reference
and settings of its own on each line.
"""

from __future__ import annotations

import difflib
import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from dittool.console import SILENT, Talk, escaped
from dittool.data.source.captions import CaptionRefused, check_caption
from dittool.encoders.interfaces import TextEncoder
from dittool.errors import BadDataError, UsageError
from dittool.geometry import parse_size
from dittool.nearest import did_you_mean
from dittool.storage import utf8_text

_KEYS = {"prompt": str, "ref": str, "seed": int, "size": str, "negative": str}
_LARGEST_FILE = 16 << 20  # bytes
_SHOWN = 40  # characters of what is cut
_OTHER_KINDS = (".json", ".csv", ".tsv", ".parquet", ".toml", ".yaml", ".yml", ".xlsx")
_OPTION = re.compile(r"(?:^|\s)(--[A-Za-z][\w-]*)")  # kohya's `a cat --w 512`, Midjourney's `--ar 3:2`
_HINT = 'a line of a .jsonl is for example: {"prompt": "a red circle", "ref": "one.png", "seed": 7, "size": "512x512"}'


@dataclass(frozen=True)
class PromptLine:
    """What one line asks for; None is what the command line says."""

    number: int  # of the line, from 1
    prompt: str | None
    reference: Path | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    negative: str | None = None


def warn_of_prompt(prompt: str, encoder: TextEncoder, talk: Talk, name: str = "prompt") -> None:
    """Says what the model cannot have learned from a caption: control characters, and what is cut off."""
    try:
        check_caption(prompt)
    except CaptionRefused as error:
        talk.warn(f"the {name}: {error.detail}; dit embed refuses such captions, so the model has never seen one")
    tokens, limit = encoder.count_tokens(prompt), encoder.card.max_tokens
    if tokens <= limit:
        return

    def tokens_until(end: int) -> int:
        return encoder.count_tokens(prompt[: end + 1])

    kept = bisect_right(range(len(prompt)), limit, key=tokens_until)  # characters: not every script has words
    talk.warn(
        f"the {name} has {tokens:,} tokens and the text encoder takes {limit:,}: the last {len(prompt) - kept:,} of its"
        f" {len(prompt):,} characters are cut and have no effect, from '{escaped(prompt[kept:][:_SHOWN])}' on"
    )


def read_prompts(path: Path, talk: Talk = SILENT) -> list[PromptLine]:
    """The lines of a file that are neither empty nor, in text, comments that begin with #. A `ref` is looked for beside
    the file.

    Raises `UsageError` when there is no such file and `BadDataError` naming the line that cannot be used.
    """
    if not path.is_file():
        raise UsageError(f"--prompts {path}: no such file", did_you_mean(path, "check the path"))
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
    suffix = path.suffix.lower()
    if suffix in _OTHER_KINDS:
        raise BadDataError(f"{path}: prompts are text, a prompt a line, or .jsonl, not {suffix}", _HINT)
    if suffix != ".jsonl":
        comments = [line for _, line in numbered if line.startswith("#")]
        if comments:
            talk.note(f"{path}: {len(comments)} lines that begin with # are comments, such as: {comments[0][:60]}")
        numbered = [(number, line) for number, line in numbered if not line.startswith("#")]
    if not numbered:
        raise BadDataError(f"{path}: no prompt in it", "write one prompt a line")
    if suffix == ".jsonl":
        return [_from_json(path, number, line) for number, line in numbered]
    return [_from_text(path, number, line) for number, line in numbered]


def _from_text(path: Path, number: int, line: str) -> PromptLine:
    if found := _OPTION.search(line):
        raise BadDataError(
            f"{path}:{number}: {found[1]}: options in a line of text are not read, they would be drawn as words", _HINT
        )
    if line.startswith("{") and line.endswith("}"):
        raise BadDataError(f"{path}:{number}: JSON, which would be drawn as words", "call the file .jsonl; " + _HINT)
    return PromptLine(number, line)


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
            f"{where}: ref: {reference}: no such file",
            did_you_mean(reference, "paths are looked for beside the file of prompts"),
        )
    try:
        size = parse_size(value["size"]) if "size" in value else None
    except ValueError as error:
        raise BadDataError(f"{where}: size: {error}", _HINT) from error
    return PromptLine(number, value.get("prompt"), reference, value.get("seed"), size, value.get("negative"))


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
