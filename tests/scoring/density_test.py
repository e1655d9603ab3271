"""Density maps against DHF1K's own, and against the recipe in plain words."""

import math
import pathlib

import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import numpy as np
import pytest

from lsts_tf.scoring import density
from tests import clip_folders


@pytest.mark.parametrize("frame", ["0001", "0007", "0013", "0019"])
def test_official_maps_among_the_golden_values(frame):
    """Four; `truth_test` has more, which the repository does not hold."""
    folder = pathlib.Path(__file__).parents[1] / "metrics_golden" / "cases"
    with np.load(folder / f"dhf1k_601_{frame}.npz") as data:
        official, points = data["gt"], data["fixations"]
    assert official.shape == density.SIZE
    fixations = np.zeros(official.shape, bool)
    fixations[tuple(points.T)] = True
    np.testing.assert_array_equal(density.density_map(fixations), official)


@pytest.mark.parametrize(
    ("given", "sigma", "shift"),
    [
        ({}, 30 / math.sqrt(8 * math.log(2)), 2),
        ({"sigma": 5, "shift": 0}, 5, 0),
    ],
)
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    fixations=hypothesis_numpy.arrays(
        np.uint8, hypothesis_numpy.array_shapes(min_dims=2, max_dims=2)
    )
)
def test_equals_a_sum_of_gaussians(given, sigma, shift, fixations):
    found = density.density_map(fixations != 0, **given)
    assert found.dtype == np.uint8
    points = np.argwhere(fixations)
    want = clip_folders.gaussians(points, fixations.shape, sigma, shift)
    # Half a grey level is the rounding; a tie may fall to either side.
    np.testing.assert_allclose(found, want, atol=0.5 + 1e-9)


def test_the_centre_prior_is_a_gaussian_of_a_quarter_of_each_side():
    y, x = np.mgrid[:90, :160]
    squared = ((y - 44.5) / 22.5) ** 2 + ((x - 79.5) / 40) ** 2
    np.testing.assert_allclose(
        density.centre_prior(90, 160), np.exp(-squared / 2), atol=1e-12
    )
