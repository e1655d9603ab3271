"""Frames of a video file, and a video file of frames.

Frames are uint8 RGB arrays [H, W, 3], numbered from 0 as decoded; rotation
flags are applied. Sizes are (width, height) in pixels, as OpenCV says them.
Nothing here holds more than one frame.

A video is read from its start to its end and never by seeking, and the frames
that came are counted against the number that the file declares: decoders stop
at the first damaged place without a word, although most frames after it can
be had by reading on.
"""

from collections.abc import Iterator
import contextlib
import fractions
import math
import os
import pathlib
import types

from absl import logging
import cv2
import numpy as np

from lsts_tf import files

try:
    import av
except ImportError:  # Optional: without it no AV1 is read, no MP4 written.
    av = None

_FPS_IF_UNKNOWN = 25.0
# A read that fails is not the end of a damaged file. In damaged H.264, MPEG-4
# and VP9 files decoding went on after far fewer failures than this.
_MAX_FAILED_READS = 100


class VideoError(files.FileError):
    """A file that cannot be read, or written, as a video."""


class TruncatedVideoError(VideoError):
    """A video of which some frames are missing; the others were delivered."""


class Video:
    """A video file; iterating yields its frames, each time from the first.

    The first frame is decoded at once, so that a file without any is refused
    here and not in the middle of a pipeline.

    Attributes:
        path: The file.
        fps: Frames a second; 25 when the file does not say.
        size: (width, height) of the frames as they are delivered.
        num_frames: How many frames the file declares; None if it does not.
            Some containers only estimate it: count what comes.
    """

    def __init__(self, path: str | os.PathLike, *, strict: bool = True):
        """Opens a video.

        Args:
            path: A file in any format that OpenCV or PyAV decodes.
            strict: Whether missing frames are an error, raised after the last
                frame that could be decoded, or only a warning in the log.

        Raises:
            VideoError: The file is missing, empty, not a video, or none of
                its frames can be decoded.
        """
        self.path = pathlib.Path(path)
        self._strict = strict
        _refuse_unreadable(self.path)
        self._read = _read_opencv
        self.fps, self.num_frames = _properties(self.path)
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

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames.

        Yields:
            uint8 [H, W, 3], RGB; a new array each time.

        Raises:
            TruncatedVideoError: After the last frame, when fewer frames came
                than were declared or some in between were lost; not if the
                video was opened with `strict=False`.
            VideoError: A frame has another size than the first.
        """
        count = lost = failures = 0
        first_loss = None
        for frame in self._read(self.path, self.num_frames):
            if frame is None:
                failures += 1
                continue
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
            yield frame
            count += 1
        self._check(count, lost, first_loss)

    def _check(self, count: int, lost: int, first_loss: int | None) -> None:
        declared = self.num_frames or count
        # Containers without a table of frames estimate their number from
        # the duration; those estimates are off by one now and then.
        complete = declared - count <= max(1, declared // 100)
        if complete and not lost:
            return
        reason = f"read {count} of {declared} frames"
        if lost:
            reason += (
                f"; it is damaged at frame {first_loss}, so later frames have "
                "other numbers than they should"
            )
        else:
            reason += "; its end is missing or damaged"
        reason += ". Get the file again, or re-encode it."
        if self._strict:
            raise TruncatedVideoError(self.path, reason)
        logging.warning("%s: %s", self.path, reason)


def frames(
    path: str | os.PathLike, *, strict: bool = True
) -> Iterator[np.ndarray]:
    """Yields the frames of a video file; see `Video`.

    Args:
        path: A video file.
        strict: Whether missing frames are an error or a warning.

    Yields:
        uint8 [H, W, 3], RGB.

    Raises:
        VideoError: The file cannot be read as a video.
        TruncatedVideoError: After the last frame: some are missing.
    """
    yield from Video(path, strict=strict)


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


def _properties(path: pathlib.Path) -> tuple[float, int | None]:
    capture = _open_opencv(path)
    try:
        if not capture.isOpened():
            raise VideoError(
                path,
                "not a video, cut off before its index, or of an unknown "
                "format.",
            )
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    if not (math.isfinite(fps) and fps > 0):
        fps = _FPS_IF_UNKNOWN
    declared = int(count) if math.isfinite(count) and count > 0 else None
    return fps, declared


def _decoded(attempts: Iterator[np.ndarray | None]) -> Iterator[np.ndarray]:
    with contextlib.closing(attempts):  # type: ignore[type-var]
        yield from (frame for frame in attempts if frame is not None)


def _read_opencv(
    path: pathlib.Path, declared: int | None
) -> Iterator[np.ndarray | None]:
    """Yields frames, and None for each read that failed."""
    capture = _open_opencv(path)
    try:
        count = failed = 0
        while failed <= _MAX_FAILED_READS:
            ok, frame = capture.read()
            if ok:
                count, failed = count + 1, 0
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            elif count >= (declared or 0):
                return
            else:
                failed += 1
                yield None
    finally:
        capture.release()


def _read_av(
    path: pathlib.Path, declared: int | None
) -> Iterator[np.ndarray | None]:
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
                yield np.ascontiguousarray(np.rot90(image, turns))


class Writer:
    """Writes a video file that a browser plays, whole or not at all.

    H.264 in MP4 by PyAV, or VP8 in WebM by OpenCV when the name ends in
    `.webm` or PyAV is not installed. The file is written under a temporary
    name beside its place and renamed when it is complete:

        with video.Writer("overlay.mp4", fps=30, size=(640, 360)) as writer:
            for frame in frames:
                writer.write(frame)

    Frames of odd width or height get their last column or row twice: H.264
    with shared colour samples has even sizes only.

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
    ):
        """Prepares a file; nothing is written before the `with` block.

        Args:
            path: A name that ends in `.mp4` or `.webm`, in a folder that
                exists.
            fps: Frames a second.
            size: (width, height) of the frames that will come.

        Raises:
            ValueError: Another suffix, or an impossible rate or size.
        """
        self.path = pathlib.Path(path)
        if self.path.suffix.lower() not in (".mp4", ".webm"):
            raise ValueError(
                "A video is written as .mp4 or .webm. "
                f"Received: path={str(path)!r}"
            )
        if not (math.isfinite(fps) and fps > 0) or min(size) < 1:
            raise ValueError(
                "A video needs a positive rate and size. "
                f"Received: fps={fps}, size={size}"
            )
        if self.path.suffix.lower() == ".mp4" and av is None:
            self.path = self.path.with_suffix(".webm")
            logging.warning(
                "PyAV is not installed (`pip install av`), so the video "
                "becomes VP8: %s",
                self.path,
            )
        self._size = tuple(size)
        self._fps = fps
        # The suffix stays last: encoders choose the container by it.
        self._temporary = self.path.with_name(
            f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}"
        )
        self._count = 0
        self._sink: _AvSink | _OpencvSink

    def __enter__(self) -> "Writer":
        # PyAV would notice only at the first frame.
        if not self.path.parent.is_dir():
            raise VideoError(self.path, "cannot be written: no such folder.")
        is_mp4 = self.path.suffix.lower() == ".mp4"
        sink = _AvSink if is_mp4 else _OpencvSink
        width, height = self._size
        even = (width + width % 2, height + height % 2)
        try:
            self._sink = sink(self._temporary, self._fps, even)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame.

        Args:
            frame: uint8 [H, W, 3], RGB, of the size given at the start.

        Raises:
            ValueError: Another size or type.
        """
        width, height = self._size
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"A frame is uint8 [{height}, {width}, 3]. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        if width % 2 or height % 2:
            frame = np.pad(
                frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"
            )
        self._sink.write(frame)
        self._count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        del error, trace
        try:
            self._sink.close()
            if kind is None:
                self._check()
                self._temporary.replace(self.path)
        except BaseException:
            # What went wrong first is what the caller has to see.
            if kind is None:
                raise
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check(self) -> None:
        """Counts the frames that can be read: `cv2` drops some silently."""
        if not self._count:
            raise VideoError(self.path, "no frame was written to it.")
        capture = _open_opencv(self._temporary)
        readable = 0
        while capture.grab():
            readable += 1
        capture.release()
        if readable != self._count:
            raise VideoError(
                self.path,
                f"{self._count} frames were written and {readable} can be "
                "read back. Is the disk full?",
            )


class _AvSink:
    """H.264, colours by BT.709 and labelled so."""

    def __init__(self, path: pathlib.Path, fps: float, size: tuple[int, int]):
        self._container = av.open(
            os.fspath(path), "w", options={"movflags": "faststart"}
        )
        self._stream = self._container.add_stream(
            "libx264", rate=fractions.Fraction(fps).limit_denominator(100_000)
        )
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1

    def write(self, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(frame), format="rgb24"
        ).reformat(format="yuv420p", dst_colorspace="ITU709")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


class _OpencvSink:
    """VP8: the one codec that OpenCV's wheels encode and browsers play."""

    def __init__(self, path: pathlib.Path, fps: float, size: tuple[int, int]):
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

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()
