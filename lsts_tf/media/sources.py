"""Where frames come from: files, pictures, a pipe, a camera.

A source yields (frame, time): uint8 RGB [H, W, 3], upright, all of one size,
and seconds, greater each time. What is damaged ends early, or with gaps, and
the source remembers why: what could be decoded is used. Frames are numbered
from 0, and nothing holds more than a few of them.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import fractions
import math
import os
import pathlib
import re
import signal
import struct
import sys
import threading
import time as clock
from typing import BinaryIO
from typing import Protocol
from typing import runtime_checkable

from absl import logging
import cv2
import numpy as np

from lsts_tf.media import maps
from lsts_tf.media import video as video_lib

STDIN = "-"
CAMERA = "camera:"
PIXEL_FORMATS = {"rgb24": 3, "gray": 1}
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
)
# Bytes of frames that are kept as they are between two readers; the others
# are compressed without loss.
KEPT_BYTES = 256 << 20

_Timed = tuple[np.ndarray, float]
_Y4M = b"YUV4MPEG2 "


@runtime_checkable
class Source(Protocol):
    """Frames with their times.

    Attributes:
        name: What it is called in records and messages.
        stem: The name without folder and suffix.
        fps: Frames a second, on average.
        size: (width, height) of each frame.
        num_frames: How many there should be; None if nobody knows.
        pixel_aspect: Width of a pixel by its height.
        twice: Whether it can be read again from the start.
        identity: Changes if a file does; "" if it cannot be read again.
        paths: The files that it is read from, which no output may replace.
        damage: After reading: what is wrong with it, or "".
    """

    name: str
    stem: str
    fps: float
    size: tuple[int, int]
    num_frames: int | None
    pixel_aspect: fractions.Fraction
    twice: bool
    identity: str
    paths: Sequence[pathlib.Path]
    damage: str

    def __iter__(self) -> Iterator[_Timed]: ...


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
        video.VideoError: It cannot be read.
        ValueError: Names or settings that make no clip.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"A rate is greater than 0. Received: {rate}")
    if not names:
        raise ValueError("No video is named.")
    if len(names) > 1 or names[0].lower().endswith(IMAGE_SUFFIXES):
        return Images([pathlib.Path(name) for name in names], rate=rate)
    (name,) = names
    if name == STDIN:
        return Stream(
            sys.stdin.buffer, size=size, rate=rate, pixel_format=pixel_format
        )
    if name.startswith(CAMERA):
        return Camera(name, rate=rate)
    if pathlib.Path(name).is_dir():
        return Images(_images_of(pathlib.Path(name)), rate=rate)
    return File(name)


class File:
    """A video file; see `video.Video`."""

    twice = True

    def __init__(self, path: str | os.PathLike) -> None:
        self._video = video_lib.Video(path)
        self.name = os.fspath(path)
        self.stem = self._video.path.stem
        self.fps = self._video.fps
        self.size = self._video.size
        self.num_frames = self._video.num_frames
        self.pixel_aspect = self._video.pixel_aspect
        self.paths: Sequence[pathlib.Path] = (self._video.path,)
        self.identity = _identity(self.paths)
        self.damage = ""
        self._seen = 0
        self._ended = False

    def __iter__(self) -> Iterator[_Timed]:
        try:
            for number, timed in enumerate(self._video.timed()):
                yield timed
                # A clip may end before the file does, and then no error comes.
                self._seen = max(self._seen, number + 1)
                known = self._video.damage(self._seen)
                if known and not self._ended:
                    self.damage = f"{self.name}: {known}."
        except video_lib.VideoError as error:
            self.damage = str(error)
        self._ended = True


class Images:
    """Pictures of 8 or 16 bits, one a frame.

    Alpha is blended over black. Where one cannot be read, the others are used
    and keep their times; the frames that come are counted, as in a video.
    """

    twice = True
    pixel_aspect = video_lib.SQUARE

    def __init__(
        self, paths: Sequence[pathlib.Path], *, rate: float | None = None
    ) -> None:
        self.paths: Sequence[pathlib.Path] = tuple(paths)
        for path in self.paths:
            if not path.is_file():
                raise video_lib.VideoError(path, "no such picture.")
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                raise video_lib.VideoError(
                    path,
                    "not a picture; several files make a clip only if they "
                    f"are pictures ({', '.join(IMAGE_SUFFIXES)}).",
                )
        one = len(self.paths) == 1
        first = self.paths[0]
        self.name = os.fspath(first if one else first.parent)
        self.stem = first.stem if one else first.parent.name or "images"
        self.fps = video_lib.FPS_IF_UNKNOWN if rate is None else rate
        self.num_frames: int | None = len(self.paths)
        self.identity = _identity(self.paths)
        self.damage = ""
        height, width = self._first().shape[:2]
        self.size = width, height

    def _first(self) -> np.ndarray:
        failure = None
        for path in self.paths:
            try:
                return read_image(path)
            except video_lib.VideoError as error:
                failure = failure or error
        raise failure or ValueError("No picture.")

    def _sized(self, path: pathlib.Path) -> np.ndarray:
        frame = read_image(path)
        size = frame.shape[1], frame.shape[0]
        if size != self.size:
            raise video_lib.VideoError(
                path, f"is {_by(size)}, the first picture {_by(self.size)}."
            )
        return frame

    def __iter__(self) -> Iterator[_Timed]:
        failures = []
        for number, path in enumerate(self.paths):
            try:
                frame = self._sized(path)
            except video_lib.VideoError as error:
                failures.append(f"frame {number} (counted from 0), {error}")
                continue
            yield frame, number / self.fps
        if failures:
            self.damage = (
                f"{len(failures)} of {self.num_frames} pictures cannot be "
                "used, so later ones have other numbers than they should; "
                f"{failures[0]}"
            )


def read_image(path: pathlib.Path) -> np.ndarray:
    """A picture as a frame: uint8 RGB [H, W, 3].

    16 bits are rounded to 8, grey becomes colour, what is transparent black.
    JPEG, PNG, WebP and TIFF are turned as their EXIF says.

    Raises:
        video.VideoError: It cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise video_lib.VideoError(
            path, f"cannot be read ({error.strerror})."
        ) from error
    # Asked for all channels, OpenCV turns TIFF, and nothing else.
    photograph = path.suffix.lower() in (".jpg", ".jpeg")
    how = cv2.IMREAD_COLOR if photograph else cv2.IMREAD_UNCHANGED
    image = maps.decode(data, how)
    if image is None:
        raise video_lib.VideoError(path, "no picture, or a damaged one.")
    if image.dtype not in (np.uint8, np.uint16):
        raise video_lib.VideoError(
            path, f"a picture has 8 or 16 bits, not {image.dtype}."
        )
    if not photograph:
        image = _upright(image, data)
    if image.ndim == 2:
        image = image[..., None]
    colour, alpha = image[..., :3], None
    if image.shape[-1] in (2, 4):
        colour, alpha = image[..., :-1], image[..., -1:]
    full = np.iinfo(image.dtype).max
    if alpha is not None or full > 255:
        levels = colour.astype(np.float32)
        if alpha is not None:
            levels *= alpha / np.float32(full)
        colour = np.rint(levels * (255 / full)).astype(np.uint8)
    if colour.shape[-1] == 1:
        return np.repeat(colour, 3, axis=-1)
    return np.ascontiguousarray(colour[..., ::-1])


def _upright(image: np.ndarray, data: bytes) -> np.ndarray:
    """A PNG or WebP, turned as its EXIF says; other pictures as they are.

    Args:
        image: [H, W] or [H, W, C], as it is stored.
        data: The file.
    """
    # Few have EXIF, and only OpenCV's decoder finds where it is.
    if not any(mark in data for mark in (b"eXIf", b"EXIF")):
        return image
    _, kinds, chunks = cv2.imdecodeWithMetadata(
        np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED
    )
    for kind, chunk in zip(np.ravel(kinds), chunks, strict=True):
        if kind == cv2.IMAGE_METADATA_EXIF:
            turn = _orientation(np.asarray(chunk, np.uint8).tobytes())
            if turn > 4:
                image = image.swapaxes(0, 1)
            # By what rows and columns are mirrored then.
            rows, columns = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(turn - 1) % 4]
            return image[::rows, ::columns]
    return image


def _orientation(exif: bytes) -> int:
    """EXIF's tag 274, 1 … 8; 1 (upright) where it is missing or damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    with contextlib.suppress(struct.error):
        if order:
            (start,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for entry in range(count):
                tag, kind, number, value = struct.unpack_from(
                    f"{order}HHIH", exif, start + 2 + 12 * entry
                )
                is_orientation = (tag, kind, number) == (274, 3, 1)
                if is_orientation and 1 <= value <= 8:
                    return value
    return 1


def _images_of(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
    ]
    if not found:
        raise video_lib.VideoError(
            folder, f"no picture in it ({', '.join(IMAGE_SUFFIXES)})."
        )
    return sorted(found, key=natural)


def natural(path: pathlib.Path) -> list[tuple[int, str]]:
    """A key that puts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def _identity(paths: Sequence[pathlib.Path]) -> str:
    about = [
        f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"
        for path in paths
        for found in [path.stat()]
    ]
    return "\n".join(about)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


class Frames:
    """Frames that another reader has, which starts anew each time.

    Args:
        read: Gives them from the first on: uint8 RGB [H, W, 3] each.
        name: What they are called.
        stem: The name without what is around it.
        fps: Frames a second.
        num_frames: How many there are.
        identity: Changes if the frames do.
    """

    twice = True
    pixel_aspect = video_lib.SQUARE
    paths: Sequence[pathlib.Path] = ()
    damage = ""

    def __init__(
        self,
        read: Callable[[], Iterator[np.ndarray]],
        *,
        name: str,
        stem: str,
        fps: float,
        num_frames: int,
        identity: str,
    ) -> None:
        self._read = read
        self.name = name
        self.stem = stem
        self.fps = fps
        self.num_frames: int | None = num_frames
        self.identity = identity
        height, width = next(read()).shape[:2]
        self.size = width, height

    def __iter__(self) -> Iterator[_Timed]:
        for number, frame in enumerate(self._read()):
            yield frame, number / self.fps


class Stream:
    """Uncompressed video from a pipe: raw, or with Y4M's headers.

    Raw frames are rows of pixels without any gap, as `ffmpeg -f rawvideo`
    writes them. Y4M says size and rate itself; it is taken for BT.601, as
    FFmpeg takes it.
    """

    twice = False
    identity = ""
    paths: Sequence[pathlib.Path] = ()
    stem = "stdin"

    def __init__(
        self,
        stream: BinaryIO,
        *,
        size: str = "",
        rate: float | None = None,
        pixel_format: str = "rgb24",
        name: str = "standard input",
    ) -> None:
        self.name = name
        self.num_frames: int | None = None
        self.pixel_aspect = video_lib.SQUARE
        self.damage = ""
        self._stream = stream
        self._head = stream.read(len(_Y4M))
        self._convert: Callable[[bytes], np.ndarray]
        if not self._head:
            raise video_lib.VideoError(name, "it is empty.")
        self._y4m = self._head == _Y4M
        if self._y4m:
            self._head = b""
            header = stream.readline(4096).decode("ascii", "replace")
            self.size, self.fps, self._bytes, self._convert = _parse_y4m(
                header, name
            )
            self.pixel_aspect = _pixel_aspect(header)
            return
        if rate is None:
            raise ValueError(
                "Raw video needs --size=WIDTHxHEIGHT and --rate; Y4M says "
                "both itself (`ffmpeg -f yuv4mpegpipe`)."
            )
        self.size = parse_size(size)
        self.fps = rate
        channels = PIXEL_FORMATS[pixel_format]
        width, height = self.size
        self._bytes = width * height * channels

        def convert(data: bytes) -> np.ndarray:
            pixels = np.frombuffer(data, np.uint8)
            pixels = pixels.reshape(height, width, channels)
            # A copy: what comes from a buffer cannot be written to.
            return np.repeat(pixels, 3 // channels, axis=-1)

        self._convert = convert

    def __iter__(self) -> Iterator[_Timed]:
        count = 0
        while data := self._next(count):
            yield self._convert(data), count / self.fps
            count += 1
        if not count and not self.damage:
            self.damage = f"{self.name}: no frame came."

    def _next(self, count: int) -> bytes:
        if self._y4m:
            mark = self._stream.readline(4096)
            if mark and not (mark.startswith(b"FRAME") and mark[-1:] == b"\n"):
                self.damage = (
                    f"{self.name}: frame {count} (counted from 0) does not "
                    "begin as in Y4M."
                )
                return b""
            if not mark:
                return b""
        data = self._take(self._bytes)
        if len(data) == self._bytes:
            return data
        if data or self._y4m:
            self.damage = (
                f"{self.name}: frame {count} (counted from 0) is cut off: "
                f"{len(data)} of {self._bytes} bytes came. Are --size and "
                "--pixel_format right?"
            )
        return b""

    def _take(self, wanted: int) -> bytes:
        """`wanted` bytes, fewer only at the end."""
        parts = [self._head[:wanted]]
        self._head = self._head[wanted:]
        wanted -= len(parts[0])
        while wanted > 0 and (part := self._stream.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of a text such as "640x360"."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)
    if not found:
        raise ValueError(
            f"--size is WIDTHxHEIGHT, such as 640x360. Received: {text!r}"
        )
    return int(found[1]), int(found[2])


def _parse_y4m(
    header: str, name: str
) -> tuple[tuple[int, int], float, int, Callable[[bytes], np.ndarray]]:
    fields = {part[0]: part[1:] for part in header.split()}
    extra = {part for part in header.split() if part.startswith("X")}
    size = f"{fields.get('W', '')}x{fields.get('H', '')}"
    rate = re.fullmatch("([0-9]+):([0-9]+)", fields.get("F", "0:0"))
    try:
        width, height = parse_size(size)
    except ValueError as error:
        raise video_lib.VideoError(
            name, f"a Y4M header without a size: {header!r}"
        ) from error
    above, below = map(int, rate.groups()) if rate else (0, 0)
    fps = above / below if above > 0 < below else video_lib.FPS_IF_UNKNOWN
    colour = fields.get("C", "420jpeg")
    found = re.fullmatch("(mono|444|422|420)(jpeg|paldv|mpeg2)?", colour)
    if not found:
        raise video_lib.VideoError(
            name,
            f"Y4M of 8 bits is read, not {colour!r}. Let FFmpeg make it by "
            "`-pix_fmt yuv420p`.",
        )
    # How many pixels share a colour sample, across and down.
    across, down = {
        "mono": (0, 0),
        "444": (1, 1),
        "422": (2, 1),
        "420": (2, 2),
    }[found[1]]
    full = "XCOLORRANGE=FULL" in extra
    luma = width * height
    columns = -(-width // across) if across else 0
    rows = -(-height // down) if down else 0

    def convert(data: bytes) -> np.ndarray:
        pixels = np.frombuffer(data, np.uint8)
        grey = pixels[:luma].reshape(height, width)
        if not across:
            # FFmpeg's grey has all 256 levels.
            return np.repeat(grey[..., None], 3, axis=-1)
        planes = pixels[luma:].reshape(2, rows, columns)
        planes = planes.repeat(down, axis=1).repeat(across, axis=2)
        return _rgb_of_yuv(grey, planes[:, :height, :width], full)

    return (width, height), fps, luma + 2 * rows * columns, convert


def _pixel_aspect(header: str) -> fractions.Fraction:
    """Of Y4M; "A0:0" is unknown."""
    found = re.search(r" A([0-9]+):([0-9]+)\b", header)
    if not found:
        return video_lib.SQUARE
    return video_lib.pixel_aspect_of(int(found[1]), int(found[2]))


def _rgb_of_yuv(grey: np.ndarray, colour: np.ndarray, full: bool) -> np.ndarray:
    """BT.601: uint8 [H, W] and [2, H, W] to uint8 [H, W, 3]."""
    light = grey.astype(np.float32)
    if not full:
        light = (light - 16) * (255 / 219)
    scale = 1.0 if full else 255 / 224
    blue, red = (colour.astype(np.float32) - 128) * scale
    channels = [
        light + 1.402 * red,
        light - 0.344136 * blue - 0.714136 * red,
        light + 1.772 * blue,
    ]
    rgb = np.stack(channels, axis=-1)
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)


class Camera:
    """A camera of this machine, "camera:0", until Ctrl-C.

    Times are those at which frames were taken from it: a model that is slower
    than the camera sees fewer of them. The first Ctrl-C ends the clip, which
    is then written; a second one breaks off.
    """

    twice = False
    pixel_aspect = video_lib.SQUARE
    identity = ""
    paths: Sequence[pathlib.Path] = ()

    def __init__(self, name: str, *, rate: float | None = None) -> None:
        index = name.removeprefix(CAMERA)
        if not index.isdecimal():
            raise ValueError(
                f"A camera is named by its number, such as {CAMERA}0. "
                f"Received: {name!r}"
            )
        self.name = name
        self.stem = name.replace(":", "")
        self.num_frames: int | None = None
        self.damage = ""
        self._capture = cv2.VideoCapture(int(index))
        taken, frame = self._capture.read()
        if not taken:
            self._capture.release()
            raise video_lib.VideoError(name, "no such camera, or it is busy.")
        found = self._capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(found) and found > 0):
            found = video_lib.FPS_IF_UNKNOWN
        self.fps = found if rate is None else rate
        self.size = frame.shape[1], frame.shape[0]

    def __iter__(self) -> Iterator[_Timed]:
        start, last = clock.monotonic(), -1.0
        try:
            with _first_interrupt() as stopped:
                logging.info("Reading %s; Ctrl-C ends the clip.", self.name)
                while not stopped.is_set():
                    taken, frame = self._capture.read()
                    if not taken:
                        self.damage = f"{self.name}: it stopped giving frames."
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


class Clip:
    """The part of a source from `start` to before `end`.

    Its times begin at 0. Frames before it are decoded and dropped, because
    seeking is not exact.

    Args:
        source: Frames.
        start: Its first frame: seconds of the source such as "12.5", or a
            frame number such as "300f"; "" for the first.
        end: The frame behind its last, in the same way; "" for none.
        skip: Frames of it that are passed over at its start.

    Raises:
        ValueError: A text that is neither.
    """

    def __init__(
        self, source: Source, *, start: str = "", end: str = "", skip: int = 0
    ) -> None:
        self.source = source
        self._start = _Point(start or "0f", "start")
        self._end = _Point(end, "end") if end else None
        self._skip = skip
        #: Of the source, and its time there; None before reading.
        self.first_frame: int | None = None
        self.first_time: float | None = None

    @property
    def num_frames(self) -> int | None:
        """About how many frames there are, if anybody knows."""
        total, fps = self.source.num_frames, self.source.fps
        if self._end is not None:
            end = self._end.frame(fps)
            total = end if total is None else min(total, end)
        if total is None:
            return None
        return max(0, total - self._start.frame(fps))

    def __iter__(self) -> Iterator[_Timed]:
        index = -1
        for number, (frame, time) in enumerate(self.source):
            if self._end is not None and self._end.reached(number, time):
                return
            if not self._start.reached(number, time):
                continue
            if self.first_time is None:
                self.first_frame, self.first_time = number, time
            index += 1
            if index >= self._skip:
                yield frame, time - self.first_time


class _Point:
    """A moment of a clip: "12.5" seconds, or frame "300f"."""

    def __init__(self, text: str, flag: str) -> None:
        found = re.fullmatch(r"([0-9]+)f|([0-9]*\.?[0-9]+)s?", text.strip())
        if not found:
            raise ValueError(
                f"--{flag} is in seconds, such as 12.5, or a frame number, "
                f"such as 300f. Received: {text!r}"
            )
        self._frame = int(found[1]) if found[1] else None
        self._seconds = float(found[2] or 0)

    def reached(self, frame: int, time: float) -> bool:
        """Whether a frame is there or behind."""
        if self._frame is not None:
            return frame >= self._frame
        # Containers round times to milliseconds.
        return time >= self._seconds - 0.0006

    def frame(self, fps: float) -> int:
        """The frame there, where all have equal distances."""
        if self._frame is not None:
            return self._frame
        return math.ceil(self._seconds * fps - 0.01)


def two_readers(
    clip: Clip,
) -> tuple[Iterator[np.ndarray], Iterator[_Timed]]:
    """Frames for a model, and the same for who draws on them later.

    The second reader must not overtake the first. A model reads some hundred
    frames ahead of its maps; a file is therefore decoded twice, and of
    what comes only once the frames between the readers are kept: as they are
    up to `KEPT_BYTES`, the others compressed without loss.

    Returns:
        Frames; and (frame, time).
    """
    if clip.source.twice:
        return (frame for frame, _ in clip), iter(clip)
    kept = _Kept(KEPT_BYTES)
    return kept.first(clip), kept.second()


class _Kept:
    """Frames between two readers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._plain = 0
        self._queue: collections.deque[tuple[np.ndarray | bytes, float]] = (
            collections.deque()
        )

    def first(self, clip: Iterator[_Timed] | Clip) -> Iterator[np.ndarray]:
        for frame, time in clip:
            kept: np.ndarray | bytes = frame
            if self._plain + frame.nbytes > self._limit:
                how = [cv2.IMWRITE_PNG_COMPRESSION, 1]
                kept = cv2.imencode(".png", frame, how)[1].tobytes()
            else:
                self._plain += frame.nbytes
            self._queue.append((kept, time))
            yield frame

    def second(self) -> Iterator[_Timed]:
        while self._queue:
            kept, time = self._queue.popleft()
            if isinstance(kept, bytes):
                data = np.frombuffer(kept, np.uint8)
                yield np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), time
            else:
                self._plain -= kept.nbytes
                yield kept, time
