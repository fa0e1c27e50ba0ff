"""Zips of captioned pictures, and what a stranger may put into one: nothing of it does harm."""

from __future__ import annotations

import stat
import tracemalloc
import zipfile

import pytest

from dittool.data.source.containers import read_picture
from dittool.data.source.images import ImageRefused
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError, UnsafeFileError
from dittool.untrusted.zip_members import read_zip_member, zip_members
from tests.data.source.layouts import BUCKETS, CAPTIONS, CAT, DOG, error_of, image_bytes, pairs, read, tar


def zip_of(path, files, **changes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(info, key, value)
            file.writestr(info, data)
    return path


PAIR = [("a.png", image_bytes(DOG, "png")), ("a.txt", CAPTIONS[DOG])]


def test_a_zip_of_a_folder(tmp_path):
    more = [("sub/b.v1.png", image_bytes(CAT, "png")), ("sub/b.v1.caption", CAPTIONS[CAT]), ("sub/", b"")]
    hidden = [("__MACOSX/._a.png", b"x"), (".DS_Store", b"x"), ("LICENSE", b"x"), ("notes.md", b"x")]
    source = zip_of(tmp_path / "a.zip", [*PAIR, *more, *hidden])
    assert read(source) == pairs(["a", "sub/b.v1"])
    assert list_source(source).ignored == {"hidden": 2, "no suffix": 1, ".md": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.row(52, 53)
@pytest.mark.parametrize("name", ["../a.png", "/a.png", "sub/../../a.png", "a\\b.png", "..png", "a//b.png"])
def test_zip_names_that_lead_elsewhere_are_unsafe(tmp_path, name):
    source = zip_of(tmp_path / "a.zip", [(name, b"x"), *PAIR])
    with pytest.raises(UnsafeFileError, match=r"a\.zip"):
        list_source(source)


@pytest.mark.row(52)
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_unsafe(tmp_path, kind):
    source = zip_of(tmp_path / "a.zip", [("b.png", b"/etc/passwd")], external_attr=(kind | 0o777) << 16)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        list_source(source)


@pytest.mark.row(51)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_of_a_zip_twice_is_an_error(tmp_path):
    with pytest.raises(BadDataError, match="there twice"):
        list_source(zip_of(tmp_path / "a.zip", [*PAIR, PAIR[0]]))
    with pytest.raises(BadDataError, match="there twice but for its capitals"):
        list_source(zip_of(tmp_path / "a.zip", [*PAIR, ("a.PNG", b"x")]))


def with_directory_entry(raw, name, change):
    """The zip with changed fields in the directory's entry of a member: `change` gets and gives the packed entry."""
    place = raw.rindex(b"PK\x01\x02" + raw[raw.rindex(name.encode()) - 42 : raw.rindex(name.encode())])
    return raw[:place] + change(raw[place : place + 46]) + raw[place + 46 :]


def at(position, value):
    """A change of four bytes of a directory's entry: 16 checksum, 20 packed, 24 size, 42 offset."""
    return lambda entry: entry[:position] + value.to_bytes(4, "little") + entry[position + 4 :]


@pytest.mark.row(53)
def test_members_of_a_zip_that_share_their_bytes_are_unsafe(tmp_path):
    source = zip_of(tmp_path / "a.zip", [*PAIR, ("b.png", PAIR[0][1])])
    raw = source.read_bytes()
    source.write_bytes(with_directory_entry(raw, "b.png", at(42, 0)))  # the bomb of overlapping files
    with pytest.raises(UnsafeFileError, match="shares bytes"):
        list_source(source)


@pytest.mark.row(53)
@pytest.mark.parametrize(("position", "value"), [(24, 10), (24, 10_000_000), (16, 7)])
def test_a_member_with_a_lying_size_or_checksum_is_refused_alone(tmp_path, position, value):
    source = zip_of(tmp_path / "a.zip", [*PAIR, ("b.png", b"x" * 5_000_000), ("b.txt", "b")])
    source.write_bytes(with_directory_entry(source.read_bytes(), "b.png", at(position, value)))
    found = read(source)
    assert found["a"] == (CAPTIONS[DOG], DOG) and found["b"] == "unreadable"


@pytest.mark.row(53)
def test_a_bomb_in_a_zip_is_not_unfolded(tmp_path):
    source = zip_of(tmp_path / "a.zip", [*PAIR, ("b.png", bytes(1 << 20)), ("b.txt", bytes(1 << 20))])
    source.write_bytes(with_directory_entry(source.read_bytes(), "b.png", at(24, 300 << 20)))
    assert read(source) == {"a": (CAPTIONS[DOG], DOG), "b": "too-large"}
    source = zip_of(tmp_path / "b.zip", [("c.png", PAIR[0][1]), ("c.txt", bytes(1 << 20))])
    assert read(source) == {"c": "caption-too-long"}


@pytest.mark.row(53)
def test_a_member_is_never_unfolded_further_than_it_says(tmp_path):
    source = zip_of(tmp_path / "a.zip", [("b.png", bytes(40 << 20))])
    source.write_bytes(with_directory_entry(source.read_bytes(), "b.png", at(24, 1000)))
    (member,) = zip_members(source)
    tracemalloc.start()
    with pytest.raises(BadDataError, match="unfolds to more than the 1,000 bytes"):
        read_zip_member(source, member)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.row(50)
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"PK" + raw])
def test_a_damaged_zip_is_an_error_that_names_it(tmp_path, damage):
    source = zip_of(tmp_path / "a.zip", PAIR)
    source.write_bytes(damage(source.read_bytes()))
    try:
        assert read(source) == pairs(["a"])  # bytes in front of a zip are no part of it
    except BadDataError as error:
        assert str(source) in error.message


def test_an_encrypted_zip_and_other_packings_say_so(tmp_path):
    source = zip_of(tmp_path / "a.zip", PAIR)
    raw = source.read_bytes()
    flagged = with_directory_entry(raw, "a.png", lambda entry: entry[:8] + b"\1" + entry[9:])
    source.write_bytes(flagged)
    assert "is encrypted" in error_of(source).message
    source.write_bytes(with_directory_entry(raw, "a.png", lambda entry: entry[:10] + b"\x0c" + entry[11:]))
    assert "packed by method 12" in error_of(source).message


def test_a_picture_that_is_gone_from_its_zip(tmp_path):
    source = zip_of(tmp_path / "a.zip", PAIR)
    for place in ("z.png", "sub/a.png"):
        with pytest.raises(ImageRefused) as caught:
            read_picture(source / place)
        assert caught.value.reason == "no-image"


def test_texts_of_the_kind_that_is_asked_for_are_read_in_a_zip(tmp_path):
    source = zip_of(tmp_path / "a.zip", [*PAIR, ("a.caption", CAPTIONS[CAT])])
    assert read(source) == {"a": "two-captions"}
    assert [record.caption for record in scan(source, BUCKETS, pairing=Pairing("caption"))] == [CAPTIONS[CAT]]


def test_a_tar_beside_a_zip_of_one_name(tmp_path):
    tar(tmp_path / "a.tar", {"x.png": DOG, "x.txt": CAPTIONS[DOG]})
    zip_of(tmp_path / "a.zip", [("x.png", image_bytes(CAT, "png")), ("x.txt", CAPTIONS[CAT])])
    assert read(tmp_path) == {"a.tar/x": (CAPTIONS[DOG], DOG), "a.zip/x": (CAPTIONS[CAT], CAT)}
