"""Which caption of a sample is trained on, where a set keeps several of an image.

    P(kind k) = w_k / Σ w_j over the kinds that the sample has

Captions of one kind are equally likely.

The draw is f(seed, how often the sample came before, its id): a resumed run draws what the uninterrupted one would have
drawn, and over the passes a sample meets all of its captions.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate

from dittool.data.records import text_members
from dittool.data.shards.columns import SampleRef
from dittool.errors import UsageError
from dittool.seeding import unit_interval

Weights = Mapping[str, float]  # kind → how often, against the others; 1 where it is not named


def drawn_caption(ref: SampleRef, weights: Weights, seed: int, passes: int) -> str:
    """The member of the caption that is drawn when the sample has come `passes` times before."""
    kinds = text_members(ref.members)
    if len(kinds) == 1:
        return next(iter(kinds))
    return _at(unit_interval("caption", seed, passes, ref.id), _chances(kinds, weights))


def shares_drawn(refs: Iterable[SampleRef], weights: Weights, seed: int, passes: int = 0) -> dict[str, float]:
    """Kind → its share of the captions that are drawn in one pass over these samples; nothing where no caption has a
    kind.
    """
    drawn = Counter(text_members(ref.members)[drawn_caption(ref, weights, seed, passes)] for ref in refs)
    return {kind: count / drawn.total() for kind, count in sorted(drawn.items()) if kind}


def require_known_kinds(weights: Weights, kinds: Iterable[str], where: str) -> None:
    """Raises `UsageError` for a weight of a kind that the data do not have."""
    kinds = list(kinds)
    if not (unknown := [kind for kind in weights if kind not in kinds]):
        return
    there = f"the kinds of their captions are {', '.join(kinds)}" if kinds else "they keep one caption of an image"
    near = difflib.get_close_matches(unknown[0], kinds, n=1)
    raise UsageError(
        f"data.caption_weights: {unknown[0]} is no kind of caption in {where}: {there}",
        f"did you mean {near[0]}?" if near else "take it out, or embed these captions: docs/sources.md",
    )


def _chances(kinds: Mapping[str, str], weights: Weights) -> dict[str, float]:
    """Member → its chance, not summing to one. A sample that has nothing but kinds of weight 0 uses what it has."""
    of_kind = Counter(kinds.values())
    chances = {member: weights.get(kind, 1.0) / of_kind[kind] for member, kind in kinds.items()}
    return chances if any(chances.values()) else dict.fromkeys(chances, 1.0)


def _at(place: float, chances: Mapping[str, float]) -> str:
    """The member at a place in [0, 1) of their chances, one behind the other."""
    possible = {member: chance for member, chance in chances.items() if chance}
    reached = list(accumulate(possible.values()))
    return next(
        (member for member, end in zip(possible, reached, strict=True) if place * reached[-1] < end), list(possible)[-1]
    )
