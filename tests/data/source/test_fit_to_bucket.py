"""The way of an image into its bucket: one resampling, the crop where the record says, the same every time."""

import numpy as np
import pytest

from dittool.data.source.images import fit_to_bucket
from dittool.geometry import Bucket


def test_fitting_fills_the_bucket_exactly_and_reports_the_crop():
    pixels, box = fit_to_bucket(np.zeros((200, 300, 3), np.uint8), Bucket(128, 128))
    assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
    assert box == (50.0, 0.0, 250.0, 200.0)


def test_an_image_of_the_buckets_size_is_not_touched():
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    pixels, box = fit_to_bucket(noise, Bucket(160, 96))
    assert np.array_equal(pixels, noise) and box == (0, 0, 160, 96)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((400, 300), Bucket(128, 128)),
        ((300, 400), Bucket(128, 128)),
        ((90, 70), Bucket(160, 96)),
        ((333, 777), Bucket(96, 176)),
    ],
)
@pytest.mark.parametrize("mark", [(0.5, 0.5), (0.4, 0.45), (0.6, 0.52)])
def test_a_mark_lands_where_the_crop_box_says(size, bucket, mark):
    """A soft spot is drawn; its centre of mass in the bucket must be where the box maps its centre, to a few
    hundredths of a pixel.
    """
    centre = (mark[0] * size[0], mark[1] * size[1])
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    spot = 250 * np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * (min(size) / 25) ** 2))
    pixels, (left, top, right, bottom) = fit_to_bucket(
        np.repeat(np.round(spot).astype(np.uint8)[..., None], 3, axis=2), bucket
    )
    weight = pixels[..., 0].astype(float)
    rows, columns = np.mgrid[0 : bucket.height, 0 : bucket.width] + 0.5
    found = ((weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum())
    expected = ((centre[0] - left) * bucket.width / (right - left), (centre[1] - top) * bucket.height / (bottom - top))
    assert found == pytest.approx(expected, abs=0.05)


def test_a_pixels_wide_frame_survives_exactly_when_the_crop_falls_on_whole_pixels():
    image = np.zeros((128, 192, 3), np.uint8)
    image[:, 32] = image[:, 159] = 200  # the outermost columns that a 128x128 crop keeps
    pixels, box = fit_to_bucket(image, Bucket(128, 128))
    assert box == (32, 0, 160, 128)
    assert np.array_equal(pixels, image[:, 32:160])


def test_shrinking_averages_and_does_not_pick_single_pixels():
    checkerboard = np.indices((512, 512)).sum(axis=0) % 2 * 255
    pixels, _ = fit_to_bucket(np.repeat(checkerboard.astype(np.uint8)[..., None], 3, axis=2), Bucket(128, 128))
    assert np.abs(pixels.astype(int) - 127).max() <= 12


def test_fitting_is_the_same_every_time():
    noise = np.random.default_rng(1).integers(0, 256, (211, 307, 3), dtype=np.uint8)
    assert np.array_equal(fit_to_bucket(noise, Bucket(160, 112))[0], fit_to_bucket(noise.copy(), Bucket(160, 112))[0])
