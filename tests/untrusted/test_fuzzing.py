"""Honest files with bytes changed at random: each loads or is refused with a sentence, and nothing else happens."""

from __future__ import annotations

import io
import random
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UnsafeFileError
from tests.untrusted import benign
from tests.untrusted.handmade import FOUR_FLOATS, archive, pt


@pytest.fixture(autouse=True)
def libraries_loaded(tmp_path):
    """The libraries import parts of themselves on first use, which the tripwire would take for the file's code."""
    save_file({"a": torch.ones(1)}, tmp_path / "first.safetensors")
    load_weights(tmp_path / "first.safetensors")


def mutated(raw: bytes, random_source: random.Random) -> bytes:
    """Up to four bytes changed, removed, doubled or inserted."""
    data = bytearray(raw)
    for _ in range(random_source.randint(1, 4)):
        position = random_source.randrange(len(data))
        kind = random_source.randrange(4)
        if kind == 0:
            data[position] = random_source.randrange(256)
        elif kind == 1:
            del data[position : position + random_source.randint(1, 8)]
        elif kind == 2:
            data[position:position] = data[position : position + random_source.randint(1, 40)]
        else:
            data[position:position] = random_source.randbytes(random_source.randint(1, 4))
    return bytes(data)


def fuzz(path: Path, variants: list[bytes]) -> int:
    """Loads every variant; each must load or be refused with a sentence. Returns how many loaded."""
    loaded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for variant in variants:
        path.write_bytes(variant)
        try:
            load_weights(path)
            loaded += 1
        except (BadDataError, UnsafeFileError) as refusal:
            assert path.name in refusal.message and refusal.hint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    return loaded


def fuzzed_pickles(tmp_path: Path, count: int) -> int:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0), "plain": [1, "x", None]}, buffer)
    honest = zipfile.ZipFile(buffer).read("archive/data.pkl")
    source, variants = random.Random(1), []
    for _ in range(count):
        pt(tmp_path / "made.pt", mutated(honest, source), FOUR_FLOATS)
        variants.append((tmp_path / "made.pt").read_bytes())
    return fuzz(tmp_path / "fuzzed.pt", variants)


def fuzzed_files(tmp_path: Path, valid: Path, count: int) -> int:
    source, raw = random.Random(2), valid.read_bytes()
    return fuzz(tmp_path / "fuzzed.pt", [mutated(raw, source) for _ in range(count)])


def fuzzed_safetensors(tmp_path: Path, count: int) -> int:
    save_file({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.bool)}, tmp_path / "made.safetensors")
    source, raw = random.Random(3), (tmp_path / "made.safetensors").read_bytes()
    return fuzz(tmp_path / "fuzzed.safetensors", [mutated(raw, source) for _ in range(count)])


def fuzzed_training_checkpoints(tmp_path: Path, count: int) -> int:
    """Of files with objects of other programs in them: their pickles in an archive of their own, and legacy files."""
    source, variants = random.Random(4), []
    (tmp_path / "benign").mkdir()
    honest = [path for path in benign.write(tmp_path / "benign") if "protocol 2" in path.name or path.suffix == ".pth"]
    for index in range(count):
        raw = honest[index % len(honest)].read_bytes()
        if raw.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(raw)) as file:
                members = {name: file.read(name) for name in file.namelist()}
            program = next(name for name in members if name.endswith("data.pkl"))
            raw = archive(tmp_path / "made.pt", members | {program: mutated(members[program], source)}).read_bytes()
        else:
            raw = mutated(raw, source)
        variants.append(raw)
    return fuzz(tmp_path / "fuzzed.pt", variants)


def test_mutations_of_honest_files_load_or_are_refused_and_nothing_else(tmp_path, valid, tripwire):
    assert fuzzed_pickles(tmp_path, 150) < 150
    assert fuzzed_files(tmp_path, valid, 150) < 150
    assert fuzzed_safetensors(tmp_path, 150) < 150
    assert fuzzed_training_checkpoints(tmp_path, 150) < 150


@pytest.mark.slow
def test_thousands_of_mutations_load_or_are_refused_and_nothing_else(tmp_path, valid, tripwire):
    assert fuzzed_pickles(tmp_path, 10_000) < 5_000
    assert fuzzed_files(tmp_path, valid, 10_000) < 10_000
    assert fuzzed_safetensors(tmp_path, 10_000) < 5_000
    assert fuzzed_training_checkpoints(tmp_path, 10_000) < 5_000
