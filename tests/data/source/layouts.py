"""Small layouts of pictures and captions, written as their programs write them, and what embed would encode of them."""

from __future__ import annotations

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dittool.data.source.item import Pairing
from dittool.data.source.scan import load_pixels, scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError
from dittool.geometry import Bucket

BUCKETS = [Bucket(64, 64)]
COLOURS = [(200, 30, 40), (20, 160, 60), (40, 60, 220), (240, 200, 10)]
DOG, CAT, BUS, SEA = range(4)
CAPTIONS = ["a red dog, asleep", "a green cat", 'a "blue" bus', "the sea; yellow"]


def image_bytes(number, suffix):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), COLOURS[number]).save(file, "JPEG" if suffix in ("jpg", "jpeg") else suffix.upper())
    return file.getvalue()


def put(folder, files):
    """Path → number of a picture, text, or JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(image_bytes(content, name.rpartition(".")[2]))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def table(path, *rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in files.items():
            is_picture = isinstance(content, int)
            data = image_bytes(content, name.rpartition(".")[2]) if is_picture else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def read(source, **pairing):
    """Name → (caption, the picture that its pixels are) of what embed would encode, or the reason why not."""
    found = {}
    for record in scan(source, BUCKETS, pairing=Pairing(**pairing)):
        if not record.used:
            found[record.name] = record.reason
            continue
        colour = load_pixels(record, source).reshape(-1, 3).mean(0)
        distances = np.abs(np.array(COLOURS) - colour).max(1)
        assert distances.min() < 3
        found[record.name] = (record.caption, int(distances.argmin()))
    return found


def pairs(names, captions=CAPTIONS):
    """What `read` gives when each picture, in this order, has its own caption."""
    return {name: (captions[number], number) for number, name in enumerate(names)}


def error_of(source, **pairing):
    with pytest.raises(BadDataError) as caught:
        list_source(source, Pairing(**pairing))
    return caught.value
