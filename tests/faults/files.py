"""Pictures, lists and tars that tests make, and what lies in a folder."""

from __future__ import annotations

import io
import json
import tarfile

from PIL import Image

from tests.data.source.picture_files import encoded


def flat(colour, size=(80, 80)):
    return encoded(Image.new("RGB", size, colour))


def near(colour, other, tolerance=4):
    return max(abs(one - two) for one, two in zip(colour, other, strict=True)) <= tolerance


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def first_tar(shards):
    return min(shards.glob("bucket_*/shard-*.tar"))


def write_tar(path, members, **changes):
    """A tar of (name, bytes); `changes` are set on each member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if changes.get("type") else len(raw)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(raw))
    return path


def members_of(path):
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
