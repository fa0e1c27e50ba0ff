"""Which samples stand for a whole set: chosen by a hash of their ids, each bucket in its share.

The same set gives the same choice on every machine, whatever the order in which its shards list them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dittool.data.shards.columns import SampleRef
from dittool.seeding import derive_seed


def representative(refs: Sequence[SampleRef], count: int, purpose: str) -> list[SampleRef]:
    """At most `count` of the samples, of each bucket its share of them to within one sample.

    Args:
        purpose: another purpose is another choice.
    """
    buckets = defaultdict(list)
    for ref in sorted(refs, key=lambda ref: derive_seed(purpose, ref.id)):
        buckets[ref.bucket].append(ref)
    # the k-th of a bucket's n samples stands at (k + ½)/n: the first places of all buckets together hold their shares
    placed = [((k + 0.5) / len(some), bucket, k) for bucket, some in sorted(buckets.items()) for k in range(len(some))]
    return [buckets[bucket][k] for _, bucket, k in sorted(placed)[:count]]
