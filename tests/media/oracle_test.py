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
    if film.differs:
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


@pytest.mark.parametrize("refused", matrix.REFUSED, ids=lambda r: r.what)
def test_what_is_refused_is_named(tmp_path, refused):
    path = refused.make(tmp_path)
    with pytest.raises(files.FileError, match=refused.message) as error:
        sources.open_source([str(path)])
    assert error.value.path == path
    assert "\n" not in str(error.value)


def test_the_page_is_current():
    """`.venv/bin/python -m tests.media.matrix` writes it."""
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page()
