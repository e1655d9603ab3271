import fractions
import math

import cv2
import numpy as np
import pytest

from lsts_tf.features import preprocess
from lsts_tf.media import images


def test_rgb_range():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got = np.asarray(preprocess.rgb(np.repeat(grey, 3, axis=-1)))
    assert got.dtype == np.float32
    want = grey.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(got, np.repeat(want, 3, -1), atol=1e-6)
    assert got.min() == -1
    assert got.max() == 1


def test_density_of_the_models_size_is_itself():
    density = np.zeros((360, 640), np.uint8)
    assert preprocess.density(density) is density
    assert preprocess.fixations(density) is density


@pytest.mark.parametrize("size", [(720, 1280), (90, 160), (404, 320)])
def test_density_at_another_size(size):
    def bump(height, width):
        rows, columns = np.mgrid[:height, :width]
        y, x = (rows + 0.5) / height, (columns + 0.5) / width
        return 255 * np.exp(-8 * ((y - 0.3) ** 2 + (x - 0.6) ** 2))

    got = preprocess.density(np.rint(bump(*size)).astype(np.uint8))
    assert got.shape == (360, 640)
    assert got.dtype == np.uint8
    assert np.abs(got - bump(360, 640)).max() < 3.5


def test_density_to_less_is_by_area():
    density = np.zeros((720, 1280), np.uint8)
    density[100, 200] = 200
    # A quarter of its new pixel.
    got = preprocess.density(density)
    assert got[50, 100] == 50
    assert got.sum() == 50


@pytest.mark.parametrize("size", [(720, 1280), (90, 160), (404, 720), (1, 1)])
def test_fixations_at_another_size_are_moved_points(size):
    rng = np.random.default_rng(0)
    fixated = np.where(rng.random(size) < 0.01, 255, 0).astype(np.uint8)
    fixated[0, 0] = fixated[-1, -1] = 1
    got = preprocess.fixations(fixated)
    want = np.zeros((360, 640), np.uint8)
    half = fractions.Fraction(1, 2)
    for row, column in np.argwhere(fixated).tolist():
        y = math.floor((row + half) / size[0] * 360)
        x = math.floor((column + half) / size[1] * 640)
        want[y, x] = 255
    np.testing.assert_array_equal(got, want)


def test_flow_range():
    # Pixels per frame at 112: twice as many at 224.
    values = [-25, -10, -5, 0, 2.5, 10, 99]
    flows = np.stack([np.full((112, 112, 2), v, np.float16) for v in values])
    got = np.asarray(preprocess.flow(flows))
    assert got.shape == (7, 224, 224, 2)
    assert got.dtype == np.float32
    want = np.array([-1, -1, -0.5, 0, 0.25, 1, 1])
    np.testing.assert_allclose(
        got, np.broadcast_to(want[:, None, None, None], got.shape)
    )


def test_enlarged_flow_is_opencvs_bilinear():
    flow = np.random.default_rng(0).normal(size=(2, 112, 112, 2))
    flow = flow.astype(np.float32)
    want = [cv2.resize(f, (224, 224)) * 2 / 20 for f in flow]
    np.testing.assert_allclose(preprocess.flow(flow), want, atol=1e-6)


def test_squeeze_keeps_the_whole_frame_and_the_colours():
    frame = np.zeros((360, 640, 3), np.uint8)
    frame[:, :320] = (255, 0, 0)
    frame[:, 320:] = (0, 0, 255)
    small = preprocess.squeeze(frame)
    assert small.shape == (224, 224, 3)
    assert small.dtype == np.uint8
    assert (small[:, :111] == (255, 0, 0)).all()
    assert (small[:, 113:] == (0, 0, 255)).all()


def test_large_frames_are_averaged_so_that_no_pixel_is_skipped():
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (448, 896, 3), np.uint8)
    want = frame.reshape(224, 2, 224, 4, 3).mean((1, 3))
    assert np.abs(preprocess.squeeze(frame) - want).max() <= 0.5
    # One row less, and it is the authors' program's rule.
    got = preprocess.squeeze(frame[:447])
    want = cv2.resize(frame[:447], (224, 224))
    np.testing.assert_array_equal(got, want)


def test_another_size_need_not_be_square():
    frame = np.zeros((360, 640, 3), np.uint8)
    frame[:, 320:] = 255
    small = preprocess.squeeze(frame, (224, 384))
    assert small.shape == (224, 384, 3)
    assert (small[:, :191] == 0).all() and (small[:, 193:] == 255).all()
    # Vectors grow with each axis by itself.
    flow = np.ones((1, 112, 96, 2), np.float32)
    got = np.asarray(preprocess.flow(flow, (224, 384)))
    assert got.shape == (1, 224, 384, 2)
    np.testing.assert_allclose(got[..., 0], 4 / 20)
    np.testing.assert_allclose(got[..., 1], 2 / 20)
    assert "112x192 to 224x384" in preprocess.describe("flow", (224, 384))
    # What older stores were made with.
    assert preprocess.describe("flow") == (
        "112x112 to 224x224, bilinear, vectors x 2, clip 20, / 20"
    )


def test_target_holds_density_and_fixations():
    truth = np.zeros((3, 4, 5, 2), np.uint8)
    truth[0, 1, 2, 0] = 50
    truth[0, 0, 0, 0] = 10
    truth[1, 3, 3] = 255
    got = np.asarray(preprocess.target(truth))
    assert got.dtype == np.float32
    # Each map is divided by its own maximum.
    assert got[0, 1, 2, 0] == 1
    assert got[0, 0, 0, 0] == pytest.approx(0.2)
    assert got[1, ..., 0].max() == 1
    assert (got[2] == 0).all()
    assert got[..., 1].sum() == got[1, 3, 3, 1] == 1


def test_grey_levels_are_rounded():
    got = images.to_uint8(np.array([-1, 0, 0.4 / 255, 0.6 / 255, 1, 2]))
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 255, 255])
