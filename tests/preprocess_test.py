import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import preprocess


def twice(function, array):
    """Run `function` eagerly and inside tf.data; both must agree."""
    eager = np.asarray(function(array))
    dataset = tf.data.Dataset.from_tensors(array).map(function)
    (inside,) = list(dataset.as_numpy_iterator())
    np.testing.assert_array_equal(inside, eager)
    return eager


def test_rgb_range():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got = twice(preprocess.rgb, np.repeat(grey, 3, axis=-1))
    assert got.dtype == np.float32
    want = grey.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(got, np.repeat(want, 3, -1), atol=1e-6)
    assert got.min() == -1
    assert got.max() == 1


def test_flow_range():
    flow = np.array([-25, -20, -10, 0, 5, 20, 99], np.float32).reshape(7, 1)
    got = twice(preprocess.flow, flow)[:, 0]
    np.testing.assert_allclose(got, [-1, -1, -0.5, 0, 0.25, 1, 1])


def test_still_is_zero_whatever_else_moves():
    flow = np.zeros((4, 4, 2), np.float32)
    flow[0, 0] = 17
    assert (np.asarray(preprocess.flow(flow))[1:] == 0).all()


def test_squeeze_keeps_the_whole_frame_and_the_colours():
    frame = np.zeros((360, 640, 3), np.uint8)
    frame[:, :320] = (255, 0, 0)
    frame[:, 320:] = (0, 0, 255)
    small = preprocess.squeeze(frame)
    assert small.shape == (224, 224, 3)
    assert small.dtype == np.uint8
    assert (small[:, :111] == (255, 0, 0)).all()
    assert (small[:, 113:] == (0, 0, 255)).all()


def test_enlarged_vectors_are_pixels_of_the_larger_grid():
    flow = np.full((112, 112, 2), (1.5, -0.25), np.float16)
    large = preprocess.enlarge(flow)
    assert large.shape == (224, 224, 2)
    assert large.dtype == np.float32
    np.testing.assert_allclose(large[..., 0], 3)
    np.testing.assert_allclose(large[..., 1], -0.5)


def test_enlarge_scales_each_axis_by_itself():
    large = preprocess.enlarge(np.ones((112, 56, 2), np.float32))
    np.testing.assert_allclose(large[0, 0], (4, 2))


def test_target_holds_density_and_fixations():
    truth = np.zeros((3, 4, 5, 2), np.uint8)
    truth[0, 1, 2, 0] = 50
    truth[0, 0, 0, 0] = 10
    truth[1, 3, 3] = 255
    got = twice(preprocess.target, truth)
    assert got.dtype == np.float32
    # Each map is divided by its own maximum.
    assert got[0, 1, 2, 0] == 1
    assert got[0, 0, 0, 0] == pytest.approx(0.2)
    assert got[1, ..., 0].max() == 1
    assert (got[2] == 0).all()
    assert got[..., 1].sum() == got[1, 3, 3, 1] == 1


def test_grey_levels_are_rounded():
    got = preprocess.to_uint8(np.array([-1, 0, 0.4 / 255, 0.6 / 255, 1, 2]))
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 255, 255])
