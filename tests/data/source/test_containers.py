"""Files that hold many samples: the same pictures in each kind give the same records and the same features, and what
stands in a stranger's zip or table does no harm.
"""

from __future__ import annotations

import io
import json
import stat
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.records import LATENT, TEXT
from dittool.data.source import embedded
from dittool.data.source.containers import read_picture
from dittool.data.source.images import ImageRefused
from dittool.data.source.item import Pairing
from dittool.data.source.scan import load_pixels, scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError, UnsafeFileError
from dittool.geometry import Bucket
from dittool.untrusted.zip_members import read_zip_member, zip_members
from tests.data.source.layouts import BUCKETS, CAPTIONS, CAT, DOG, error_of, image_bytes, pairs, put, read, tar

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import ipc, parquet  # noqa: E402

COUNT = 12


def noise(number):
    """A picture as JPEG, no two alike, of two shapes."""
    file = io.BytesIO()
    size = (96, 64) if number % 3 else (64, 64)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def rows():
    """Name, picture and caption of each."""
    return [(f"{number:04d}", noise(number), f"drawing number {number} of twelve") for number in range(COUNT)]


def as_folder(path):
    for name, data, caption in rows():
        (path / f"{name}.jpg").write_bytes(data)
        (path / f"{name}.txt").write_text(caption)
    return path


def as_tars(path):
    for part in range(2):
        files = {}
        for name, data, caption in rows()[part::2]:
            files |= {f"{name}.jpg": data, f"{name}.txt": caption.encode()}
        _tar(path / f"{part:05d}.tar", files)
    return path


def _tar(path, files):
    import tarfile

    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def as_zip(path, texts=True):
    with zipfile.ZipFile(path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data, caption in rows():
            file.writestr(f"set/{name}.jpg", data)
            if texts:
                file.writestr(f"set/{name}.txt", caption)
            else:
                file.writestr(f"set/{name}.json", json.dumps({"caption": caption, "width": 96}))
    return path / "pictures.zip"


def hub_table():
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    pictures = [{"bytes": data, "path": "image.jpg"} for _, data, _ in rows()]
    return pyarrow.table(
        {"text": [caption for *_, caption in rows()], "image": pyarrow.array(pictures, kind), "label": [0] * COUNT}
    )


def as_hub_parquet(path):
    (path / "data").mkdir()
    for part in range(2):
        name = path / f"data/train-{part:05d}-of-00002.parquet"
        parquet.write_table(hub_table().slice(part * 6, 6), name, row_group_size=4)
    return path


def as_img2dataset_parquet(path):
    found = [
        {
            "url": "https://x/",
            "caption": caption,
            "key": name,
            "status": "success",
            "error_message": None,
            "width": 96,
            "jpg": data,
        }
        for name, data, caption in rows()
    ]
    found.append({**found[0], "key": "9999", "status": "failed_to_download", "error_message": "404", "jpg": None})
    parquet.write_table(pyarrow.Table.from_pylist(found), path / "00000.parquet")
    return path


def as_img2dataset_tars(path):
    """With the json and the table beside each tar."""
    files = {}
    for name, data, caption in rows():
        about = {"caption": caption, "url": "https://x/", "key": name, "status": "success"}
        files |= {f"{name}.jpg": data, f"{name}.json": json.dumps(about).encode(), f"{name}.txt": caption.encode()}
    _tar(path / "00000.tar", files)
    parquet.write_table(pyarrow.Table.from_pylist([{"url": "https://x/", "caption": "x"}]), path / "00000.parquet")
    (path / "00000_stats.json").write_text(json.dumps({"count": COUNT}))
    return path


def as_datasets_folder(path, split="train"):
    """As save_to_disk of `datasets` leaves it: streams of Arrow, and which of them are the data."""
    folder = path / split
    folder.mkdir()
    names = []
    for part in range(2):
        names.append(f"data-{part:05d}-of-00002.arrow")
        table = hub_table().slice(part * 6, 6)
        with ipc.new_stream(str(folder / names[-1]), table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
    (folder / "cache-12ab.arrow").write_bytes((folder / names[0]).read_bytes())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    (path / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    return path


KINDS = {
    "folder": as_folder,
    "tars": as_tars,
    "zip": as_zip,
    "zip with json": lambda path: as_zip(path, texts=False),
    "parquet of the hub": as_hub_parquet,
    "parquet of img2dataset": as_img2dataset_parquet,
    "tars of img2dataset": as_img2dataset_tars,
    "folder of datasets": as_datasets_folder,
}


def features_of(source, out):
    """Of each caption: hash and bucket of its picture, and bytes of its latent and text features."""
    config = load_config("demo", ["data.buckets=['64x64','96x64']", "data.near_copies=ignored"])
    done = embed(source, out, config, ["vae", "t5"])
    return {
        record.caption: (
            record.image_sha256,
            record.bucket,
            record.crop,
            *((out / feature.name / f"{record.id}.npy").read_bytes() for feature in (LATENT, TEXT)),
        )
        for record in done.used
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    return features_of(as_folder(path), path.parent / "derived")


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_the_same_pictures_give_the_same_features_from_each_kind_of_source(tmp_path, expected, kind):
    (tmp_path / "source").mkdir()
    source = KINDS[kind](tmp_path / "source")
    assert len(expected) == COUNT and features_of(source, tmp_path / "out") == expected
    assert list_source(source).kind == {"tars": "tar", "zip": "zip", "folder of datasets": "arrow"}.get(
        kind, list_source(source).kind
    )


def test_kinds_may_be_mixed_and_nested(tmp_path):
    for place, make in (("a/b", as_tars), ("a/c", as_zip), ("d", as_hub_parquet), ("e", as_datasets_folder)):
        (tmp_path / place).mkdir(parents=True)
        make(tmp_path / place)
    source = list_source(tmp_path)
    assert source.kind == "containers" and len(source.items) == 4 * COUNT
    assert {item.name.rpartition("/")[0] for item in source.items} == {
        *("a/b/00000", "a/b/00001", "a/c/pictures/set"),
        *(f"d/data/train-0000{part}-of-00002" for part in range(2)),
        *(f"e/train/data-0000{part}-of-00002" for part in range(2)),
    }
    assert source.ignored == {".arrow": 1, ".json": 3}
    records = scan(tmp_path, [Bucket(64, 64)])
    assert all(record.used for record in records)
    # asked for in any order, and again
    for record in [*records[::-5], *records[::7]]:
        assert load_pixels(record, tmp_path).shape == (64, 64, 3)


def test_loose_pictures_rule_over_the_zip_that_they_came_in(tmp_path, listener):
    as_zip(tmp_path)
    put(tmp_path, {"a.png": DOG, "a.txt": CAPTIONS[DOG]})
    assert [record.name for record in scan(tmp_path, BUCKETS, listener)] == ["a"]
    assert any("1 .zip files beside the images are not read" in text for text in listener.warnings)


def test_a_table_whose_picture_was_not_fetched_says_so(tmp_path):
    records = scan(as_img2dataset_parquet(tmp_path), BUCKETS)
    assert [(record.name, record.reason) for record in records if not record.used] == [("00000/9999", "no-image")]


def test_a_column_of_captions_is_chosen_by_name(tmp_path):
    found = [{"image": {"bytes": image_bytes(DOG, "png"), "path": None}, "short": "dog", "long": "a long dog"}]
    parquet.write_table(pyarrow.Table.from_pylist(found), tmp_path / "a.parquet")
    assert "short, long" in error_of(tmp_path / "a.parquet").message
    assert read(tmp_path / "a.parquet", caption_column="long") == {"00000000": ("a long dog", DOG)}


def test_a_saved_folder_that_lacks_a_file_is_an_error(tmp_path):
    as_datasets_folder(tmp_path)
    (tmp_path / "train/data-00001-of-00002.arrow").unlink()
    assert "1 of 2 data files that its state.json lists are missing" in error_of(tmp_path).message


def test_few_rows_of_a_large_table_are_held(tmp_path, monkeypatch):
    parquet.write_table(hub_table(), tmp_path / "a.parquet", row_group_size=COUNT)
    asked = []
    batches = embedded._Parquet.batches

    def counted(self, columns, rows, first=0):
        for batch in batches(self, columns, rows, first):
            asked.append((batch.num_rows, batch.schema.names))
            yield batch

    monkeypatch.setattr(embedded._Parquet, "batches", counted)
    records = scan(tmp_path / "a.parquet", BUCKETS)
    assert len(records) == COUNT
    assert all(rows <= 4 for rows, names in asked if "image" in names) and ("text",) in {tuple(n) for _, n in asked}
    listed = [names for rows, names in asked if rows > 4]
    assert listed == [["text"]]  # no picture is read to list them


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_an_error_that_names_it(tmp_path, kind):
    source = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(hub_table(), source)
    else:
        with ipc.new_stream(str(source), hub_table().schema) as stream:
            stream.write_table(hub_table())
    raw = source.read_bytes()
    for damaged in (b"", raw[: len(raw) // 2], b"x" * 1000, raw[:8] + b"\xff" * 200 + raw[208:]):
        source.write_bytes(damaged)
        assert str(source) in error_of(source).message


def test_a_table_that_changed_after_the_scan_is_noticed(tmp_path):
    source = tmp_path / "a.parquet"
    parquet.write_table(hub_table(), source)
    record = scan(source, BUCKETS)[5]
    parquet.write_table(hub_table().slice(6), source)
    with pytest.raises(ImageRefused) as caught:
        load_pixels(record, source)
    assert caught.value.reason == "changed"


# --- zips of strangers ---


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


def test_a_picture_that_is_gone_from_its_container(tmp_path):
    source = zip_of(tmp_path / "a.zip", PAIR)
    for place in ("z.png", "sub/a.png"):
        with pytest.raises(ImageRefused) as caught:
            read_picture(source / place)
        assert caught.value.reason == "no-image"
    parquet.write_table(hub_table(), tmp_path / "a.parquet")
    for place in ("image/99", "other/0", "image/x", "image"):
        with pytest.raises(ImageRefused) as caught:
            read_picture(tmp_path / "a.parquet" / place)
        assert caught.value.reason == "no-image"


def test_texts_of_the_kind_that_is_asked_for_are_read_in_a_zip(tmp_path):
    source = zip_of(tmp_path / "a.zip", [*PAIR, ("a.caption", CAPTIONS[CAT])])
    assert read(source) == {"a": "two-captions"}
    assert [record.caption for record in scan(source, BUCKETS, pairing=Pairing("caption"))] == [CAPTIONS[CAT]]


def test_a_tar_beside_a_zip_of_one_name(tmp_path):
    tar(tmp_path / "a.tar", {"x.png": DOG, "x.txt": CAPTIONS[DOG]})
    zip_of(tmp_path / "a.zip", [("x.png", image_bytes(CAT, "png")), ("x.txt", CAPTIONS[CAT])])
    assert read(tmp_path) == {"a.tar/x": (CAPTIONS[DOG], DOG), "a.zip/x": (CAPTIONS[CAT], CAT)}
