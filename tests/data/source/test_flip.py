"""Flipped variants: which captions have one, what the records say, and that every modality is made from the flipped
image, not flipped itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.journal import source_of
from dittool.data.features.store import FeatureStore
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, REFUSED, TEXT, USED, Record, is_safe_key
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.data.source.flip import flip_caption, why_not_flipped, with_flips
from dittool.data.source.scan import load_pixels, scan, summary
from dittool.demo.checker import parse_caption, see
from dittool.demo.drawing import draw_dataset
from dittool.encoders.image import load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.geometry import Bucket
from tests.data.source.picture_files import encoded, picture

# --- captions ---

SIDES = {
    "a red circle on the left, a white background": "a red circle on the right, a white background",
    "A dog on the left and a cat on the right.": "A dog on the right and a cat on the left.",
    "from left to right: a cup, a pot and a pan": "from right to left: a cup, a pot and a pan",
    "LEFT: a cat. Right: a dog": "RIGHT: a cat. Left: a dog",
    "Leftmost figure; top-right corner; bottom_left is dark": "Rightmost figure; top-left corner; bottom_right is dark",
    "the man's left arm rests, her right hand is raised": "the man's right arm rests, her left hand is raised",
    "a left-hand drive car, leftward shadows": "a right-hand drive car, rightward shadows",
    "a bird facing left, looking slightly to the right": "a bird facing right, looking slightly to the left",
    "on the viewer's left, at the far right": "on the viewer's right, at the far left",
    "a house to the right behind the hill": "a house to the left behind the hill",
    "a circle left of the square": "a circle right of the square",
    "left and right sides": "right and left sides",
    "a cat (left) and a dog (right)": "a cat (right) and a dog (left)",
    "The left figure is taller than the right one.": "The right figure is taller than the left one.",
    "in the upper left corner, top right": "in the upper right corner, top left",
    "a tree at the edge of the far left": "a tree at the edge of the far right",
    "a number of bright, upright bottles in copyright red, leftovers": (
        "a number of bright, upright bottles in copyright red, leftovers"
    ),
    "no sides at all": "no sides at all",
}


@pytest.mark.parametrize("caption", SIDES)
def test_left_and_right_are_swapped_where_they_are_sides(caption):
    assert why_not_flipped(caption) == ""
    assert flip_caption(caption) == SIDES[caption]


@pytest.mark.parametrize("caption", SIDES)
def test_flipping_twice_gives_the_caption_back(caption):
    assert flip_caption(flip_caption(caption)) == caption


UNSAFE = {
    "text-in-image": [
        "a road sign on the left",
        "the letter A",
        "a t-shirt with the number 5",
        "the company's logo",
        "a poster with words",
        "it says hello",
        'a cup with "tea" on it',
        "a “tea” cup",
        "a shop called 'Tea'",
        "a clock on the wall",
        "a map of France",
        "text in the corner",
    ],
    "handedness": ["a left-handed guitarist", "a right-hander", "a lefty at bat", "left handed scissors"],
    "turning-sense": ["an arrow turning clockwise", "a counter-clockwise spiral", "the starboard bow"],
    "other-language": ["ein Hund links im Bild", "un chien à gauche", "un perro a la derecha", "一只狗在左边"],
    "unclear-left-right": [
        "the food left over",
        "bags left behind",
        "he has left the room",
        "he's left",
        "door left open",
        "three apples left",
        "nothing left of it",
        "the person on the right left the room",
        "a right angle",
        "all right",
        "right now",
        "a dog right next to a wall",
        "right behind the man",
        "looking right at the camera",
        "the right time to go",
        "on the right track",
        "the right way up",
        "right side up",
        "a right-wing crowd",
        "the left wing of a bird",
        "what is left of the castle",
        "topleft square",
        "stage left",
        "the right to vote",
        "turn left ← here",
        "it is lit from the right angle",
        "hard left",
    ],
}


@pytest.mark.parametrize(
    ("reason", "caption"), [(reason, caption) for reason, captions in UNSAFE.items() for caption in captions]
)
def test_captions_that_cannot_be_swapped_surely_are_left_out_with_a_reason(reason, caption):
    assert why_not_flipped(caption) == reason


def test_one_unclear_word_is_enough():
    assert why_not_flipped("a cup on the left") == ""
    assert why_not_flipped("a cup on the left, left over") == "unclear-left-right"


# --- records ---


def record(record_id, caption="on the left", **changes):
    return Record(
        record_id,
        record_id,
        f"{record_id}.png",
        **{"status": USED, "caption": caption, "image_sha256": "0" * 64, **changes},
    )


def test_each_used_record_is_followed_by_its_variant_of_the_same_image():
    a, refused = record("a"), record("b", status=REFUSED, reason="too-small")
    first, flipped, other = with_flips([a, refused])
    assert (first, other) == (a, refused)
    assert (flipped.id, flipped.flipped, flipped.caption) == ("a-flip", True, "on the right")
    assert (flipped.name, flipped.image, flipped.image_sha256) == (a.name, a.image, a.image_sha256)


def test_a_record_without_variant_says_why():
    (only,) = with_flips([record("a", "a left-handed man")])
    assert only.flags == ("not-flipped:handedness",) and not only.flipped


@pytest.mark.row(45)
@pytest.mark.parametrize(
    "ids", [["a", "a-flip"], ["a-flip", "a"], ["a", "A-FLIP"], ["x" * 100], ["x" * 95, "y" * 96, "x" * 96]]
)
def test_the_ids_of_variants_are_safe_and_nobody_elses(ids):
    records = with_flips([record(one) for one in ids])
    found = [one.id for one in records]
    assert len(records) == 2 * len(ids) and len({one.casefold() for one in found}) == len(found)
    assert all(is_safe_key(one) for one in found) and [one.id for one in records if not one.flipped] == ids


def test_image_features_of_the_two_have_different_sources_and_a_caption_without_sides_the_same():
    original, flipped = with_flips([record("a", "a dog", bucket="64x64")])
    assert source_of("vae", original) != source_of("vae", flipped) and source_of("dinov3", original) != source_of(
        "dinov3", flipped
    )
    assert source_of("t5", original) == source_of("t5", flipped)


# --- scanning ---


def put(folder, name, caption, size=(200, 100)):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(encoded(picture(*size)))
    (folder / f"{name}.txt").write_text(caption)


def test_a_scan_flips_only_when_it_is_asked_to(tmp_path):
    put(tmp_path, "a", "on the left")
    assert [found.id for found in scan(tmp_path, [Bucket(64, 64)])] == ["a"]
    assert [found.id for found in scan(tmp_path, [Bucket(64, 64)], flip="prepared")] == ["a", "a-flip"]


def test_variants_are_counted_apart_and_inputs_add_up(tmp_path):
    put(tmp_path, "a", "on the left")
    put(tmp_path, "b", "all right")
    put(tmp_path, "c", "a logo")
    put(tmp_path, "d", "a dog", size=(20, 20))
    put(tmp_path, "e", "a dog")
    counts = summary(scan(tmp_path, [Bucket(64, 64)], flip="prepared"))
    assert (counts.total, counts.used, counts.refused, counts.flipped) == (5, 4, 1, 2)
    assert counts.not_flipped == {"text-in-image": 1, "unclear-left-right": 1}
    assert counts.flipped + sum(counts.not_flipped.values()) == counts.used == sum(counts.buckets.values())


def test_a_variant_that_only_an_encoder_refused_is_counted_and_one_whose_image_was_refused_too_is_not():
    a, b, c = (with_flips([record(name)]) for name in "abc")
    refused = {"status": REFUSED, "reason": "encode:not-finite"}
    counts = summary([*a, b[0], replace(b[1], **refused), *(replace(one, **refused) for one in c)])
    assert (counts.total, counts.used, counts.flipped) == (3, 2, 1)
    assert counts.reasons == counts.not_flipped == {"encode:not-finite": 1}


def test_the_pixels_of_a_variant_are_the_mirrored_bucketed_image(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (77, 131, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("noise")
    original, flipped = scan(tmp_path, [Bucket(96, 48)], flip="prepared")
    pixels, mirrored = load_pixels(original, tmp_path), load_pixels(flipped, tmp_path)
    assert (
        np.array_equal(mirrored, pixels[:, ::-1])
        and not np.array_equal(mirrored, pixels)
        and mirrored.flags["C_CONTIGUOUS"]
    )


# --- the whole way: drawn images, embedded ---


@pytest.fixture(scope="module")
def flipped_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("flipped")
    config = load_config("demo", ["data.flip=prepared", "data.holdout=0.3"])
    draw_dataset(root / "images", 12, seed=1)
    embed(root / "images", root / "derived", config)
    return root, config


def both(root):
    """Pairs of a record and its variant."""
    records = FeatureStore(root / "derived").read_records()
    by_id = {found.id: found for found in records}
    return [(by_id[found.id.removesuffix("-flip")], found) for found in records if found.flipped]


def test_what_a_variant_shows_is_what_its_caption_says(flipped_set):
    root, _ = flipped_set
    pairs = both(root)
    assert len(pairs) == 12
    moved = Counter()
    for original, flipped in pairs:
        before, after = parse_caption(original.caption).position, parse_caption(flipped.caption).position
        assert (
            see(load_pixels(original, root / "images")).position == before
            and see(load_pixels(flipped, root / "images")).position == after
        )
        moved[before, after] += 1
    assert moved["left", "right"] and moved["right", "left"]
    assert set(moved) <= {("left", "right"), ("right", "left"), ("top", "top"), ("bottom", "bottom")}


def test_the_stored_features_of_a_variant_are_the_encodings_of_the_flipped_pixels_and_caption(flipped_set):
    root, config = flipped_set
    store = FeatureStore(root / "derived")
    codec = load_codec(config.encoders.vae)
    encoder = load_image_encoder(config.encoders.image, config.encoders.dtype)
    text = load_text_encoder(config.encoders.text, config.encoders.dtype, config.encoders.max_text_tokens)
    for original, flipped in both(root)[:4]:
        mirrored = load_pixels(original, root / "images")[None, :, ::-1].copy()
        features = encoder.encode(mirrored)
        same(store.read(LATENT, flipped.id), codec.encode(mirrored)[0])
        same(store.read(IMAGE_PATCHES, flipped.id), features.patches[0])
        same(store.read(IMAGE_CLS, flipped.id), features.cls[0])
        same(store.read(TEXT, flipped.id), text.encode([flipped.caption])[0].hidden)


def same(stored, encoded_now):
    # stored in float16
    torch.testing.assert_close(torch.from_numpy(stored.copy()).float(), encoded_now.float(), rtol=2e-3, atol=2e-3)


def test_the_stored_features_of_a_variant_are_not_flipped_features(flipped_set):
    root, _ = flipped_set
    store = FeatureStore(root / "derived")
    original, flipped = both(root)[0]
    latent, mirrored = store.read(LATENT, original.id), store.read(LATENT, flipped.id)
    assert latent.shape == mirrored.shape and np.abs(latent[:, :, ::-1].astype(np.float32) - mirrored).max() > 0.05
    grid = (Bucket.from_name(original.bucket).height // 16, Bucket.from_name(original.bucket).width // 16)
    patches = store.read(IMAGE_PATCHES, original.id).astype(np.float32).reshape(*grid, -1)[:, ::-1]
    assert np.abs(patches.reshape(grid[0] * grid[1], -1) - store.read(IMAGE_PATCHES, flipped.id)).max() > 0.05


def test_an_image_and_its_variant_are_on_the_same_side_of_the_hold_out(flipped_set):
    root, _ = flipped_set
    shard(root / "derived", root / "shards")
    shards = ShardSet.open(root / "shards")
    sides = {
        name: {shards.read_record(ref).image_sha256 for ref in shards.split(name)} for name in ("train", "holdout")
    }
    assert sides["train"] and sides["holdout"] and not sides["train"] & sides["holdout"]
    assert sum(len(shards.split(name)) for name in sides) == 24
    assert sum(shards.read_record(ref).flipped for name in sides for ref in shards.split(name)) == 12


def test_turning_flips_on_later_makes_the_variants_and_keeps_the_rest(tmp_path):
    put(tmp_path / "images", "a", "on the left")
    put(tmp_path / "images", "b", "a dog")
    plain, prepared = load_config("demo", []), load_config("demo", ["data.flip=prepared"])
    assert embed(tmp_path / "images", tmp_path / "derived", plain).made == {"dinov3": 2, "vae": 2, "t5": 2}
    later = embed(tmp_path / "images", tmp_path / "derived", prepared)
    assert later.made == later.kept == {"dinov3": 2, "vae": 2, "t5": 2}
    assert [found.id for found in later.used] == ["a", "a-flip", "b", "b-flip"]
