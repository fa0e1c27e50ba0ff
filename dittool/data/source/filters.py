"""Which inputs a set is made of: `[data.keep]`. What does not pass is refused like any other input, with a reason that
begins with "filtered:", and counted by it.

Filters look at what the scan knows (size, captions, name); scores stand in the columns of a list and are looked at with
its rows (columns.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dittool.config.features import Keep
from dittool.data.records import REFUSED, USED, Record
from dittool.errors import UsageError
from dittool.nearest import did_you_mean

FILTERED = "filtered:"  # the reason is FILTERED and a filter's name
_MOST_FOREIGN = 0.2  # share of a caption's letters that may be of other scripts
Verdict = tuple[str, str]  # filter's name and what it found; ("", "") for a record that passes


def filtered(records: Sequence[Record], keep: Keep | None) -> list[Record]:
    """The records, those that do not pass refused. Of several captions those that do not pass are taken out, and the
    image is refused where none is left. Raises `UsageError` for a list of names that is not there.
    """
    if keep is None:
        return list(records)
    only, without = _names_in(keep.names, "names"), _names_in(keep.not_names, "not_names")
    passes = _caption_test(keep)

    def judged(record: Record) -> Record:
        if not record.used:
            return record
        record, verdict = _with_captions(record, passes)
        name, detail = verdict if verdict[0] else _judged(record, keep, only, without)
        return replace(record, status=REFUSED, reason=f"{FILTERED}{name}", detail=detail) if name else record

    return [judged(record) for record in records]


def as_unfiltered(record: Record) -> Record:
    """As the scan judged it, before any filter."""
    return replace(record, status=USED, reason="", detail="") if record.reason.startswith(FILTERED) else record


def _judged(record: Record, keep: Keep, only: frozenset[str] | None, without: frozenset[str] | None) -> Verdict:
    shorter, longer = sorted((record.width, record.height))
    size = f"{record.width}x{record.height}"
    if keep.min_side is not None and shorter < keep.min_side:
        return "min-side", f"{size}, the shorter side has at least {keep.min_side} pixels"
    if keep.max_aspect is not None and longer > keep.max_aspect * shorter:
        return "max-aspect", f"{size} is {longer / shorter:.3g}:1, at most {keep.max_aspect:g}:1 is kept"
    names = {record.name, record.id, record.image}
    if only is not None and not names & only:
        return "names", f"not in {keep.names}"
    if without is not None and names & without:
        return "not-names", f"in {keep.not_names}"
    return "", ""


def _with_captions(record: Record, passes: Callable[[str], Verdict]) -> tuple[Record, Verdict]:
    verdicts = [passes(text) for text in record.texts]
    if not any(name for name, _ in verdicts):
        return record, ("", "")
    kept = tuple(
        caption for caption, (name, _) in zip(record.captions, verdicts, strict=bool(record.captions)) if not name
    )
    if not kept:
        return record, next(verdict for verdict in verdicts if verdict[0])
    return replace(record, caption=kept[0][1], captions=kept), ("", "")


def _caption_test(keep: Keep) -> Callable[[str], Verdict]:
    wanted, unwanted = (re.compile(text) if text else None for text in (keep.caption, keep.not_caption))
    scripts = frozenset(script.upper() for script in keep.scripts or ())

    def test(text: str) -> Verdict:
        if wanted and not wanted.search(text):
            return "caption", f"its caption does not match {keep.caption}"
        if unwanted and (found := unwanted.search(text)):
            return "not-caption", f"its caption has '{found[0][:40]}', which {keep.not_caption} matches"
        if scripts and (share := _foreign_share(text, scripts)) > _MOST_FOREIGN:
            return "scripts", f"{share:.0%} of its caption's letters are not {', '.join(sorted(scripts))}"
        return "", ""

    return test


def _foreign_share(text: str, scripts: frozenset[str]) -> float:
    """Of a text's letters those of other scripts, by the first word of their Unicode names."""
    letters = [unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()]
    return sum(script not in scripts for script in letters) / max(len(letters), 1)


def _names_in(path: str | None, key: str) -> frozenset[str] | None:
    """The lines of a file; None where there is none to look at."""
    if path is None:
        return None
    try:
        return frozenset(
            line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"data.keep.{key}: {path} cannot be read: {error}",
            did_you_mean(Path(path), "give a text with a name, an id or an image's path on each line"),
        ) from error
