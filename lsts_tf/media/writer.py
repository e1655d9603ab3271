"""A film of frames, written by PyAV; whole or not at all."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fractions
import math
import pathlib
from typing import Any, NamedTuple, Self

import av
import numpy as np

from lsts_tf.media import files, video

# Times are kept to a 64th of the distance between two frames. Some containers
# round them to milliseconds: so close to an even rate, it is even.
_TICKS = 64
_ROUNDED = 0.001


class _Kind(NamedTuple):
    """What a film may be made of; codec, pixels and tags by FFmpeg's names."""

    dtype: type
    # Behind [H, W].
    channels: tuple[int, ...]
    suffix: str
    codec: str
    pix_fmt: str
    # Less is better; "" for one without loss.
    crf: str
    # Of the colours.
    tags: dict[str, int]

    def picture(self, frame: np.ndarray) -> Any:
        """An `av.VideoFrame` of a frame."""
        make = av.VideoFrame.from_ndarray
        if self.channels:
            picture = make(frame, format="rgb24")
            return picture.reformat(
                format=self.pix_fmt, dst_colorspace="ITU709"
            )
        if self.pix_fmt == "yuv420p":
            height, width = frame.shape
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = frame
            frame = planes
        picture = make(frame, format=self.pix_fmt)
        picture.color_range = self.tags.get("color_range", 0)
        return picture


_BT709 = ("colorspace", "color_primaries", "color_trc", "color_range")
_H264, _FULL = (".mp4", "libx264"), {"color_range": 2}
_RGB = dict.fromkeys(_BT709, 1)
PIXELS = {
    "rgb": _Kind(np.uint8, (3,), *_H264, "yuv420p", "20", _RGB),
    # Maps are smooth, so that a finer step costs little.
    "gray": _Kind(np.uint8, (), *_H264, "yuv420p", "12", _FULL),
    # As the films of AViMoS and CrowdSAL are.
    "gray10": _Kind(np.uint16, (), *_H264, "gray10le", "0", _FULL),
    "gray16": _Kind(np.uint16, (), ".mkv", "ffv1", "gray16le", "", {}),
}


@dataclasses.dataclass
class Writer:
    """Writes a film, at `path`, whole or not at all.

    Of pixels "rgb" and "gray" one that a browser plays, H.264 in MP4: colours
    by BT.709, greys at full range. Of "gray10" (levels 0 … 1023) one that loses
    almost nothing; of "gray16" one without loss, FFV1 in Matroska. The file
    gets its name when it is complete:

        with writer.Writer("overlay.mp4", fps=30, size=(640, 360)) as film:
            for frame in frames:
                film.write(frame)

    "rgb" and "gray" of odd width or height get their last column or row twice:
    with shared colour samples H.264 has even sizes only. Nothing is written
    before the `with` block.

    Attributes:
        path: A name that ends in `.mp4` (`.mkv` for "gray16"), in a folder
            that exists.
        fps: Frames a second.
        size: (width, height) of the frames that will come.
        pixels: One of `PIXELS`.
        pixel_aspect: Width of a pixel by its height.
        encoder: Another encoder of "rgb" than FFmpeg's libx264.
        options: Of the encoder, in the place of ours.
        comment: Stands in the file.

    Raises:
        ValueError: Another suffix, or an impossible rate or size.
    """

    path: pathlib.Path
    _: dataclasses.KW_ONLY
    fps: float
    size: tuple[int, int]
    pixels: str = "rgb"
    pixel_aspect: fractions.Fraction = video.SQUARE
    encoder: str = ""
    options: Mapping[str, str] | None = None
    comment: str = ""

    def __post_init__(self) -> None:
        self.path = pathlib.Path(self.path)
        self._kind = kind = PIXELS[self.pixels]
        if self.path.suffix.lower() != kind.suffix:
            raise ValueError(
                f"A video of {self.pixels} is written as {kind.suffix}. "
                f"Received: path={str(self.path)!r}"
            )
        if not (math.isfinite(self.fps) and self.fps > 0 < min(self.size)):
            raise ValueError(
                "A video needs a positive rate and size. "
                f"Received: fps={self.fps}, size={self.size}"
            )
        width, height = self.size
        self._shape = (height, width, *kind.channels)
        shared = kind.pix_fmt == "yuv420p"
        self._pad = (height % 2, width % 2) if shared else (0, 0)
        self._rate = fractions.Fraction(self.fps).limit_denominator(100_000)
        self._base = 1 / (self._rate * _TICKS)
        self._last = -1
        if self.options is None and kind.crf:
            self.options = {"crf": kind.crf, "preset": "veryfast"}
        self._count = 0
        self._first = 0.0

    def __enter__(self) -> Self:
        # PyAV would notice only at the first frame.
        if not self.path.parent.is_dir():
            raise video.VideoError(
                self.path, "cannot be written: no such folder."
            )
        with contextlib.ExitStack() as stack:
            self._hidden = stack.enter_context(files.replacing(self.path))
            with _naming(self.path):
                self._open()
            self._files = stack.pop_all()
        return self

    def _open(self) -> None:
        kind = self._kind
        self._container = av.open(
            f"file:{self._hidden}",
            "w",
            options={"movflags": "faststart"} if kind.crf else {},
        )
        if self.comment:
            self._container.metadata["comment"] = self.comment
        stream = self._container.add_stream(
            self.encoder or kind.codec, rate=self._rate
        )
        even = np.add(self._shape[:2], self._pad)
        stream.height, stream.width = even.tolist()
        stream.pix_fmt = kind.pix_fmt
        stream.options = dict(self.options or {})
        context = stream.codec_context
        if self.encoder == "libx265":
            # Apple's players know HEVC by this name only.
            context.codec_tag = "hvc1"
        context.time_base = self._base
        context.sample_aspect_ratio = self.pixel_aspect
        for name, value in kind.tags.items():
            setattr(context, name, value)
        self._stream = stream

    def write(
        self,
        frame: np.ndarray,
        time: float | None = None,
        *,
        filters: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Appends a frame.

        Args:
            frame: [H, W] or [H, W, 3].
            time: Its seconds, later than the one before; the first may have
                any. By default frames have equal distances.
            filters: Of FFmpeg, that it goes through; see `video.filtering`.

        Raises:
            ValueError: Another size or type.
            VideoError: It cannot be written; the disk is full, for instance.
        """
        dtype = np.dtype(self._kind.dtype)
        if frame.shape != self._shape or frame.dtype != dtype:
            raise ValueError(
                f"A frame is {dtype} {list(self._shape)}. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        if any(self._pad):
            pad = [(0, p) for p in self._pad] + [(0, 0)] * (frame.ndim - 2)
            frame = np.pad(frame, pad, mode="edge")
        if time is None:
            time = self._count / float(self._rate)
        if not self._count:
            self._first = time
        picture = self._kind.picture(np.ascontiguousarray(frame))
        frames = (time - self._first) * float(self._rate)
        if abs(frames - round(frames)) <= _ROUNDED * self._rate:
            frames = round(frames)
        self._last = max(round(frames * _TICKS), self._last + 1)
        picture.pts, picture.duration = self._last, _TICKS
        picture.time_base = self._base
        with _naming(self.path):
            if filters:
                graph = video.filtering(picture, filters)
                graph.vpush(picture)
                picture = graph.vpull()
            self._container.mux(self._stream.encode(picture))
        self._count += 1

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            # What went wrong first is what the caller has to see.
            with contextlib.suppress(av.error.FFmpegError):
                self._container.close()
            self._files.__exit__(*error)
            return
        with self._files, _naming(self.path):
            with self._container:
                self._container.mux(self._stream.encode())
            self._check_written()

    def _check_written(self) -> None:
        """Raises VideoError unless all frames are in the file."""
        if not self._count:
            raise video.VideoError(self.path, "no frame was written to it.")
        with av.open(f"file:{self._hidden}") as container:
            packets = container.demux(video=0)
            found = sum(1 for packet in packets if packet.size)
        if found != self._count:
            raise video.VideoError(
                self.path,
                f"{self._count} frames were written and {found} can be read "
                "back. Is the disk full?",
            )


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Errors of FFmpeg in the block become `VideoError`, which names a file."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise video.VideoError(
            path, f"cannot be written ({error.strerror})."
        ) from error
