"""Frames of a film.

Frames are uint8 RGB arrays [H, W, 3], numbered from 0: those that the program
`ffmpeg` decodes, turned and mirrored as the file says. Sizes are (width,
height) in pixels. Times are seconds from the first frame: those of the file,
which need not be equally spaced. No more than one frame is held.

A film is read once, from its start to its end, without seeking. What is wrong
with it is learnt on the way: what decoder and container mark as damaged, what
fails to decode, and whether all frames came that the container lists.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fractions
import functools
import itertools
import math
import os
import pathlib
import re
from typing import Any

from absl import logging
import av
from av.sidedata.sidedata import SideDataContainer
import cv2
import numpy as np

from lsts_tf.media import files

# What films are called in a folder of several files.
SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ts", ".webm", ".wmv"),
)
FPS_IF_UNKNOWN = 25.0
# Width of a pixel by its height.
SQUARE = fractions.Fraction(1)
# No camera that people have is faster; what is, is how finely a container
# counts time. The rate is then measured on the first frames.
_MOST_FPS = 240
_MEASURED = 50
# How Matroska's muxers note when a stream ends.
_TAG = re.compile(r"([0-9]+):([0-9]+):([0-9]+\.?[0-9]*)")
# Distances between frames from which on one is missing.
_GAP = 1.5
# Bytes between two packets of Matroska, at most; headers have less.
_HEADERS = 256
# Bytes of an MPEG-4 frame that says only that nothing changed, at most; one of
# a single block is larger. DivX and XviD write them, and nothing is decoded.
_NOT_CODED = 8
# Matroska rounds times to milliseconds, here twice.
_ROUNDED = 0.002
# Pixel formats whose first plane is grey; FFmpeg's number of the full range.
_LUMA = re.compile(r"(gray|yuvj?4\d\dp)(\d+le)?")
_FULL_RANGE = 2


class VideoError(files.FileError):
    """A file that cannot be read, or written, as a film."""


class TruncatedVideoError(VideoError):
    """A film with frames missing or damaged; the others were delivered."""


class Video:
    """A film; iterating yields its frames, each time from the first.

    The first frame is decoded at once, so that a file without any is refused
    here and not in the middle of a pipeline. A pipe can be read once only.

    Attributes:
        path: The file, or what a pipe is called.
        fps: Frames a second, on average; 25 when the file does not say.
        size: (width, height) of the frames.
        num_frames: How many frames MP4 lists; of other containers about as
            many as fill its length at that rate; None if nobody knows.
        pixel_aspect: Width of a pixel by its height, as it is to be seen.
        is_pipe: Whether it can be read once only.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        pipe: Any = None,
        form: str | None = None,
        options: Mapping[str, str] | None = None,
        grey: bool = False,
    ):
        """Opens a film.

        Args:
            path: A file, or a named pipe.
            pipe: An object with `read`, instead of the file.
            form: FFmpeg's name of the format; by default it is recognised.
            options: FFmpeg's options of that format.
            grey: Whether frames are grey levels [H, W], uint8 or uint16 in the
                film's own bits, instead of RGB; of colours their sum.

        Raises:
            VideoError: The file is missing, empty, not a film, or none of
                its frames can be decoded.
        """
        self.path = pathlib.Path(path)
        if pipe is None:
            if not self.path.exists():
                raise VideoError(path, "no such file.")
            if not (self.path.is_file() or self.path.is_fifo()):
                raise VideoError(
                    path,
                    "neither a file nor a pipe; for a camera, use camera:0.",
                )
            if self.path.is_file() and not self.path.stat().st_size:
                raise VideoError(path, "the file is empty.")
        self.is_pipe = pipe is not None or self.path.is_fifo()
        # Without a protocol, FFmpeg takes what stands before a colon for one.
        source = f"file:{self.path}" if pipe is None else pipe
        self._open = functools.partial(
            _Pass, self.path, source, form, options or {}
        )
        self._is_grey = grey
        self._is_read = False
        self._pass = self._open()
        first = self._pass.first
        if first is None:
            self._pass.close()
            reason = "no frame of it can be decoded (damaged?)."
            if self.is_pipe and self._pass.is_mp4:
                reason = (
                    "no frame of it can be decoded: from a pipe, MP4 is read "
                    "only with its index in front (`-movflags faststart`)."
                )
            raise VideoError(self.path, reason)
        self.fps = self._pass.fps
        self.num_frames = self._pass.about
        image = self._image(first, 0)
        self.size = image.shape[1], image.shape[0]
        self.pixel_aspect = self._pass.stream.sample_aspect_ratio or SQUARE
        if "transpose" in dict(_turning(first)):
            self.pixel_aspect = 1 / self.pixel_aspect
        if self._pass.aside:
            read, *aside = (
                f"stream {stream.index} ({size.width}x{size.height})"
                for stream in (self._pass.stream, *self._pass.aside)
                for size in [stream.codec_context]
            )
            logging.warning(
                "%s holds several video streams. %s is read, not %s.",
                *(self.path, read, ", ".join(aside)),
            )

    @property
    def damage(self) -> str:
        """What is wrong with the frames that were read so far, or ""."""
        return self._pass.told()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames; see `timed`."""
        for frame, _ in self.timed():
            yield frame

    def timed(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yields the frames with their times.

        Yields:
            uint8 [H, W, 3], RGB (or grey), a new array each time; and seconds
            from the first frame, greater each time. Where the file says none,
            a frame comes 1 / fps after the one before.

        Raises:
            TruncatedVideoError: After the last frame: frames are missing or
                damaged.
            VideoError: A frame has another size than the first, or colours
                that FFmpeg cannot convert; or a pipe is read a second time.
        """
        if self._is_read:
            if self.is_pipe:
                raise VideoError(self.path, "a pipe can be read only once.")
            self._pass = self._open()
        self._is_read, reading = True, self._pass
        start = last = 0.0
        with contextlib.closing(reading):
            for count, (frame, is_damaged) in enumerate(reading.frames):
                image = self._image(frame, count)
                if image.shape[1::-1] != self.size:
                    raise VideoError(
                        self.path,
                        f"frame {count} has another size than the first: "
                        f"{image.shape[1::-1]} instead of {self.size}.",
                    )
                time = math.nan if frame.time is None else frame.time
                if not count:
                    start = time
                # Also where one of them is NaN.
                elif not time - start > last:
                    last += 1 / self.fps
                else:
                    last = time - start
                yield image, last
                if is_damaged:
                    reading.damaged.append(count)
        if damage := reading.told():
            raise TruncatedVideoError(
                self.path, f"{damage}. Get the file again, or re-encode it."
            )

    def _image(self, frame: Any, number: int) -> np.ndarray:
        levels = _luma(frame) if self._is_grey else None
        if levels is not None:
            return levels
        try:
            image = self._pass.rgb(frame)
        except av.error.FFmpegError as error:
            raise VideoError(
                self.path,
                f"frame {number} (counted from 0) cannot be converted to RGB "
                f"({error.strerror}): re-encode it with `ffmpeg`.",
            ) from error
        return image.sum(axis=2, dtype=np.uint16) if self._is_grey else image


def frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yields the frames of a film, uint8 RGB [H, W, 3]; see `Video`."""
    yield from Video(path)


def count_frames(path: str | os.PathLike) -> int:
    """Number of frames of a film.

    It is what MP4 lists. Of other containers all are decoded and counted.

    Raises:
        VideoError: The file cannot be read as a film; or frames are counted,
            and some are missing or damaged.
    """
    film = Video(path)
    with contextlib.closing(film._pass) as reading:
        return reading.listed() or sum(1 for _ in film)


def _rank(stream: Any) -> int:
    """The greatest is the one that `ffmpeg` takes for the film.

    A single picture is less than any film, as the first one of an animated
    AVIF, which FFmpeg took for the film from version 6 on.
    """
    is_cover = stream.disposition & av.stream.Disposition.attached_pic
    if is_cover or stream.frames == 1:
        return 1
    is_default = bool(stream.disposition & av.stream.Disposition.default)
    context = stream.codec_context
    return context.width * context.height + 5_000_000 * is_default


def _turning(frame: Any) -> list[tuple[str, str]]:
    """FFmpeg's filters that show an `av.VideoFrame` as its file says."""
    # Not `frame.side_data`, a cycle that keeps the frame until it is collected.
    side = SideDataContainer(frame)  # type: ignore[call-arg]
    matrix = side.get("DISPLAYMATRIX")
    if matrix is None:
        return []
    # A pixel at (x, y) is shown at (ax + cy, bx + dy).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    angle = round(math.degrees(math.atan2(b, a)))
    # FFmpeg is as lenient.
    if 1 < angle % 90 < 89:
        return [("rotate", f"{angle}*PI/180")]
    found = []
    if abs(b) > abs(a):
        found.append(("transpose", "cclock_flip"))
        a, d = c, b
    if a < 0:
        found.append(("hflip", ""))
    if d < 0:
        found.append(("vflip", ""))
    return found


def filtering(frame: Any, filters: Sequence[tuple[str, str]]) -> Any:
    """FFmpeg's filters, by (name, arguments), for frames as a given one.

    `vpush` takes a frame, and `vpull` gives it.
    """
    graph = av.filter.Graph()
    # The workers that call this are as many as there are cores.
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base,
    )
    nodes = [graph.add(*each) for each in (*filters, ("buffersink", ""))]
    graph.link_nodes(source, *nodes).configure()
    return graph


def _luma(frame: Any) -> np.ndarray | None:
    """Grey levels [H, W] of an `av.VideoFrame`; None if it has more than grey.

    They are those that FFmpeg would write into a picture: a film of 8 bits that
    counts black as 16 and white as 235 is stretched to 0 … 255. One of more
    bits is cut to that range and not stretched.
    """
    bits = frame.format.components[0].bits
    if not _LUMA.fullmatch(frame.format.name) or _turning(frame):
        return None
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    image, *colours = (
        np.frombuffer(plane, dtype).reshape(
            plane.height, plane.line_size // dtype.itemsize
        )[:, : plane.width]
        for plane in frame.planes
    )
    neutral = 1 << (bits - 1)
    if any((colour != neutral).any() for colour in colours):
        return None
    image = np.ascontiguousarray(image)
    is_full = frame.color_range == _FULL_RANGE or "yuvj" in frame.format.name
    if not colours or is_full:
        return image
    if bits == 8:
        return cv2.LUT(image, _stretched())
    return np.clip(image, 16 << (bits - 8), (943 << bits) >> 10)


@functools.cache
def _stretched() -> np.ndarray:
    """What FFmpeg makes of grey levels of a film with black at 16: [256]."""
    ramp = av.VideoFrame(256, 2, "yuv420p")
    ramp.pts, ramp.time_base = 0, fractions.Fraction(1, 25)
    for plane, levels in zip(
        ramp.planes, (np.arange(256), np.array(128), np.array(128)), strict=True
    ):
        found = np.frombuffer(plane, np.uint8)
        found.reshape(plane.height, -1)[:, : plane.width] = levels
    graph = filtering(ramp, [("format", "rgb24")])
    graph.vpush(ramp)
    return np.ascontiguousarray(graph.vpull().to_ndarray()[0, :, 0])


class _Pass:
    """One reading of a film, from its start to its end.

    A packet holds one frame, which has the packet's time: so it is known
    whether a frame has come of each packet. Of interlaced H.264 it may hold one
    field: there only the decoder's errors tell.

    Attributes:
        stream: What FFmpeg takes for the film.
        aside: Other films in the file.
        about: How many frames there are, or should be; None if nobody knows.
        frames: (frame, whether it is damaged), in the order of showing.
        first: The first of them, which is decoded at once, or None.
        damaged: Numbers of damaged frames, of those that somebody has seen.
    """

    def __init__(
        self, path: pathlib.Path, source: Any, form: str | None, options: Any
    ) -> None:
        try:
            # PyAV's log level stays as it is: setting it while frame threads
            # run deadlocks on damaged H.264 (PyAV's issues 751 and 909).
            self._container = av.open(
                source,
                format=form,
                # A playlist in disguise reaches no network.
                container_options={"protocol_whitelist": "file", **options},
                metadata_errors="replace",
            )
        except av.error.FFmpegError as error:
            raise VideoError(
                path,
                "not a video, cut off before its index, or of an unknown "
                f"format ({error.strerror}).",
            ) from error
        # PyAV asks FFmpeg to guess times that are missing. Of films in AVI
        # whose frames are not stored in their order it guesses wrong ones.
        self._container.flags &= ~av.container.core.Flags.gen_pts.value
        films = [s for s in self._container.streams.video if s.codec_context]
        if not films:
            self.close()
            raise VideoError(
                path,
                "not a video: there is only sound, or a codec that FFmpeg "
                "does not know.",
            )
        self.stream, *others = sorted(films, key=_rank, reverse=True)
        # Covers are none.
        self.aside = [stream for stream in others if _rank(stream) > 1]
        self._codec = self.stream.codec_context.name
        self._kind: Any = None
        # See `filtering`.
        self.stream.codec_context.thread_count = 1
        self._source, self._name = source, self._container.format.name
        self.is_mp4 = "mp4" in self._name
        self.damaged: list[int] = []
        # Packets that came, frames that were shown, and the end of the last
        # packet in the stream's ticks.
        self._came = self._shown = self._reached = 0
        # Seconds: when frames begin, and how long the last one lasts.
        self._times: list[float] = []
        self._lasts = 0.0
        # Times of packets whose frame has not been shown; with the number of
        # the frame that was shown in its place, if there is one.
        self._waiting: dict[int, int | None] = {}
        # Before the key frame that a film begins with, frames may stand that
        # need others in front of it: cut off there, it does not show them.
        self._leading = -math.inf
        # False if the decoder gives frames other times than packets have, or
        # packets may hold fields: then packets that cannot be decoded count, by
        # the next frame's number.
        self._is_timed = True
        self._failed: list[int] = []
        # Frames that should come of the packets; none, if they hold fields.
        self._owed = 0.0
        # Where the last packet ends in the file.
        self._tail = 0
        # Numbers of frames before which others are lost for other reasons.
        self._lost: list[int] = []
        self._missing = ""
        self._packets = self._demuxed()
        self.fps = self._rate()
        self._seconds = self._length()
        self.about: int | None = self.listed() or None
        if self.about is None and self._seconds is not None:
            self.about = max(1, round(self._seconds * self.fps))
        decoded = self._decoded()
        head = list(itertools.islice(decoded, 1))
        self.frames: Iterator[tuple[Any, bool]] = itertools.chain(head, decoded)
        self.first = head[0][0] if head else None

    def rgb(self, frame: Any) -> np.ndarray:
        """uint8 [H, W, 3] of an `av.VideoFrame`, upright.

        The pixels are those of FFmpeg's program. `av.VideoFrame.reformat`
        differs: it converts the fields of interlaced frames one by one, and
        shifts colour samples of 10 bits.

        Raises:
            av.error.FFmpegError: FFmpeg cannot convert it.
        """
        turning = _turning(frame)
        kind = (frame.width, frame.height, frame.format.name, turning)
        if kind != self._kind:
            self._kind = kind
            self._graph = filtering(frame, [*turning, ("format", "rgb24")])
        self._graph.vpush(frame)
        return self._graph.vpull().to_ndarray()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def listed(self) -> int:
        """How many frames MP4 lists, without those that an edit leaves out.

        0 if it lists none, or fields.
        """
        if not (self.is_mp4 and self.stream.frames and self._is_timed):
            return 0
        return sum(not e.is_discard for e in self.stream.index_entries)

    def _rate(self) -> float:
        """Frames a second; measured where the container cannot know them."""
        stream = self.stream
        fps = float(stream.guessed_rate or stream.average_rate or 0)
        if 0 < fps <= _MOST_FPS and stream.average_rate:
            return fps
        head = list(itertools.islice(self._packets, _MEASURED))
        self._packets = itertools.chain(head, self._packets)
        ticks = [
            float(p.pts * stream.time_base)
            for p in head
            if p.stream_index == stream.index and p.pts is not None
        ]
        distances = np.diff(sorted(ticks))
        distances = distances[distances > 0]
        if distances.size:
            # A mean, because containers round times; and without what is
            # longer than twice the usual, the median.
            usual = distances[distances <= 2 * np.median(distances)]
            return 1 / float(usual.mean())
        return fps if 0 < fps <= _MOST_FPS else FPS_IF_UNKNOWN

    def _length(self) -> float | None:
        """Seconds of the film by its container; None if it says nothing."""
        stream = self.stream
        # Of an AVI that is cut off FFmpeg shortens the duration.
        ticks = stream.frames if self._name == "avi" else stream.duration
        if ticks:
            return float(ticks * stream.time_base)
        if "matroska" not in self._name:
            return None
        tag = _TAG.fullmatch(stream.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, rest = map(float, tag.groups())
            start = float((stream.start_time or 0) * stream.time_base)
            return 3600 * hours + 60 * minutes + rest - start
        # Otherwise it speaks of all its streams, and sound may be longer.
        container = self._container
        if len(container.streams) == 1 and container.duration:
            return container.duration / av.time_base
        return None

    def _demuxed(self) -> Iterator[Any]:
        try:
            yield from self._container.demux()
        except av.error.FFmpegError as error:
            self._missing = f"reading ends with an error ({error.strerror})"

    def _film(self) -> Iterator[Any]:
        """The film's own packets.

        Matroska's reader passes over what it does not understand in silence:
        then bytes lie between two packets, and times jump.
        """
        place = skipped = 0
        latest: int | None = None
        for packet in self._packets:
            if packet.pos is not None:
                if self._tail:
                    skipped = max(skipped, packet.pos - self._tail)
                # Several packets may share a place.
                start = self._tail if packet.pos == place else packet.pos
                place, self._tail = packet.pos, start + packet.size
            if packet.stream_index != self.stream.index:
                continue
            if packet.pts is not None:
                latest = packet.pts if latest is None else latest
                step = float((packet.pts - latest) * packet.time_base)
                jumps = step * self.fps > _GAP and skipped > _HEADERS
                if jumps and "matroska" in self._name:
                    self._lost.append(self._came)
                skipped, latest = 0, max(latest, packet.pts)
            if packet.dts is not None:
                self._reached = max(self._reached, packet.dts + 1)
            # AVI has empty ones, where the frame before stays; and at the end
            # of all others PyAV yields one.
            if packet.size:
                self._came += 1
                yield packet

    def _decoded(self) -> Iterator[tuple[Any, bool]]:
        broken = set()
        # An empty packet brings out what is left in the decoder.
        last = av.Packet()
        last.stream, last.time_base = self.stream, self.stream.time_base
        for packet in itertools.chain(self._film(), [last]):
            # An edit list discards some, and of others no frame comes.
            is_empty = self._codec == "mpeg4" and packet.size <= _NOT_CODED
            if packet.size and not (packet.is_discard or is_empty):
                self._owed += 1
                if packet.pts is not None:
                    self._waiting[packet.pts] = None
                    if self._came == 1 and packet.is_keyframe:
                        self._leading = packet.pts
            if packet.is_corrupt:
                broken.add(packet.pts)
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                failed = self._lost if packet.pts is None else self._failed
                failed.append(self._shown)
                continue
            for frame in decoded:
                if frame.pts is None:
                    frame.pts = frame.dts
                self._note(frame)
                yield frame, frame.is_corrupt or frame.pts in broken
                broken.discard(frame.pts)
        self._finish()

    def _note(self, frame: Any) -> None:
        """Compares a frame to be shown with the packets."""
        if frame.interlaced_frame and self._codec == "h264":
            self._is_timed = False
            self._owed = -math.inf
        if frame.pts in self._waiting:
            del self._waiting[frame.pts]
            for time, place in self._waiting.items():
                if place is None and time < frame.pts:
                    self._waiting[time] = self._shown
        else:
            self._is_timed = False
        if frame.time is not None:
            self._lasts = float((frame.duration or 0) * frame.time_base)
            self._times.append(frame.time)
        self._shown += 1

    def _finish(self) -> None:
        """Looks whether all came that the container lists."""
        stream, missing, listed = self.stream, False, ""
        times = self._times or [0.0]
        longest = np.diff(times).max(initial=0)
        if self.is_mp4:
            entries = stream.index_entries
            missing = self._came < len(entries)
            listed = f" of {sum(not e.is_discard for e in entries)}"
        elif self._name == "avi":
            # It counts in ticks, of which a frame may last several.
            tick = float(stream.time_base)
            left = (stream.frames - self._reached) * tick
            missing = left > max(tick, longest) - tick / 2
            listed = f" of {self.about}"
        elif "matroska" in self._name and self._seconds is not None:
            # The last one may be shown for as long as any other.
            most = max((1 + _GAP) / self.fps, longest, self._lasts)
            left = self._seconds - (times[-1] - times[0])
            missing = left > most + _ROUNDED
        elif self._name == "yuv4mpegpipe":
            # Its reader drops a frame that is cut off.
            size = getattr(self._source, "taken", self._container.size)
            missing = size > self._tail
        if self._is_timed and None in self._waiting.values():
            missing = True
        lost = self._owed - self._shown - len(self._failed)
        if not (self._is_timed or missing or self._missing) and lost > 0:
            self._missing = f"frames that cannot be decoded: {lost:.0f}"
        if missing and not self._missing:
            self._missing = (
                f"read {self._shown}{listed} frames; its end is missing or "
                f"damaged, from frame {self._shown} (counted from 0) on"
            )

    def told(self) -> str:
        """What is wrong with the frames that were read so far, or ""."""
        late = [
            place
            for time, place in self._waiting.items()
            if place is not None and time >= self._leading
        ]
        lost = sorted(
            [*self._lost, *(late if self._is_timed else self._failed)]
        )
        reasons = []
        if early := lost.count(0):
            length = ""
            head = [t for t, place in self._waiting.items() if place == 0]
            if self._is_timed and head:
                start = float(min(head) * self.stream.time_base)
                length = f" ({self._times[0] - start:.2f} s)"
            reasons.append(
                f"frames at its start cannot be decoded: {early}{length}, so "
                "all others have other numbers than they should"
            )
        if lost[early:]:
            reasons.append(
                f"frames are missing before frame {lost[early]} (counted from "
                "0), so later frames have other numbers than they should"
            )
        if self._missing:
            reasons.append(self._missing)
        if self.damaged:
            reasons.append(
                "damaged frames (counted from 0): "
                f"{files.named(self.damaged)}; frames around them may show it"
            )
        return "; ".join(reasons)
