import fractions
import os

import av
import numpy as np
import pytest

from lsts_tf.media import video, writer
from tests.media import matrix, video_test

SIZE = video_test.SIZE
numbered = video_test.numbered
# A kind of pixels in the file that they are written to.
KINDS = [(name, kind.suffix) for name, kind in writer.PIXELS.items()]


def blank(size, pixels, level=0):
    kind = writer.PIXELS[pixels]
    return np.full((*size[::-1], *kind.channels), level, kind.dtype)


@pytest.mark.parametrize("name", ["a film.mp4", "10:00:00.mp4", "\udce9.mp4"])
def test_what_is_written_is_read(folder, name):
    path = folder / name
    with writer.Writer(path, fps=30, size=SIZE) as film:
        for k in range(200):
            film.write(numbered(k))
    assert [p.name for p in folder.iterdir()] == [path.name]
    film = video.Video(path)
    assert film.size == SIZE
    assert film.fps == pytest.approx(30)
    assert film.num_frames == 200
    # A second time from the start.
    for _ in range(2):
        assert [video_test.number_of(f) for f in film] == list(range(200))
    assert film.damage == ""


def test_colours_are_rgb_and_survive(folder):
    path = folder / "colours.mp4"
    colours = [[220, 30, 40], [40, 200, 50], [30, 60, 210], [250, 250, 250]]
    frame = np.repeat(np.uint8(colours), 32, axis=0)[None].repeat(64, axis=0)
    with writer.Writer(path, fps=25, size=(128, 64)) as film:
        for _ in range(5):
            film.write(frame)
    for got in video.frames(path):
        assert got.dtype == np.uint8 and got.shape == (64, 128, 3)
        middles = got[32, 16::32].astype(int)
        np.testing.assert_allclose(middles, colours, atol=6)


@pytest.mark.parametrize("size", [(33, 17), (16, 33), (3, 5), (1, 1)])
def test_odd_sizes_are_filled_up(folder, size):
    path = folder / "odd.mp4"
    width, height = size
    with writer.Writer(path, fps=29.97, size=size) as film:
        film.write(np.full((height, width, 3), 90, np.uint8))
    (frame,) = video.frames(path)
    even = (height + height % 2, width + width % 2, 3)
    assert frame.shape == even
    np.testing.assert_allclose(frame, 90, atol=8)


def test_16_bits_are_written_without_loss(folder):
    path, rng = folder / "a.mkv", np.random.default_rng(0)
    frames = rng.integers(0, 1 << 16, (5, 17, 33), np.uint16)
    with writer.Writer(path, fps=25, size=(33, 17), pixels="gray16") as film:
        for frame in frames:
            film.write(frame)
    with av.open(os.fspath(path)) as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    np.testing.assert_array_equal(found, frames)


def test_greys_are_kept(folder):
    """All 256 levels, not the 220 of television."""
    path, levels = folder / "a.mp4", np.arange(0, 256, 5)
    with writer.Writer(path, fps=25, size=(33, 16), pixels="gray") as film:
        for level in levels:
            film.write(np.full((16, 33), level, np.uint8))
    found = [int(np.rint(f[4:12, 4:12].mean())) for f in video.frames(path)]
    np.testing.assert_allclose(found, levels, atol=1)


@pytest.mark.parametrize("fps", [30, 30000 / 1001, 24000 / 1001, 12.5, 1000])
@pytest.mark.parametrize(("pixels", "suffix"), KINDS)
def test_rates_are_kept(folder, suffix, pixels, fps):
    path = folder / f"a{suffix}"
    with writer.Writer(path, fps=fps, size=(16, 16), pixels=pixels) as film:
        for k in range(30):
            # Containers round times.
            film.write(blank((16, 16), pixels, k), round(k / fps, 3))
    film = video.Video(path)
    assert film.fps == pytest.approx(fps, rel=1e-4)
    assert film.num_frames == 30
    times = [time for _, time in film.timed()]
    np.testing.assert_allclose(times, np.arange(30) / fps, atol=6e-4)


@pytest.mark.parametrize(("pixels", "suffix"), KINDS)
def test_times_are_kept(folder, suffix, pixels):
    """A variable frame rate; the first frame is shown at once."""
    path = folder / f"a{suffix}"
    times = 7 + np.cumsum([0, 33, 67, 33, 200, 16, 17, 500]) / 1000
    with writer.Writer(path, fps=10, size=(16, 16), pixels=pixels) as film:
        for time in times:
            film.write(blank((16, 16), pixels), time)
    found = [time for _, time in video.Video(path).timed()]
    np.testing.assert_allclose(found, times - 7, atol=2e-3)


def test_the_aspect_of_pixels_is_kept(folder):
    path, wide = folder / "wide.mp4", fractions.Fraction(4, 3)
    how = {"fps": 25, "size": (64, 32), "pixel_aspect": wide}
    for pixels in ("rgb", "gray"):
        with writer.Writer(path, pixels=pixels, **how) as film:
            film.write(blank((64, 32), pixels))
        assert video.Video(path).pixel_aspect == wide
    # A pixel that lies on its side.
    matrix.turned(matrix.MATRICES["a left turn"])(path)
    assert video.Video(path).pixel_aspect == 1 / wide


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.mp4", "no frame was written"),
        ("missing/film.mp4", r"film\.mp4: cannot be written"),
    ],
)
def test_what_makes_no_film_is_said_and_leaves_nothing(folder, name, reason):
    with (
        pytest.raises(video.VideoError, match=reason),
        writer.Writer(folder / name, fps=9, size=SIZE),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_a_file_that_lacks_frames_is_said_and_leaves_the_old_one(folder):
    path = folder / "old.mp4"
    path.write_bytes(b"the film of yesterday")
    with (
        pytest.raises(video.VideoError, match=r"2 frames were .* 1 can be"),
        writer.Writer(path, fps=9, size=SIZE) as film,
    ):
        film.write(numbered(0))
        film._count = 2
    assert [p.name for p in folder.iterdir()] == ["old.mp4"]
    assert path.read_bytes() == b"the film of yesterday"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \[64, 128, 3\].*\[4, 4, 3\]"),
        (np.zeros((64, 128, 3), np.float32), "float32"),
        (np.zeros((64, 128), np.uint8), r"\[64, 128\]"),
    ],
)
def test_other_frames_are_refused(folder, frame, reason):
    with (
        pytest.raises(ValueError, match=reason),
        writer.Writer(folder / "a.mp4", fps=9, size=SIZE) as film,
    ):
        film.write(frame)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("a.avi", {}, r"a\.avi"),
        ("a.mp4", {"pixels": "gray16"}, r"gray16 is written as \.mkv"),
        ("a.mp4", {"fps": 0}, "fps=0"),
        ("a.mp4", {"size": (0, 4)}, r"size=\(0, 4\)"),
    ],
)
def test_settings_that_make_no_film(folder, name, changes, reason):
    with pytest.raises(ValueError, match=reason):
        writer.Writer(folder / name, **{"fps": 9, "size": SIZE, **changes})
