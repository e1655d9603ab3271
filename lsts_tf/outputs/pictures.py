"""Maps as pictures, films and arrays, and drawn over their frames."""

import dataclasses
import functools
import os
import pathlib
import re
import sys
import tempfile
from typing import BinaryIO

import cv2
import numpy as np

from lsts_tf import option, parts
from lsts_tf.media import draw, files, images, video
from lsts_tf.outputs import sink

_PICTURE = re.compile(r"[0-9]{4,}\.png")

# Of all outputs that draw maps over frames.
alpha_option = functools.partial(
    option.field, 0.6, "Strength of the overlay, 0 to 1", least=0, most=1
)


def levels(map_: np.ndarray, bits: int) -> np.ndarray:
    """A map in [0, 1] as the nearest of 2**bits levels: uint8, or uint16."""
    if bits == 8:
        return images.to_uint8(map_)
    top = 2.0**bits - 1
    return np.rint(np.clip(map_, 0.0, 1.0) * top).astype(np.uint16)


# === Films to watch ===


@sink.output("side_by_side", "side_by_side.mp4", beside=True)
@sink.output("overlay", "overlay.mp4")
class Overlay(sink.Sink):
    """The map drawn over the frame: H.264 in MP4, for the eye."""

    view: str = option.field(
        "heat", "How overlays are drawn", choices=draw.VIEWS
    )
    alpha: float = alpha_option()
    #: Whether the frame stands to its left.
    beside: bool = False

    def _open(self) -> None:
        width, height = self.size
        if self.beside:
            width = 2 * width + draw.GAP
        self._film = self.film((width, height))

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        picture = draw.over(frame, map_, view=self.view, alpha=self.alpha)
        if self.beside:
            picture = draw.side_by_side(frame, picture)
        self._film.write(draw.annotate(picture, self.note), time)


# === Maps ===


class Maps(sink.Sink):
    """The base of what holds maps alone, of a size and normalised.

    "none" leaves a map as it is; "frame" stretches each to [0, 1] by its own
    extremes, a constant one to 0; "sum" divides it by its sum; "clip" stretches
    all by the extremes of the clip, until whose end maps wait in a file without
    a name, 0.92 MB each.
    """

    DRAWS = False

    normalize: str = option.field(
        "none",
        "How maps are normalised (overlays always stretch each map)",
        choices=("none", "frame", "clip", "sum"),
    )
    map_size: str = option.field(
        "source",
        "Size of maps: the video's, or the model's 640x360",
        choices=("source", "model"),
    )
    #: Bits of a pixel; 32 for floats.
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize == "sum" and self.bits < 32:
            raise ValueError(
                "Maps whose sum is 1 have values of a few millionths, which "
                "pictures and grey video cannot hold; --outputs=npy can."
            )
        height, width = parts.MAP_SIZE
        of_model = self.map_size == "model"
        self.written_size = (width, height) if of_model else self.size
        self._low, self._high = np.inf, -np.inf
        # Of the maps that wait.
        self._times: list[float] = []

    def _put(self, map_: np.ndarray, place: int, time: float) -> None:
        """Takes the map of a place: float32 of `written_size`, normalised."""
        raise NotImplementedError

    def _open(self) -> None:
        if self.normalize == "clip":
            folder = self._hidden if self.paths() else None
            self._waiting = self.enter(tempfile.TemporaryFile(dir=folder))

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        if self.normalize != "clip":
            self._put(self._scaled(map_), self.count, time)
            return
        self._low = min(self._low, float(map_.min()))
        self._high = max(self._high, float(map_.max()))
        self._times.append(time)
        np.save(self._waiting, map_)

    def _finish(self) -> None:
        if self._times:
            self._waiting.seek(0)
        for place, time in enumerate(self._times):
            map_ = np.load(self._waiting)
            map_ = draw.stretch(map_, self._low, self._high)
            self._put(self._scaled(map_), place, time)

    def _scaled(self, map_: np.ndarray) -> np.ndarray:
        size = self.written_size
        if map_.shape[::-1] != size:
            map_ = cv2.resize(map_, size, interpolation=cv2.INTER_LINEAR)
        if self.normalize == "frame":
            return draw.stretch(map_)
        if self.normalize == "sum":
            total = float(map_.sum(dtype=np.float64))
            return map_ / np.float32(total) if total > 0 else map_
        return map_


@sink.output("saliency16", "saliency16.mkv", bits=16)
@sink.output("saliency", "saliency.mp4")
class Saliency(Maps):
    """A grey video of the maps.

    With 8 bits H.264 in MP4, all levels of which are kept apart (full range)
    but which is lossy; with 16 bits FFV1 in Matroska, without loss: level
    65,535 is 1.
    """

    def _open(self) -> None:
        super()._open()
        of_source = self.bits < 16 and self.written_size == self.size
        self._film = self.film(
            self.written_size,
            pixels={8: "gray", 10: "gray10", 16: "gray16"}[self.bits],
            pixel_aspect=self.pixel_aspect if of_source else video.SQUARE,
        )

    def _put(self, map_: np.ndarray, place: int, time: float) -> None:
        self._film.write(levels(map_, self.bits), time)


@sink.output("msu", "{video}.mp4")
class Submission(Saliency):
    """What AIM 2024, NTIRE 2026 and CrowdSAL take: a grey film of 10 bits.

    It has the name, size and number of frames of the film. Each map is
    stretched over its own range, as the challenges' program does when it reads.
    """

    normalize: str = dataclasses.field(default="frame", init=False)
    map_size: str = dataclasses.field(default="source", init=False)
    bits: int = dataclasses.field(default=10, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first or self.step != 1:
            raise ValueError(
                "A submission has a map for each frame: leave out --every and "
                f"--first_frames=skip. Received: the first map is of frame "
                f"{self.first}, the next of {self.first + self.step}."
            )


@sink.output("dhf1k", "{video}")
@sink.output("png16", "maps16", bits=16)
@sink.output("png8", "maps")
class Pictures(Maps):
    """A folder of one grey PNG for each map: `0001.png` is frame 0.

    With 16 bits level 65,535 is 1. Pictures that the folder held before are
    replaced; one with anything else in it is refused.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resumes = self.normalize != "clip"

    def _open(self) -> None:
        super()._open()
        folder = self.hidden(self.path)
        folder.mkdir(exist_ok=True)
        # Of pictures that were being written when the process was killed.
        for path in folder.glob(".*"):
            path.unlink()
        while self._file(self.count).exists():
            self.count += 1

    def _file(self, place: int) -> pathlib.Path:
        name = images.file_name(self.first + place * self.step)
        return self.hidden(self.path) / name

    def _put(self, map_: np.ndarray, place: int, time: float) -> None:
        images.write_png(self._file(place), levels(map_, self.bits))

    def refuse_others(self) -> None:
        """See `sink.Sink`."""
        if self.path.exists() and not self.path.is_dir():
            raise files.FileError(
                self.path,
                "there is a file of that name; choose another --output.",
            )
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if not _PICTURE.fullmatch(path.name) or not path.is_file():
                raise files.FileError(
                    self.path,
                    f"this folder holds {path.name!r}, which is not a map, and "
                    "would be replaced; choose another --output, or move the "
                    "folder away.",
                )


@sink.output("npy", "maps.npy")
class Array(Maps):
    """All maps in one file of NumPy: float32 [N, height, width].

    `np.load(path, mmap_mode="r")` reads it without loading it.
    """

    bits: int = 32

    def _open(self) -> None:
        super()._open()
        self._file = self.array(self.path, self.written_size[::-1], "<f4")

    def _put(self, map_: np.ndarray, place: int, time: float) -> None:
        self._file.write(map_.astype("<f4").tobytes())


@sink.output("stdout")
class Raw(Maps):
    """Maps as grey bytes, row by row, frame by frame, into a pipe.

    It cannot be taken back: what was written before an error has gone.
    """

    stream: BinaryIO | None = None

    def paths(self) -> list[pathlib.Path]:
        """See `sink.Sink`."""
        return []

    def _put(self, map_: np.ndarray, place: int, time: float) -> None:
        stream = self.stream or sys.stdout.buffer
        stream.write(images.to_uint8(map_).tobytes())
        stream.flush()


def claim_stdout() -> BinaryIO:
    """Standard output, for `Raw` alone.

    What libraries print there from now on goes to standard error.
    """
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream
