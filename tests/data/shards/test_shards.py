"""Shards: what goes in comes out, byte for byte, and every kind of damage is named."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from itertools import pairwise

import numpy as np
import pytest

from dittool.data.normalisation import LatentNorm
from dittool.data.patch_storage import encode_patches
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT
from dittool.data.shards.read import ShardSet
from dittool.data.shards.statistics import Moments
from dittool.data.shards.stream import collate
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, UnsafeFileError, UsageError
from dittool.geometry import parse_size, patch_grid
from dittool.storage import read_json, write_json
from dittool.untrusted.npy import npy_bytes, parse_npy
from dittool.untrusted.tar import group_samples, tar_members


def first_tar(folder):
    return min(folder.glob("bucket_*/shard-*.tar"))


def test_a_sample_comes_back_as_it_was_stored(tiny_shards):
    shards, store = ShardSet.open(tiny_shards.folder), tiny_shards.store
    for ref in shards.samples:
        sample = shards.read(ref)
        for feature, array in (
            (IMAGE_CLS, sample.cls),
            (IMAGE_PATCHES, sample.patches),
            (LATENT, sample.latent),
            (TEXT, sample.text),
        ):
            assert np.array_equal(array, store.read(feature, ref.id))
        assert shards.read_record(ref).caption.startswith("a ")


def test_sharding_twice_gives_the_same_bytes(tiny_shards, tmp_path):
    shard(tiny_shards.store.folder, tmp_path / "again")
    for path in tiny_shards.folder.rglob("*.tar"):
        assert (tmp_path / "again" / path.relative_to(tiny_shards.folder)).read_bytes() == path.read_bytes()


def test_samples_do_not_lie_in_the_order_of_their_names(tiny_shards):
    ids = [ref.id for ref in ShardSet.open(tiny_shards.folder).split("train")]
    assert ids != sorted(ids)


def test_python_and_our_reader_see_the_same_members(tiny_shards):
    path = first_tar(tiny_shards.folder)
    with tarfile.open(path) as tar:
        theirs = [(member.name, member.offset_data, member.size) for member in tar.getmembers()]
    assert [(f"{m.key}.{m.suffix}", m.offset, m.size) for m in tar_members(path)] == theirs


def test_webdataset_reads_the_shards(tiny_shards):
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    import webdataset

    samples = list(webdataset.WebDataset(str(first_tar(tiny_shards.folder)), shardshuffle=False))
    assert len(samples) == len(group_samples(first_tar(tiny_shards.folder), tar_members(first_tar(tiny_shards.folder))))
    assert {feature.member for feature in FEATURES} <= set(samples[0])


def test_equal_images_never_stand_on_both_sides_of_the_hold_out(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    sides = [{shards.read_record(ref).image_sha256 for ref in shards.split(name)} for name in ("train", "holdout")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5])
def test_images_that_are_added_move_none_across_the_hold_out(tiny_shards, tmp_path, share):
    sides = []
    for count in (6, 10, 15, 24):
        shard(tiny_shards.store.folder, tmp_path / str(count), limit=count, holdout=share)
        sides.append({ref.id: ref.split for ref in ShardSet.open(tmp_path / str(count)).samples})
    for smaller, larger in pairwise(sides):
        assert len(smaller) < len(larger) and smaller.items() <= larger.items()


def test_a_share_that_holds_out_nothing_is_said(tiny_shards, tmp_path, dit):
    outcome = dit("shard", tiny_shards.store.folder, "--out", tmp_path / "shards", "--limit", 3, "--holdout", "0.0001")
    assert outcome.code == 0 and "holds out none of 3 images" in outcome.err


def test_the_order_in_the_shards_is_a_function_of_the_seed(tiny_shards, tmp_path):
    orders = []
    for number, seed in enumerate((0, 7, 7)):
        shard(tiny_shards.store.folder, tmp_path / str(number), seed=seed)
        orders.append([ref.id for ref in ShardSet.open(tmp_path / str(number)).samples])
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1] == orders[2]


def test_statistics_are_those_of_all_samples_in_float64(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    samples = [shards.read(ref) for ref in shards.samples]
    recorded = shards.statistics.to_json()
    values = {
        "latent": np.concatenate([sample.latent.astype(np.float64).reshape(16, -1) for sample in samples], axis=1),
        "cls": np.stack([sample.cls.astype(np.float64) for sample in samples], axis=1),
        "patch": np.concatenate([sample.patches.astype(np.float64) for sample in samples]).T,
    }
    for name, columns in values.items():  # (C, n)
        np.testing.assert_allclose(recorded[f"{name}_mean"], columns.mean(axis=1), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(recorded[f"{name}_std"], columns.std(axis=1), rtol=1e-12)
    lengths = [len(sample.text) for sample in samples]
    assert (recorded["samples"], recorded["text_tokens"]) == (24, {"mean": sum(lengths) / 24, "max": max(lengths)})


def test_statistics_keep_their_digits_where_the_mean_is_large():
    """Sums of squares would have lost all of them: 1e8² has 16 digits."""
    values = np.random.default_rng(0).normal(1e8, 1e-2, (3000, 2))
    whole = Moments.joined(Moments.of(values[start : start + 700], axis=1) for start in range(0, 3000, 700))
    np.testing.assert_allclose(whole.std, values.std(axis=0), rtol=1e-6)
    assert whole.count == 3000


def test_statistics_survive_the_journal_to_the_last_bit():
    values = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    moments = Moments.of(values, axis=0)
    back = Moments.from_json(json.loads(json.dumps(moments.to_json())))
    assert (
        back.count == 40 and np.array_equal(back.mean, moments.mean) and np.array_equal(back.squares, moments.squares)
    )


def test_features_of_two_widths_do_not_go_into_one_set(older_derived, tmp_path):
    path = min((older_derived / "t5_hidden").glob("*.npy"))
    path.write_bytes(npy_bytes(np.ones((4, 32), np.float16)))
    with pytest.raises(BadDataError, match=r"have widths text (32|64)"):
        shard(older_derived, tmp_path / "out")


def test_without_patches_their_bytes_are_not_read(tiny_shards, monkeypatch):
    shards, sizes = ShardSet.open(tiny_shards.folder), []
    ref, real = shards.samples[0], os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda descriptor, buffers, offset: sizes.append(len(buffers[0])) or real(descriptor, buffers, offset),
    )
    whole, without = shards.read(ref), shards.read(ref, patches=False)
    # one read; then one on either side
    assert len(sizes) == 3 and sizes[0] > sum(sizes[1:]) + ref.members[IMAGE_PATCHES.member][1] - 4096
    assert (
        without.patches is None
        and np.array_equal(without.latent, whole.latent)
        and np.array_equal(without.text, whole.text)
    )


def test_samples_are_the_same_on_a_system_without_preadv(tiny_shards, monkeypatch):
    with_preadv = ShardSet.open(tiny_shards.folder)
    samples = [with_preadv.read(ref) for ref in with_preadv.samples[:3]]
    monkeypatch.delattr(os, "preadv")
    without = ShardSet.open(tiny_shards.folder)
    for ref, sample in zip(without.samples[:3], samples, strict=True):
        again = without.read(ref)
        assert np.array_equal(again.latent, sample.latent) and np.array_equal(again.patches, sample.patches)
        assert np.array_equal(again.text, sample.text) and np.array_equal(again.cls, sample.cls)


@pytest.mark.parametrize("storage", ["fp32", "int8", "pooled"])
def test_patches_come_back_from_every_storage_on_their_grid(tiny_shards, older_derived, tmp_path, storage):
    derived = older_derived
    card = read_json(derived / "identity.json")
    write_json(derived / "identity.json", card | {"patch_storage": storage})
    exact = {}
    for record in tiny_shards.store.read_records():
        patches = exact[record.id] = tiny_shards.store.read(IMAGE_PATCHES, record.id)
        stored = encode_patches(
            patches, patch_grid(*parse_size(record.bucket), card["encoders"]["image"]["patch_size"]), storage
        )
        (derived / "dinov3_patches" / f"{record.id}.npy").write_bytes(npy_bytes(stored))
    shard(derived, tmp_path / "shards")
    assert verify(tmp_path / "shards") == []
    shards = ShardSet.open(tmp_path / "shards")
    sample = shards.read(shards.samples[0])
    _, conditions = collate([sample], LatentNorm((0.0,) * 16, (1.0,) * 16), 16)
    rows, columns = conditions.patch_grid
    assert conditions.patches.shape == (1, rows * columns, 64)
    original = exact[sample.ref.id].astype(np.float32)
    if storage == "pooled":
        assert 3 * rows * columns <= len(original) <= 4 * rows * columns
        pooled = np.concatenate([shards.read(ref).patches for ref in shards.samples]).astype(np.float64)
        np.testing.assert_allclose(shards.statistics.patch_mean, pooled.mean(axis=0), atol=1e-9)
    else:
        np.testing.assert_allclose(conditions.patches[0], original, atol=0.01 * np.abs(original).max())


def of_other_images(folder) -> None:
    """Makes a set one of images with other names, from another folder."""
    index = read_json(folder / "index.json")
    write_json(folder / "index.json", {**index, "source": "/elsewhere"})
    for path in folder.rglob("*.members.json"):
        write_json(path, {f"other-{name}": places for name, places in read_json(path).items()})


def test_shards_of_other_images_are_not_replaced(copy, tiny_shards):
    of_other_images(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds shards of other images, of /elsewhere; these are of ") as refused:
        shard(tiny_shards.store.folder, copy, limit=3)
    assert refused.value.hint.count("mv ") == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_shards_of_images_that_were_moved_are_made_anew(copy, tiny_shards):
    write_json(copy / "index.json", {**read_json(copy / "index.json"), "source": "/elsewhere"})
    shard(tiny_shards.store.folder, copy)
    assert read_json(copy / "index.json")["source"] == tiny_shards.store.source


def test_a_smaller_set_leaves_no_shard_of_the_larger_one(copy, tiny_shards):
    shard(tiny_shards.store.folder, copy, limit=3)
    listed = {row["path"] for row in json.loads((copy / "index.json").read_text())["shards"]}
    assert {str(path.relative_to(copy)) for path in copy.rglob("*.tar")} == listed


def test_an_interrupted_set_says_so(copy):
    (copy / "index.json").write_text('{"version": 1, "unfinished": true}')
    with pytest.raises(BadDataError, match="unfinished"):
        ShardSet.open(copy)


def test_sound_shards_verify(tiny_shards):
    assert verify(tiny_shards.folder) == []


def test_one_flipped_bit_is_found(copy):
    path = first_tar(copy)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    faults = verify(copy)
    assert len(faults) == 1 and "sha256" in faults[0].what


def test_a_tar_cut_between_two_members_is_refused(copy):
    """Row 49: WebDataset reads such a file without a word."""
    path = first_tar(copy)
    end = tar_members(path)[7]
    path.write_bytes(path.read_bytes()[: end.offset - 512])
    with pytest.raises(BadDataError, match="without the two zero blocks"):
        tar_members(path)
    with pytest.raises(BadDataError, match="the index says"):
        ShardSet.open(copy)


def write_tar(path, members, **changes):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if changes.get("type") else 3
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("name", ["../../etc/x.npy", "/etc/x.npy", "a/b.npy", "a\nb.npy", "a\\b.npy"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    """Row 52."""
    with pytest.raises(UnsafeFileError, match="plain file name"):
        tar_members(write_tar(tmp_path / "x.tar", [name]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    """Row 52."""
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        tar_members(write_tar(tmp_path / "x.tar", ["a.npy"], type=kind, linkname="/etc/passwd"))


def test_members_twice_or_apart_are_refused(tmp_path):
    """Row 51."""
    twice = write_tar(tmp_path / "twice.tar", ["a.npy", "a.npy"])
    with pytest.raises(BadDataError, match="twice"):
        group_samples(twice, tar_members(twice))
    apart = write_tar(tmp_path / "apart.tar", ["a.npy", "b.npy", "a.json"])
    with pytest.raises(BadDataError, match="not adjacent"):
        group_samples(apart, tar_members(apart))


def test_a_huge_declared_size_and_a_bad_checksum_are_refused(tmp_path):
    """Row 50."""
    path = write_tar(tmp_path / "x.tar", ["a.npy"])
    raw = bytearray(path.read_bytes())
    raw[124:135] = b"77777777777"
    path.write_bytes(raw)
    with pytest.raises(BadDataError, match="checksum"):
        tar_members(path)


def test_an_index_of_another_version_is_refused(copy):
    (copy / "index.json").write_text('{"version": 99}')
    with pytest.raises(BadDataError, match="version 99"):
        ShardSet.open(copy)


def test_a_set_without_an_index_is_read_by_scanning(copy):
    (copy / "index.json").unlink()
    shards = ShardSet.open(copy)
    assert shards.samples and shards.index is None
    assert shards.read(shards.samples[0]).latent.shape[0] == 16
    with pytest.raises(BadDataError, match=r"no index\.json"):
        _ = shards.card


def test_stale_and_missing_features_stop_sharding(tiny_shards, tmp_path):
    derived = shutil.copytree(tiny_shards.store.folder, tmp_path / "derived")
    min((derived / "vae_latents").glob("*.npy")).unlink()
    with pytest.raises(BadDataError, match=r"1 of .* no current vae features"):
        shard(derived, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "bool", "int64"])
def test_arrays_survive_their_file(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    back = parse_npy(npy_bytes(array), "x")
    assert back.dtype == array.dtype and np.array_equal(back, array)


def _header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


@pytest.mark.row(55)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK\x03\x04 a renamed npz",
        b"\x80\x04K\x01.",
        _header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04K\x01."),
        _header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 4),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", b"\0" * 4),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", b"\0" * 4),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"\0" * 5),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"\0" * 4),
        b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b"{}",
    ],
)
def test_arrays_that_are_not_plain_numbers_are_refused(raw):
    with pytest.raises(BadDataError, match=r"^x: "):
        parse_npy(raw, "x")


def test_features_that_are_not_finite_stop_sharding(older_derived, tmp_path):
    """Row 47."""
    path = min((older_derived / "vae_latents").glob("*.npy"))
    array = parse_npy(path.read_bytes(), "x").copy()
    array[3, 0, 0] = np.nan
    path.write_bytes(npy_bytes(array))
    with pytest.raises(BadDataError, match=rf"{path.stem}\.npy: 1 of .* values are not finite"):
        shard(older_derived, tmp_path / "out")
