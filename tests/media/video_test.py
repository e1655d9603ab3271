import contextlib
import fractions
import itertools
import math
import os
import pathlib
import resource
import struct
import wave

import av
import cv2
import numpy as np
import pytest

from lsts_tf.media import matroska
from lsts_tf.media import video

# Frame numbers are burnt in as bits: eight black or white squares, large
# enough to survive any codec.
_SQUARE = 16
SIZE = (8 * _SQUARE, 32)


def numbered(number, size=SIZE):
    width, height = size
    frame = np.full((height, width, 3), (200, 120, 40), np.uint8)
    for bit in range(8):
        value = 255 if number >> bit & 1 else 0
        frame[:_SQUARE, bit * _SQUARE : (bit + 1) * _SQUARE] = value
    return frame


def number_of(frame):
    squares = frame[4 : _SQUARE - 4].reshape(_SQUARE - 8, 8, _SQUARE, 3)
    bits = squares[:, :, 4:-4].mean(axis=(0, 2, 3)) > 128
    return int((bits << np.arange(8)).sum())


def numbers(path, **kwargs):
    return [number_of(frame) for frame in video.frames(path, **kwargs)]


@contextlib.contextmanager
def limited(size):
    """No file may grow larger: what a full disk is to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path):
    """A path with a space and letters that are not ASCII."""
    folder = tmp_path / "ein Ordner für 動画"
    folder.mkdir()
    return folder


@pytest.fixture
def noisy_avi(folder):
    """120 frames of MPEG-4 that do not compress to nothing, as DHF1K has."""
    path = folder / "120.AVI"
    fourcc = cv2.VideoWriter.fourcc(*"XVID")
    writer = cv2.VideoWriter(str(path), fourcc, 30, SIZE)
    rng = np.random.default_rng(0)
    for k in range(120):
        frame = numbered(k)
        frame[_SQUARE:] = rng.integers(0, 256, frame[_SQUARE:].shape)
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_what_is_written_is_read(folder, suffix):
    path = folder / f"a film{suffix}"
    with video.Writer(path, fps=30, size=SIZE) as writer:
        for k in range(200):
            writer.write(numbered(k))
    assert [p.name for p in folder.iterdir()] == [path.name]
    film = video.Video(path)
    assert film.size == SIZE
    assert film.fps == pytest.approx(30)
    assert film.num_frames == 200
    assert [number_of(frame) for frame in film] == list(range(200))
    # A second time from the start; and as a generator.
    assert number_of(next(iter(film))) == 0
    assert numbers(path) == list(range(200))


def test_colours_are_rgb_and_survive(folder):
    path = folder / "colours.mp4"
    colours = np.array(
        [[220, 30, 40], [40, 200, 50], [30, 60, 210], [250, 250, 250]]
    )
    frame = np.repeat(colours.astype(np.uint8), 32, axis=0)[None]
    frame = np.repeat(frame, 64, axis=0)
    with video.Writer(path, fps=25, size=(128, 64)) as writer:
        for _ in range(5):
            writer.write(frame)
    for got in video.frames(path):
        assert got.dtype == np.uint8 and got.shape == (64, 128, 3)
        middles = got[32, 16::32].astype(int)
        np.testing.assert_allclose(middles, colours, atol=6)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(33, 17), (16, 33), (3, 5)])
def test_odd_sizes_are_filled_up(folder, suffix, size):
    path = folder / f"odd{suffix}"
    width, height = size
    with video.Writer(path, fps=29.97, size=size) as writer:
        writer.write(np.full((height, width, 3), 90, np.uint8))
    (frame,) = video.frames(path)
    even = (height + height % 2, width + width % 2, 3)
    assert frame.shape == even
    np.testing.assert_allclose(frame, 90, atol=8)


def test_one_frame_of_one_pixel(folder):
    path = folder / "pixel.mp4"
    with video.Writer(path, fps=1, size=(1, 1)) as writer:
        writer.write(np.full((1, 1, 3), 255, np.uint8))
    film = video.Video(path)
    assert film.size == (2, 2)
    assert [frame.min() > 245 for frame in film] == [True]


def test_a_failed_writing_leaves_nothing(folder):
    path = folder / "old.mp4"
    path.write_bytes(b"the film of yesterday")
    with pytest.raises(KeyError), video.Writer(path, fps=9, size=SIZE) as w:
        w.write(numbered(0))
        raise KeyError("something else went wrong")
    assert [p.name for p in folder.iterdir()] == ["old.mp4"]
    assert path.read_bytes() == b"the film of yesterday"


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_film_without_frames_is_not_written(folder, suffix):
    path = folder / f"none{suffix}"
    with (
        pytest.raises(video.VideoError, match="no frame was written"),
        video.Writer(path, fps=9, size=SIZE),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_does_not_exist(folder):
    path = folder / "missing" / "film.mp4"
    with (
        pytest.raises(video.VideoError, match=r"film\.mp4: cannot be written"),
        video.Writer(path, fps=9, size=SIZE),
    ):
        pass


def test_writer_refuses_other_frames(folder):
    path = folder / "a.mp4"
    with (
        pytest.raises(ValueError, match=r"uint8 \[32, 128, 3\].*\[4, 4, 3\]"),
        video.Writer(path, fps=9, size=SIZE) as writer,
    ):
        writer.write(np.zeros((4, 4, 3), np.uint8))
    with (
        pytest.raises(ValueError, match="float32"),
        video.Writer(path, fps=9, size=SIZE) as writer,
    ):
        writer.write(np.zeros((32, 128, 3), np.float32))
    with pytest.raises(ValueError, match=r"a\.avi"):
        video.Writer(folder / "a.avi", fps=9, size=SIZE)
    with pytest.raises(ValueError, match="fps=0"):
        video.Writer(path, fps=0, size=SIZE)
    with pytest.raises(ValueError, match=r"size=\(0, 4\)"):
        video.Writer(path, fps=9, size=(0, 4))
    assert list(folder.iterdir()) == []


def test_without_pyav_webm_is_written(folder, monkeypatch, caplog):
    monkeypatch.setattr(video, "av", None)
    with video.Writer(folder / "a.mp4", fps=25, size=SIZE) as writer:
        writer.write(numbered(7))
    assert writer.path == folder / "a.webm"
    assert "PyAV is not installed" in caplog.text
    assert numbers(writer.path) == [7]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"Lorem ipsum dolor sit amet. " * 99, "not a video"),
    ],
)
def test_what_is_not_a_video(folder, content, reason):
    path = folder / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(video.VideoError, match=reason) as error:
        video.Video(path)
    assert error.value.path == path
    assert str(path) in str(error.value)
    with pytest.raises(video.VideoError, match=reason):
        next(video.frames(path))


def test_a_folder_is_not_a_video(folder):
    with pytest.raises(video.VideoError, match="a folder"):
        video.Video(folder)


def test_an_mp4_without_its_end_is_not_a_video(folder):
    """Written without `faststart`, the index is at the end."""
    path = folder / "a.mp4"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for k in range(50):
            frame = av.VideoFrame.from_ndarray(numbered(k), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(video.VideoError, match="cut off before its index"):
        video.Video(path)


def test_a_truncated_avi(noisy_avi, caplog):
    content = noisy_avi.read_bytes()
    noisy_avi.write_bytes(content[: len(content) * 6 // 10])
    film = video.Video(noisy_avi)
    assert film.num_frames == 120
    got = []
    with pytest.raises(
        video.TruncatedVideoError,
        match=r"read (\d+) of 120 frames; its end .* from frame \1 ",
    ):
        got.extend(number_of(frame) for frame in film)
    assert 60 < len(got) < 80
    assert got[:-1] == list(range(len(got) - 1))
    # Not strict: the same frames, and a warning.
    assert numbers(noisy_avi, strict=False) == got
    assert f"read {len(got)} of 120 frames" in caplog.text


def test_frames_after_a_damage_are_read(folder, caplog):
    """A loop that stops at the first failure would lose half of the film."""
    path = folder / "a.mp4"
    rng = np.random.default_rng(0)
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "10", "bf": "0"}
        for k in range(100):
            picture = numbered(k)
            picture[_SQUARE:] = rng.integers(0, 256, picture[_SQUARE:].shape)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = bytes(6000)
    path.write_bytes(content)
    got = numbers(path, strict=False)
    assert got[:40] == list(range(40))
    assert got[-10:] == list(range(90, 100))
    if len(got) < 100:
        assert f"read {len(got)} of 100 frames" in caplog.text
        with pytest.raises(video.TruncatedVideoError, match="of 100 frames"):
            numbers(path)


def test_frames_that_are_missing_in_between_are_named_by_their_times(folder):
    """MPEG-TS goes on behind a damage, and only times tell where it was."""
    path = folder / "a.ts"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "1"}
        packets = []
        for k in range(50):
            frame = av.VideoFrame.from_ndarray(numbered(k), format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode()
        assert len(packets) == 50
        container.mux(packets[:20] + packets[25:])
    film = video.Video(path)
    with pytest.raises(
        video.TruncatedVideoError,
        match=r"read 45 of 50 frames; frames are missing before frame 20 "
        r"\(counted from 0\), so [^;]* should\. Get",
    ):
        list(film)
    # The rest is missing too.
    film.num_frames = 70
    read = film._read
    film._read = lambda *_: itertools.islice(read(path, 50), 40)
    with pytest.raises(
        video.TruncatedVideoError,
        match=r"read 40 of 70 frames; .* before frame 20 .*; its end is "
        "missing or damaged, from frame 40 ",
    ):
        list(film)


def test_a_gap_is_an_error_even_if_only_one_frame_is_missing(
    noisy_avi, monkeypatch
):
    def read(path, declared):
        del path, declared
        yield from ((numbered(0), 0.0), None, (numbered(2), 0.1))

    film = video.Video(noisy_avi)
    monkeypatch.setattr(film, "_read", read)
    monkeypatch.setattr(film, "num_frames", 3)
    with pytest.raises(
        video.TruncatedVideoError, match=r"read 2 of 3 .* damaged at frame 1"
    ):
        list(film)


def test_a_size_that_changes_is_an_error(noisy_avi, monkeypatch):
    def read(path, declared):
        del path, declared
        yield from ((numbered(0), 0), (numbered(1, size=(160, 32)), 1))

    film = video.Video(noisy_avi)
    monkeypatch.setattr(film, "_read", read)
    with pytest.raises(video.VideoError, match=r"frame 1 .*\(160, 32\)"):
        list(film)


def repacked(path, target, change=None, **options):
    """The same video in another container, or its packets changed."""
    with (
        av.open(os.fspath(path)) as source,
        av.open(os.fspath(target), "w", options=options) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = (p for p in source.demux(video=0) if p.size)
        for number, packet in enumerate(packets):
            changed = change(number, packet) if change else packet
            changed.stream = stream
            container.mux(changed)
    return target


def test_an_estimated_number_may_be_off_by_one(noisy_avi, folder):
    estimated = folder / "a.mkv"
    with video.Writer(
        estimated, fps=30, size=(8, 8), pixels="gray16"
    ) as writer:
        for level in range(120):
            writer.write(np.full((8, 8), level, np.uint16))
    for path in (estimated, noisy_avi):
        film = video.Video(path)
        film.num_frames = None
        assert len(list(film)) == 120
    film = video.Video(estimated)
    for declared in (120, 121):
        film.num_frames = declared
        assert len(list(film)) == 120
    # Of a file that should have 125 frames.
    with video.Writer(
        estimated, fps=30, size=(8, 8), pixels="gray16"
    ) as writer:
        for level in range(125):
            writer.write(np.full((8, 8), level, np.uint16))
    cut_behind(estimated, 120)
    with pytest.raises(video.TruncatedVideoError, match="120 of 125 frames"):
        list(video.Video(estimated))


def cut_behind(path, count):
    """Leaves the first packets of a file, and nothing behind them."""
    with av.open(os.fspath(path)) as container:
        packets = itertools.islice(container.demux(video=0), count)
        ends = [packet.pos + packet.size for packet in packets]
    # In Matroska some bytes stand before the frame itself.
    path.write_bytes(path.read_bytes()[: max(ends) + 8])


def matroska_file(path, times, *, codec="libvpx", rate=25):
    """Frames at times of whole milliseconds, of noise."""
    rng = np.random.default_rng(0)
    with av.open(
        os.fspath(path), "w", options={"cluster_time_limit": "200"}
    ) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "5", "deadline": "realtime", "cpu-used": "8"}
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for time in times:
            picture = rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def without_default_duration(path):
    """As many programs write WebM: then FFmpeg knows no rate."""
    data = path.read_bytes()
    place = data.index(b"\x23\xe3\x83")
    length = 4 + (data[place + 3] & 0x7F)
    void = bytes([0xEC, 0x80 | length - 2]) + bytes(length - 2)
    path.write_bytes(data[:place] + void + data[place + length :])
    return path


def uneven_times(count=60):
    rng = np.random.default_rng(1)
    return np.cumsum(rng.integers(20, 90, count)).tolist()


DROPPED = [t for t in range(0, 2000, 40) if not 400 < t < 900]


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        (uneven_times(), 25),
        (uneven_times(), 1000),
        (DROPPED, 25),
        (range(3000, 5000, 40), 25),
        (range(0, 2000, 40), 10),
        ([0, 500, 4000, 4700, 8000], 25),
    ],
)
def test_matroska_is_whole_if_it_lasts_to_its_end(folder, times, rate):
    """Variable and dropped frames; a start that is not at 0; pauses."""
    path = matroska_file(folder / "a.webm", times, rate=rate)
    assert len(list(video.Video(path))) == len(times)
    without_default_duration(path)
    assert len(list(video.Video(path))) == len(times)
    if len(times) > 20:
        cut_behind(path, len(times) - 10)
        with pytest.raises(video.TruncatedVideoError, match="its end is miss"):
            list(video.Video(path))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (range(0, 2000, 40), "before frame 2. .counted"),
        (uneven_times(), "and times do not tell where"),
    ],
)
def test_a_damage_inside_of_matroska_is_no_dropped_frames(
    folder, times, reason
):
    path = matroska_file(folder / "a.mkv", times)
    data = path.read_bytes()
    assert matroska.is_whole(path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(9000) + data[middle + 9000 :])
    assert not matroska.is_whole(path)
    with pytest.raises(video.TruncatedVideoError, match=reason):
        list(video.Video(path))
    for length in (*range(1, 64), 3000, len(data) - 1):
        path.write_bytes(data[:length])
        # Behind the first element a file may end.
        assert not matroska.is_whole(path) or length == data[4] - 0x80 + 5


@pytest.mark.parametrize(
    ("times", "fps"),
    [
        # Rounded to milliseconds.
        (np.rint(np.arange(60) * 1001 / 30).astype(int).tolist(), 29.97),
        (uneven_times(), 1000 / np.diff(uneven_times(50)).mean()),
        # A pause is none of it.
        ([0, 40, 80, 9000, 9040, 9080, 9120], 25),
        ([0], 25),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_rate_that_cannot_be_is_measured(folder, times, fps, declared):
    """FFmpeg takes how finely a file counts time for its rate."""
    path = matroska_file(folder / "a.webm", times, rate=1000)
    if not declared:
        without_default_duration(path)
    film = video.Video(path)
    assert film.fps == pytest.approx(fps, rel=1e-3)
    assert film.num_frames == pytest.approx(times[-1] / 1000 * fps + 1, abs=1.5)
    assert len(list(film)) == len(times)


def test_the_cover_of_some_sound_is_one_frame(folder):
    path = folder / "a.mp3"
    cover = av.Packet(cv2.imencode(".png", numbered(3))[1].tobytes())
    with av.open(os.fspath(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        picture = container.add_stream("png", rate=25)
        picture.width, picture.height = SIZE
        picture.pix_fmt = "rgb24"
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((2, 1152), np.int16), format="s16p", layout="stereo"
            )
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        cover.stream = picture
        container.mux(cover)
    film = video.Video(path)
    assert (film.fps, film.num_frames) == (25, 1)
    assert [number_of(frame) for frame in film] == [3]


def test_a_camera_may_be_fast(folder):
    path = folder / "a.mp4"
    with video.Writer(path, fps=1000, size=(16, 16)) as writer:
        for _ in range(5):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    film = video.Video(path)
    assert film.fps == pytest.approx(1000) and film.num_frames == 5


def test_times_without_a_rate():
    assert video._rate([]) is None
    assert video._rate([math.nan, math.nan, 1.0, 1.0]) is None
    assert video._rate([1.0, 1.5, 2.5]) == pytest.approx(4 / 3)


def test_sound_may_last_longer_than_pictures(folder):
    path = folder / "a.webm"
    matroska_file(path, range(0, 1000, 40))
    with av.open(os.fspath(path)) as source:
        packets = [p for p in source.demux(video=0) if p.size]
        with av.open(os.fspath(folder / "b.webm"), "w") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            sound = container.add_stream("libopus", rate=48000)
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
            for k in range(90):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 960 * 2), np.int16), layout="stereo"
                )
                frame.sample_rate, frame.pts = 48000, 960 * k
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    path = folder / "b.webm"
    with av.open(os.fspath(path)) as container:
        assert container.duration > 1.7e6
    assert len(list(video.Video(path))) == 25
    # Without FFmpeg's tags nobody says how long the pictures last.
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
    assert len(list(video.Video(path))) == 25


def test_a_last_frame_may_be_shown_for_long(folder):
    def held(number, packet):
        if number == 9:
            packet.duration = 5000
        return packet

    times = [*range(0, 360, 40), 6000]
    whole = matroska_file(folder / "a.webm", times)
    path = repacked(whole, folder / "b.webm", held)
    with av.open(os.fspath(path)) as container:
        assert container.duration > 10.9e6
    assert len(list(video.Video(path))) == 10


def test_a_table_of_frames_is_no_estimate(noisy_avi, folder):
    """A single frame that is missing is said, in AVI and MP4."""
    first = repacked(
        noisy_avi, folder / "a.mp4", movflags="faststart", use_editlist="0"
    )
    for path in (noisy_avi, first):
        with av.open(os.fspath(path)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
            end = max(p.pos for p in packets)
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(
            video.TruncatedVideoError,
            match=r"read 119 of 120 .* from frame 119 ",
        ):
            list(video.Video(path))


def test_frames_that_an_edit_leaves_out_are_not_missing(folder):
    path = folder / "a.mp4"
    with video.Writer(path, fps=25, size=SIZE) as writer:
        for number in range(100):
            writer.write(numbered(number))
    data = path.read_bytes()
    # The edit list: one entry, of a duration, from a time of the medium on.
    at = data.index(b"elst") + 16
    start = int.from_bytes(data[at : at + 4], "big")
    with av.open(os.fspath(path)) as container:
        ticks = 40 / 25 / container.streams.video[0].time_base
    later = (start + int(ticks)).to_bytes(4, "big")
    path.write_bytes(data[:at] + later + data[at + 4 :])
    assert numbers(path) == list(range(40, 100))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(video.TruncatedVideoError, match=r"of 60 frames"):
        list(video.Video(path))


def test_mpeg4_may_say_that_nothing_changed(noisy_avi, folder):
    def still(number, packet):
        if number != 118:
            return packet
        # P, no second more, marker, time 0 of five bits, marker, not coded.
        one = av.Packet(b"\0\0\1\xb6" + bytes([0b01010000, 0b01000111]))
        one.pts, one.dts = packet.pts, packet.dts
        one.time_base = packet.time_base
        return one

    path = repacked(noisy_avi, folder / "still.avi", still)
    film = video.Video(path)
    assert film.num_frames == 120
    assert len(list(film)) == 119


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damage_that_decoders_hide_is_said(noisy_avi, folder, codec, caplog):
    """All frames come, and some of them are guesses."""
    whole = folder / "whole.mkv"
    with av.open(os.fspath(whole), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"bf": "0", "preset": "ultrafast"}
        for k, picture in enumerate(video.frames(noisy_avi)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
            if k == 59:
                break
        container.mux(stream.encode())

    def damage(number, packet):
        data = bytearray(bytes(packet))
        if number in (31, 40):
            middle = len(data) // 2
            data[middle : middle + 20] = bytes(20)
        changed = av.Packet(bytes(data))
        changed.pts, changed.dts = packet.pts, packet.dts
        changed.time_base = packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    path = repacked(whole, folder / "damaged.mp4", damage)
    assert len(list(video.Video(whole))) == 60
    film = video.Video(path)
    found = []
    with pytest.raises(
        video.TruncatedVideoError,
        match=r"damaged\.mp4: frames 31, 40 \(counted from 0\) are damaged",
    ):
        found.extend(film)
    assert len(found) == 60
    # The second time nothing is looked at again, and the answer is the same.
    with pytest.raises(video.TruncatedVideoError, match="frames 31, 40 "):
        list(film)
    # What lies behind the place where reading stops is not known.
    film = video.Video(path)
    list(itertools.islice(film, 35))
    assert film.damage(35).startswith("frame 31 (counted from 0) is damaged")
    assert film.damage(31) == ""
    # Not strict: a warning.
    assert len(numbers(path, strict=False)) == 60
    assert "frames 31, 40 (counted from 0) are damaged" in caplog.text


def test_many_damaged_frames_are_counted():
    assert video._told(range(3, 9)).startswith("frames 3, 4, 5 and 3 more ")


def test_av1_is_read_by_pyav(folder):
    path = folder / "a.mp4"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=25)
        stream.width, stream.height = SIZE[0], 64
        stream.pix_fmt = "yuv420p"
        for k in range(20):
            picture = numbered(k, size=(SIZE[0], 64))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert numbers(path) == list(range(20))


def test_both_readers_see_the_same(noisy_avi):
    by_opencv, times = zip(*video._read_opencv(noisy_avi, 120), strict=True)
    by_av, same_times = zip(*video._read_av(noisy_avi, 120), strict=True)
    assert len(by_opencv) == len(by_av) == 120
    difference = np.abs(np.stack(by_opencv).astype(int) - np.stack(by_av))
    assert difference.max() <= 3
    np.testing.assert_allclose(times, np.arange(120) / 30, atol=1e-3)
    np.testing.assert_allclose(same_times, times, atol=1e-3)


def test_reading_releases_the_file(noisy_avi):
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        frames = video.frames(noisy_avi)
        next(frames)
        frames.close()
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("fps", [30, 30000 / 1001, 24000 / 1001, 12.5])
@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [(".mp4", "rgb"), (".mp4", "gray"), (".mkv", "gray16")],
)
def test_rates_are_kept(folder, suffix, pixels, fps):
    path = folder / f"a{suffix}"
    dtype, channels = video.PIXELS[pixels]
    with video.Writer(path, fps=fps, size=(16, 16), pixels=pixels) as writer:
        for k in range(30):
            # Containers round times.
            frame = np.full((16, 16, *channels), k, dtype)
            writer.write(frame, round(k / fps, 3))
    film = video.Video(path)
    assert film.fps == pytest.approx(fps, rel=1e-4)
    assert film.num_frames == 30
    times = [time for _, time in film.timed()]
    np.testing.assert_allclose(times, np.arange(30) / fps, atol=6e-4)


@pytest.mark.parametrize(
    ("suffix", "pixels"), [(".mp4", "rgb"), (".mkv", "gray16")]
)
def test_times_are_kept(folder, suffix, pixels):
    """A variable frame rate; the first frame is shown at once."""
    path = folder / f"a{suffix}"
    dtype, channels = video.PIXELS[pixels]
    times = 7 + np.cumsum([0, 33, 67, 33, 200, 16, 17, 500]) / 1000
    with video.Writer(path, fps=10, size=(16, 16), pixels=pixels) as writer:
        for time in times:
            writer.write(np.zeros((16, 16, *channels), dtype), time)
    found = [time for _, time in video.Video(path).timed()]
    np.testing.assert_allclose(found, times - 7, atol=2e-3)


def test_an_uneven_video_that_ends_too_early(folder):
    """Matroska declares no number of frames; its duration tells."""
    path = folder / "a.mkv"
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(20, 90, 100)) / 1000
    with video.Writer(path, fps=30, size=(32, 32), pixels="gray16") as writer:
        for time in times:
            frame = rng.integers(0, 1 << 16, (32, 32))
            writer.write(frame.astype(np.uint16), time)
    assert len(list(video.Video(path))) == 100
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(video.TruncatedVideoError, match="end is missing"):
        list(video.Video(path))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("steps", [(20, 20, 80), (80, 80, 20)])
def test_frames_are_counted_where_the_file_only_estimates(
    folder, suffix, steps
):
    """More than its rate and length say, and fewer."""
    path = folder / f"a{suffix}"
    pixels = "gray16" if suffix == ".mkv" else "gray"
    times = np.cumsum(steps * 20) / 1000
    with video.Writer(path, fps=25, size=(32, 32), pixels=pixels) as writer:
        for time in times:
            writer.write(np.zeros((32, 32), video.PIXELS[pixels][0]), time)
    assert video.count_frames(path) == 60


def test_times_that_stand_still_go_on(noisy_avi, monkeypatch):
    def read(path, declared):
        del path, declared
        for k, time in enumerate((3, 3.5, 3.5, math.nan, 5, 4)):
            yield numbered(k), time

    film = video.Video(noisy_avi)
    monkeypatch.setattr(film, "_read", read)
    film.num_frames, film.fps = 6, 10
    found = [time for _, time in film.timed()]
    np.testing.assert_allclose(found, [0, 0.5, 0.6, 0.7, 2, 2.1])


def test_16_bits_are_written_without_loss(folder):
    path = folder / "a.mkv"
    frames = np.random.default_rng(0).integers(0, 1 << 16, (5, 17, 33))
    frames = frames.astype(np.uint16)
    with video.Writer(path, fps=25, size=(33, 17), pixels="gray16") as writer:
        for frame in frames:
            writer.write(frame)
    with av.open(os.fspath(path)) as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    np.testing.assert_array_equal(found, frames)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_greys_are_kept(folder, suffix):
    """All 256 levels, not the 220 of television."""
    path = folder / f"a{suffix}"
    with video.Writer(path, fps=25, size=(33, 16), pixels="gray") as writer:
        for level in range(0, 256, 5):
            writer.write(np.full((16, 33), level, np.uint8))
    found = [int(np.rint(f[4:12, 4:12].mean())) for f in video.frames(path)]
    # OpenCV's VP8 knows television's levels only.
    most = 1 if suffix == ".mp4" else 5
    np.testing.assert_allclose(found, np.arange(0, 256, 5), atol=most)


def test_pixels_and_suffixes(folder):
    with pytest.raises(ValueError, match=r"gray16 is written as \.mkv"):
        video.Writer(folder / "a.mp4", fps=1, size=(2, 2), pixels="gray16")
    with (
        pytest.raises(ValueError, match=r"uint8 \[2, 2\]"),
        video.Writer(folder / "a.mp4", fps=1, size=(2, 2), pixels="gray") as w,
    ):
        w.write(np.zeros((2, 2, 3), np.uint8))


def turned(path, matrix):
    """The file with another display matrix, as phones write it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9I", *matrix)
    path.write_bytes(content)


_ONE, _MINUS = 0x10000, 0xFFFF0000


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((0, _ONE, 0, _MINUS, 0, 0, 32 << 16, 0, 1 << 30), (32, 64), (0, -1)),
        (
            (_MINUS, 0, 0, 0, _MINUS, 0, 64 << 16, 32 << 16, 1 << 30),
            (64, 32),
            (-1, -1),
        ),
        ((0, _MINUS, 0, _ONE, 0, 0, 0, 64 << 16, 1 << 30), (32, 64), (-1, 0)),
    ],
)
def test_phones_hold_the_camera_as_they_like(folder, matrix, size, corner):
    path = folder / "phone.mp4"
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:8, :8] = 255
    with video.Writer(path, fps=25, size=(64, 32)) as writer:
        for _ in range(3):
            writer.write(frame)
    turned(path, matrix)
    film = video.Video(path)
    assert film.size == size
    for image in (
        next(iter(film)),
        next(read for read in video._read_av(path, 3))[0],
    ):
        lit = image[[3, -4]][:, [3, -4], 0] > 200
        assert lit.sum() == 1 and lit[corner]


def test_the_aspect_of_pixels_is_kept(folder):
    path = folder / "wide.mp4"
    wide = fractions.Fraction(4, 3)
    for pixels in ("rgb", "gray"):
        dtype, channels = video.PIXELS[pixels]
        with video.Writer(
            path, fps=25, size=(64, 32), pixels=pixels, pixel_aspect=wide
        ) as writer:
            writer.write(np.zeros((32, 64, *channels), dtype))
        assert video.Video(path).pixel_aspect == wide
    # A pixel that lies on its side.
    turned(path, (0, _ONE, 0, _MINUS, 0, 0, 32 << 16, 0, 1 << 30))
    assert video.Video(path).pixel_aspect == 1 / wide
    # Square ones, and WebM, to which OpenCV writes no aspect.
    for name, aspect in (("a.mp4", video.SQUARE), ("a.webm", wide)):
        with video.Writer(
            folder / name, fps=25, size=(64, 32), pixel_aspect=aspect
        ) as writer:
            writer.write(np.zeros((32, 64, 3), np.uint8))
        assert video.Video(folder / name).pixel_aspect == 1
    assert video.pixel_aspect_of(0, 1) == 1


def test_a_full_disk_is_said_and_leaves_nothing(folder):
    path = folder / "a.mp4"
    rng = np.random.default_rng(0)
    with (
        pytest.raises(video.VideoError, match=r"a\.mp4: cannot be written"),
        limited(20_000),
        video.Writer(path, fps=25, size=(64, 64)) as writer,
    ):
        for _ in range(100):
            writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))
    assert list(folder.iterdir()) == []


def test_sound_alone_is_not_a_video(folder):
    path = folder / "sound.wav"
    with wave.open(os.fspath(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(video.VideoError, match=r"not a video: .* only sound"):
        video.Video(path)


@pytest.mark.parametrize("first", ["sound", "pictures", "sound alone"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_sound_beside_the_pictures_changes_nothing(folder, suffix, first):
    path = folder / f"a{suffix}"
    want = list(range(30))
    plain, with_sound = folder / f"plain{suffix}", path
    for target in (plain, with_sound):
        with av.open(os.fspath(target), "w") as container:
            streams = {}
            kinds = ["sound", "pictures"]
            if first == "pictures":
                kinds.reverse()
            if first == "sound alone" and target == with_sound:
                kinds.remove("pictures")
            if target == plain:
                kinds = ["pictures"]
            for kind in kinds:
                codec = "aac" if kind == "sound" else "libx264"
                rate = 44100 if kind == "sound" else 25
                streams[kind] = container.add_stream(codec, rate=rate)
            if stream := streams.get("pictures"):
                stream.width, stream.height = SIZE
                stream.pix_fmt = "yuv420p"
            for number in want:
                if stream := streams.get("pictures"):
                    picture = av.VideoFrame.from_ndarray(
                        numbered(number), format="rgb24"
                    )
                    container.mux(stream.encode(picture))
                if stream := streams.get("sound"):
                    sound = av.AudioFrame.from_ndarray(
                        np.zeros((2, 1764), np.float32),
                        format="fltp",
                        layout="stereo",
                    )
                    sound.sample_rate = 44100
                    sound.pts = 1764 * number
                    container.mux(stream.encode(sound))
            for stream in streams.values():
                container.mux(stream.encode())
    if first == "sound alone":
        with pytest.raises(video.VideoError, match="there is only sound"):
            video.Video(path)
        return
    film, alone = video.Video(path), video.Video(plain)
    assert (film.fps, film.size) == (alone.fps, alone.size)
    for (frame, time), (same, when) in zip(
        film.timed(), alone.timed(), strict=True
    ):
        np.testing.assert_array_equal(frame, same)
        assert time == pytest.approx(when, abs=1e-3)
    assert numbers(path) == want


def test_dhf1k(shared):
    film = video.Video(shared / "real_clips" / "video" / "601.AVI")
    assert (film.size, film.fps, film.num_frames) == ((640, 360), 30, 180)
    assert sum(1 for _ in film) == 180
