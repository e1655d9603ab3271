import numpy as np
import pytest

from lsts_tf.media import draw


def test_heat_grows_brighter_with_the_value():
    ramp = np.linspace(0, 1, 256)[None]
    colours = draw.heat(ramp)
    assert colours.shape == (1, 256, 3) and colours.dtype == np.uint8
    light = colours[0] @ [0.299, 0.587, 0.114]
    assert light[0] < 5 and light[-1] > 230
    assert (np.diff(light) > -1.5).all()
    red, _, blue = draw.heat(np.full((1, 1), 0.7))[0, 0]
    assert red > 200 > 80 > blue


def test_heat_of_wild_values():
    wild = np.array([[-1.0, np.nan, 2.0, np.inf]])
    tame = np.array([[0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(draw.heat(wild), draw.heat(tame))


def test_blend_shows_the_frame_where_nothing_is_salient():
    frame = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    saliency = np.zeros((36, 64), np.float32)
    saliency[:, 32:] = 1
    got = draw.blend(frame, saliency, alpha=0.5)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[:, :32], frame[:, :32])
    want = frame[:, 32:] / 2 + draw.heat(saliency)[:, 32:] / 2
    np.testing.assert_allclose(got[:, 32:], want, atol=0.51)
    got = draw.blend(frame, saliency, alpha=0)
    np.testing.assert_array_equal(got, frame)


def test_blend_resizes_the_map_to_the_frame():
    frame = np.zeros((90, 160, 3), np.uint8)
    saliency = np.zeros((9, 16))
    saliency[2, 12] = 1
    light = draw.blend(frame, saliency).sum(axis=-1)
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert 20 <= y < 30 and 120 <= x < 130


def test_fog_lies_where_nothing_is_salient():
    frame = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    saliency = np.zeros((36, 64), np.float32)
    saliency[:, 32:] = 1
    got = draw.fog(frame, saliency, alpha=1.0)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[:, 32:], frame[:, 32:])
    np.testing.assert_allclose(got[:, :32], 0.12 * frame[:, :32], atol=0.51)
    np.testing.assert_array_equal(draw.fog(frame, saliency, alpha=0), frame)
    assert draw.fog(frame, np.full((2, 3), np.nan)).shape == frame.shape


def test_side_by_side_scales_to_the_first_height():
    first = np.full((40, 60, 3), 10, np.uint8)
    second = np.full((80, 60, 3), 20, np.uint8)
    row = draw.side_by_side(first, second, gap=2)
    assert row.shape == (40, 60 + 2 + 30, 3)
    np.testing.assert_array_equal(row[:, :60], 10)
    np.testing.assert_array_equal(row[:, 60:62], 255)
    np.testing.assert_array_equal(row[:, 62:], 20)
    np.testing.assert_array_equal(draw.side_by_side(first), first)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_annotation_can_be_read_on_any_background(background):
    image = np.full((360, 640, 3), background, np.uint8)
    got = draw.annotate(image, "random I3D weights")
    assert (image == background).all()
    corner = got[-30:, :40].astype(int)
    assert corner.max() - corner.min() > 150
    np.testing.assert_array_equal(got[:300], background)
    np.testing.assert_array_equal(got[:, 400:], background)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (100, 180), (300, 3)])
def test_annotation_of_images_that_are_too_small_for_it(size):
    image = np.zeros((*size, 3), np.uint8)
    got = draw.annotate(image, "a long line that fits nowhere " * 4)
    assert got.shape == image.shape
    assert draw.annotate(image, "").shape == image.shape
