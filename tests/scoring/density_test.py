"""Density maps against DHF1K's own, and against the recipe in plain words."""

import math
import pathlib

import cv2
import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import numpy as np
import pytest

from lsts_tf.scoring import density


def blurred_slowly(fixations):
    height, width = fixations.shape
    total = np.zeros((height, width))
    sigma = 30 / math.sqrt(8 * math.log(2))
    for y, x in np.argwhere(fixations):
        for row in range(height):
            for column in range(width):
                squared = (row - y - 2) ** 2 + (column - x - 2) ** 2
                total[row, column] += math.exp(-squared / (2 * sigma**2))
    if not fixations.any():
        return total
    return total / total.max() * 255


@pytest.mark.parametrize("frame", ["0001", "0007", "0013", "0019"])
def test_official_maps_among_the_golden_values(frame):
    """Four of those below, which the repository holds."""
    folder = pathlib.Path(__file__).parents[1] / "metrics_golden" / "cases"
    with np.load(folder / f"dhf1k_601_{frame}.npz") as data:
        official, points = data["gt"], data["fixations"]
    assert official.shape == density.SIZE
    fixations = np.zeros(official.shape, bool)
    fixations[tuple(points.T)] = True
    np.testing.assert_array_equal(density.density_map(fixations), official)


def test_official_maps_are_reproduced_bit_for_bit(shared):
    annotation = shared / "real_clips/official_0601_sample/annotation/0601"
    names = sorted(path.name for path in (annotation / "maps").glob("*.png"))
    assert len(names) == 10
    for name in names:
        fixations = cv2.imread(
            str(annotation / "fixation" / name), cv2.IMREAD_UNCHANGED
        )
        official = cv2.imread(
            str(annotation / "maps" / name), cv2.IMREAD_UNCHANGED
        )
        np.testing.assert_array_equal(density.density_map(fixations), official)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    hypothesis_numpy.arrays(
        np.bool_, hypothesis_numpy.array_shapes(min_dims=2, max_dims=2)
    )
)
def test_equals_a_sum_of_gaussians(fixations):
    # Half a grey level is the rounding; a tie may fall to either side.
    np.testing.assert_allclose(
        density.density_map(fixations),
        blurred_slowly(fixations),
        atol=0.5 + 1e-9,
    )


def test_counts_pixels_and_not_their_value():
    fixations = np.zeros((36, 64), np.uint8)
    fixations[3:5, 7:30] = 1
    expected = density.density_map(fixations)
    np.testing.assert_array_equal(
        density.density_map(255 * fixations), expected
    )
    np.testing.assert_array_equal(density.density_map(fixations > 0), expected)


def test_without_fixations_the_map_is_zero():
    result = density.density_map(np.zeros((36, 64), bool))
    assert result.dtype == np.uint8
    assert not result.any()


def test_plain_gaussians_lie_on_their_fixation():
    fixated = np.zeros((40, 60), bool)
    fixated[20, 30] = True
    found = density.density_map(fixated, sigma=5.0, shift=0)
    y, x = np.mgrid[:40, :60]
    want = 255 * np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 50)
    np.testing.assert_array_equal(found, np.floor(want + 0.5))
