"""Aspect buckets: the canonical seven, their scaled sets, and which bucket an image goes to."""

import math

import pytest

from dittool.config.features import Data
from dittool.errors import UsageError
from dittool.geometry import CANONICAL, Bucket, buckets_for_area, crop_box, nearest_bucket, require_whole_tokens


def names(buckets):
    return [bucket.name for bucket in buckets]


def test_one_megapixel_gives_exactly_the_canonical_seven():
    seven = ["1024x1024", "1216x832", "832x1216", "1280x768", "768x1280", "1344x704", "704x1344"]
    assert names(CANONICAL) == seven
    assert names(buckets_for_area((1024, 1024))) == seven


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        ((128, 128), ["128x128", "160x112", "112x160", "160x96", "96x160", "176x96", "96x176"]),
        ((256, 256), ["256x256", "304x208", "208x304", "320x192", "192x320", "336x176", "176x336"]),
        ((512, 512), ["512x512", "640x448", "448x640", "640x384", "384x640", "704x384", "384x704"]),
        ((2048, 2048), ["2048x2048", "2432x1664", "1664x2432", "2560x1536", "1536x2560", "2688x1408", "1408x2688"]),
    ],
)
def test_scaled_sets_are_as_written_down(area, expected):
    assert names(buckets_for_area(area)) == expected


@pytest.mark.parametrize("side", [48, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1536, 2048])
def test_every_scaled_set_keeps_the_rules(side):
    buckets = buckets_for_area((side, side))
    step = 64 if side >= 512 else 16
    assert all(bucket.width % step == 0 and bucket.height % step == 0 for bucket in buckets)
    assert all(0.9 <= bucket.area / side**2 <= 1.1 for bucket in buckets)
    assert {(bucket.height, bucket.width) for bucket in buckets} == {
        (bucket.width, bucket.height) for bucket in buckets
    }
    assert len(set(buckets)) == len(buckets)
    assert buckets[0] == Bucket(side, side)


@pytest.mark.parametrize("side", [128, 256, 512, 768])
def test_scaled_buckets_stay_near_the_canonical_aspects(side):
    for scaled, canonical in zip(buckets_for_area((side, side)), CANONICAL, strict=True):
        assert abs(math.log(scaled.width / scaled.height) - math.log(canonical.width / canonical.height)) < 0.05


def test_aspects_that_meet_in_one_size_give_one_bucket():
    assert names(buckets_for_area((64, 64))) == ["64x64", "80x48", "48x80"]
    assert names(buckets_for_area((16, 16))) == ["16x16"]


def test_only_the_number_of_pixels_of_the_area_counts():
    assert buckets_for_area((1280, 768)) != []
    assert buckets_for_area((2048, 512)) == buckets_for_area((1024, 1024))


def test_an_area_without_a_square_is_refused_with_its_neighbours():
    with pytest.raises(UsageError) as caught:
        buckets_for_area((544, 544))
    assert "data.area = 544x544" in caught.value.message and "295,936" in caught.value.message
    assert "512x512 or 576x576" in caught.value.hint


def test_an_absurd_area_is_refused_at_once():
    with pytest.raises(UsageError, match="the largest area is 67,108,864"):
        buckets_for_area((10**9, 10**9))


def test_configuration_gives_buckets_by_area_or_by_list():
    assert Data(area="1024x1024").bucket_sizes() == list(CANONICAL)
    assert Data(buckets=["128x128", "160x96"]).bucket_sizes() == [Bucket(128, 128), Bucket(160, 96)]


def test_all_wrong_sizes_of_a_list_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        Data(buckets=["1000x512", "512x520", "128x128", "128x128"]).bucket_sizes()
    message = caught.value.message
    assert "1000x512: side 1000 is not a multiple of 16 (nearest 992 or 1008)" in message
    assert "512x520: side 520 is not a multiple of 16 (nearest 512 or 528)" in message
    assert "128x128: listed twice" in message


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3000, 3000), "1024x1024"),
        ((3000, 2000), "1216x832"),
        ((2000, 3000), "832x1216"),
        ((1600, 1000), "1280x768"),
        ((1000, 1600), "768x1280"),
        ((1920, 1080), "1280x768"),
        ((2000, 1000), "1344x704"),
        ((1000, 2000), "704x1344"),
        ((40, 10), "1344x704"),
        ((1100, 1000), "1024x1024"),
    ],
)
def test_an_image_goes_to_the_bucket_nearest_in_log_aspect(size, expected):
    assert nearest_bucket(*size, CANONICAL).name == expected


@pytest.mark.parametrize("bucket", CANONICAL)
def test_an_image_of_a_buckets_size_goes_to_that_bucket(bucket):
    assert nearest_bucket(bucket.width, bucket.height, CANONICAL) == bucket


def test_nearness_is_judged_in_log_aspect_and_not_in_aspect():
    # 1.5 lies nearer to 1 on a plain scale (0.5 against 0.7), nearer to 2.2 on a logarithmic one (0.405 against 0.383).
    assert nearest_bucket(150, 100, [Bucket(160, 160), Bucket(352, 160)]) == Bucket(352, 160)


def test_ties_go_to_the_wider_bucket_whatever_the_order_of_the_list():
    pair = [Bucket(96, 160), Bucket(160, 96)]
    assert nearest_bucket(500, 500, pair) == nearest_bucket(500, 500, pair[::-1]) == Bucket(160, 96)
    same_aspect = [Bucket(128, 128), Bucket(256, 256)]
    assert nearest_bucket(7, 7, same_aspect) == nearest_bucket(7, 7, same_aspect[::-1]) == Bucket(256, 256)


def test_no_size_and_no_buckets_have_no_nearest():
    with pytest.raises(ValueError, match="0x5"):
        nearest_bucket(0, 5, CANONICAL)
    with pytest.raises(ValueError, match="0 buckets"):
        nearest_bucket(5, 5, [])


@pytest.mark.parametrize("bucket", CANONICAL)
@pytest.mark.parametrize("size", [(1000, 1000), (1921, 1080), (333, 1001), (64, 65), (7001, 5003)])
def test_the_crop_is_centred_has_the_buckets_aspect_and_touches_two_sides(bucket, size):
    left, top, right, bottom = crop_box(*size, bucket)
    assert (right - left) / (bottom - top) == pytest.approx(bucket.width / bucket.height, rel=1e-12)
    assert (left, top) == pytest.approx((size[0] - right, size[1] - bottom), abs=1e-9)
    assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]
    assert (left, right) == (0, size[0]) or (top, bottom) == (0, size[1])


def test_an_image_of_the_buckets_own_aspect_is_not_cropped():
    assert crop_box(2432, 1664, Bucket(1216, 832)) == (0, 0, 2432, 1664)


def test_latent_grids_are_rows_then_columns():
    assert Bucket(1216, 832).latent_grid() == (104, 152)
    assert Bucket(1216, 832).latent_grid(16) == (52, 76)
    with pytest.raises(ValueError, match="1216x832 is not divisible by the stride 14"):
        Bucket(1216, 832).latent_grid(14)


def test_buckets_sort_by_width_then_height_and_read_their_own_names():
    assert sorted([Bucket(160, 96), Bucket(96, 160), Bucket(96, 96)]) == [
        Bucket(96, 96),
        Bucket(96, 160),
        Bucket(160, 96),
    ]
    assert all(Bucket.from_name(bucket.name) == bucket for bucket in CANONICAL)
    with pytest.raises(ValueError, match="1216×832"):
        Bucket.from_name("1216×832")


def test_buckets_that_a_patch_size_cuts_are_named_with_the_multiple_that_fits():
    buckets = [Bucket(128, 128), Bucket(160, 112), Bucket(144, 144)]
    require_whole_tokens(buckets, 8, 2, "data.buckets")
    with pytest.raises(UsageError, match=r"patch_size = 4: data\.buckets has the bucket 160x112 and 144x144; .* 32 ="):
        require_whole_tokens(buckets, 8, 4, "data.buckets")
    with pytest.raises(UsageError, match="128x128 and 160x112 and 144x144"):
        require_whole_tokens(buckets, 32, 8, "data.buckets")
