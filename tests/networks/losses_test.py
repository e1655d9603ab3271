"""Against the metrics, by their gradients, and on maps with nothing in them."""

import keras
import numpy as np
import pytest

from lsts_tf.networks import losses
from lsts_tf.scoring import metrics


def batch(frames=3, seed=0, size=(36, 64)):
    """A smooth density, some fixations, and a prediction of many values."""
    rng = np.random.default_rng(seed)
    y_true = rng.random((frames, *size, 2)) ** 3
    y_true[..., 1] = y_true[..., 1] > 0.9
    y_pred = 0.05 + 0.9 * rng.random((frames, *size, 1))
    return y_true.astype(np.float32), y_pred.astype(np.float32)


@pytest.mark.parametrize("name", ["kld", "cc", "nss", "sim"])
@pytest.mark.parametrize(("frames", "size"), [(3, (36, 64)), (1, (360, 640))])
def test_equals_the_metric(name, frames, size):
    y_true, y_pred = batch(frames, size=size)
    expected = [
        metrics.score(
            pred[..., 0],
            truth[..., 0],
            np.argwhere(truth[..., 1]),
            metrics=[name],
        )[name]
        for truth, pred in zip(y_true, y_pred, strict=True)
    ]
    values = losses.LOSSES[name](y_true, y_pred)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6)


def test_mse():
    y_true, y_pred = batch()
    error = (y_pred[..., 0] - y_true[..., 0]).astype(np.float64)
    expected = np.mean(error**2, axis=(1, 2))
    np.testing.assert_allclose(losses.mse(y_true, y_pred), expected, rtol=1e-6)


def gradient(function, y_true, y_pred):
    """Of the sum over frames, with respect to `y_pred`."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.GradientTape")
    import tensorflow as tf

    y_pred = tf.convert_to_tensor(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = function(tf.convert_to_tensor(y_true), y_pred)
    return tape.gradient(value, y_pred).numpy()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradient_by_differences(name):
    y_true, y_pred = batch(1, size=(6, 8))
    function = losses.LOSSES[name]
    slopes = gradient(function, y_true, y_pred)
    direction = np.random.default_rng(2).standard_normal(y_pred.shape)
    step = np.float32(1e-3) * direction.astype(np.float32)
    rise = function(y_true, y_pred + step) - function(y_true, y_pred - step)
    expected = np.sum(slopes * step) * 2
    np.testing.assert_allclose(rise, [expected], rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("pred", [0.0, 0.1, 1.0, "one pixel", "random"])
@pytest.mark.parametrize("density", [0.0, 0.1, "random"])
def test_finite_with_nothing_in_the_maps(name, pred, density):
    y_true, y_pred = batch(2)
    if density != "random":
        y_true[...] = density if density else 0.0
        y_true[..., 1] = 0.0
    if pred == "one pixel":
        y_pred[...] = 0.0
        y_pred[:, 3, 4] = 1.0
    elif pred != "random":
        y_pred[...] = pred
    values = losses.LOSSES[name](y_true, y_pred)
    assert np.isfinite(values).all()
    assert np.isfinite(gradient(losses.LOSSES[name], y_true, y_pred)).all()


@pytest.mark.parametrize("name", ["cc", "nss", "sim"])
def test_zero_where_the_metric_is_not_defined(name):
    y_true, y_pred = batch(2)
    y_true[...] = 0
    function = losses.LOSSES[name]
    np.testing.assert_array_equal(function(y_true, y_pred), [0, 0])
    np.testing.assert_array_equal(gradient(function, y_true, y_pred), 0)
    y_true, y_pred = batch(2)
    y_pred[...] = 0.3
    np.testing.assert_array_equal(function(y_true, y_pred), [0, 0])


@pytest.mark.parametrize("name", losses.LOSSES)
def test_float32_from_float16(name):
    y_true, y_pred = batch(1, size=(360, 640))
    y_pred = y_pred.astype(np.float16)
    half = losses.LOSSES[name](y_true, y_pred)
    full = losses.LOSSES[name](y_true, y_pred.astype(np.float32))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
    np.testing.assert_array_equal(half, full)


@pytest.mark.parametrize(
    ("terms", "weights"),
    [
        ("mse", {"mse": 1}),
        ("kld-cc", {"kld": 1, "cc": -1}),
        ("1.0*kld-1.0*cc", {"kld": 1, "cc": -1}),
        (
            " 10*kld - 2 * cc -.5*nss+1e-1*sim",
            {"kld": 10, "cc": -2, "nss": -0.5, "sim": 0.1},
        ),
        ("-cc", {"cc": -1}),
    ],
)
def test_weighted(terms, weights):
    y_true, y_pred = batch()
    expected = sum(
        w * np.asarray(losses.LOSSES[name](y_true, y_pred))
        for name, w in weights.items()
    )
    loss = losses.weighted(terms)
    assert loss(y_true, y_pred).shape == (3,)
    np.testing.assert_allclose(loss(y_true, y_pred), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "terms",
    ["", "psnr", "kld cc", "kld-", "kld--cc", "2kld", "kld*2", "kld,cc"],
)
def test_weighted_refuses(terms):
    with pytest.raises(ValueError, match="Received"):
        losses.weighted(terms)


def test_several_maps_of_a_window_count_alike():
    y_true, y_pred = batch(frames=6)
    loss = losses.weighted("kld-cc")
    each = np.asarray(loss(y_true, y_pred)).reshape(2, 3)
    together = loss(
        y_true.reshape(2, 3, *y_true.shape[1:]),
        y_pred.reshape(2, 3, *y_pred.shape[1:]),
    )
    np.testing.assert_allclose(together, each.mean(1), rtol=1e-6)
