import fractions
import gc
import io
import itertools
import os
import pathlib
import re
import threading
import types

import av
import numpy as np
import PIL.Image
import pytest

from lsts_tf.media import video

# Frame numbers are burnt in as bits: eight black or white squares, large
# enough to survive any codec.
_SQUARE = 16
SIZE = (8 * _SQUARE, 64)
_MILLI = fractions.Fraction(1, 1000)


def numbered(number, size=SIZE):
    width, height = size
    frame = np.full((height, width, 3), (200, 120, 40), np.uint8)
    for bit in range(8):
        value = 255 if number >> bit & 1 else 0
        frame[:_SQUARE, bit * _SQUARE : (bit + 1) * _SQUARE] = value
    # What does not compress to nothing.
    noise = np.random.default_rng(number).integers(0, 256, (8, width, 3))
    frame[-8:] = noise
    return frame


def number_of(frame):
    squares = frame[4 : _SQUARE - 4].reshape(_SQUARE - 8, 8, _SQUARE, 3)
    bits = squares[:, :, 4:-4].mean(axis=(0, 2, 3)) > 128
    return int((bits << np.arange(8)).sum())


def numbers(path):
    return [number_of(frame) for frame in video.frames(path)]


def damaged(path):
    """Numbers of the frames of a film, and what is wrong with it."""
    found = []
    with pytest.raises(video.TruncatedVideoError) as error:
        found.extend(number_of(frame) for frame in video.frames(path))
    assert error.value.path == path
    return found, error.value.reason


def film(
    path,
    codec="libx264",
    *,
    times=range(0, 1200, 40),
    options=None,
    container=None,
    sound=None,
    rate=25,
):
    """Numbered frames at times in milliseconds, and sound until another."""
    with av.open(f"file:{path}", "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options or {}
        if codec == "libx264":
            # The noise of two frames is no cut.
            stream.options = {"sc_threshold": "0", **(options or {})}
        if codec not in ("mpeg4", "mpeg2video", "mjpeg"):
            stream.codec_context.time_base = _MILLI
        if sound:
            heard = file.add_stream("aac", rate=48000, layout="mono")
            for start in range(0, sound * 48, 1024):
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), "fltp", "mono"
                )
                silence.sample_rate, silence.pts = 48000, start
                file.mux(heard.encode(silence))
            file.mux(heard.encode())
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number), "rgb24")
            frame.pts, frame.time_base = time, _MILLI
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def repacked(path, target, change=None, **options):
    """The same film in another container, or its packets changed.

    `change` returns what becomes of a (number, packet), or None.
    """
    with (
        av.open(os.fspath(path)) as source,
        av.open(os.fspath(target), "w", options=options) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = (p for p in source.demux(video=0) if p.size)
        for number, packet in enumerate(packets):
            changed = change(number, packet) if change else packet
            if changed is not None:
                changed.stream = stream
                container.mux(changed)
    return target


def of_bytes(data, packet):
    """A packet of other bytes."""
    changed = av.Packet(bytes(data))
    for name in ("pts", "dts", "time_base", "is_keyframe"):
        setattr(changed, name, getattr(packet, name))
    return changed


UNEVEN = np.cumsum(np.random.default_rng(1).integers(20, 90, 40)).tolist()
_VPX = {"g": "5", "deadline": "realtime", "cpu-used": "8"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def test_all_frames_of_an_animated_avif_come(tmp_path):
    """Its first picture is also a film of its own."""
    pictures = [PIL.Image.fromarray(numbered(k)) for k in range(12)]
    path = tmp_path / "a.avif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=40
    )
    assert numbers(path) == list(range(12))


# === Damage ===


def of_kind(folder, kind, **changes):
    """A film of 60 frames with a key frame in every ten."""
    codec, suffix, options, container = {
        "H.264": ("libx264", ".mp4", {}, {"movflags": "faststart"}),
        "MPEG-4": ("mpeg4", ".avi", {"bf": "2"}, {}),
        "Motion JPEG": ("mjpeg", ".avi", {}, {}),
        "FFV1": ("ffv1", ".mkv", {}, {}),
        "VP9": ("libvpx-vp9", ".webm", _VPX, {}),
        "fragments": ("libx264", ".mp4", {}, _FRAGMENTS),
    }[kind]
    how = {"times": range(0, 2400, 40), "container": container, **changes}
    return film(
        folder / f"a{suffix}", codec, options={"g": "10"} | options, **how
    )


def cut(path, part=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("H.264", " of 60"),
        ("MPEG-4", " of 60"),
        ("Motion JPEG", " of 60"),
        ("fragments", r" of \d\d"),
        ("FFV1", ""),
        ("VP9", ""),
    ],
)
def test_an_end_that_is_cut_off(tmp_path, kind, of):
    path = of_kind(tmp_path, kind)
    cut(path)
    found, reason = damaged(path)
    assert 10 < len(found) < 50
    assert len(found) - len(set(found) & set(range(60))) <= 1
    # The last one may have been cut off itself.
    assert found[:-1] == list(range(len(found) - 1))
    assert re.search(
        f"read {len(found)}{of} frames; its end is missing or damaged, from "
        f"frame {len(found)} ",
        reason,
    )


def test_one_frame_that_is_missing_is_said(tmp_path):
    """MP4 and AVI list their frames."""
    path = of_kind(tmp_path, "Motion JPEG")
    first = repacked(path, tmp_path / "a.mp4", movflags="faststart")
    for each in (path, first):
        with av.open(os.fspath(each)) as container:
            end = max(p.pos for p in container.demux(video=0) if p.size)
        each.write_bytes(each.read_bytes()[:end])
        found, reason = damaged(each)
        assert len(found) == 59
        assert "read 59 of 60 frames" in reason and "frame 59 " in reason


@pytest.mark.parametrize("kind", ["H.264", "MPEG-4", "FFV1", "VP9"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_frames_behind_a_damage_are_read(tmp_path, kind, place):
    """And none is lost without a word."""
    path = of_kind(tmp_path, kind)
    data = bytearray(path.read_bytes())
    start = int(len(data) * place)
    data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    found, reason = damaged(path)
    assert found[-8:] == list(range(52, 60))
    assert "(counted from 0)" in reason
    if len(found) < 60 and kind != "MPEG-4":
        (lost,) = re.findall(r"are missing before frame (\d+)", reason)
        wrong = [n for n, number in enumerate(found) if n != number]
        assert abs(wrong[0] - int(lost)) <= 3


def test_packets_that_a_stream_lost(tmp_path):
    path = film(tmp_path / "a.ts", options={"g": "10"})
    data = path.read_bytes()
    start = len(data) // 2 // 188 * 188
    path.write_bytes(data[:start] + data[start + 3 * 188 :])
    _, reason = damaged(path)
    assert "damaged frames (counted from 0): 1" in reason


def test_a_recording_that_begins_between_key_frames(tmp_path):
    path = film(tmp_path / "a.ts", options={"g": "10", "bf": "0"})
    data = path.read_bytes()
    with av.open(os.fspath(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert packets[7].pos % 188 == 0
    path.write_bytes(data[packets[7].pos :])
    found, reason = damaged(path)
    # H.264 may show what is left of the first ones, and marks it.
    assert found[-20:] == list(range(10, 30))
    assert "start cannot be decoded: 3 (0.12 s), so all others" in reason


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damage_that_decoders_hide_is_said(tmp_path, codec):
    """All frames come, and some of them are guesses."""

    def spoil(number, packet):
        data = bytearray(bytes(packet))
        if number in (11, 20):
            middle = len(data) // 2
            data[middle : middle + 20] = bytes(20)
        return of_bytes(data, packet)

    options = {"bf": "0", "g": "60"}
    if codec == "libx264":
        options["preset"] = "ultrafast"
    whole = film(tmp_path / "whole.mkv", codec, options=options)
    path = repacked(whole, tmp_path / "spoilt.mp4", spoil)
    assert len(numbers(whole)) == 30
    source = video.Video(path)
    # The second time the answer is the same.
    for _ in range(2):
        with pytest.raises(
            video.TruncatedVideoError,
            match=r"spoilt\.mp4: damaged frames \(counted from 0\): 11, 20;",
        ):
            assert len(list(source)) == 30
    # What lies behind the place where reading stops is not known.
    list(itertools.islice(source, 15))
    assert source.damage.startswith("damaged frames (counted from 0): 11;")
    list(itertools.islice(source, 11))
    assert source.damage == ""


# === Odd films that are whole ===


def without_default_duration(path):
    """As many programs write WebM: then FFmpeg knows no rate."""
    data = path.read_bytes()
    place = data.index(b"\x23\xe3\x83")
    length = 4 + (data[place + 3] & 0x7F)
    void = bytes([0xEC, 0x80 | length - 2]) + bytes(length - 2)
    path.write_bytes(data[:place] + void + data[place + length :])


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        (UNEVEN, 25),
        (UNEVEN, 1000),
        ([t for t in range(0, 2000, 40) if not 400 < t < 900], 25),
        (range(3000, 5000, 40), 25),
        (range(0, 2000, 40), 10),
        ([0, 500, 4000, 4700, 8000], 25),
    ],
)
@pytest.mark.parametrize("has_sound", [True, False])
def test_matroska_is_whole_if_it_lasts_to_its_end(
    tmp_path, times, rate, has_sound
):
    """Variable and dropped frames; a start that is not at 0; pauses."""
    how = {"times": times, "rate": rate, "options": _VPX}
    how["container"] = {"cluster_time_limit": "200"}
    sound = 9000 if has_sound else None
    path = film(tmp_path / "a.mkv", "libvpx", sound=sound, **how)
    assert numbers(path) == list(range(len(times)))
    without_default_duration(path)
    assert len(numbers(path)) == len(times)
    if len(times) > 20 and not has_sound:
        cut(path, 0.5)
        assert "its end is missing" in damaged(path)[1]
    else:
        # Without FFmpeg's tags nobody says how long the pictures last.
        data = path.read_bytes().replace(b"DURATION", b"DURATIOX")
        path.write_bytes(data)
        assert len(numbers(path)) == len(times)


def test_a_last_frame_may_be_shown_for_long(tmp_path):
    def held(number, packet):
        if number == 9:
            packet.duration = 5000
        return packet

    times = [*range(0, 360, 40), 6000]
    whole = film(tmp_path / "a.webm", "libvpx", times=times, options=_VPX)
    path = repacked(whole, tmp_path / "b.webm", held)
    with av.open(os.fspath(path)) as container:
        assert container.duration > 10.9e6
    assert len(numbers(path)) == 10


@pytest.mark.parametrize(
    ("times", "fps"),
    [
        # Rounded to milliseconds.
        (np.rint(np.arange(60) * 1001 / 30).astype(int).tolist(), 29.97),
        (UNEVEN, 1000 / np.diff(UNEVEN).mean()),
        # A pause is none of it.
        ([0, 40, 80, 9000, 9040, 9080, 9120], 25),
        ([0], 25),
    ],
)
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_rate_that_cannot_be_is_measured(tmp_path, times, fps, is_declared):
    """FFmpeg takes how finely a file counts time for its rate."""
    path = tmp_path / "a.webm"
    film(path, "libvpx", times=times, rate=1000, options=_VPX)
    if not is_declared:
        without_default_duration(path)
    source = video.Video(path)
    assert source.fps == pytest.approx(fps, rel=1e-3)
    assert source.num_frames == pytest.approx(
        (times[-1] - times[0]) / 1000 * fps + 1, abs=1.5
    )
    assert len(list(source)) == len(times)


def test_times_that_stand_still_go_on(tmp_path):
    pictures = []
    for number, tick in enumerate((30, 35, 35, None, 50, 40)):
        picture = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
        picture.pts, picture.time_base = tick, fractions.Fraction(1, 10)
        pictures.append((picture, False))
    source = video.Video(film(tmp_path / "a.mp4"))
    source._pass.frames, source.fps = iter(pictures), 10
    found = [time for _, time in source.timed()]
    np.testing.assert_allclose(found, [0, 0.5, 0.6, 0.7, 2, 2.1])


# === What is no film, and pipes ===


def test_reading_releases_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    # `matrix.REFUSED` has what is there and not a film.
    with pytest.raises(video.VideoError, match=f"{path}: no such file"):
        video.Video(path)
    film(path)
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        frames = video.frames(path)
        next(frames)
        frames.close()
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before


def test_a_named_pipe_is_read_once(tmp_path):
    data = film(tmp_path / "a.ts").read_bytes()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    feeding = threading.Thread(target=path.write_bytes, args=[data])
    feeding.start()
    source = video.Video(path)
    assert [number_of(frame) for frame in source] == list(range(30))
    feeding.join()
    with pytest.raises(video.VideoError, match="read only once"):
        next(iter(source))


def piped(path):
    """The file as a pipe that cannot seek."""
    return types.SimpleNamespace(read=io.BytesIO(path.read_bytes()).read)


def test_any_format_that_needs_no_seeking_may_come_by_a_pipe(tmp_path):
    for name, options in (("a.mkv", {}), ("a.mp4", {"movflags": "faststart"})):
        path = film(tmp_path / name, container=options)
        source = video.Video("pipe", pipe=piped(path))
        assert [number_of(frame) for frame in source] == list(range(30))
    film(path, options={"crf": "1"}, times=range(0, 6000, 40))
    with pytest.raises(video.VideoError, match="its index in front"):
        video.Video("pipe", pipe=piped(path))


def test_dhf1k(shared):
    source = video.Video(shared / "real_clips" / "video" / "601.AVI")
    assert (source.size, source.fps) == ((640, 360), 30)
    assert source.num_frames == 180
    assert sum(1 for _ in source) == 180


@pytest.mark.parametrize("grey", [False, True])
def test_frames_are_freed_at_once(tmp_path, grey):
    """And not when the collector of cycles comes by: one is megabytes."""
    path = film(tmp_path / "a.mp4", times=range(0, 2000, 40))
    source = video.Video(path, grey=grey)
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in source) == 50
        assert gc.collect() < 50
    finally:
        gc.enable()
