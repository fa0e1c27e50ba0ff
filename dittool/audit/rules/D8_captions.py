"""Captions are there, differ, are not cut, and their features have the captions' true lengths.

## What it checks
No caption is empty; not all are equal; features differ where captions do; how many captions reach the token limit, or end at one same length as
cut ones do; a mask is a row of ones and then zeros and agrees with the rows that hold text; no padding is stored without a mask.

## Why it matters
A caption cut at 77 tokens loses what it says last. Padding that counts as text, or a mask that is all ones, teaches the model nothing but
padding. Captions that are all equal teach it to ignore text.

## Example
`t5h` of 512 rows, 500 of them zero, and no `t5m` beside it fails.

## Fix
Embed the captions again with `dit embed --pass t5`; raise `encoders.max_text_tokens` when many are cut.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from dittool.audit.data_view import UNOPENED, DataView
from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.subject import Subject
from dittool.data.records import TEXT
from dittool.data.shard_set import SampleRef

CODE, NAME, SEVERITY, SCOPE, SINCE = "D8", "captions", "error", ("data",), "0.1"

_FIX = "embed the captions again: dit embed --pass t5, then dit shard"
_MOST_CUT = 0.01  # share of captions at the token limit
_SHORTEST_LIMIT = 32  # tokens; many captions of one length below this are merely alike
_MOST_AT_ONE_LENGTH = 0.1  # share that has exactly the set's greatest length
_FEW = 10  # different captions


def check(subject: Subject) -> list[Finding]:
    data = subject.data
    if not data.refs:
        return skipped(UNOPENED)
    captions = [data.record(ref).caption for ref in data.refs]
    distinct = len(set(captions))
    refs = data.spread(TEXT)
    lengths, prints, faults = [], set(), []
    for ref in refs:
        text = data.array(ref, TEXT)
        length, fault = _length(data, ref, text)
        faults += [fault] if fault else []
        lengths.append(length)
        prints.add(hashlib.blake2b(text[:length].tobytes(), digest_size=16).digest())
    if empty := [ref.id for ref, caption in zip(data.refs, captions, strict=True) if not caption.strip()]:
        faults.append(f"{len(empty)} captions are empty, first of '{empty[0]}'")
    if distinct == 1 and len(captions) > 1:
        faults.append(f"all {len(captions)} captions are equal: '{captions[0][:60]}'")
    elif len(prints) == 1 and len(refs) > 1:
        faults.append(f"{distinct} different captions have the same text features")
    if faults:
        return [finding for fault in faults[:5] for finding in failed(fault, _FIX)]
    figures = f"{len(captions)} captions, {distinct} different, {np.mean(lengths):.3g} tokens on average, {max(lengths)} at most"
    if cut := _cut(data, lengths):
        return warned(f"{figures}; {cut}", "raise encoders.max_text_tokens, or shorten the captions; then dit embed --pass t5")
    if distinct < min(_FEW, len(captions)):
        return warned(f"{figures}; so few can teach little about text", "caption the images one by one")
    return passed(f"{figures}; none empty, none cut, no padding stored")


def _length(data: DataView, ref: SampleRef, text: np.ndarray) -> tuple[int, str]:
    """The caption's true number of tokens, and what is wrong with it ("" when nothing is)."""
    rows = np.flatnonzero(text.any(axis=1))
    filled = int(rows[-1]) + 1 if len(rows) else 0
    mask = data.mask(ref)
    if not filled:
        return 0, f"{ref.id}: its text features are empty"
    if mask is None:
        return filled, "" if filled == len(text) else f"{ref.id}: {len(text) - filled} of {len(text)} text rows are padding, and there is no mask"
    length = int(mask.sum())
    if len(mask) != len(text) or not mask[:length].all() or not length:
        return length, f"{ref.id}: its mask of {len(mask)} is not ones and then zeros over {len(text)} text rows"
    return length, "" if length <= filled else f"{ref.id}: its mask says {length} tokens, only {filled} rows hold text"


def _cut(data: DataView, lengths: list[int]) -> str:
    limit, longest = data.encoder("text").get("max_tokens"), max(lengths)
    at_limit = sum(length >= limit for length in lengths) if limit else 0
    if at_limit > _MOST_CUT * len(lengths):
        return f"{at_limit} of {len(lengths)} reach the limit of {limit} tokens: they may be cut"
    at_longest = Counter(lengths)[longest]
    if longest >= _SHORTEST_LIMIT and at_longest > max(_MOST_AT_ONE_LENGTH * len(lengths), 2):
        return f"{at_longest} of {len(lengths)} end at exactly {longest} tokens: they look cut"
    return ""
