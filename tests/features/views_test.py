import numpy as np
import pytest

from lsts_tf.features import views


def test_the_whole_and_the_mirrored_view():
    for frame in (np.arange(36).reshape(3, 4, 3), np.arange(12).reshape(3, 4)):
        np.testing.assert_array_equal(views.WHOLE.of(5, frame), frame)
        found = views.MIRRORED.of(5, frame)
        np.testing.assert_array_equal(found, frame[:, ::-1])
    assert (views.WHOLE.name, views.MIRRORED.name) == ("", "mirrored")


def test_a_crop_is_the_same_place_at_each_size():
    """Where a pixel of the frame lies, the map's crop has it, too."""
    rows, columns = np.meshgrid(
        np.linspace(0, 1, 480), np.linspace(0, 1, 640), indexing="ij"
    )
    frame = np.stack([rows, columns, 0 * rows], axis=-1)
    map_ = rows[::2, ::4]
    mirrored = []
    for video in range(40):
        view = views.View(crop=1 + video % 3)
        found, same = view.of(video, frame), view.of(video, map_)
        for axis, length in ((0, 480), (1, 640)):
            assert 0.5 - 2 / length <= found.shape[axis] / length <= 1
        assert abs(found[0, 0, 0] - same[0, 0]) < 0.01
        assert abs(found[-1, -1, 0] - same[-1, -1]) < 0.01
        assert same.shape[1] == pytest.approx(found.shape[1] / 4, abs=2)
        mirrored.append(found[0, 0, 1] > found[0, -1, 1])
        np.testing.assert_array_equal(found, view.of(video, frame))
    assert 10 < sum(mirrored) < 30


def test_one_pixel_has_every_view():
    for crop in range(1, 20):
        assert views.View(crop=crop).of(3, np.ones((1, 1))).shape == (1, 1)


def test_stores_tell_views_apart():
    seen = (views.WHOLE, *views.chosen(flip=True, crops=2))
    assert [v.name for v in seen] == ["", "mirrored", "view1", "view2"]
    assert len({str(v.describe()) for v in seen}) == 4
    assert views.chosen(flip=False, crops=0) == []
