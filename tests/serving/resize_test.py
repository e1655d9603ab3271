import cv2
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.features import flow
from lsts_tf.features import preprocess
from lsts_tf.serving import resize

# Shrinking, growing, both; whole cells, halves, the size itself, one pixel.
SIZES = (
    *((360, 640), (180, 320), (720, 1280), (448, 448), (448, 640)),
    *((224, 224), (336, 112), (112, 112), (112, 224), (225, 223)),
    *((111, 111), (100, 640), (640, 100), (50, 60), (361, 643)),
    *((2, 3), (1, 1), (1, 300), (113, 337), (896, 448)),
)


@pytest.fixture(scope="module")
def squeezed():
    return tf.function(
        lambda image: resize.squeeze(image, parts.SIZE),
        input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
    )


@pytest.fixture(scope="module")
def shrunk():
    return tf.function(
        lambda image: resize.area(resize.gray(image), parts.FLOW_SIZE),
        input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
    )


def noise(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_graphs_resize_as_opencv_does_bit_for_bit(squeezed, shrunk, size):
    frame = noise(*size)
    np.testing.assert_array_equal(squeezed(frame), preprocess.squeeze(frame))
    np.testing.assert_array_equal(shrunk(frame), flow.gray(frame))


def test_sizes_by_chance(squeezed, shrunk):
    for height, width in np.random.default_rng(0).integers(1, 700, (25, 2)):
        frame = noise(height, width)
        np.testing.assert_array_equal(
            squeezed(frame), preprocess.squeeze(frame)
        )
        np.testing.assert_array_equal(shrunk(frame), flow.gray(frame))


def test_every_grey_level():
    levels = np.arange(256, dtype=np.uint8)
    frame = np.stack(np.meshgrid(levels, levels, [0, 1, 254, 255]), axis=-1)
    frame = frame.reshape(1024, 256, 3).astype(np.uint8)
    want = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(resize.gray(tf.constant(frame)), want)
