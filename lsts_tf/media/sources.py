"""Where frames come from: films, pictures, a pipe, a camera.

A source yields (frame, time): uint8 RGB [H, W, 3], upright, all of one size,
and seconds, greater each time. What is damaged ends early, or with gaps, and
the source remembers why: what could be decoded is used. Frames are numbered
from 0, and nothing holds more than a few of them.
"""

import abc
import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import decimal
import fractions
import itertools
import math
import os
import pathlib
import re
import signal
import statistics
import sys
import threading
import time as clock
from typing import Any, NamedTuple, Self

from absl import logging
import cv2
import numpy as np

from lsts_tf.media import files, images, video

CAMERA = "camera:"
PIXEL_FORMATS = ("rgb24", "gray")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"),
    ".pgm",
)
_SIZE = re.compile("[1-9][0-9]{0,4}[xX][1-9][0-9]{0,4}")
# A number in a name: digits, or with one point where no more points stand
# around, as dates and versions have.
_NUMBER = re.compile(r"((?<![0-9.])[0-9]+\.[0-9]+(?![0-9.])|[0-9]+)")
# Bytes of frames that are kept as they are between two readers; the others
# are compressed without loss.
KEPT_BYTES = 1 << 30

_Timed = tuple[np.ndarray, float]


class Source(abc.ABC):
    """Frames with their times.

    Attributes:
        name: What it is called in records and messages.
        stem: The name without folder and suffix.
        fps: Frames a second, on average.
        size: (width, height) of each frame.
        num_frames: How many there should be; None if nobody knows.
        pixel_aspect: Width of a pixel by its height.
        paths: The files that it is read from, which no output may replace;
            none if it cannot be read again.
    """

    name: str
    stem: str
    fps: float
    size: tuple[int, int]
    num_frames: int | None = None
    pixel_aspect: fractions.Fraction = video.SQUARE
    paths: Sequence[pathlib.Path] = ()

    @property
    def damage(self) -> str:
        """What is wrong with what was read of it, or ""."""
        reason = self._reason()
        return f"{self.name}: {reason}." if reason else ""

    def _reason(self) -> str:
        return ""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[_Timed]:
        """Yields (frame, time)."""


def open_source(
    names: Sequence[str],
    *,
    size: str = "",
    rate: float | None = None,
    pixel_format: str = "rgb24",
) -> Source:
    """The source that a user names.

    Args:
        names: One video file, folder of pictures, "camera:0", or "-" for
            standard input; or several pictures.
        size: "WIDTHxHEIGHT" of raw video on standard input.
        rate: Frames a second of pictures (25), of raw video, of a camera.
        pixel_format: One of `PIXEL_FORMATS`, of raw video.

    Raises:
        files.FileError: It cannot be read.
        ValueError: Names or settings that make no clip.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"A rate is greater than 0. Received: {rate}")
    if not names:
        raise ValueError("No video is named. Name one: `lsts predict in.mp4`.")
    if len(names) > 1 or names[0].lower().endswith(IMAGE_SUFFIXES):
        paths = [pathlib.Path(name) for name in names]
        if odd := _disorder(paths):
            logging.warning("The pictures come in the order given: %s.", odd)
        return Images(paths, rate=rate)
    (name,) = names
    if name == "-":
        if sys.stdin.isatty():
            raise ValueError(
                "Standard input must be a pipe with a film in it. Received: a "
                "terminal."
            )
        return Stream(
            sys.stdin.buffer, size=size, rate=rate, pixel_format=pixel_format
        )
    if name.startswith(CAMERA):
        return Camera(name, rate=rate)
    if pathlib.Path(name).is_dir():
        paths = _images_of(pathlib.Path(name))
        return Images(paths, rate=rate, damage=_disorder(paths))
    return File(name)


class File(Source):
    """A film; see `video.Video`. One from a named pipe is read once only."""

    def __init__(
        self, path: str | os.PathLike, *, film: video.Video | None = None
    ) -> None:
        self._film = film = video.Video(path) if film is None else film
        self.name = os.fspath(path)
        self.stem = film.path.stem
        self.fps = film.fps
        self.size = film.size
        self.num_frames = film.num_frames
        self.pixel_aspect = film.pixel_aspect
        self.paths = () if film.is_pipe else (film.path,)
        self._error = ""

    def _reason(self) -> str:
        # A clip may end before the film.
        return self._error or self._film.damage

    def __iter__(self) -> Iterator[_Timed]:
        try:
            yield from self._film.timed()
        except video.VideoError as error:
            self._error = error.reason.removesuffix(".")


class Stream(File):
    """A film from a pipe, in a format that says what it is, or raw pixels.

    Raw frames are rows of pixels without any gap, as `ffmpeg -f rawvideo`
    writes them. Size, rate and pixel format are theirs; see `open_source`.
    Y4M says size and rate itself; it is taken for BT.601, as FFmpeg takes it.

    Args:
        stream: An object with `read1`, such as `sys.stdin.buffer`.

    Raises:
        video.VideoError: Nothing came that can be decoded.
        ValueError: One of size and rate is missing, or wrong.
    """

    def __init__(
        self,
        stream: Any,
        *,
        size: str = "",
        rate: float | None = None,
        pixel_format: str = "rgb24",
    ) -> None:
        name, how = "standard input", {}
        if size or rate is not None:
            if rate is None:
                raise ValueError("Raw video needs --rate. Received: none")
            if not _SIZE.fullmatch(size):
                raise ValueError(
                    "--size is WIDTHxHEIGHT, such as 640x360. "
                    f"Received: {size!r}"
                )
            how = {
                "video_size": size.lower(),
                "framerate": str(rate),
                "pixel_format": pixel_format,
            }
        form = "rawvideo" if how else None
        try:
            film = video.Video(name, pipe=_Pipe(stream), form=form, options=how)
        except video.VideoError as error:
            if not how:
                error.reason += (
                    " Raw video needs --size=WIDTHxHEIGHT and --rate; Y4M "
                    "states both itself (`ffmpeg -f yuv4mpegpipe`)."
                )
            raise
        super().__init__(name, film=film)
        self.stem = "stdin"


class Images(Source):
    """Pictures of 8 or 16 bits, one a frame.

    Alpha is blended over black. Where one cannot be read, the others are used
    and keep their times; the frames that come are counted, as in a video.
    `damage` is what is wrong with them before they are read.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        *,
        rate: float | None = None,
        damage: str = "",
    ) -> None:
        self.paths = tuple(paths)
        for path in self.paths:
            if not path.is_file():
                raise video.VideoError(path, "no such picture.")
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                raise video.VideoError(
                    path,
                    "not a picture; several files make a clip only if they "
                    f"are pictures ({', '.join(IMAGE_SUFFIXES)}).",
                )
        one = len(self.paths) == 1
        first = self.paths[0]
        self.name = os.fspath(first if one else first.parent)
        self.stem = first.stem if one else first.parent.name or "images"
        self.fps = video.FPS_IF_UNKNOWN if rate is None else rate
        self.num_frames = len(self.paths)
        self._reasons = [damage] if damage else []
        self.size = 0, 0
        timed = next(iter(self), None)
        # If none can be read, the error of the first one says why.
        frame = timed[0] if timed else images.read_frame(first)
        self.size = frame.shape[1], frame.shape[0]

    def _reason(self) -> str:
        return "; ".join(self._reasons)

    def __iter__(self) -> Iterator[_Timed]:
        failures = []
        for number, path in enumerate(self.paths):
            try:
                frame = images.read_frame(path)
            except files.FileError as error:
                reason = str(error)
            else:
                size = frame.shape[1::-1]
                if self.size in (size, (0, 0)):
                    yield frame, number / self.fps
                    continue
                told = "is {}x{}, the first picture {}x{}."
                reason = f"{path}: {told.format(*size, *self.size)}"
            failures.append(f"frame {number} (counted from 0), {reason}")
        if failures:
            self._reasons.append(
                f"{len(failures)} of {self.num_frames} pictures cannot be "
                "used, so later ones have other numbers than they should; "
                f"{failures[0]}"
            )


def _images_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Pictures of a folder by the numbers in their names."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
    ]
    if not found:
        raise video.VideoError(
            folder, f"no picture in it ({', '.join(IMAGE_SUFFIXES)})."
        )
    found.sort(key=lambda path: (_natural(path), path.name))
    for one, other in itertools.pairwise(found):
        if _natural(one) == _natural(other):
            raise video.VideoError(
                folder,
                f"{one.name} and {other.name} have the same number, or name: "
                "keep one of them.",
            )
    return found


def _natural(path: pathlib.Path) -> list[Any]:
    """A key that orders names by the numbers in them: 2, 10; 0.04, 0.2."""
    parts = _NUMBER.split(path.stem.lower())
    # Every second part is a number.
    return [
        decimal.Decimal(part) if place % 2 else part
        for place, part in enumerate(parts)
    ]


def _disorder(paths: Sequence[pathlib.Path]) -> str:
    """What the numbers of pictures say against their order, or "".

    Pictures are missing where neighbours, which differ in one number alone, are
    further apart than others: by more than 1, or, where none differ by 1, than
    usual.
    """
    steps = {}
    for one, other in itertools.pairwise(paths):
        first, second = _natural(one), _natural(other)
        if first > second:
            return f"the number of {other.name} is less than that of {one.name}"
        if first[::2] == second[::2]:
            apart = [
                b - a for a, b in zip(first, second, strict=True) if a != b
            ]
            if len(apart) == 1:
                steps[one, other] = apart[0]
    usual = min(steps.values(), default=1)
    if usual != 1:
        usual = statistics.median(steps.values())
    gaps = [
        f"{one.name} and {other.name}"
        for (one, other), step in steps.items()
        if 2 * step > 3 * usual
    ]
    if not gaps:
        return ""
    return (
        f"by their numbers, pictures are missing between {files.named(gaps)}, "
        "so later ones have other numbers than they should"
    )


@dataclasses.dataclass(kw_only=True)
class Frames(Source):
    """Frames that `read` gives anew each time, uint8 RGB [H, W, 3]."""

    read: Callable[[], Iterator[np.ndarray]]
    name: str
    stem: str
    fps: float
    num_frames: int | None

    def __post_init__(self) -> None:
        height, width = next(self.read()).shape[:2]
        self.size = width, height

    def __iter__(self) -> Iterator[_Timed]:
        for number, frame in enumerate(self.read()):
            yield frame, number / self.fps


class _Pipe:
    """What has come by a pipe, without waiting for more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.taken = 0  # Bytes.

    def read(self, most: int) -> bytes:
        data = self._stream.read1(most)
        self.taken += len(data)
        return data


class Camera(Source):
    """A camera of this machine, "camera:0", until Ctrl-C.

    Times are those at which frames were taken from it: a model that is slower
    than the camera sees fewer of them. The first Ctrl-C ends the clip, which
    is then written; a second one breaks off.
    """

    def __init__(self, name: str, *, rate: float | None = None) -> None:
        index = name.removeprefix(CAMERA)
        if not index.isdecimal():
            raise ValueError(
                f"A camera is named by its number, such as {CAMERA}0. "
                f"Received: {name!r}"
            )
        self.name = name
        self.stem = name.replace(":", "")
        self._is_over = False
        # PyAV's wheels have no driver of cameras (no V4L2, no AVFoundation).
        self._capture = cv2.VideoCapture(int(index))
        taken, frame = self._capture.read()
        if not taken:
            self._capture.release()
            raise video.VideoError(name, "no such camera, or it is busy.")
        found = self._capture.get(cv2.CAP_PROP_FPS)
        is_known = math.isfinite(found) and found > 0
        self.fps = rate or (found if is_known else video.FPS_IF_UNKNOWN)
        self.size = frame.shape[1], frame.shape[0]

    def _reason(self) -> str:
        return "it stopped giving frames" if self._is_over else ""

    def __iter__(self) -> Iterator[_Timed]:
        start, last = clock.monotonic(), -1.0
        try:
            with _first_interrupt() as stopped:
                logging.info("Reading %s; Ctrl-C ends the clip.", self.name)
                while not stopped.is_set():
                    taken, frame = self._capture.read()
                    if not taken:
                        self._is_over = True
                        return
                    last = max(clock.monotonic() - start, last + 0.001)
                    yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), last
        finally:
            self._capture.release()


@contextlib.contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one is as ever."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@dataclasses.dataclass
class Clip:
    """The part of a source from `start` to before `end`.

    Its times begin at 0. Frames before it are decoded and dropped, because
    seeking is not exact.

    Attributes:
        start: Seconds such as "12.5", or a frame number such as "300f".
        end: The frame behind the last, in the same way; "" for none.
        skip: Frames of it that are passed over at its start.
        first_frame: Its number in the source; None before reading.
        first_time: Its time there.

    Raises:
        ValueError: A text that is neither.
    """

    source: Source
    start: str = ""
    end: str = ""
    skip: int = 0
    first_frame: int | None = None
    first_time: float | None = None

    def __post_init__(self) -> None:
        self._start = _Moment.of(self.start or "0f", "start")
        self._end = _Moment(math.inf)
        if self.end:
            self._end = _Moment.of(self.end, "end")

    @property
    def num_frames(self) -> int | None:
        """About how many frames there are, if anybody knows."""
        total, fps = self.source.num_frames, self.source.fps
        end = min(math.inf if total is None else total, self._end.place(fps))
        if end == math.inf:
            return None
        return max(0, int(end - self._start.place(fps)))

    def __iter__(self) -> Iterator[_Timed]:
        for number, (frame, time) in enumerate(self.source):
            if self._end.reached(number, time):
                return
            if not self._start.reached(number, time):
                continue
            if self.first_frame is None or self.first_time is None:
                self.first_frame, self.first_time = number, time
            if number - self.first_frame >= self.skip:
                yield frame, time - self.first_time


class _Moment(NamedTuple):
    """A moment of a clip: behind so many frames and seconds of its source."""

    frames: float = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, text: str, flag: str) -> Self:
        """That of "12.5" seconds, or of frame "300f"."""
        found = re.fullmatch(r"([0-9]+)f|([0-9]*\.?[0-9]+)s?", text.strip())
        if not found:
            raise ValueError(
                f"--{flag} is in seconds, such as 12.5, or a frame number, "
                f"such as 300f. Received: {text!r}"
            )
        return cls(int(found[1] or 0), float(found[2] or 0))

    def reached(self, number: int, time: float) -> bool:
        """Whether a frame is there or behind."""
        # Containers round times to milliseconds.
        return number >= self.frames and time >= self.seconds - 0.0006

    def place(self, fps: float) -> float:
        """The frame there, where all have equal distances."""
        return max(self.frames, math.ceil(self.seconds * fps - 0.01))


def two_readers(
    clip: Clip, *, draws: bool = True
) -> tuple[Iterator[np.ndarray], Iterator[_Timed]]:
    """Frames for a model, and (frame, time) for who draws on them later.

    The second reader must not overtake the first. A model reads some hundred
    frames ahead of its maps; the frames between the readers are kept: as they
    are up to `KEPT_BYTES`, the others compressed without loss. Unless the
    second one `draws`, its frames are empty, and nothing is kept.
    """
    kept: collections.deque[_Timed] = collections.deque()

    def first() -> Iterator[np.ndarray]:
        for frame, time in clip:
            held = frame
            # What is compressed has one axis.
            plain = sum(some.nbytes for some, _ in kept if some.ndim > 1)
            if not draws:
                held = np.empty((0, 0, 3), np.uint8)
            elif plain + frame.nbytes > KEPT_BYTES:
                how = [cv2.IMWRITE_PNG_COMPRESSION, 1]
                held = cv2.imencode(".png", frame, how)[1]
            kept.append((held, time))
            yield frame

    def second() -> Iterator[_Timed]:
        while kept:
            held, time = kept.popleft()
            if held.ndim == 1:
                held = np.asarray(cv2.imdecode(held, cv2.IMREAD_COLOR))
            yield held, time

    return first(), second()
