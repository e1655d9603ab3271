import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.features import flow, preprocess
from lsts_tf.serving import resize

# Shrinking and growing; whole cells, halves, the size itself, one pixel.
SIZES = (
    *((360, 640), (180, 320), (448, 448), (224, 224), (336, 112), (112, 224)),
    *((225, 223), (720, 1280), (448, 640), (361, 643), (896, 448), (1, 1)),
)
GROWING = ((111, 111), (100, 640), (640, 100), (50, 60), (2, 3), (1, 300))
BY_CHANCE = np.random.default_rng(0).integers(1, 447, (25, 2)).tolist()


@pytest.fixture(scope="module")
def squeezed():
    """For all sizes, as in a graph whose frames may have any."""
    return tf.function(
        lambda image: resize.squeeze(image, parts.SIZE),
        input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
    )


def noise(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [*SIZES, *GROWING, *BY_CHANCE])
def test_frames_are_squeezed_as_by_opencv(squeezed, size):
    frame = noise(*size)
    got, want = squeezed(frame).numpy(), preprocess.squeeze(frame)
    if min(size) >= 448:
        close(got, want)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", SIZES)
def test_grey_frames_are_those_of_opencv(size):
    frame = noise(*size)
    got = resize.gray(tf.constant(frame), parts.FLOW_SIZE)
    close(got.numpy(), flow.gray(frame))


def close(got, want):
    assert got.dtype == want.dtype == np.uint8
    apart = np.abs(got.astype(int) - want)
    assert apart.max() <= 1 and apart.mean() < 1 / 50


def test_every_grey_level():
    levels = np.arange(256, dtype=np.uint8)
    frame = np.stack(np.meshgrid(levels, levels, [0, 1, 254, 255]), axis=-1)
    frame = frame.reshape(1024, 256, 3).astype(np.uint8)
    got = resize.gray(tf.constant(frame), frame.shape[:2])
    np.testing.assert_array_equal(got, flow.gray(frame, size=frame.shape[:2]))
