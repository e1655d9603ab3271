# All outputs are built and called alike, and none needs everything.
# ruff: noqa: ARG002
"""What is made of maps: one class for each kind of file.

An output is a context manager. Inside its block it is given, frame by frame,

    write(frame, map_, time)

the source's frame, uint8 RGB [H, W, 3]; the network's own map, float32
[360, 640] in [0, 1]; and seconds from the clip's start. Its file or folder
appears under its name when the block ends without an exception. Constructors
take keywords only: `path`, `fps`, `size` (width, height) of the frames, `note`
(what pictures have to say of the weights), and options of their own.

Two of them can go on where an interrupted run stopped, if they are told what
the job is (`job`, any text): `Pictures` and `Array`. They keep what they have
under a hidden name beside the final one, and say in `done` how many maps
that is; `go_on` cuts them to one number.

Where several outputs are made, `complete` makes the files of all of them whole
while they still have hidden names: if one fails, none appears.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import fractions
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile
import types
from typing import Any
from typing import BinaryIO
from typing import Protocol
from typing import runtime_checkable

import cv2
import numpy as np

from lsts_tf.features import preprocess
from lsts_tf.media import draw as overlay
from lsts_tf.media import files
from lsts_tf.media import images as maps_lib
from lsts_tf.media import sink
from lsts_tf.media import video as video_lib
from lsts_tf.media import writer

VIEWS = ("heat", "fog")
NORMALIZE = ("none", "frame", "clip", "sum")
MAP_SIZES = ("source", "model")

_HEADER_BYTES = 128
_PICTURE = re.compile(r"[0-9]{4,}\.png")
_Kind = type[BaseException] | None
_Trace = types.TracebackType | None


class Output(Protocol):
    """See the module."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: _Kind, error: BaseException | None, trace: _Trace
    ) -> Any: ...

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""


@runtime_checkable
class Resumable(Protocol):
    """An output that goes on; see the module."""

    done: int

    def go_on(self, done: int) -> None:
        """Keep the first `done` maps and drop the others."""


@runtime_checkable
class Completing(Protocol):
    """An output that can be whole before its block ends."""

    def complete(self) -> None:
        """Flush, close and check; only the final names are missing then."""


def complete(made: Sequence[Output]) -> None:
    """Make all outputs whole that can be so, before any gets its name."""
    for output in made:
        if isinstance(output, Completing):
            output.complete()


class Scale:
    """A map as a file wants it: of a size, and normalised.

    Args:
        size: (width, height) of the source.
        map_size: "source", or "model" for the network's own [360, 640].
        normalize: "none"; "frame" stretches each map to [0, 1] by its own
            extremes, a constant one to 0; "sum" divides it by its sum.
        levels: Whether the file has integers, which cannot hold "sum".

    Attributes:
        size: (width, height) of what comes out.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        map_size: str = "source",
        normalize: str = "none",
        levels: bool = True,
    ) -> None:
        if map_size not in MAP_SIZES or normalize not in NORMALIZE:
            raise ValueError(
                f"A map has the size of {' or '.join(MAP_SIZES)} and is "
                f"normalised by {', '.join(NORMALIZE)}. "
                f"Received: {map_size!r}, {normalize!r}"
            )
        if normalize == "clip":
            raise ValueError(
                "The extremes of a clip are known at its end: wrap the output "
                "in OverClip."
            )
        if normalize == "sum" and levels:
            raise ValueError(
                "Maps whose sum is 1 have values of some millionths, which "
                "pictures and grey video cannot hold; --outputs=npy can."
            )
        height, width = preprocess.MAP_SIZE
        self.size = (width, height) if map_size == "model" else size
        self._normalize = normalize

    def __call__(self, map_: np.ndarray) -> np.ndarray:
        """float32 [height, width] of a map [360, 640]."""
        if map_.shape[::-1] != self.size:
            map_ = cv2.resize(map_, self.size, interpolation=cv2.INTER_LINEAR)
        if self._normalize == "frame":
            return stretch(map_, float(map_.min()), float(map_.max()))
        if self._normalize == "sum":
            total = float(map_.sum(dtype=np.float64))
            return map_ / np.float32(total) if total > 0 else map_
        return map_


def stretch(map_: np.ndarray, low: float, high: float) -> np.ndarray:
    """A map with `low` at 0 and `high` at 1; 0 everywhere if they are equal."""
    if not high > low:
        return np.zeros_like(map_)
    return (map_ - np.float32(low)) / np.float32(high - low)


class Overlay(sink.Sink):
    """The map drawn over the frame: H.264 in MP4, for the eye.

    Each map is shown over its own range.

    Args:
        path: Name that ends in .mp4.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: Written on each frame.
        view: "heat" colours what is salient, "fog" darkens what is not.
        alpha: How strong, 0 … 1.
        pixel_aspect: Width of a pixel by its height.
    """

    def __init__(
        self,
        *,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        view: str = "heat",
        alpha: float = 0.6,
        pixel_aspect: fractions.Fraction = video_lib.SQUARE,
    ) -> None:
        super().__init__(path=path, fps=fps, size=size, note=note)
        self._draw = {"heat": overlay.blend, "fog": overlay.fog}[view]
        self._alpha = overlay.checked_alpha(alpha)
        self._writer = writer.Writer(
            path,
            fps=fps,
            size=self._picture_size(size),
            pixel_aspect=pixel_aspect,
        )

    def _picture_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def open(self) -> None:
        """See `sink.Sink`."""
        self.enter(self._writer)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        picture = self._picture(frame, map_)
        if self.note:
            picture = overlay.annotate(picture, self.note)
        self._writer.write(picture, time)

    def finish(self) -> None:
        """See `sink.Sink`."""
        self._writer.finish()

    def _picture(self, frame: np.ndarray, map_: np.ndarray) -> np.ndarray:
        # Of the frame's size before it is stretched, as it is seen.
        size = frame.shape[1], frame.shape[0]
        large = cv2.resize(map_, size, interpolation=cv2.INTER_LINEAR)
        shown = stretch(large, float(large.min()), float(large.max()))
        return self._draw(frame, shown, alpha=self._alpha)


class SideBySide(Overlay):
    """The frame, and beside it the overlay; see `Overlay`."""

    GAP = 4

    def _picture_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return 2 * size[0] + self.GAP, size[1]

    def _picture(self, frame: np.ndarray, map_: np.ndarray) -> np.ndarray:
        drawn = super()._picture(frame, map_)
        return overlay.side_by_side(frame, drawn, gap=self.GAP)


class Saliency(sink.Sink):
    """A grey video of the maps.

    With 8 bits H.264 in MP4, all levels of which are kept apart (full range)
    but which is lossy; with 16 bits FFV1 in Matroska, without loss: level
    65,535 is 1.

    Args:
        path: Name that ends in .mp4, with 16 bits in .mkv.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: Not shown: these are data.
        bits: 8 or 16.
        normalize: See `Scale`.
        map_size: See `Scale`.
        pixel_aspect: Width of a pixel of the frames by its height; that of
            maps of their size.
    """

    def __init__(
        self,
        *,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        bits: int = 8,
        normalize: str = "none",
        map_size: str = "source",
        pixel_aspect: fractions.Fraction = video_lib.SQUARE,
    ) -> None:
        super().__init__(path=path, fps=fps, size=size, note=note)
        self._scale = Scale(size=size, map_size=map_size, normalize=normalize)
        self._levels = _LEVELS[bits]
        self._writer = writer.Writer(
            path,
            fps=fps,
            size=self._scale.size,
            pixels={8: "gray", 16: "gray16"}[bits],
            pixel_aspect=(
                pixel_aspect if self._scale.size == size else video_lib.SQUARE
            ),
        )

    def open(self) -> None:
        """See `sink.Sink`."""
        self.enter(self._writer)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        self._writer.write(self._levels(self._scale(map_)), time)

    def finish(self) -> None:
        """See `sink.Sink`."""
        self._writer.finish()


def to_uint16(map_: np.ndarray) -> np.ndarray:
    """A map in [0, 1] as levels 0 … 65,535."""
    return np.rint(np.clip(map_, 0.0, 1.0) * 65535.0).astype(np.uint16)


_LEVELS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    8: preprocess.to_uint8,
    16: to_uint16,
}


class Pictures:
    """One grey PNG for each map: `0001.png` is frame 0.

    Args:
        path: The folder; pictures that it held before are replaced. A folder
            with anything else in it is refused when the block begins.
        fps: Not used.
        size: (width, height) of the frames.
        note: Not shown: these are data.
        bits: 8 or 16; 16 has level 65,535 for 1.
        normalize: See `Scale`.
        map_size: See `Scale`.
        first: Number of the first frame that comes, from 0.
        step: Distance between the numbers.
        job: What is made; the same text goes on with it. "" starts anew.

    Attributes:
        done: Maps that were there.
    """

    def __init__(
        self,
        *,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        bits: int = 8,
        normalize: str = "none",
        map_size: str = "source",
        first: int = 0,
        step: int = 1,
        job: str = "",
    ) -> None:
        self._scale = Scale(size=size, map_size=map_size, normalize=normalize)
        self._levels = _LEVELS[bits]
        self._first, self._step = first, step
        self._part = _Part(path, job, folder=True)
        self.done = 0

    def __enter__(self) -> "Pictures":
        if not self._part.begin():
            self._part.hidden.mkdir()
        # Of pictures that were being written when the process was killed.
        for path in self._part.hidden.glob(".*"):
            path.unlink()
        while self._file(self.done).exists():
            self.done += 1
        return self

    def go_on(self, done: int) -> None:
        """Keep the first `done` maps and drop the others."""
        for place in range(done, self.done):
            self._file(place).unlink()
        self.done = done

    def _file(self, place: int) -> pathlib.Path:
        frame = self._first + place * self._step
        return self._part.hidden / maps_lib.file_name(frame)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        levels = self._levels(self._scale(map_))
        maps_lib.write_png(self._file(self.done), levels)
        self.done += 1

    def __exit__(
        self, kind: _Kind, error: BaseException | None, trace: _Trace
    ) -> None:
        self._part.end(whole=kind is None)


class Array:
    """All maps in one file of NumPy: float32 [N, height, width].

    `np.load(path, mmap_mode="r")` reads it without loading it.

    Args:
        path: Name that ends in .npy.
        fps: Not used.
        size: (width, height) of the frames.
        note: Not shown: these are data.
        normalize: See `Scale`.
        map_size: See `Scale`.
        job: What is made; the same text goes on with it. "" starts anew.

    Attributes:
        done: Maps that were there.
    """

    def __init__(
        self,
        *,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        normalize: str = "none",
        map_size: str = "source",
        job: str = "",
    ) -> None:
        self._scale = Scale(
            size=size, map_size=map_size, normalize=normalize, levels=False
        )
        self._part = _Part(path, job)
        width, height = self._scale.size
        self._map_bytes = 4 * width * height
        self._file: BinaryIO
        self.done = 0

    def __enter__(self) -> "Array":
        if not self._part.begin():
            self._part.hidden.write_bytes(bytes(_HEADER_BYTES))
        self._file = self._part.hidden.open("r+b", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        self.go_on(max(0, size - _HEADER_BYTES) // self._map_bytes)
        return self

    def go_on(self, done: int) -> None:
        """Keep the first `done` maps and drop the others."""
        self.done = done
        self._file.truncate(_HEADER_BYTES + done * self._map_bytes)
        self._file.seek(0, os.SEEK_END)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        self._put(self._scale(map_).astype("<f4").tobytes())
        self.done += 1

    def _put(self, data: bytes) -> None:
        # An unbuffered file may take a part, and then say why not the rest.
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def complete(self) -> None:
        """See `Completing`."""
        if not self._file.closed:
            self._file.seek(0)
            self._put(self._header())
            self._file.close()

    def __exit__(
        self, kind: _Kind, error: BaseException | None, trace: _Trace
    ) -> None:
        whole = False
        try:
            if kind is None:
                self.complete()
                whole = True
        finally:
            self._file.close()
            self._part.end(whole=whole)

    def _header(self) -> bytes:
        width, height = self._scale.size
        about = {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (self.done, height, width),
        }
        # NumPy leaves room in a header for the first axis to grow.
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()


class _Part:
    """What is not finished yet, under a hidden name, and what it is.

    Args:
        path: The final name.
        job: Text that says what is made; "" if it is never gone on with.
        folder: Whether it is a folder of pictures.

    Attributes:
        hidden: The name until then.
    """

    def __init__(
        self, path: pathlib.Path, job: str, *, folder: bool = False
    ) -> None:
        self._path = path
        self._folder = folder
        self.hidden = path.with_name(f".{path.name}.part")
        self._job = job
        self._job_file = path.with_name(f"{self.hidden.name}.job")

    def begin(self) -> bool:
        """Whether there is something to go on with; if not, nothing is left."""
        if not self._path.parent.is_dir():
            raise files.FileError(
                self._path, "cannot be written: no such folder."
            )
        self._refuse_others()
        with contextlib.suppress(OSError):
            known = self._job_file.read_text(encoding="utf-8")
            if self._job and known == self._job and self.hidden.exists():
                return True
        self._remove()
        if self._job:
            files.write_text(self._job_file, self._job)
        return False

    def end(self, *, whole: bool) -> None:
        """Give it its name; or keep it for the next time, or not at all."""
        placed = False
        try:
            if whole:
                self._place()
                placed = True
        finally:
            if placed or not self._job:
                self._remove()

    def _place(self) -> None:
        # Hours may have gone by.
        self._refuse_others()
        # A folder cannot take the place of another one in one step.
        old = self.hidden.with_name(f"{self.hidden.name}.old")
        if self._path.is_dir():
            _delete(old)
            self._path.rename(old)
        self.hidden.replace(self._path)
        _delete(old)

    def _refuse_others(self) -> None:
        """Nothing is replaced but what an output like this one writes."""
        if not self._path.exists():
            return
        if not self._folder:
            files.refuse_folder(self._path)
            return
        if not self._path.is_dir():
            raise files.FileError(
                self._path, "a file stands there; choose another --output."
            )
        for path in self._path.iterdir():
            if not _PICTURE.fullmatch(path.name) or not path.is_file():
                raise files.FileError(
                    self._path,
                    f"this folder holds {path.name!r}, which is no map, and "
                    "would be replaced; choose another --output, or move the "
                    "folder away.",
                )

    def _remove(self) -> None:
        _delete(self.hidden)
        self._job_file.unlink(missing_ok=True)


def _delete(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Raw:
    """Maps as grey bytes, row by row, frame by frame, into a pipe.

    It cannot be taken back: what was written before an error has gone.

    Args:
        path: Not used.
        fps: Not used.
        size: (width, height) of the frames.
        note: Not shown: these are data.
        stream: Where to write.
        normalize: See `Scale`.
        map_size: See `Scale`.
    """

    def __init__(
        self,
        *,
        path: pathlib.Path,
        fps: float,
        size: tuple[int, int],
        stream: BinaryIO,
        note: str = "",
        normalize: str = "none",
        map_size: str = "source",
    ) -> None:
        self._scale = Scale(size=size, map_size=map_size, normalize=normalize)
        self._stream = stream

    def __enter__(self) -> "Raw":
        return self

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        with files.naming("standard output"):
            self._stream.write(preprocess.to_uint8(self._scale(map_)).tobytes())
            self._stream.flush()

    def __exit__(
        self, kind: _Kind, error: BaseException | None, trace: _Trace
    ) -> None:
        if kind is None:
            self._stream.flush()


def claim_stdout() -> BinaryIO:
    """Standard output, for `Raw` alone.

    What libraries print there from now on goes to standard error.
    """
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


class OverClip:
    """Gives outputs their maps when the clip is over, stretched by its range.

    The lowest value of the whole clip becomes 0, the highest 1. Until then the
    maps wait on disk, in a file without a name in the folder: 0.92 MB a frame.

    Args:
        folder: Where there is room for them; None for the system's choice.
        wrapped: Outputs that use maps and no frames: they get black ones.
        size: (width, height) of the frames.
    """

    def __init__(
        self,
        *,
        folder: pathlib.Path | None,
        wrapped: Sequence[Output],
        size: tuple[int, int],
    ) -> None:
        self._folder = folder
        self._wrapped = wrapped
        width, height = size
        self._black = np.broadcast_to(np.uint8(0), (height, width, 3))
        self._stack = contextlib.ExitStack()
        self._low, self._high = np.inf, -np.inf
        self._complete = False
        self._spool: Any

    def __enter__(self) -> "OverClip":
        with contextlib.ExitStack() as stack:
            self._spool = stack.enter_context(
                tempfile.TemporaryFile(dir=self._folder)
            )
            for output in self._wrapped:
                stack.enter_context(output)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Take one frame and its map."""
        self._low = min(self._low, float(map_.min()))
        self._high = max(self._high, float(map_.max()))
        self._spool.write(np.float64(time).tobytes())
        self._spool.write(np.ascontiguousarray(map_, np.float32).tobytes())

    def __exit__(
        self, kind: _Kind, error: BaseException | None, trace: _Trace
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self.complete()

    def complete(self) -> None:
        """See `Completing`."""
        if not self._complete:
            self._complete = True
            self._replay()
            complete(self._wrapped)

    def _replay(self) -> None:
        height, width = preprocess.MAP_SIZE
        self._spool.seek(0)
        while stamp := self._spool.read(8):
            data = self._spool.read(4 * height * width)
            map_ = np.frombuffer(data, np.float32).reshape(height, width)
            map_ = stretch(map_, self._low, self._high)
            time = float(np.frombuffer(stamp, np.float64)[0])
            for output in self._wrapped:
                output.write(self._black, map_, time)
