"""Captions are there, differ, are not cut, and their features have the captions' true lengths.

## What it checks
No caption is empty; not all are equal; features differ where the words of captions do, and equal captions have equal
features; how many captions reach the
token limit, or end at one same length as cut ones do; a mask is a row of ones and then zeros, agrees with the rows that
hold text, and counts no more tokens than its caption has bytes; no padding is stored without a mask.

Where a set keeps several captions of an image, each kind is judged by itself.

## Why it matters
A caption cut at 77 tokens loses what it says last. Padding that counts as text, or a mask that is all ones, teaches the
model nothing but padding. Captions that are all equal teach it to ignore text. A caption that was edited after its
features were made, "left" for "right" of a mirrored image, changes a string that nobody reads.

## Example
`t5h` of 512 rows, 500 of them zero, and no `t5m` beside it fails.

## Fix
Embed the captions again with `dit embed --pass t5`; raise `encoders.max_text_tokens` when many are cut. T5's tokenizer
reads English, German, French and Romanian; to words of other scripts it gives one token for all. umT5, mT5 and byT5
read every script.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from dittool.audit.data_view import DataView
from dittool.audit.rule import Finding, failed, passed, warned
from dittool.audit.subject import Data
from dittool.data.records import TEXT, UNKNOWN_WORDS, Feature, text_features
from dittool.data.shards.columns import SampleRef
from dittool.encoders.cards import TextCard
from dittool.encoders.known import KNOW_EVERY_SCRIPT

CODE, NAME, SEVERITY, SCOPE, SINCE = "D8", "captions", "error", ("data",), "0.1"

_FIX = "embed the captions again: dit embed --pass t5, then dit shard"
_MOST_CUT = 0.01  # share of captions at the token limit
_SHORTEST_LIMIT = 32  # tokens; many captions of one length below this are merely alike
_MOST_AT_ONE_LENGTH = 0.1  # share that has exactly the set's greatest length
_FEW = 10  # different captions
_MOST_SHARED = 0.01  # share of captions that may have the features of another one
_EQUAL = 0.05  # relative distance of the features of equal captions, at most: half precision, batches of other lengths
_BESIDE_TEXT = 4  # tokens that stand for no byte of the caption: begin and end
_SHOWN = 5  # faults
_FEWEST = 16  # captions of a rare kind whose features are looked at
_MOST_UNKNOWN = 0.01  # share of captions with words that the tokenizer does not know
_READ_EVERY_SCRIPT = ("umt5", "mt5", "byt5", "gemma", "qwen", "builtin:")  # in the name of an encoder
_MANY_LETTERS = 0.2  # share of letters of other scripts than Latin


@dataclass(frozen=True)
class _Caption:
    """One caption of a sample, and where its features are."""

    ref: SampleRef
    text: str
    feature: Feature


def check(subject: Data) -> list[Finding]:
    """Each kind by itself, where the set keeps several captions of an image."""
    data = subject.opened
    kinds = data.card.captions if data.card is not None else ()
    of_kind: dict[str, list[_Caption]] = {kind: [] for kind in kinds or ("",)}
    for ref in data.refs:
        record = data.record(ref)
        texts = record.captions or (("", record.caption),)
        for (kind, text), feature in zip(texts, text_features(record), strict=True):
            of_kind.setdefault(kind, []).append(_Caption(ref, text, feature))
    findings = []
    for kind, captions in of_kind.items():
        if kind and not captions:
            findings += warned(f"{kind}: no image has a caption of this kind", "take it out of data.caption_column")
            continue
        findings += [
            replace(finding, evidence=f"{kind}: {finding.evidence}") if kind else finding
            for finding in _judged(data, captions)
        ]
    return findings


def _judged(data: DataView, of_kind: list[_Caption]) -> list[Finding]:
    captions = [caption.text for caption in of_kind]
    distinct, looked_at = len(set(captions)), {ref.id for ref in data.spread(TEXT)}
    refs = [caption for caption in of_kind if caption.ref.id in looked_at] or of_kind[:_FEWEST]
    lengths, faults = [], []
    words_of: dict[bytes, set[tuple[str, ...]]] = {}  # features → the captions that have them, by their words
    beside: dict[str, np.ndarray] = {}  # caption → the mean of its features, as they were first seen
    other_text = []
    for one in refs:
        ref, text, caption = one.ref, data.array(one.ref, one.feature), one.text
        length, fault = _length(text, data.mask(ref), caption)
        faults += [f"{ref.id}: {fault}"] if fault else []
        lengths.append(length)
        features = hashlib.blake2b(text[:length].tobytes(), digest_size=16).digest()
        words_of.setdefault(features, set()).add(tuple(re.findall(r"\w+", caption.casefold())))
        if text.ndim == 2 and length:
            mean = text[:length].astype(np.float64).mean(axis=0)
            first = beside.setdefault(caption, mean)
            if first.shape == mean.shape and np.linalg.norm(mean - first) > _EQUAL * np.linalg.norm(first):
                other_text.append(ref.id)
    if empty := [caption.ref.id for caption in of_kind if not caption.text.strip()]:
        faults.append(f"{len(empty)} captions are empty, first of '{empty[0]}'")
    if distinct == 1 and len(captions) > 1:
        faults.append(f"all {len(captions)} captions are equal: '{captions[0][:60]}'")
    elif len(other_text) > _MOST_SHARED * len(refs):
        faults.append(_exchanged(other_text, words_of, len(refs)))
    elif shared := _shared(words_of, len(refs)):
        faults.append(shared)
    if faults:
        more = f" (and {len(faults) - _SHOWN} more faults)" if len(faults) > _SHOWN else ""
        fix = f"{_FIX}; {script}" if (script := _other_script(data, captions)) else _FIX
        return [finding for fault in faults[:_SHOWN] for finding in failed(fault + more, fix)]
    figures = (
        f"{len(captions)} captions, {distinct} different, {np.mean(lengths):.3g} tokens on average, {max(lengths)} at"
        " most"
    )
    if cut := _cut(data, lengths):
        return warned(
            f"{figures}; {cut}", "raise encoders.max_text_tokens, or shorten the captions; then dit embed --pass t5"
        )
    unknown = [ref.id for ref in data.refs if any(f.startswith(f"{UNKNOWN_WORDS}:") for f in data.record(ref).flags)]
    if len(unknown) > _MOST_UNKNOWN * len(captions):
        return warned(
            f"{figures}; {len(unknown)} have words that the tokenizer does not know, first '{unknown[0]}'",
            f"embed the captions with a tokenizer that knows them: {KNOW_EVERY_SCRIPT}",
        )
    if distinct < min(_FEW, len(captions)):
        return warned(f"{figures}; so few can teach little about text", "caption the images one by one")
    return passed(f"{figures}; none empty, none cut, no padding stored")


def _length(text: np.ndarray, mask: np.ndarray | None, caption: str) -> tuple[int, str]:
    """The caption's true number of tokens, and what is wrong with it ("" when nothing is)."""
    if text.ndim != 2:
        return 0, f"its text features have shape {text.shape}, not (tokens, width)"
    rows = np.flatnonzero(text.any(axis=1))
    filled = int(rows[-1]) + 1 if len(rows) else 0
    if not filled:
        return 0, "its text features are empty"
    if mask is None:
        return filled, (
            ""
            if filled == len(text)
            else f"{len(text) - filled} of {len(text)} text rows are padding, and there is no mask"
        )
    length = int(mask.sum())
    if len(mask) != len(text) or not mask[:length].all() or not length:
        return length, f"its mask of {len(mask)} is not ones and then zeros over {len(text)} text rows"
    if length > filled:
        return length, f"its mask says {length} tokens, only {filled} rows hold text"
    size = len(unicodedata.normalize("NFKC", caption).encode("utf-8", "surrogatepass"))  # as T5's tokenizer reads it
    return (
        length,
        (
            ""
            if length <= size + _BESIDE_TEXT
            else f"its mask says {length} tokens, its caption has {size} bytes: padding counts as text"
        ),
    )


def _exchanged(ids: list[str], words_of: dict[bytes, set[tuple[str, ...]]], samples: int) -> str:
    """What is wrong when equal captions have different features: these are of other captions."""
    shared = sum(len(words) - 1 for words in words_of.values())
    also = f", and {shared} have the features of captions of other words" if shared else ""
    return (
        f"{len(ids)} of {samples} captions have other features than equal captions{also}: captions were exchanged or"
        f" edited after their features were made, first of '{ids[0]}'"
    )


def _shared(words_of: dict[bytes, set[tuple[str, ...]]], samples: int) -> str:
    """What is wrong when captions of other words have the same features. Few may: cut ones, or those of words that
    an encoder does not know.
    """
    shared = [words for words in words_of.values() if len(words) > 1]
    extra = sum(len(words) - 1 for words in shared)
    if extra <= _MOST_SHARED * samples:
        return ""
    one, other, *_ = sorted(shared[0])
    return (
        f"{extra} of {samples} captions have the text features of captions of other words, first"
        f" '{' '.join(one)[:60]}' and '{' '.join(other)[:60]}': edited after their features were made, or words that"
        " the encoder does not know"
    )


def _other_script(data: DataView, captions: list[str]) -> str:
    """What helps when many letters of the captions are of another script than Latin and the encoder does not read it;
    "" when they are not, or it does.
    """
    encoder = data.encoder(TextCard)
    if encoder is not None and any(name in encoder.id.lower() for name in _READ_EVERY_SCRIPT):
        return ""
    letters = Counter(
        unicodedata.name(letter, "?").split()[0] for caption in captions for letter in caption if letter.isalpha()
    )
    script, count = max(
        ((script, count) for script, count in letters.items() if script != "LATIN"),
        key=lambda item: item[1],
        default=("", 0),
    )
    if count <= _MANY_LETTERS * letters.total():
        return ""
    return (
        f"{count / letters.total():.0%} of their letters are {script}, which T5's tokenizer lacks: {KNOW_EVERY_SCRIPT}"
    )


def _cut(data: DataView, lengths: list[int]) -> str:
    encoder, longest = data.encoder(TextCard), max(lengths)
    limit = encoder.max_tokens if encoder else None
    at_limit = sum(length >= limit for length in lengths) if limit else 0
    if at_limit > _MOST_CUT * len(lengths):
        return f"{at_limit} of {len(lengths)} reach the limit of {limit} tokens: they may be cut"
    at_longest = Counter(lengths)[longest]
    if longest >= _SHORTEST_LIMIT and at_longest > max(_MOST_AT_ONE_LENGTH * len(lengths), 2):
        return f"{at_longest} of {len(lengths)} end at exactly {longest} tokens: they look cut"
    return ""
