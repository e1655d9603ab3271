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
    wild = np.array([[-1.0, np.nan, 2.0, np.inf]])
    np.testing.assert_array_equal(
        draw.heat(wild), draw.heat(np.array([[0, 0, 1, 1]]))
    )


def test_what_is_drawn_over_a_frame():
    """Heat where it is salient, or fog where it is not."""
    frame = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    # Its own range counts.
    map_ = np.full((36, 64), 0.2, np.float32)
    map_[:, 32:] = 0.3
    heat = draw.over(frame, map_, alpha=0.5)
    np.testing.assert_array_equal(heat[:, :32], frame[:, :32])
    want = frame[:, 32:] / 2 + draw.heat(np.ones((36, 32))) / 2
    np.testing.assert_allclose(heat[:, 32:], want, atol=0.51)
    fog = draw.over(frame, map_, view="fog", alpha=1.0)
    np.testing.assert_array_equal(fog[:, 32:], frame[:, 32:])
    np.testing.assert_allclose(fog[:, :32], 0.12 * frame[:, :32], atol=0.51)
    for view in draw.VIEWS:
        none = draw.over(frame, map_, view=view, alpha=0)
        np.testing.assert_array_equal(none, frame)
        empty = draw.over(frame, np.full((2, 3), np.nan, np.float32), view=view)
        assert empty.shape == frame.shape and empty.dtype == np.uint8


def test_a_map_is_resized_to_the_frame():
    map_ = np.zeros((9, 16), np.float32)
    map_[2, 12] = 1
    light = draw.over(np.zeros((90, 160, 3), np.uint8), map_).sum(axis=-1)
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert 20 <= y < 30 and 120 <= x < 130


def test_side_by_side_scales_to_the_first_height():
    first = np.full((40, 60, 3), 10, np.uint8)
    second = np.full((80, 60, 3), 20, np.uint8)
    row = draw.side_by_side(first, second)
    want = np.repeat([10, 255, 20], [60, 4, 30])
    np.testing.assert_array_equal(row[..., 1], [want] * 40)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_annotation_can_be_read_on_any_background(background):
    image = np.full((360, 640, 3), background, np.uint8)
    got = draw.annotate(image, "random I3D weights")
    assert (image == background).all()
    corner = got[-30:, :40].astype(int)
    assert corner.max() - corner.min() > 150
    np.testing.assert_array_equal(got[:300], background)
    np.testing.assert_array_equal(got[:, 400:], background)
    # It is too long for these.
    for size in ((1, 1), (2, 300), (100, 180), (300, 3)):
        image = np.full((*size, 3), background, np.uint8)
        for text in ("a long line that fits nowhere " * 4, ""):
            assert draw.annotate(image, text).shape == image.shape
