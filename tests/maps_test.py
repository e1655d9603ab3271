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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_keep_their_levels(tmp_path, dtype):
    import cv2

    image = np.arange(12, dtype=dtype).reshape(3, 4) * 20
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = maps.read(tmp_path / "a.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


def test_of_colours_the_first_channel_counts(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 7
    image[..., 2] = 9
    maps.write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(maps.read(tmp_path / "a.png"), image[..., 0])


def test_arrays_keep_their_values(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 4, 1)).astype(np.float16)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(maps.read(tmp_path / "a.npy"), array[..., 0])


def test_numbers_and_not_names_order_a_folder(tmp_path):
    for name in (
        "10.png",
        "0002.PNG",
        "003.npy",
        ".0009.png",
        "x.png",
        "4.txt",
    ):
        (tmp_path / name).touch()
    (tmp_path / "5").mkdir()
    found = maps.numbered(tmp_path, maps.SUFFIXES)
    assert list(found.entries) == [2, 3, 10]
    assert len(found.strays) == 3
    assert found.clashes == []
    assert list(maps.numbered(tmp_path, (), folders=True).entries) == [5]


def test_a_number_given_twice_is_a_clash(tmp_path):
    for name in ("7.png", "007.png"):
        (tmp_path / name).touch()
    found = maps.numbered(tmp_path, maps.SUFFIXES)
    assert len(found.entries) == 1
    assert "007.png" in found.clashes[0] + found.entries[7].path
