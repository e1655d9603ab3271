import io
import struct
import tracemalloc
import zlib

import cv2
import matplotlib.image
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from lsts_tf.media import files, images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_are_read_as_written(tmp_path, dtype, channels):
    """Of colours the first channel, red, is the map."""
    path = tmp_path / "a.png"
    image = np.arange(12 * 3, dtype=dtype)[: 12 * (*channels, 1)[0]] * 7
    image = image.reshape(3, 4, *channels)
    images.write_png(path, image)
    found = images.read(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image[..., 0] if channels else image)
    colours = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    np.testing.assert_array_equal(
        colours, image if channels else image[..., None].repeat(3, axis=-1)
    )
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).normal(size=(3, 4, 1)).astype(np.float16),
        np.full((3, 4, 1), np.finfo(np.float32).max),
    ],
)
def test_arrays_keep_their_values(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(
        images.read(tmp_path / "a.npy"), array[..., 0]
    )


def _animation():
    file = io.BytesIO()
    first, *others = (PIL.Image.new("L", (8, 6), 80 * k) for k in range(3))
    first.save(file, "PNG", save_all=True, append_images=others)
    return file.getvalue()


def _npy(array, save=np.save):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.png", b"\x89PNG nothing", "not a picture, or a damaged one"),
        ("a.png", b"", "is empty"),
        ("a.png", _animation(), "holds 3 pictures; a map is one"),
        ("a.npy", _npy(np.zeros(4), np.savez), "an archive"),
        # Whose sums may overflow.
        ("a.npy", _npy(np.full((3, 4), 1e308)), "float32's range"),
        ("a.npy", _npy(np.full((3, 4), -1e39)), "float32's range"),
    ],
)
def test_what_is_no_map_is_named(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(images.MapError, match=f"{name}: .*{reason}"):
        images.read(tmp_path / name)


def _read_or_refused(path, data):
    """Whether the file is a map; what it is refused by names it."""
    path.write_bytes(data)
    try:
        found = images.read(path)
    except images.MapError as error:
        assert path.name in str(error)
        return False
    assert isinstance(found, np.ndarray)
    assert type(found) is np.ndarray
    return found.ndim == 2


# Some headers are read, with a warning, by rules of old versions of Python.
@pytest.mark.filterwarnings("ignore")
def test_any_damage_of_an_arrays_header_is_an_error_of_the_map(tmp_path):
    data = _npy(np.arange(12, dtype=np.float32).reshape(3, 4))
    rng = np.random.default_rng(0)
    header = len(data) - 48
    refused = 0
    for place in range(header):
        for value in {0, 10, *b"('[{\\9-", *rng.integers(0, 256, 4).tolist()}:
            changed = bytearray(data)
            changed[place] = value
            refused += not _read_or_refused(tmp_path / "a.npy", bytes(changed))
    assert refused > 500
    for length in range(len(data)):
        assert not _read_or_refused(tmp_path / "a.npy", data[:length])


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000, 1000000)",
        "(4294967296, 4294967296)",
        "(4294967296, 4294967295, 1)",
        "(9999999999999999999999, 1)",
        "(-3, -4)",
        "(" * 300 + "1,1" + ")" * 300,
    ],
)
def test_a_shape_that_the_file_cannot_hold_takes_no_memory(tmp_path, shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    header = text.ljust(1013).encode() + b"\n"
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
    tracemalloc.start()
    try:
        assert not _read_or_refused(tmp_path / "a.npy", data + bytes(48))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_numbers_and_not_names_order_a_folder(tmp_path):
    names = "10.png 0002.PNG 003.npy 2.png .0009.png x.png 4.txt"
    for name in names.split():
        (tmp_path / name).touch()
    (tmp_path / "5").mkdir()
    found = images.numbered(tmp_path, images.SUFFIXES)
    assert list(found.entries) == [2, 3, 10]
    assert len(found.strays) == 3
    assert len(found.clashes) == 1
    assert "has the same number as" in found.clashes[0]
    assert list(images.numbered(tmp_path, (), folders=True).entries) == [5]


def _png(image, *options):
    return cv2.imencode(".png", image, options)[1].tobytes()


def _smooth(dtype=np.uint8, size=(45, 80)):
    image = np.random.default_rng(0).random(size)
    image = cv2.GaussianBlur(image, (0, 0), 4)
    image = cv2.normalize(image, None, 0, np.iinfo(dtype).max, cv2.NORM_MINMAX)
    return image.astype(dtype)


def _by_opencv(data, how):
    return cv2.imdecode(np.frombuffer(data, np.uint8), how)


_FILTERS = ("NONE", "SUB", "UP", "AVG", "PAETH")


def _of_all_kinds():
    rgba = io.BytesIO()
    matplotlib.image.imsave(rgba, _smooth(), cmap="gray", format="png")
    grey = {
        f"{name}, {level}": _png(
            _smooth(),
            cv2.IMWRITE_PNG_COMPRESSION,
            level,
            cv2.IMWRITE_PNG_FILTER,
            getattr(cv2, f"IMWRITE_PNG_FILTER_{name}"),
        )
        for name in _FILTERS
        for level in (0, 6)
    }
    return grey | {
        "16 bits": _png(_smooth(np.uint16)),
        "1 bit": _png(_smooth() & 128, cv2.IMWRITE_PNG_BILEVEL, 1),
        "colour": _png(np.dstack([_smooth(), _smooth() // 2, _smooth() // 3])),
        "alpha": rgba.getvalue(),
        "JPEG": cv2.imencode(".jpg", _smooth())[1].tobytes(),
        "one pixel": _png(np.array([[7]], np.uint8)),
        "text after it": _png(_smooth()) + b"text",
        "text": b"text",
        "a signature": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "nothing": b"",
    }


@pytest.mark.parametrize("how", [cv2.IMREAD_GRAYSCALE, cv2.IMREAD_UNCHANGED])
@pytest.mark.parametrize("kind", _of_all_kinds())
def test_decoded_as_opencv_does(how, kind):
    data = _of_all_kinds()[kind]
    found = images.decode(data, how)
    want = _by_opencv(data, how) if data else None
    assert (found is None) == (want is None)
    if want is not None:
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(found, want)


def _chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def test_a_header_that_asks_for_too_much_takes_no_memory():
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0)
    data = _png(_smooth())
    data = data[:8] + _chunk(b"IHDR", header) + data[33:]
    assert images.decode(data) is None


def test_damage_is_found_where_opencv_finds_it():
    """Cut anywhere; one byte changed anywhere."""
    data = _png(_smooth(), cv2.IMWRITE_PNG_COMPRESSION, 6)
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in rng.integers(1, len(data), 40)]
    damaged += [data[:-n] for n in range(1, 13)]
    places = [*rng.integers(0, len(data), 80), *range(-16, 0)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    refused = 0
    for each in damaged:
        want = _by_opencv(each, cv2.IMREAD_GRAYSCALE)
        found = images.decode(each)
        assert (found is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(found, want)
        refused += want is None
    assert refused > 100


# === Frames ===


def write(path, image):
    assert cv2.imwrite(str(path), image)


def test_depths_and_alpha(tmp_path):
    """What is transparent becomes black, 16 bits are rounded to 8."""
    bgr = np.zeros((2, 3, 3), np.uint8)
    bgr[...] = (10, 20, 200)
    alpha = np.array([[0, 128, 255], [0, 128, 255]], np.uint8)[..., None]
    bgra = np.concatenate([bgr, alpha], axis=-1)
    blended = [[[0, 0, 0], [100, 10, 5], [200, 20, 10]]] * 2
    grey = np.full((2, 3), 77, np.uint8)
    for image, noise, want in (
        (bgr, 0, bgr[..., ::-1]),
        (bgra, 0, blended),
        (grey, 100, np.full((2, 3, 3), 77)),
    ):
        for levels in (image, image.astype(np.uint16) * 257 + noise):
            write(tmp_path / "a.png", levels)
            found = images.read_frame(tmp_path / "a.png")
            assert found.dtype == np.uint8 and found.flags.c_contiguous
            np.testing.assert_array_equal(found, want)


def seen(image, turn):
    """What orientation says, word by word: where row 0 and column 0 are."""
    first = (
        *("top left", "top right", "bottom right", "bottom left"),
        *("left top", "right top", "right bottom", "left bottom"),
    )[turn - 1]
    if first.startswith(("left", "right")):
        image = np.stack([*image], axis=1)
    if "bottom" in first:
        image = image[::-1]
    if "right" in first:
        image = image[:, ::-1]
    return image


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path, turn):
    rng = np.random.default_rng(turn)
    rgb = rng.integers(0, 256, (8, 24, 3), np.uint8)
    slope = np.add.outer(np.arange(0, 128, 16), np.arange(0, 120, 5))
    smooth = np.repeat(slope.astype(np.uint8)[..., None], 3, axis=-1)
    about = PIL.Image.Exif()
    about[PIL.ExifTags.Base.Orientation] = turn
    for name, want in (
        ("a.png", rgb),
        ("a.tiff", rgb),
        ("a.webp", rgb),
        ("grey.png", rgb[..., :1].repeat(3, axis=-1)),
        # JPEG is lossy.
        ("a.jpg", smooth),
    ):
        picture = PIL.Image.fromarray(want)
        if name.startswith("grey"):
            picture = picture.convert("L")
        picture.save(tmp_path / name, exif=about, lossless=True)
        found = images.read_frame(tmp_path / name).astype(int)
        most = 8 if name.endswith("jpg") else 0
        assert np.abs(found - seen(want, turn)).max() <= most, name


@pytest.mark.parametrize(
    "about", [b"something else", b"II*\0", b"II*\0\xff\xff\xff\xff", bytes(9)]
)
def test_damaged_exif_turns_nothing(tmp_path, about):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    path = tmp_path / "1.png"
    PIL.Image.fromarray(image).save(path, exif=b"Exif\0\0" + about)
    np.testing.assert_array_equal(images.read_frame(path), image)


def test_phones_put_a_smaller_view_into_a_photograph(tmp_path):
    views = [PIL.Image.new("RGB", size) for size in ((8, 6), (4, 3))]
    path = tmp_path / "a.jpg"
    views[0].save(path, "MPO", save_all=True, append_images=views[1:])
    assert images.read_frame(path).shape == (6, 8, 3)


def test_what_is_no_frame(tmp_path):
    """See also `matrix.REFUSED`."""
    path = tmp_path / "a.tiff"
    data = _png(np.zeros((4, 6, 3), np.uint8))
    header = struct.pack(">II", 100_000, 100_000) + data[24:29]
    path.write_bytes(data[:8] + _chunk(b"IHDR", header) + data[33:])
    with pytest.raises(files.FileError, match=r"a\.tiff: not a picture"):
        images.read_frame(path)
    whole = cv2.imencode(".jpg", _smooth())[1].tobytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(files.FileError, match="truncated"):
        images.read_frame(path)
