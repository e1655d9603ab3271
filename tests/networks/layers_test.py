"""Blur, prior and resizing against plain NumPy."""

import numpy as np

from lsts_tf.networks import layers
from lsts_tf.scoring import density


def gaussian_by_hand(map_, sigma, reach):
    """Each pixel, the average of those inside that it reaches."""

    def shares(size):
        far = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        weights = np.exp(-0.5 * (far / sigma) ** 2) * (far <= reach)
        return weights / weights.sum(1, keepdims=True)

    rows, columns = map(shares, map_.shape)
    return rows @ map_ @ columns.T


def test_blur_is_a_gaussian():
    rng = np.random.default_rng(0)
    maps = rng.random((2, 11, 17, 1))
    layer = layers.GaussianBlur(1.5, dtype="float64")
    want = [gaussian_by_hand(m[..., 0], 1.5, 5) for m in maps]
    np.testing.assert_allclose(layer(maps)[..., 0], want, atol=1e-12)
    assert layer.weights == []
    # Several maps of a window, each alone.
    several = np.asarray(layer(maps[None]))
    np.testing.assert_allclose(several[0], layer(maps), atol=1e-12)


def test_a_learnt_width_starts_where_it_was_put():
    rng = np.random.default_rng(1)
    maps = rng.random((1, 20, 20, 1))
    learnt = layers.GaussianBlur(2.0, learned=True, dtype="float64")
    fixed = layers.GaussianBlur(2.0, dtype="float64")
    # It reaches twice as far, where next to nothing lies.
    np.testing.assert_allclose(learnt(maps), fixed(maps), atol=5e-3)
    (weight,) = learnt.trainable_weights
    weight.assign(np.log(1.5))
    want = gaussian_by_hand(maps[0, ..., 0], 3.0, 12)
    np.testing.assert_allclose(learnt(maps)[0, ..., 0], want, atol=1e-12)


def test_a_neutral_prior_changes_nothing_and_a_gaussian_is_the_benchmarks():
    logits = np.random.default_rng(0).normal(size=(2, 36, 64, 1))
    neutral = layers.CentrePrior(dtype="float64")
    np.testing.assert_array_equal(neutral(logits), logits)
    gaussian = layers.CentrePrior("gaussian", dtype="float64")
    # Where it is not enlarged.
    odds = np.exp(gaussian(np.zeros((1, *layers.PRIOR_GRID, 1))))[0, ..., 0]
    want = density.centre_prior(*layers.PRIOR_GRID)
    np.testing.assert_allclose(odds, want, atol=1e-6)
    for layer in (neutral, gaussian):
        assert len(layer.trainable_weights) == 1


def test_resizing_interpolates_by_centres():
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    got = np.asarray(layers.Resize((1, 2))(x))[0, 0, :, 0]
    np.testing.assert_allclose(got, [0.5, 2.5])
    got = np.asarray(layers.Resize((2, 4))(x[None]))
    np.testing.assert_allclose(got[0, 0, :, :, 0], [range(4)] * 2)


def moving(count):
    """Features of windows that change over time, [count, 5, 2, 2, 3]."""
    return np.random.default_rng(4).random((count, 5, 2, 2, 3), np.float32)


def floored(x, motion=1.0):
    """What is served of a map that was drawn together."""
    return x + motion * (1 - x) / 255


def test_sharpening_serves_a_power_and_trains_without():
    x = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3, 1)
    sharpen = layers.Sharpen(2.0)
    inputs = [x, moving(1)]
    want = floored(x**2)
    np.testing.assert_allclose(sharpen(inputs), want, atol=1e-7)
    np.testing.assert_array_equal(sharpen(inputs, training=True), x)
    # A window of one step may be of anything.
    one = [x, moving(1)[:, :1]]
    np.testing.assert_allclose(sharpen(one), want, atol=1e-7)


def test_photographs_are_not_sharpened():
    x = np.full((4, 2, 3, 1), 0.5, np.float32)
    features = moving(4)
    features[1] = features[1, :1]
    # Rounding is no motion, and a little of it counts a little.
    noise = np.linspace(-1, 1, 5)[:, None, None, None]
    features[2] = 1 + 0.004 * noise
    features[3] = 1 + 0.06 * noise
    found = np.asarray(layers.Sharpen(2.0)([x, features]))[:, 0, 0, 0]
    # 0.06 / 2 a step, of 1.06.
    share = (0.03 / 1.06 - 0.01) / 0.04
    want = [floored(0.25), 0.5, 0.5, floored(0.5 ** (1 + share), share)]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert 0.25 < found[3] < 0.5
    # Nothing at all is a photograph.
    zeros = [x[:1], 0 * features[:1]]
    np.testing.assert_array_equal(layers.Sharpen(2.0)(zeros), x[:1])


def test_a_centre_weighs_served_maps_by_the_benchmarks_prior():
    x = np.full((1, 8, 16, 1), 0.5, np.float32)
    found = np.asarray(layers.Sharpen(2.0, 0.5)([x, moving(1)]))[0, ..., 0]
    prior = density.centre_prior(8, 16)
    np.testing.assert_allclose(found, floored(0.25 * np.sqrt(prior)), atol=1e-6)
    assert found.min() >= 1 / 255
