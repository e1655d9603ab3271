import fractions
import io
import itertools
import os
import re
import signal
import subprocess
from unittest import mock

import cv2
import numpy as np
import pytest

from lsts_tf.media import files, sources, video, writer
from tests import pages
from tests.media import video_test


def frames_of(source):
    return [frame for frame, _ in source]


def write(path, image):
    assert cv2.imwrite(os.fspath(path), image)


# === Files ===


def test_damage_before_the_end_of_a_clip_is_known(tmp_path, monkeypatch):
    path = video_test.film(tmp_path / "a.mp4")
    decoded = video._Pass._decoded

    def damaged(reading):
        for number, (frame, _) in enumerate(decoded(reading)):
            yield frame, number in (5, 9)

    monkeypatch.setattr(video._Pass, "_decoded", damaged)
    for end, want in (
        ("5f", ""),
        ("7f", f"{path}: damaged frames (counted from 0): 5;"),
        ("", f"{path}: damaged frames (counted from 0): 5, 9;"),
    ):
        source = sources.File(path)
        for frames in sources.two_readers(sources.Clip(source, end=end)):
            assert len(list(frames)) == int(end.removesuffix("f") or 30)
        assert source.damage.startswith(want)
        assert bool(want) == bool(source.damage)


# === Pictures ===


def pictures_in(folder, *stems, shape=(4, 4)):
    """Pictures whose grey is their place, from 0."""
    for grey, stem in enumerate(stems):
        write(folder / f"{stem}.png", np.full(shape, grey, np.uint8))


def greys(source):
    return [int(frame[0, 0, 0]) for frame, _ in source]


def test_a_folder_of_pictures_in_natural_order(tmp_path):
    folder = tmp_path / "Bilder ü"
    folder.mkdir()
    pictures_in(folder, "f8", "f9", "f10", "f11", shape=(6, 8, 3))
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    source = sources.open_source([os.fspath(folder)])
    assert (source.size, source.fps, source.num_frames) == ((8, 6), 25, 4)
    assert source.stem == "Bilder ü" and source.damage == ""
    found = list(source)
    assert greys(found) == [0, 1, 2, 3]
    assert [time for _, time in found] == [0, 0.04, 0.08, 0.12]


@pytest.mark.parametrize(
    ("stems", "missing"),
    [
        (
            "0.0 0.04 0.08 0.12 0.16 0.2 1.0 10.0",
            "between 0.2.png and 1.0.png, 1.0.png and 10.0.png, so",
        ),
        ("f_0003 f_0004 f_0007 f_0009 f_20", "f_0004.png and f_0007.png, f_"),
        ("1 3 5 7 9 11 13 15", ""),
        ("5 10 15 25", "15.png and 25.png"),
        ("000 033 067 100 133", ""),
        (
            "1a 2a 4a 6a 8a 10a",
            "4a.png, 4a.png and 6a.png, 6a.png and 8a.png and 1 more, so",
        ),
        ("2024.01.02 2024.01.10 2024.02.01", ""),
        ("a a1 b c9", ""),
        ("3 7", ""),
    ],
)
def test_pictures_are_ordered_by_value_and_gaps_are_said(
    tmp_path, stems, missing
):
    stems = stems.split()
    pictures_in(tmp_path, *stems)
    source = sources.open_source([os.fspath(tmp_path)])
    assert greys(source) == list(range(len(stems)))
    assert bool(source.damage) == bool(missing)
    assert missing in source.damage


def test_pictures_one_by_one_keep_the_order_given(tmp_path, caplog):
    pictures_in(tmp_path, 3, 1, 2)
    names = [os.fspath(tmp_path / f"{k}.png") for k in (3, 1, 2)]
    source = sources.open_source(names, rate=10)
    assert greys(source) == [0, 1, 2]
    assert source.fps == 10
    assert source.damage == ""
    assert "the number of 1.png is less than that of 3.png" in caplog.text
    assert sources.open_source(names[:1]).num_frames == 1


def test_a_damaged_picture_is_named_and_the_others_are_used(tmp_path):
    """The first one that can be read says the size."""
    pictures_in(tmp_path, *range(4), shape=(4, 6))
    write(tmp_path / "4.png", np.zeros((4, 8), np.uint8))
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"\x89PNG nothing")
    source = sources.open_source([os.fspath(tmp_path)])
    found = list(source)
    assert greys(found) == [1, 3]
    assert [time for _, time in found] == [0.04, 0.12]
    for told in ("so later ones have other numbers", "frame 0", "0.png"):
        assert told in source.damage
    assert "3 of 5" in source.damage
    source = sources.open_source(
        [os.fspath(tmp_path / f"{k}.png") for k in (3, 4)]
    )
    assert len(frames_of(source)) == 1
    assert "4.png: is 8x4, the first picture 6x4" in source.damage


def test_what_makes_no_clip(tmp_path, monkeypatch):
    """See also `matrix.REFUSED`."""
    pictures_in(tmp_path, 1, 2)
    write(tmp_path / "2.jpg", np.zeros((4, 4), np.uint8))
    (tmp_path / "a.txt").write_text("text")
    for names, message in (
        (["no.png"], "no such picture"),
        (["a.txt", "a.txt"], "not a picture; several files"),
        (["."], r"2\.jpg and 2\.png have"),
    ):
        with pytest.raises(files.FileError, match=message):
            sources.open_source([os.fspath(tmp_path / name) for name in names])
    with pytest.raises(ValueError, match="No video"):
        sources.open_source([])
    with pytest.raises(ValueError, match="greater than 0"):
        sources.open_source(["a.mp4"], rate=0)
    monkeypatch.setattr("sys.stdin", mock.Mock(isatty=lambda: True))
    with pytest.raises(ValueError, match="a terminal"):
        sources.open_source(["-"])
    with pytest.raises(ValueError, match="camera:0"):
        sources.open_source(["camera:front"])


# === Pipes ===


def piped(data, **kwargs):
    """Bytes that come some at a time."""
    data = io.BytesIO(data)
    pipe = mock.Mock(read1=lambda most: data.read(min(most, 1000)))
    return sources.Stream(pipe, **kwargs)


def test_raw_colour():
    frames = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)
    source = piped(frames.tobytes(), size="9x7", rate=12.5)
    found = list(source)
    np.testing.assert_array_equal([frame for frame, _ in found], frames)
    assert [time for _, time in found] == [0, 0.08, 0.16, 0.24, 0.32]
    assert source.damage == "" and source.num_frames is None
    found[0][0][...] = 0  # Frames may be drawn on.


def test_raw_grey_smaller_than_a_header_and_raw_that_is_cut_off():
    data = bytes(range(12))
    source = piped(data, size="1x1", rate=1, pixel_format="gray")
    assert greys(source) == list(range(12))
    frames = np.zeros((3, 4, 6, 3), np.uint8).tobytes()[:-1]
    source = piped(frames, size="6x4", rate=25)
    assert len(frames_of(source)) == 2
    assert "from frame 2 " in source.damage
    assert source.damage.startswith("standard input: read 2 frames; its end")


def test_nothing_comes():
    with pytest.raises(video.VideoError, match="no frame of it can be decod"):
        piped(b"", size="6x4", rate=25)
    for data in (b"", b"0123456789abc"):
        with pytest.raises(video.VideoError, match="Raw video needs --size"):
            piped(data)
    for size in ("", "640", "0x9"):
        with pytest.raises(ValueError, match=f"WIDTHxHEIGHT.*'{size}'"):
            piped(b"0123456789abc", size=size, rate=25)
    with pytest.raises(ValueError, match="needs --rate"):
        piped(b"0123456789abc", size="6x4")


def y4m(header, greys, *, pixels, samples):
    """Frames of one grey each, without colour."""
    planes = [
        b"FRAME\n" + bytes([grey]) * pixels + bytes([128]) * (2 * samples)
        for grey in greys
    ]
    return b"".join([header.encode(), b"\n", *planes])


def test_y4m():
    header = "YUV4MPEG2 W7 H5 F30000:1001 Ip A4:3 C444"
    source = piped(y4m(header, (16, 126, 235), pixels=35, samples=35))
    assert isinstance(source, sources.Source)
    assert source.size == (7, 5)
    assert source.fps == pytest.approx(29.97, abs=1e-3)
    assert source.pixel_aspect == fractions.Fraction(4, 3)
    for frame, grey in zip(frames_of(source), (0, 128, 255), strict=True):
        assert frame.shape == (5, 7, 3) and frame.dtype == np.uint8
        np.testing.assert_allclose(frame, grey, atol=1)
    assert source.damage == ""


def test_a_pipe_of_ffmpeg_has_the_colours_of_the_file(tmp_path, ffmpeg):
    """The command of the documentation, and a film whose colours are BT.709."""
    colours = [[200, 40, 50], [40, 180, 60], [50, 60, 200], [220, 210, 40]]
    frame = np.repeat(np.uint8(colours), 32, axis=0)[None].repeat(64, axis=0)
    path = tmp_path / "in.mp4"
    with writer.Writer(path, fps=25, size=(128, 64)) as film:
        for _ in range(3):
            film.write(frame)
    page = (pages.ROOT / "docs" / "predict.md").read_text()
    (command,) = re.findall(r"`(ffmpeg -i in\.mp4 .* yuv420p -) ", page)
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, check=True
    )
    by_pipe = np.stack(frames_of(piped(done.stdout)))
    by_file = np.stack(frames_of(sources.File(path)))
    # Between colours the samples that are shared are made in other ways.
    by_pipe, by_file = (
        found.reshape(3, 64, 4, 32, 3)[:, :, :, 4:-4].astype(int)
        for found in (by_pipe, by_file)
    )
    assert np.abs(by_pipe - by_file).max() <= 4


def test_y4m_that_is_not_whole():
    data = y4m("YUV4MPEG2 W4 H4 F25:1", (16, 126), pixels=16, samples=4)
    for broken, count, reason in (
        (data[:-1], 1, "read 1 frames; its end is missing"),
        (data + b"rubbish\n", 2, "reading ends with an error"),
    ):
        source = piped(broken)
        assert len(frames_of(source)) == count
        assert reason in source.damage
    with pytest.raises(video.VideoError, match="no frame of it"):
        piped(data[: data.index(b"\n") + 1])
    with pytest.raises(video.VideoError, match="not a video"):
        piped(b"YUV4MPEG2 W4\n")


# === Cameras ===


class Capture:
    """As `cv2.VideoCapture`: eleven frames, then none; BGR."""

    def __init__(self, index):
        self.count = 0 if index == 0 else 99

    def read(self):
        self.count += 1
        frame = np.zeros((6, 8, 3), np.uint8)
        frame[..., 0] = self.count
        return self.count < 12, frame

    def get(self, what):
        assert what == cv2.CAP_PROP_FPS
        return 15.0

    def release(self):
        self.count = 99


@pytest.fixture
def camera(monkeypatch):
    """Number 0."""
    monkeypatch.setattr(cv2, "VideoCapture", Capture)


def test_a_camera(camera):
    source = sources.open_source(["camera:0"])
    assert (source.size, source.fps, source.num_frames) == ((8, 6), 15, None)
    found = list(source)
    assert [int(f[0, 0, 2]) for f, _ in found] == list(range(2, 12))
    times = [time for _, time in found]
    assert all(b > a for a, b in itertools.pairwise(times))
    assert "stopped giving frames" in source.damage
    with pytest.raises(video.VideoError, match="no such camera"):
        sources.open_source(["camera:1"])


def test_the_first_interrupt_ends_a_cameras_clip(camera):
    before = signal.getsignal(signal.SIGINT)
    source = sources.open_source(["camera:0"])
    count = 0
    for _ in source:
        count += 1
        if count == 3:
            signal.raise_signal(signal.SIGINT)
    assert count == 3 and source.damage == ""
    assert signal.getsignal(signal.SIGINT) is before


# === Clips ===


class Counted(sources.Source):
    """Frames whose red is their number, four a second."""

    name = stem = "counted"
    fps = 4.0
    size = (2, 2)
    num_frames = 40
    read = 0

    def __iter__(self):
        for number in range(40):
            self.read += 1
            yield np.full((2, 2, 3), (number, 50, 90), np.uint8), 5 + number / 4


@pytest.mark.parametrize(
    ("start", "end", "want", "about"),
    [
        ("", "", range(40), 40),
        ("3f", "7f", range(3, 7), 4),
        # By its rate alone: it begins at 5 s.
        ("6", "7.5s", range(4, 10), 6),
        ("6.001", "", range(5, 40), 16),
        ("38f", "", range(38, 40), 2),
        ("", "1f", range(1), 1),
        ("99f", "", (), 0),
    ],
)
def test_part_of_a_source(start, end, want, about):
    source = Counted()
    clip = sources.Clip(source, start=start, end=end)
    assert clip.num_frames == about
    found = list(clip)
    # It stops reading behind its end.
    assert source.read == min(40, (want[-1] if want else 40) + 2)
    assert [int(f[0, 0, 0]) for f, _ in found] == list(want)
    if found:
        assert found[0][1] == 0
        assert found[-1][1] == (len(found) - 1) / 4
        assert clip.first_frame == want[0]
        assert clip.first_time == 5 + want[0] / 4


def test_frames_that_are_passed_over_keep_the_times():
    (first, *_) = sources.Clip(Counted(), start="10f", skip=3)
    assert first[0][0, 0, 0] == 13 and first[1] == 0.75


@pytest.mark.parametrize("text", ["-1", "abc", "1.5f", "1:30", "."])
def test_what_is_no_moment(text):
    with pytest.raises(ValueError, match=r"--start is in seconds.*300f"):
        sources.Clip(Counted(), start=text)


@pytest.mark.parametrize(
    ("limit", "draws"), [(0, True), (30, True), (1 << 20, True), (30, False)]
)
def test_two_readers_see_the_same(monkeypatch, limit, draws):
    """Who does not draw gets no frames."""
    monkeypatch.setattr(sources, "KEPT_BYTES", limit)
    source = Counted()
    first, second = sources.two_readers(sources.Clip(source), draws=draws)
    ahead = [next(first) for _ in range(10)]
    behind = [next(second) for _ in range(4)]
    ahead += list(first)
    behind += list(second)
    for number, (one, (other, time)) in enumerate(
        zip(ahead, behind, strict=True)
    ):
        assert one.size and time == number / 4
        np.testing.assert_array_equal(other, one if draws else one[:0, :0])
    assert source.read == len(ahead) == 40
