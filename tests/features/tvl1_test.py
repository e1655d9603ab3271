import functools

import cv2
import keras
from keras import ops
import numpy as np
import pytest

from lsts_tf.features import tvl1
from tests import textures

SIZE = (21, 26)


def rows_of(plane):
    return tvl1._to_rows(ops.convert_to_tensor(plane[None]))


def plane_of(rows, width):
    return ops.convert_to_numpy(tvl1._to_plane(rows, width))[0]


@functools.cache
def compiled(burst=1):
    kernel = functools.partial(tvl1.flow, burst=burst)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(kernel)
    import tensorflow as tf

    return tf.function(kernel, jit_compile=True, autograph=False)


def test_the_network_finds_every_median():
    """By the 0-1 principle, zeros and ones in sorted columns are enough."""
    ones = np.stack(np.meshgrid(*[np.arange(6)] * 5)).reshape(5, -1)
    places = np.arange(5)[:, None, None] >= 5 - ones
    places = places.reshape(25, -1)
    median = places.sum(axis=0) >= 13
    for low, high in tvl1.MEDIAN25:
        a, b = places[low], places[high]
        places[low], places[high] = a & b, a | b
    np.testing.assert_array_equal(places[12], median)


@pytest.mark.parametrize("scale", [0.0, 0.7, 5.0, 300.0])
def test_warp_is_opencvs_cubic_remap(scale):
    height, width = 23, 34
    plane = 255 * np.random.default_rng(0).random((height, width), np.float32)
    rng = np.random.default_rng(1)
    u1, u2 = scale * rng.normal(size=(2, height, width)).astype(np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    want = cv2.remap(
        plane,
        x + u1,
        y + u2,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
    )
    source = tvl1._with_margin(ops.convert_to_tensor(plane[None]))
    (got,) = tvl1._warp([source], rows_of(u1), rows_of(u2), width)
    # OpenCV 4 rounds positions to 1/32 pixel.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    np.testing.assert_allclose(
        plane_of(got, width), want, atol=2e-3 if exact else 15
    )


def test_step_is_the_published_one():
    """Against whole planes in float64, with OpenCV's three cases."""
    height, width = 6, 7
    rng = np.random.default_rng(0)
    constant, gx, gy = rng.normal(size=(3, height, width)) * 3
    gx[2, 3] = gy[2, 3] = 0.0
    u = rng.normal(size=(2, height, width))
    p = rng.normal(size=(2, 2, height, width)) * 0.5
    # The dual variables are zero at the ends, as every step leaves them.
    p[:, 0, :, -1] = p[:, 1, -1, :] = 0
    limit, theta, ascent = 0.045, 0.3, 0.25 / 0.3
    gradient = np.stack([gx, gy])
    square = (gradient**2).sum(0)
    rho = constant + (gradient * u).sum(0)
    move = -rho / np.maximum(square, 1.2e-7) * gradient
    move = np.where(rho < -limit * square, limit * gradient, move)
    move = np.where(rho > limit * square, -limit * gradient, move)
    divergence = np.diff(p[:, 0], prepend=0)
    divergence += np.diff(p[:, 1], axis=1, prepend=0)
    new = u + move + theta * divergence
    dx = np.diff(new, append=new[..., -1:])
    dy = np.diff(new, axis=1, append=new[:, -1:])
    norm = 1 + ascent * np.hypot(dx, dy)
    dual = (p + ascent * np.stack([dx, dy], 1)) / norm[:, None]

    def to_rows(plane):
        return rows_of(plane.astype(np.float32))

    terms = [to_rows(plane) for plane in (constant, gx, gy)]
    flat = ops.maximum(to_rows(square), tvl1._FLAT)
    state, error = tvl1._step(
        [*terms, flat],
        [to_rows(plane) for plane in (*u, *p[0], *p[1])],
        width,
    )
    for got, want in zip(state, (*new, *dual[0], *dual[1]), strict=True):
        np.testing.assert_allclose(plane_of(got, width), want, atol=1e-5)
        np.testing.assert_allclose(got, to_rows(want), atol=1e-5)
    np.testing.assert_allclose(error[0], ((new - u) ** 2).sum(), rtol=1e-5)


def test_no_pair_depends_on_the_others():
    """Pairs that stop at different times, of a size that is not square."""
    pairs = [
        textures.moving(2, 1.5, -0.5, size=SIZE),
        textures.moving(2, 0.1, 0.2, seed=1, size=SIZE),
        (np.zeros(SIZE, np.uint8), np.full(SIZE, 255, np.uint8)),
    ]
    first, second = map(np.stack, zip(*pairs, strict=True))
    together = np.asarray(compiled()(first, second))
    assert np.isfinite(together).all()
    for order in ([2, 0, 1], [1, 1, 1]):
        again = np.asarray(compiled()(first[order], second[order]))
        np.testing.assert_array_equal(again, together[order])
    # A burst goes on for pairs that are done, and leaves them as they are.
    often = compiled(burst=5)(first, second)
    np.testing.assert_array_equal(np.asarray(often), together)
    # Alone it is other machine code, which rounds differently.
    for index, (a, b) in enumerate(pairs):
        alone = np.asarray(compiled()(a[None], b[None]))[0]
        assert np.abs(together[index] - alone).mean() < 1e-4


@pytest.mark.parametrize("motion", [(1.0, -0.5), (-1.5, 0.75)])
def test_finds_a_known_translation_as_opencv_does(motion):
    first, second = textures.moving(2, *motion, size=SIZE)
    got = np.asarray(compiled()(first[None], second[None]))[0]
    inner = got[5:-5, 5:-5]
    np.testing.assert_allclose(inner.mean((0, 1)), motion, atol=0.2)
    want = cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)
    assert np.linalg.norm(got - want, axis=-1).mean() < 0.02


def test_a_graph_without_xla_finds_the_same():
    """As exported models hold it: any TensorFlow runs that."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("A graph without XLA is TensorFlow's.")
    import tensorflow as tf

    first, second = textures.moving(2, 1.0, -0.5, size=SIZE)
    plain = tf.function(tvl1.flow, autograph=False)
    got = np.asarray(plain(first[None], second[None]))
    want = np.asarray(compiled()(first[None], second[None]))
    assert np.abs(want).max() > 0.5
    # Rounding may end a warp an iteration earlier or later.
    assert np.abs(got - want).mean() < 1e-3


def test_identical_and_constant_images_do_not_move():
    image = textures.texture(*SIZE)
    flat = np.full(SIZE, 200, np.uint8)
    for still in (image, flat):
        flow = np.asarray(compiled()(still[None], still[None]))
        np.testing.assert_array_equal(flow, 0)
