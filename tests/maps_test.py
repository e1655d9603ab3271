import numpy as np
import pytest

from lsts_tf import maps


def test_frame_0_is_file_1():
    assert maps.file_name(0) == "0001.png"
    assert maps.file_name(1557) == "1558.png"


def test_grey_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (36, 64), np.uint8)
    maps.write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(maps.read_grey(tmp_path / "a.png"), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_colours_keep_their_order(tmp_path):
    import cv2

    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    maps.write_png(tmp_path / "red.png", image)
    back = cv2.imread(str(tmp_path / "red.png"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(back, image)


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(OSError, match="no"):
        maps.write_png(tmp_path / "no" / "a.png", np.zeros((2, 2), np.uint8))


def test_a_damaged_picture_is_named(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"\x89PNG nothing")
    with pytest.raises(OSError, match=r"bad\.png"):
        maps.read_grey(path)
