"""Which samples stand for a whole set: chosen by a hash of their ids, each bucket in its share.

The same set gives the same choice on every machine, whatever the order in which its shards list them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dittool.data.shards.columns import SampleRef, Samples
from dittool.seeding import derive_seed


def representative(refs: Sequence[SampleRef], count: int, purpose: str) -> list[SampleRef]:
    """At most `count` of the samples, of each bucket its share of them to within one sample.

    Args:
        purpose: another purpose is another choice.
    """
    ids = refs.ids() if isinstance(refs, Samples) else ((ref.id, ref.bucket) for ref in refs)
    names: dict[str, int] = {}
    numbers, codes = np.empty(len(refs), np.int64), np.empty(len(refs), np.int32)
    for row, (key, bucket) in enumerate(ids):
        numbers[row], codes[row] = derive_seed(purpose, key), names.setdefault(bucket, len(names))
    placed: list[tuple[float, str, int, int]] = []
    for bucket, code in sorted(names.items()):
        rows = np.flatnonzero(codes == code)
        first = rows[np.argsort(numbers[rows], kind="stable")[:count]]
        # the k-th of a bucket's n samples stands at (k + ½)/n: the first places of all buckets hold their shares
        placed += [((k + 0.5) / len(rows), bucket, k, row) for k, row in enumerate(first.tolist())]
    return [refs[row] for _, _, _, row in sorted(placed)[:count]]
