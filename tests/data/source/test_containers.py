"""Files that hold many samples: the same pictures in each kind give the same records and the same features, and what
stands in a stranger's zip or table does no harm.
"""

from __future__ import annotations

import io
import json
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
from dittool.data.source.scan import load_pixels, scan
from dittool.data.source.sources import list_source
from dittool.geometry import Bucket
from tests.data.source.layouts import BUCKETS, CAPTIONS, DOG, error_of, image_bytes, put, read

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


def test_a_picture_that_is_gone_from_its_table(tmp_path):
    parquet.write_table(hub_table(), tmp_path / "a.parquet")
    for place in ("image/99", "other/0", "image/x", "image"):
        with pytest.raises(ImageRefused) as caught:
            read_picture(tmp_path / "a.parquet" / place)
        assert caught.value.reason == "no-image"
