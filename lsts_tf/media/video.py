"""Frames of a video file, and a video file of frames.

Frames are uint8 RGB arrays [H, W, 3], numbered from 0 as decoded; rotation
flags are applied. Sizes are (width, height) in pixels, as OpenCV says them.
Times are seconds from the first frame: those of the file, which need not be
equally spaced. Nothing here holds more than one frame.

A video is read from its start to its end and never by seeking, and the frames
that came are counted against the number that the file declares: decoders stop
at the first damaged place without a word, although most frames after it can
be had by reading on. Other damage they hide by guessing what was there, and
mark the frame; OpenCV drops the mark, so PyAV decodes the file beside it.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fractions
import itertools
import math
import os
import pathlib
import re
import threading
import types
from typing import Any
from typing import NamedTuple

from absl import logging
import cv2
import numpy as np

from lsts_tf.media import files
from lsts_tf.media import matroska

try:
    import av
except ImportError:  # Optional: without it no AV1 is read, no MP4 written.
    av = None

FPS_IF_UNKNOWN = 25.0
# No camera that people have is faster; what is, is how finely a container
# counts time. The rate of the first frames is then measured.
_MOST_FPS = 240
_MEASURED_FRAMES = 50
# Distances of frames at an even rate from which on one is missing.
_GAP = 1.5
# A duration in Matroska's tags.
_TAG = re.compile(r"([0-9]+):([0-9]+):([0-9]+\.?[0-9]*)")
# Damaged frames that a message names.
_NAMED = 3
# A read that fails is not the end of a damaged file. In damaged H.264, MPEG-4
# and VP9 files decoding went on after far fewer failures than this.
_MAX_FAILED_READS = 100
# Bytes of an MPEG-4 frame that says only that nothing changed, at most; one of
# a single block is larger. DivX and XviD write them, and nothing is decoded.
_NOT_CODED = 8

# What a video may be written of: type and shape of a frame behind [H, W].
PIXELS: Mapping[str, tuple[type, tuple[int, ...]]] = {
    "rgb": (np.uint8, (3,)),
    "gray": (np.uint8, ()),
    "gray16": (np.uint16, ()),
}
# Width of a pixel by its height.
SQUARE = fractions.Fraction(1)
# Times are kept to a 64th of the distance between two frames. Some containers
# round them to milliseconds: so close to an even rate, it is even.
_TICKS = 64
_ROUNDED = 0.001

# A frame and its time in the file, in seconds, which may be NaN; or None for
# a read that failed.
_Read = tuple[np.ndarray, float] | None


class VideoError(files.FileError):
    """A file that cannot be read, or written, as a video."""


class TruncatedVideoError(VideoError):
    """A video with frames missing or damaged; the others were delivered."""


class Video:
    """A video file; iterating yields its frames, each time from the first.

    The first frame is decoded at once, so that a file without any is refused
    here and not in the middle of a pipeline.

    Attributes:
        path: The file.
        fps: Frames a second, on average; 25 when the file does not say.
        size: (width, height) of the frames as they are delivered.
        num_frames: How many frames the file declares; None if it does not.
            Some containers only estimate it: count what comes.
        pixel_aspect: Width of a pixel by its height, as it is to be seen.
    """

    def __init__(self, path: str | os.PathLike, *, strict: bool = True):
        """Opens a video.

        Args:
            path: A file in any format that OpenCV or PyAV decodes.
            strict: Whether missing or damaged frames are an error, raised
                after the last frame that could be decoded, or only a warning
                in the log.

        Raises:
            VideoError: The file is missing, empty, not a video, or none of
                its frames can be decoded.
        """
        self.path = pathlib.Path(path)
        self._strict = strict
        _refuse_unreadable(self.path)
        self._read: Callable[[pathlib.Path, int | None], Iterator[_Read]]
        self._read = _read_opencv
        self.fps, self.num_frames, self.pixel_aspect = _properties(self.path)
        first = next(_decoded(self._read(self.path, self.num_frames)), None)
        if first is None and av is not None:
            # OpenCV 5.0.0.93 opens AV1 files and then delivers nothing.
            self._read = _read_av
            first = next(_decoded(self._read(self.path, self.num_frames)), None)
        if first is None:
            hint = "" if av else "; `pip install av` reads more codecs"
            raise VideoError(
                self.path, f"no frame of it can be decoded (damaged?){hint}."
            )
        self.size = first.shape[1], first.shape[0]
        if self.fps > _MOST_FPS or _has_no_rate(self.path):
            self._measure()
        self._inspection = _Inspection(
            # What PyAV reads has no hidden damage: AV1's decoder gives up.
            self.path if self._read is _read_opencv else None
        )

    def _measure(self) -> None:
        """Takes the rate from the first frames' times, not from the file."""
        with contextlib.closing(  # type: ignore[type-var]
            self._read(self.path, self.num_frames)
        ) as reads:
            begin = itertools.islice(reads, _MEASURED_FRAMES)
            times = [read[1] for read in begin if read is not None]
        fps = _rate(times)
        if fps is None:
            fps = self.fps if self.fps <= _MOST_FPS else FPS_IF_UNKNOWN
        if self.num_frames is not None and _is_estimate(self.path):
            # It was made with that rate.
            self.num_frames = max(1, round(self.num_frames / self.fps * fps))
        self.fps = fps
        if _is_cover(self.path):
            self.num_frames = 1

    def damage(self, count: int) -> str:
        """Which of the first frames, all of them read, are damaged, or ""."""
        return _told([n for n in self._inspection.damaged if n < count])

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames; see `timed`.

        Yields:
            uint8 [H, W, 3], RGB; a new array each time.
        """
        for frame, _ in self.timed():
            yield frame

    def timed(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yields the frames with their times.

        Yields:
            uint8 [H, W, 3], RGB, a new array each time; and seconds from the
            first frame, greater each time. Where the file says none, a frame
            comes 1 / fps after the one before.

        Raises:
            TruncatedVideoError: After the last frame, when fewer frames came
                than were declared, some in between were lost or some are
                damaged; not if the video was opened with `strict=False`.
            VideoError: A frame has another size than the first.
        """
        count = lost = failures = 0
        first_loss = None
        clock = _Clock(self.fps)
        for read in self._read(self.path, self.num_frames):
            if read is None:
                failures += 1
                continue
            frame, stamp = read
            if failures:
                # Frames came again after a failure: a gap, not the end.
                first_loss = count if first_loss is None else first_loss
                lost, failures = lost + failures, 0
            if frame.shape[1::-1] != self.size:
                raise VideoError(
                    self.path,
                    f"frame {count} has another size than the first: "
                    f"{frame.shape[1::-1]} instead of {self.size}.",
                )
            self._inspection.reach(count)
            yield frame, clock(stamp)
            count += 1
        self._check(count, lost, first_loss, clock)

    def _check(
        self, count: int, lost: int, first_loss: int | None, clock: "_Clock"
    ) -> None:
        declared = self.num_frames or count
        lasts = _times(self.path)
        if lasts.by_duration:
            # Matroska keeps no number of frames, but when the last one ends,
            # be its rate even or not. Where time jumps, frames are missing,
            # or there never were any. The last one may be shown for as long as
            # any other.
            complete = not lasts.beyond(clock, clock.longest) and (
                clock.gap is None or matroska.is_whole(self.path)
            )
        elif count < declared and _is_estimate(self.path):
            # Containers without a table of frames estimate their number from
            # the duration; those estimates are off by one now and then.
            complete = declared - count <= max(1, declared // 100)
            if not complete and clock.uneven:
                # The estimate knows one rate only, and this video has many:
                # it is whole if it lasts to its end.
                seconds = declared / self.fps
                complete = seconds - clock.last <= max(1.0, seconds / 100)
        else:
            if count < declared:
                declared = _to_be_shown(self.path, count, declared)
            complete = count >= declared
        whole = complete and not lost
        damage = self.damage(count)
        if whole and not damage:
            return
        reasons = [] if whole else [f"read {count} of {declared} frames"]
        if not complete and count >= declared:
            # The estimate was too low.
            reasons = [
                f"read {count} frames, {clock.last:.2f} of "
                f"{lasts.seconds:.2f} seconds"
            ]
        # An uneven video has gaps, and nobody knows which of them is one.
        gap = None if clock.uneven or whole else clock.gap
        if lost:
            reasons.append(
                f"it is damaged at frame {first_loss}, so later frames have "
                "other numbers than they should"
            )
        elif gap is not None:
            reasons.append(
                f"frames are missing before frame {gap} (counted from 0), so "
                "later frames have other numbers than they should"
            )
        elif not whole and lasts.by_duration and not lasts.beyond(clock):
            reasons.append("frames are missing, and times do not tell where")
        if not whole and (not reasons[1:] or lasts.beyond(clock)):
            reasons.append(
                f"its end is missing or damaged, from frame {count} (counted "
                "from 0) on"
            )
        if damage:
            reasons.append(damage)
        reason = "; ".join(reasons) + ". Get the file again, or re-encode it."
        if self._strict:
            raise TruncatedVideoError(self.path, reason)
        logging.warning("%s: %s", self.path, reason)


def frames(
    path: str | os.PathLike, *, strict: bool = True
) -> Iterator[np.ndarray]:
    """Yields the frames of a video file; see `Video`.

    Args:
        path: A video file.
        strict: Whether missing or damaged frames are an error or a warning.

    Yields:
        uint8 [H, W, 3], RGB.

    Raises:
        VideoError: The file cannot be read as a video.
        TruncatedVideoError: After the last frame: some are missing or
            damaged.
    """
    yield from Video(path, strict=strict)


def count_frames(path: str | os.PathLike) -> int:
    """Number of frames of a video file.

    It is what the file declares, unless that is an estimate, as in Matroska
    and WebM: then all frames are decoded and counted.

    Args:
        path: A video file.

    Raises:
        VideoError: The file cannot be read as a video; or frames are counted,
            and some are missing or damaged.
    """
    film = Video(path)
    if film.num_frames is None or _is_estimate(film.path):
        return sum(1 for _ in film)
    return film.num_frames


def _refuse_unreadable(path: pathlib.Path) -> None:
    if not path.exists():
        raise VideoError(path, "no such file.")
    if not path.is_file():
        raise VideoError(path, "a folder, not a video file.")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty.")


def _open_opencv(path: pathlib.Path) -> cv2.VideoCapture:
    # One thread: decoding takes half a millisecond a frame, and the workers
    # that call this are as many as there are cores.
    return cv2.VideoCapture(
        str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]
    )


def _properties(
    path: pathlib.Path,
) -> tuple[float, int | None, fractions.Fraction]:
    capture = _open_opencv(path)
    try:
        if not capture.isOpened():
            if _is_sound(path):
                raise VideoError(path, "not a video: there is only sound.")
            raise VideoError(
                path,
                "not a video, cut off before its index, or of an unknown "
                "format.",
            )
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        above = capture.get(cv2.CAP_PROP_SAR_NUM)
        below = capture.get(cv2.CAP_PROP_SAR_DEN)
        turn = capture.get(cv2.CAP_PROP_ORIENTATION_META)
    finally:
        capture.release()
    if not (math.isfinite(fps) and fps > 0):
        fps = FPS_IF_UNKNOWN
    declared = int(count) if math.isfinite(count) and count > 0 else None
    pixel_aspect = pixel_aspect_of(above, below)
    if turn % 180:
        pixel_aspect = 1 / pixel_aspect
    return fps, declared, pixel_aspect


def pixel_aspect_of(width: float, height: float) -> fractions.Fraction:
    """Of what a file says, which is 0 where it says nothing."""
    if not (width >= 1 and height >= 1):
        return SQUARE
    return fractions.Fraction(int(width), int(height))


class _Clock:
    """Times that grow, from times as files have them.

    Attributes:
        fps: Frames a second.
        last: The time of the last frame.
        longest: The longest distance.
        gap: Number of the first frame that is later than expected; None if
            there is none.
        uneven: Whether a distance was no multiple of 1 / fps.
    """

    def __init__(self, fps: float) -> None:
        self.last = -1.0
        self.longest = 0.0
        self.gap: int | None = None
        self.uneven = False
        self._count = 0
        self.fps = fps
        self._first = math.nan

    def __call__(self, stamp: float) -> float:
        self._count += 1
        if self.last < 0:
            self._first, self.last = stamp, 0.0
            return 0.0
        time = stamp - self._first
        # Also where it is NaN.
        if not time > self.last:
            time = self.last + 1 / self.fps
        self.longest = max(self.longest, time - self.last)
        steps = (time - self.last) * self.fps
        if steps > _GAP and self.gap is None:
            self.gap = self._count - 1
        if abs(steps - round(steps)) / self.fps > 2 * _ROUNDED:
            self.uneven = True
        self.last = time
        return time


class _Times(NamedTuple):
    """When a file's frames should end.

    Attributes:
        seconds: From the first frame to the end; NaN if nobody knows.
        slack: How much later other streams may end, sound for instance.
        by_duration: Whether they say better than a number of frames whether
            frames are missing at the end.
    """

    seconds: float = math.nan
    slack: float = 0.0
    by_duration: bool = False

    def beyond(self, clock: "_Clock", least: float = 0.0) -> bool:
        """Whether there should be frames behind the last one.

        Args:
            clock: After the last frame.
            least: Seconds for which that one may be shown.
        """
        most = max((1 + _GAP) / clock.fps, least, self.slack)
        return self.seconds - clock.last > most + 2 * _ROUNDED


def _times(path: pathlib.Path) -> _Times:
    with _stream(path) as stream:
        if stream is None:
            return _Times()
        if stream.duration:
            return _Times(float(stream.duration * stream.time_base))
        container = stream.container
        if not container.duration:
            return _Times()
        seconds, slack = container.duration / av.time_base, 0.0
        if "matroska" not in container.format.name:
            return _Times(seconds)
        # FFmpeg and mkvtoolnix say it of each stream.
        tag = _TAG.fullmatch(stream.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, rest = map(float, tag.groups())
            seconds = min(seconds, 3600 * hours + 60 * minutes + rest)
        elif len(container.streams) > 1:
            slack = 1.0
        # Both are times of the container, and the first frame need not be at 0.
        start = (stream.start_time or 0) * stream.time_base
        return _Times(seconds - float(start), slack, by_duration=True)


def _has_no_rate(path: pathlib.Path) -> bool:
    """Whether FFmpeg knows no average rate, and guesses one."""
    with _stream(path) as stream:
        return stream is not None and not stream.average_rate


def _is_sound(path: pathlib.Path) -> bool:
    """Whether there is sound in a file, and no video."""
    if av is None:
        return False
    with (
        contextlib.suppress(av.error.FFmpegError),
        av.open(os.fspath(path)) as container,
    ):
        streams = container.streams
        return bool(streams.audio) and not streams.video
    return False


def _is_cover(path: pathlib.Path) -> bool:
    """Whether the video is the one picture that lies beside some sound."""
    with _stream(path) as stream:
        return stream is not None and bool(
            stream.disposition & av.stream.Disposition.attached_pic
        )


@contextlib.contextmanager
def _stream(path: pathlib.Path) -> Iterator[Any]:
    """The video as PyAV describes it, or None if it does not open the file."""
    with contextlib.ExitStack() as stack:
        found = None
        if av is not None:
            with contextlib.suppress(av.error.FFmpegError):
                container = stack.enter_context(av.open(os.fspath(path)))
                found = next(iter(container.streams.video), None)
        yield found


def _rate(times: Sequence[float]) -> float | None:
    """Frames a second at these times, pauses left out; None of too few."""
    distances = np.diff(np.asarray(times, np.float64))
    distances = distances[distances > 0]
    if not distances.size:
        return None
    # A mean, because containers round times; and without what is longer than
    # twice the usual, the median.
    usual = distances[distances <= 2 * np.median(distances)]
    return 1 / float(usual.mean())


def _is_estimate(path: pathlib.Path) -> bool:
    """Whether the number of frames that a file declares is a guess."""
    if av is None:
        return path.suffix.lower() in (".mkv", ".webm")
    with av.open(os.fspath(path)) as container:
        return not container.streams.video[0].frames


def _to_be_shown(path: pathlib.Path, count: int, declared: int) -> int:
    """How many frames a player shows, by the container's table.

    Less than declared where an edit list leaves some out, or a frame says only
    that the one before stays. A table that is shorter than `count` is cut off
    itself.
    """
    if av is None:
        return declared
    with av.open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        least = _NOT_CODED if stream.codec_context.name == "mpeg4" else 0
        shown = sum(
            entry.size > least and not entry.is_discard
            for entry in stream.index_entries
        )
    return min(shown, declared) if shown >= count else declared


def _decoded(attempts: Iterator[_Read]) -> Iterator[np.ndarray]:
    with contextlib.closing(attempts):  # type: ignore[type-var]
        yield from (read[0] for read in attempts if read is not None)


def _read_opencv(path: pathlib.Path, declared: int | None) -> Iterator[_Read]:
    """Yields frames with their times, and None for each read that failed."""
    capture = _open_opencv(path)
    try:
        count = failed = 0
        while failed <= _MAX_FAILED_READS:
            ok, frame = capture.read()
            if ok:
                count, failed = count + 1, 0
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), time
            elif count >= (declared or 0):
                return
            else:
                failed += 1
                yield None
    finally:
        capture.release()


def _read_av(path: pathlib.Path, declared: int | None) -> Iterator[_Read]:
    """Like `_read_opencv`. FFmpeg's log level stays as it is.

    Setting it while frame threads run deadlocks on damaged H.264 (PyAV's
    issues 751 and 909).
    """
    del declared
    try:
        container = av.open(os.fspath(path))
    except av.error.FFmpegError:
        return
    with container:
        for packet in container.demux(video=0):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                yield None
                continue
            for frame in decoded:
                image = frame.to_ndarray(format="rgb24")
                # PyAV leaves the rotation to its caller, OpenCV applies it.
                turns = round(getattr(frame, "rotation", 0) / 90)
                image = np.ascontiguousarray(np.rot90(image, turns))
                yield image, math.nan if frame.time is None else frame.time


class _Inspection:
    """Which frames are damaged, though decoded; found once for all readers.

    Args:
        path: A file that OpenCV reads; None if there is nothing to look for.

    Attributes:
        damaged: Numbers of such frames, of those reached.
    """

    def __init__(self, path: pathlib.Path | None) -> None:
        self.damaged: list[int] = []
        self._marks = iter(()) if path is None else _marks(path)
        self._count = 0
        # A generator cannot be entered twice.
        self._lock = threading.Lock()

    def reach(self, number: int) -> None:
        """Look at all frames up to one."""
        with self._lock:
            while self._count <= number:
                if next(self._marks, False):
                    self.damaged.append(self._count)
                self._count += 1


def _marks(path: pathlib.Path) -> Iterator[bool]:
    """Yields of each frame whether its decoder or container calls it damaged.

    The frames are those of `_read_opencv`: both are FFmpeg.
    """
    if av is None:
        return
    broken = math.inf
    with (
        contextlib.suppress(av.error.FFmpegError),
        av.open(os.fspath(path)) as container,
    ):
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            if packet.is_corrupt and packet.pts is not None:
                broken = min(broken, packet.pts)
            decoded = []
            with contextlib.suppress(av.error.FFmpegError):
                decoded = packet.decode()
            for frame in decoded:
                # Nothing may have come of a packet; then it is the frame
                # that is shown in its place.
                late = frame.pts is not None and frame.pts >= broken
                yield frame.is_corrupt or late
                if late:
                    broken = math.inf


def _told(damaged: Sequence[int]) -> str:
    if not damaged:
        return ""
    named = ", ".join(map(str, damaged[:_NAMED]))
    if len(damaged) > _NAMED:
        named += f" and {len(damaged) - _NAMED} more"
    many = len(damaged) > 1
    return (
        f"frame{'s' if many else ''} {named} (counted from 0) "
        f"{'are' if many else 'is'} damaged, and those around may show it"
    )


def written_as(path: pathlib.Path) -> pathlib.Path:
    """The name under which `Writer` writes: MP4 needs PyAV."""
    needs_av = path.suffix.lower() == ".mp4"
    return path.with_suffix(".webm") if needs_av and av is None else path


class Writer:
    """Writes a video file, whole or not at all.

    Of pixels "rgb" and "gray" one that a browser plays: H.264 in MP4 by
    PyAV, or VP8 in WebM by OpenCV when the name ends in `.webm` or PyAV is
    not installed. Of "gray16" one without loss: FFV1 in Matroska by PyAV. The
    file is written under a temporary name beside its place and renamed when
    it is complete:

        with video.Writer("overlay.mp4", fps=30, size=(640, 360)) as writer:
            for frame in frames:
                writer.write(frame)

    Frames of odd width or height get their last column or row twice in H.264
    and VP8: with shared colour samples they have even sizes only.

    Attributes:
        path: The file that is made. Its suffix is not the one asked for when
            MP4 was asked for and PyAV is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        fps: float,
        size: tuple[int, int],
        pixels: str = "rgb",
        pixel_aspect: fractions.Fraction = SQUARE,
    ):
        """Prepares a file; nothing is written before the `with` block.

        Args:
            path: A name that ends in `.mp4` or `.webm` (`.mkv` for "gray16"),
                in a folder that exists.
            fps: Frames a second.
            size: (width, height) of the frames that will come.
            pixels: One of `PIXELS`. All 256 levels of "gray" are kept apart,
                as far as H.264 goes.
            pixel_aspect: Width of a pixel by its height; kept in MP4 only.

        Raises:
            ValueError: Another suffix, or an impossible rate or size.
            VideoError: "gray16", and PyAV is not installed.
        """
        self.path = pathlib.Path(path)
        suffixes = (".mkv",) if pixels == "gray16" else (".mp4", ".webm")
        if self.path.suffix.lower() not in suffixes:
            raise ValueError(
                f"A video of {pixels} is written as {' or '.join(suffixes)}. "
                f"Received: path={str(path)!r}"
            )
        if not (math.isfinite(fps) and fps > 0) or min(size) < 1:
            raise ValueError(
                "A video needs a positive rate and size. "
                f"Received: fps={fps}, size={size}"
            )
        if av is None and pixels == "gray16":
            raise VideoError(self.path, "FFV1 needs PyAV: `pip install av`.")
        self.path = written_as(self.path)
        if self.path.suffix != pathlib.Path(path).suffix:
            logging.warning(
                "PyAV is not installed (`pip install av`), so the video "
                "becomes VP8: %s",
                self.path,
            )
        width, height = size
        dtype, channels = PIXELS[pixels]
        self._frame = np.dtype(dtype), (height, width, *channels)
        self._pixels = pixels
        self._pad = (0, 0) if pixels == "gray16" else (height % 2, width % 2)
        self._fps = fps
        self._pixel_aspect = pixel_aspect
        # The suffix stays last: encoders choose the container by it.
        self._temporary = self.path.with_name(
            f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}"
        )
        self._count = 0
        self._first = 0.0
        self._closed = self._whole = False
        self._sink: _AvSink | _OpencvSink

    def __enter__(self) -> "Writer":
        # PyAV would notice only at the first frame.
        if not self.path.parent.is_dir():
            raise VideoError(self.path, "cannot be written: no such folder.")
        files.refuse_folder(self.path)
        by_opencv = self.path.suffix.lower() == ".webm"
        sink = _OpencvSink if by_opencv else _AvSink
        height, width = self._frame[1][:2]
        size = (width + self._pad[1], height + self._pad[0])
        try:
            with naming(self.path):
                self._sink = sink(
                    self._temporary,
                    self._fps,
                    size,
                    self._pixels,
                    self._pixel_aspect,
                )
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        return self

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Appends a frame.

        Args:
            frame: [H, W] or [H, W, 3] of the size and pixels given at the
                start.
            time: Its time in seconds, later than the one before; the first
                may have any. By default frames have equal distances, as they
                always have in WebM.

        Raises:
            ValueError: Another size or type.
            VideoError: It cannot be written; the disk is full, for instance.
        """
        dtype, shape = self._frame
        if frame.shape != shape or frame.dtype != dtype:
            raise ValueError(
                f"A frame is {dtype} {list(shape)}. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        if any(self._pad):
            pad = [(0, p) for p in self._pad] + [(0, 0)] * (frame.ndim - 2)
            frame = np.pad(frame, pad, mode="edge")
        if time is None:
            time = self._count / self._fps
        if not self._count:
            self._first = time
        with naming(self.path):
            self._sink.write(frame, time - self._first)
        self._count += 1

    def finish(self) -> None:
        """Closes and checks the file; at the end of the block it is renamed.

        The block does so itself. Before, it is for those who make several
        files that are to appear together.

        Raises:
            VideoError: It could not be written whole.
        """
        if not self._whole:
            self._close()
            check_written(self.path, self._count, at=self._temporary)
            self._whole = True

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            with naming(self.path):
                self._sink.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        del error, trace
        try:
            if kind is None:
                self.finish()
                self._temporary.replace(self.path)
            else:
                self._close()
        except BaseException:
            # What went wrong first is what the caller has to see.
            if kind is None:
                raise
        finally:
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Errors of FFmpeg in the block become ones that name a file.

    Raises:
        VideoError: Instead of `av.error.FFmpegError`.
    """
    errors = (av.error.FFmpegError,) if av else ()
    try:
        yield
    except errors as error:
        raise VideoError(
            path, f"cannot be written ({error.strerror})."
        ) from error


def check_written(path: pathlib.Path, count: int, *, at: pathlib.Path) -> None:
    """Counts the frames that can be read: `cv2` drops some silently.

    Args:
        path: The file that was wanted.
        count: How many frames were written.
        at: Where it is until then.

    Raises:
        VideoError: Another number of frames than that, or none.
    """
    if not count:
        raise VideoError(path, "no frame was written to it.")
    capture = _open_opencv(at)
    readable = 0
    while capture.grab():
        readable += 1
    capture.release()
    if readable != count:
        raise VideoError(
            path,
            f"{count} frames were written and {readable} can be read back. "
            "Is the disk full?",
        )


class Ticks:
    """Times as an encoder of PyAV counts them.

    Args:
        fps: Frames a second.

    Attributes:
        rate: The same as a fraction.
        base: Seconds of a tick.
    """

    def __init__(self, fps: float) -> None:
        self.rate = fractions.Fraction(fps).limit_denominator(100_000)
        self.base = 1 / (self.rate * _TICKS)
        self._last = -1

    def stamp(self, picture: Any, time: float) -> None:
        """Give an `av.VideoFrame` its time, in seconds from the first."""
        rate = float(self.rate)
        even = round(time * rate)
        if abs(time - even / rate) <= _ROUNDED:
            ticks = even * _TICKS
        else:
            ticks = round(time * rate * _TICKS)
        self._last = max(ticks, self._last + 1)
        picture.pts = self._last
        picture.duration = _TICKS
        picture.time_base = self.base


class _AvSink:
    """H.264, colours by BT.709 and labelled so, greys at full range; FFV1."""

    def __init__(
        self,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        pixels: str,
        pixel_aspect: fractions.Fraction,
    ):
        self._picture = _PICTURES[pixels]
        lossless = pixels == "gray16"
        options = {} if lossless else {"movflags": "faststart"}
        self._container = av.open(os.fspath(path), "w", options=options)
        self._ticks = Ticks(fps)
        stream = self._container.add_stream(
            "ffv1" if lossless else "libx264", rate=self._ticks.rate
        )
        stream.width, stream.height = size
        stream.pix_fmt = "gray16le" if lossless else "yuv420p"
        context = stream.codec_context
        context.time_base = self._ticks.base
        context.sample_aspect_ratio = pixel_aspect
        if not lossless:
            # Maps are smooth, so that a finer step costs little.
            quality = "20" if pixels == "rgb" else "12"
            stream.options = {"crf": quality, "preset": "veryfast"}
        if pixels == "rgb":
            context.colorspace = context.color_primaries = 1
            context.color_trc = context.color_range = 1
        elif pixels == "gray":
            context.color_range = 2
        self._stream = stream

    def write(self, frame: np.ndarray, time: float) -> None:
        picture = self._picture(np.ascontiguousarray(frame))
        self._ticks.stamp(picture, time)
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


def _picture_of_rgb(frame: np.ndarray) -> Any:
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
    return picture.reformat(format="yuv420p", dst_colorspace="ITU709")


def _picture_of_gray(frame: np.ndarray) -> Any:
    height, width = frame.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = frame
    picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    picture.color_range = 2
    return picture


def _picture_of_gray16(frame: np.ndarray) -> Any:
    return av.VideoFrame.from_ndarray(frame, format="gray16le")


_PICTURES: Mapping[str, Callable[[np.ndarray], Any]] = {
    "rgb": _picture_of_rgb,
    "gray": _picture_of_gray,
    "gray16": _picture_of_gray16,
}


class _OpencvSink:
    """VP8: the one codec that OpenCV's wheels encode and browsers play."""

    def __init__(
        self,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        pixels: str,
        pixel_aspect: fractions.Fraction,
    ):
        del pixel_aspect
        self._to_bgr = (
            cv2.COLOR_RGB2BGR if pixels == "rgb" else cv2.COLOR_GRAY2BGR
        )
        self._writer = cv2.VideoWriter(
            str(path),
            cv2.CAP_FFMPEG,
            cv2.VideoWriter.fourcc(*"VP80"),
            fps,
            size,
        )
        # A writer that did not open ignores every frame without an error.
        if not self._writer.isOpened():
            raise VideoError(path, "OpenCV opened no VP8 encoder for it.")

    def write(self, frame: np.ndarray, time: float) -> None:
        del time
        self._writer.write(cv2.cvtColor(frame, self._to_bgr))

    def close(self) -> None:
        self._writer.release()
