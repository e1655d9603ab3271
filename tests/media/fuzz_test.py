"""Damaged bytes make no reader fail in a way of its own.

What is read is a file whose bytes were flipped, cut, swapped and repeated. A
reader may give frames, or raise `files.FileError`: it leaves no traceback of
another kind, does not hang, and does not take the interpreter down. So it works
in a process of its own.
"""

import functools
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

import hypothesis
from hypothesis import strategies
import numpy as np
import PIL.Image
import pytest

from lsts_tf.media import files, images, sources, video
from tests import pages
from tests.media import video_test

SECONDS = 30


def _picture(path):
    source = sources.open_source([str(path)])
    for frame, time in source:
        assert frame.dtype == np.uint8 and frame.shape[2] == 3
        assert time >= 0
    assert isinstance(source.damage, str)


def _film(path):
    _picture(path)
    video.count_frames(path)


def _pipe(path, **how):
    with path.open("rb") as file:
        for _ in sources.Stream(file, **how):
            pass


def _map(path):
    assert images.read(path).ndim == 2


def _written(name, path):
    """A small file that is whole."""
    short = {"times": range(0, 480, 40)}
    kinds = {
        ".mp4": {"codec": "libx264"},
        ".mkv": {"codec": "ffv1"},
        ".webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
        ".avi": {"codec": "mpeg4", "options": {"bf": "2"}},
        ".ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
        ".flv": {"codec": "libx264"},
        ".mov": {"codec": "mjpeg"},
    }
    level = np.arange(16 * 9, dtype=np.uint8).reshape(9, 16)
    if path.suffix in kinds:
        video_test.film(path, **short, **kinds[path.suffix])
    elif path.suffix == ".npy":
        np.save(path, level / 255)
    elif path.suffix in (".y4m", ".raw"):
        head = b"YUV4MPEG2 W16 H9 F25:1 Cmono\n" * (path.suffix == ".y4m")
        frame = b"FRAME\n" * bool(head) + level.tobytes()
        path.write_bytes(head + 6 * frame)
    else:
        picture = PIL.Image.fromarray(level)
        picture.convert("L" if name == "map" else "RGB").save(path)


# What reads, and files of which types.
READERS = {
    "film": (_film, ".mp4 .mkv .webm .avi .ts .flv .mov .y4m .gif"),
    "pipe": (_pipe, ".mkv .ts .mp4 .y4m"),
    "raw": (functools.partial(_pipe, size="16x9", rate=25), ".raw"),
    "picture": (_picture, ".png .jpg .bmp .tif .webp .ppm"),
    "map": (_map, ".png .npy"),
}


class Example(NamedTuple):
    """A file, and the damaged bytes that take its place."""

    path: pathlib.Path
    data: bytes

    def __repr__(self) -> str:
        return f"{self.path.name}: {len(self.data)} bytes"


_CHANGES = ("flip", "set", "cut", "end", "swap", "repeat")


@strategies.composite
def _damaged(draw, whole):
    """One of some files, with one to four changes."""
    path = draw(strategies.sampled_from(whole))
    data = bytearray(path.read_bytes())
    for _ in range(draw(strategies.integers(1, 4))):
        start = draw(strategies.integers(0, max(0, len(data) - 1)))
        length = draw(strategies.integers(1, 64))
        part = data[start : start + length]
        other = draw(strategies.integers(0, max(0, len(data) - length)))
        match draw(strategies.sampled_from(_CHANGES)):
            case "flip" if part:
                data[start] ^= 1 << draw(strategies.integers(0, 7))
            case "set":
                data[start : start + length] = draw(
                    strategies.sampled_from((b"\0", b"\xff"))
                ) * len(part)
            case "cut":
                del data[start : start + length]
            case "end":
                del data[start:]
            case "swap":
                there = data[other : other + length]
                data[other : other + length] = part
                data[start : start + length] = there
            case "repeat":
                data[other:other] = part
    return Example(path, bytes(data))


def _try(name, count, folder):
    """Reads damaged files; one that fails stays in the folder."""
    read, suffixes = READERS[name]
    whole = [folder / f"whole{suffix}" for suffix in suffixes.split()]
    for path in whole:
        _written(name, path)
        read(path)

    @hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(_damaged(whole))
    def reads(example):
        path, data = example
        bad = path.with_stem("damaged")
        bad.write_bytes(data)
        # It ends the process, also where Python does not get to run.
        signal.alarm(SECONDS)
        try:
            read(bad)
        except files.FileError as error:
            assert "\n" not in str(error)
        finally:
            signal.alarm(0)
        bad.unlink()

    reads()


@pytest.mark.parametrize(
    "count", [50, pytest.param(2000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(tmp_path, name, count):
    done = subprocess.run(
        [sys.executable, "-m", __name__, name, str(count), str(tmp_path)],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    left = {p.name: p.stat().st_size for p in tmp_path.glob("damaged.*")}
    assert done.returncode == 0, f"{left}\n{done.stdout}\n{done.stderr}"


if __name__ == "__main__":
    _try(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
