"""One byte of a set of shards is another, anywhere: it is found, or it changes nothing that is trained on."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.errors import DitError

pytestmark = pytest.mark.slow

TRIES = 300
FEATURES = ("cls", "patches", "latent", "text")


def content(folder):
    """All that a training run gets out of a set."""
    shards = ShardSet.open(folder)
    return (
        shards.card,
        shards.widths,
        shards.statistics,
        [(ref, shards.read(ref), shards.read_record(ref)) for ref in shards.samples],
    )


def same(one, other):
    """Equal card, widths and samples; statistics within what verification tolerates."""
    if one[:2] != other[:2] or len(one[3]) != len(other[3]):
        return False
    if not all(np.allclose(one[2][key], other[2][key], rtol=1e-2, atol=1e-3) for key in ("latent_mean", "latent_std")):
        return False
    return all(
        mine[0] == theirs[0]
        and mine[2] == theirs[2]
        and all(np.array_equal(getattr(mine[1], name), getattr(theirs[1], name)) for name in FEATURES)
        for mine, theirs in zip(one[3], other[3], strict=True)
    )


@pytest.mark.parametrize("pattern", ["index.json", "**/*.members.json", "**/*.tar"])
def test_a_flipped_byte_is_found_or_harmless(pattern, tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    before, chance = content(folder), random.Random(0)
    path = sorted(folder.glob(pattern))[0]
    raw = path.read_bytes()
    silent, found = [], 0
    for _ in range(TRIES):
        place, change = chance.randrange(len(raw)), chance.randrange(1, 256)
        path.write_bytes(raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :])
        try:  # anything but a DitError is a crash, and fails the test
            detected = bool(verify(folder))
        except DitError:
            detected = True
        found += detected
        if not detected and not same(before, content(folder)):
            silent.append((place, raw[place], raw[place] ^ change))
    assert not silent
    assert found > 0.9 * TRIES
