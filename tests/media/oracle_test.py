"""What is read of a film is what the program `ffmpeg` decodes of it."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from lsts_tf.media import files, sources, video
from tests.media import matrix

# Grey levels by which versions of FFmpeg may differ. With 5.1 and 9.0 it is 0.
LEVELS = 2
SAMPLE = matrix.sample()

pytestmark = pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="The program `ffmpeg` is not installed."
)


def decoded(path):
    """Frames by `ffmpeg`, all of the first one's size, and their times."""
    done = subprocess.run(
        [
            *("ffmpeg", "-hide_banner", "-i", f"file:{path}", "-an"),
            *("-fps_mode", "passthrough", "-vf", "showinfo"),
            *("-pix_fmt", "rgb24", "-f", "rawvideo", "-"),
        ],
        capture_output=True,
        check=True,
    )
    said = done.stderr.decode(errors="replace")
    tick = re.search(r"config in time_base: (\d+)/(\d+)", said)
    shown = re.findall(r" pts: *(-?\d+|NOPTS) .* s:(\d+)x(\d+) ", said)
    _, width, height = shown[0]
    frames = np.frombuffer(done.stdout, np.uint8)
    frames = frames.reshape(len(shown), int(height), int(width), 3)
    times = np.array([float(pts.replace("NOPTS", "nan")) for pts, *_ in shown])
    return frames, (times - times[0]) * int(tick[1]) / int(tick[2])


@pytest.mark.parametrize(
    "film",
    [
        pytest.param(
            film,
            id=str(film),
            marks=[] if str(film) in SAMPLE else [pytest.mark.slow],
        )
        for film in matrix.FILMS
    ],
)
def test_frames_and_times_are_those_of_ffmpeg(tmp_path, film, caplog):
    try:
        path = film.make(tmp_path)
    except subprocess.CalledProcessError as error:
        assert "Unknown encoder" in error.stderr, error.stderr
        pytest.skip(f"This `ffmpeg` lacks an encoder: {error.stderr}")
    wanted, when = decoded(path)
    frames, times, damage = [], [], ""
    try:
        for frame, time in video.Video(path).timed():
            frames.append(frame)
            times.append(time)
    except video.VideoError as error:
        damage = error.reason
    is_aside = "several video streams" in caplog.text
    assert is_aside == film.special.startswith("a second film")
    assert film.damage in damage
    assert bool(film.damage) == bool(damage)
    if film.is_short:
        assert len(frames) < len(wanted)
        wanted, when = wanted[: len(frames)], when[: len(frames)]
    assert len(frames) == len(wanted)
    for number, (frame, want) in enumerate(zip(frames, wanted, strict=True)):
        assert frame.shape == want.shape
        apart = np.abs(frame.astype(int) - want).max()
        assert apart <= LEVELS, f"frame {number}: {apart}"
    if not damage:
        assert video.count_frames(path) == len(wanted)
    if np.isfinite(when).all():
        np.testing.assert_allclose(times, when, atol=1e-6)
    else:
        np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-6)


@pytest.mark.parametrize("what", matrix.REFUSED)
def test_what_is_refused_is_named(tmp_path, what):
    make, message = matrix.REFUSED[what]
    path = make(tmp_path)
    with pytest.raises(files.FileError, match=message) as error:
        sources.open_source([str(path)])
    assert error.value.path == path
    assert "\n" not in str(error.value)


def test_the_page_names_what_is_tried():
    assert matrix.PROMISED.keys() == matrix.CODECS.keys()
    assert matrix.table("what", "why").keys() == matrix.REFUSED.keys()
    assert {f.container for f in matrix.REGULAR} == matrix.CONTAINERS.keys()
    others = {}
    for film in matrix.OTHERS:
        if film.special == "nothing":
            others.setdefault(film.container, []).append(film.codec)
    listed = [f"{name} ({', '.join(has)})" for name, has in others.items()]
    special = {film.special for film in matrix.FILMS} - {"nothing"}
    (short,) = (film for film in matrix.FILMS if film.is_short)
    count = len(matrix.FILMS)
    text = " ".join(matrix.PAGE.split())
    for said in (
        f"Of {count} films, {count - 1} are read as `ffmpeg` decodes them",
        f"Also one film each: {'; '.join(listed)}.",
        f"{len(special)} special cases",
        f"The exception is {short}.",
    ):
        assert said in text
