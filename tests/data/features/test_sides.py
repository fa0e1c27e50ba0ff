"""Which images go to one side of the hold-out together, and that images which arrive later move none of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dittool.data.features import sides
from dittool.data.features.sides import NEAR_COPY, look_for_near_copies, read_sides, with_sides
from dittool.data.features.thumbnails import ROW, append_thumbnails, images_without, read_thumbnails
from dittool.data.records import USED, Record
from dittool.errors import BadDataError


def image(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def picture(seed: int) -> np.ndarray:
    """A thumbnail that resembles no other seed's."""
    coarse = np.random.default_rng(seed).integers(30, 225, (4, 4, 1), dtype=np.uint8)
    rows = coarse.repeat(4, axis=0).repeat(4, axis=1)  # (16, 16, 1)
    return np.concatenate([rows, np.full((16, 16, 2), 128, np.uint8)], axis=2)


def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return ((one.astype(int) + other) // 2).astype(np.uint8)


class Folder:
    """A derived folder as far as near copies go."""

    def __init__(self, path):
        self.thumbnails, self.near_copies = path / "thumbnails.rows", path / "near_copies.jsonl"

    def receive(self, **made: np.ndarray):
        """Images by name, and what looking for near copies among them and the earlier ones found."""
        append_thumbnails(self.thumbnails, {image(name): pixels for name, pixels in made.items()})
        return look_for_near_copies(self.thumbnails, self.near_copies)

    def decisive(self, name: str) -> set[str]:
        return set(read_sides(self.near_copies).of.get(image(name), (image(name),)))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_copies_that_come_together_have_one_image_that_decides(folder):
    found = folder.receive(a=picture(0), b=picture(0), c=picture(1), d=picture(0))
    assert (found.images, found.grouped) == (4, 2)
    assert folder.decisive("a") == folder.decisive("b") == folder.decisive("d")
    assert folder.decisive("a") == {min(map(image, "abd"))}
    assert folder.decisive("c") == {image("c")}


def test_a_newcomer_goes_with_the_older_one_and_moves_it_not(folder):
    older = max("ab", key=image)  # together, the other one would decide
    newcomer = min("ab", key=image)
    folder.receive(**{older: picture(0)})
    folder.receive(**{newcomer: picture(0)})
    assert folder.decisive(older) == folder.decisive(newcomer) == {image(older)}


def test_a_newcomer_of_newcomers_goes_with_them_all(folder):
    folder.receive(a=picture(0))
    folder.receive(b=picture(0), c=picture(0))
    folder.receive(d=picture(0))
    assert folder.decisive("b") == folder.decisive("c") == folder.decisive("d") == {image("a")}


def test_one_that_resembles_two_older_ones_names_both(folder, monkeypatch):
    def largest_step(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.abs(one - other.astype(float)).max((1, 2, 3)) / 4

    monkeypatch.setattr(sides, "differences", largest_step)
    one = picture(0)
    other = (one + np.array([6, 0, 0])).astype(np.uint8)
    folder.receive(a=one, b=other)
    assert folder.decisive("a") != folder.decisive("b")
    folder.receive(c=between(one, other))
    assert folder.decisive("c") == {image("a"), image("b")}
    assert folder.decisive("a") == {image("a")}
    assert folder.decisive("b") == {image("b")}


def test_looking_again_changes_nothing(folder):
    folder.receive(a=picture(0), b=picture(0))
    before = folder.near_copies.read_bytes()
    assert look_for_near_copies(folder.thumbnails, folder.near_copies).images == 0
    assert folder.near_copies.read_bytes() == before


def test_a_group_is_bounded_and_what_is_not_joined_is_counted(folder, monkeypatch):
    monkeypatch.setattr(sides, "LARGEST_GROUP", 4)
    found = folder.receive(**{f"n{number}": picture(0) for number in range(10)})
    groups = {}
    for number in range(10):
        groups.setdefault(min(folder.decisive(f"n{number}")), []).append(number)
    assert max(map(len, groups.values())) <= 4
    assert found.too_many > 0


def test_an_image_that_two_parts_both_added_is_no_copy_of_itself(folder):
    folder.receive(a=picture(0))
    append_thumbnails(folder.thumbnails, {image("a"): picture(0)})
    assert folder.receive(b=picture(1)).grouped == 0


def test_records_say_whom_they_go_with(folder):
    folder.receive(a=picture(0), b=picture(0), c=picture(1))
    records = [Record(name, name, f"{name}.png", USED, image_sha256=image(name)) for name in "abc"]
    made = {record.id: record for record in with_sides(records, read_sides(folder.near_copies).of)}
    decides = min("ab", key=image)
    follows = max("ab", key=image)
    assert made[follows].flags == (f"{NEAR_COPY}:{decides}",)
    assert made[follows].sides_with == (image(decides),)
    assert made[decides].sides_with == made["c"].sides_with == made["c"].flags == ()
    alone = with_sides([made[follows]], read_sides(folder.near_copies).of)  # the other one was removed since
    assert (alone[0].flags, alone[0].sides_with) == ((), (image(decides),))
    assert with_sides(made.values(), {})[0].flags == ()


def test_half_a_row_of_a_killed_writer_is_written_over(folder):
    append_thumbnails(folder.thumbnails, {image("a"): picture(0)})
    with folder.thumbnails.open("ab") as file:
        file.write(bytes(ROW.itemsize // 2))
    assert len(read_thumbnails(folder.thumbnails)) == 1
    append_thumbnails(folder.thumbnails, {image("b"): picture(1)})
    rows = read_thumbnails(folder.thumbnails)
    assert [row["image"].tobytes().hex() for row in rows] == [image("a"), image("b")]
    assert np.array_equal(rows[1]["pixels"], picture(1))
    assert images_without(folder.thumbnails, [image("a"), image("c")]) == {image("c")}


def test_a_damaged_memory_is_an_error_that_says_what_to_do(folder):
    folder.near_copies.write_text('{"compared": "many", "sides": {}}\n')
    with pytest.raises(BadDataError, match="which images go together") as raised:
        read_sides(folder.near_copies)
    assert "near copies are looked for anew" in raised.value.hint
