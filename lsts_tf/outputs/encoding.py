"""More bits where people look: QP offsets for blocks of a frame.

An offset is in steps of H.264's quantiser parameter (QP), 0 to 51: below zero
is finer and costs bits, above zero is coarser and saves them. Six steps double
the size of a quantiser's step. A grid of offsets is int8 [rows, columns], for
blocks of `block` x `block` pixels from the upper left corner; those at the
right and lower edge may reach beyond the frame.

What encoders take (docs/encoding.md says what was tried):

libx264, libx265         Through FFmpeg: regions of interest that travel with
                         each frame; adaptive quantisation has to be on.
                         `Encoder` does it.
`addroi` of FFmpeg       The same, but for a whole input: the filter takes no
                         commands and has no timeline. `Offsets` writes the
                         clip's mean grid as such a filter.
x264 and x265 programs   `--qpfile` sets the type and QP of whole frames,
                         `--zones` of stretches of frames; nothing for blocks.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import os
from typing import NamedTuple

import av
import numpy as np

from lsts_tf.media import writer
from lsts_tf.outputs import sink

BLOCK = 16
STRENGTH = 8.0
FLOOR = 4.0
_QP_RANGE = 51
# What the text format holds.
_MOST = 12
# Encoders of FFmpeg, and what lets them follow single blocks: adaptive
# quantisation is on, and x265's quantisation groups are as small as our blocks.
CODECS = {
    "h264": ("libx264", {"aq-mode": "1"}),
    "hevc": ("libx265", {"x265-params": "qg-size=16:log-level=error"}),
}


class Rectangle(NamedTuple):
    """Blocks of one offset, in pixels."""

    x: int
    y: int
    width: int
    height: int
    offset: int


def offsets(
    map_: np.ndarray,
    *,
    size: tuple[int, int],
    block: int = BLOCK,
    strength: float = STRENGTH,
    floor: float = FLOOR,
) -> np.ndarray:
    """QP offsets of a frame from its map.

    A block's saliency s is the mean of the map in it, divided by the highest
    of all blocks. Its offset is c - strength * s. By the rule of thumb that
    six steps of QP halve or double a block's bits, c is chosen so that the
    whole frame keeps its number of bits: the mean of 2^(-offset / 6) is 1.
    If an offset is then above `floor`, all are lowered by what it is too
    high, and the frame grows.

    Args:
        map_: float [h, w], not negative.
        size: (width, height) of the source.
        block: Side of a block in pixels: 16 is what H.264 has, 64 AV1.
        strength: QP steps between a block without any attention and the one
            with the most, 0 to 24.
        floor: QP of no block is raised by more than this, 0 to 51.

    Returns:
        int8 [rows, columns], rounded; 0 everywhere for a constant map.
    """
    saliency = _means(_means(map_, size[1], block).T, size[0], block).T
    saliency /= saliency.max() or 1.0
    level = 6 * math.log2(np.exp2(strength * saliency / 6).mean())
    grid = level - strength * saliency
    grid -= max(0.0, grid.max() - floor)
    return np.rint(grid).astype(np.int8)


def _means(values: np.ndarray, pixels: int, block: int) -> np.ndarray:
    """Means of a map's rows over blocks of pixels, exact for parts of rows.

    Args:
        values: [rows, n]; the rows divide the pixels equally.
        pixels: Along the rows.
        block: Pixels in a block; the last one is cut off.

    Returns:
        float64 [blocks, n].
    """
    rows = len(values)
    edges = np.append(np.arange(0, pixels, block), pixels) * (rows / pixels)
    sums = np.zeros((rows + 1, values.shape[1]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    row = np.minimum(edges.astype(int), rows - 1)
    part = (edges - row)[:, None]
    at_edges = sums[row] * (1 - part) + sums[row + 1] * part
    return np.diff(at_edges, axis=0) / np.diff(edges)[:, None]


def rectangles(
    grid: np.ndarray, *, size: tuple[int, int], block: int = BLOCK
) -> list[Rectangle]:
    """A grid as rectangles that do not overlap; offsets of 0 are left out.

    Args:
        grid: int [rows, columns].
        size: (width, height) of the source, at which rectangles end.
        block: Side of a block.
    """
    width, height = size
    done = []
    # {(first column, last column + 1, offset): first row}, still growing.
    growing: dict[tuple[int, int, int], int] = {}
    for row in range(len(grid) + 1):
        runs = set(_runs(grid[row])) if row < len(grid) else set()
        for run in [run for run in growing if run not in runs]:
            first, last, offset = run
            x, y = first * block, growing.pop(run) * block
            done.append(
                Rectangle(
                    x,
                    y,
                    min(last * block, width) - x,
                    min(row * block, height) - y,
                    offset,
                )
            )
        for run in runs:
            growing.setdefault(run, row)
    return sorted(done, key=lambda r: (r.y, r.x))


def _runs(row: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, offset) of equal neighbours, without zeros."""
    bounds = np.flatnonzero(np.diff(row)) + 1
    for first, last in zip([0, *bounds], [*bounds, len(row)], strict=True):
        if row[first]:
            yield int(first), int(last), int(row[first])


def addroi(found: Sequence[Rectangle]) -> str:
    """Rectangles as a chain of FFmpeg's `addroi` filters, one a line."""
    if not found:
        return "null"
    return ",\n".join(
        f"addroi=x={r.x}:y={r.y}:w={r.width}:h={r.height}"
        f":qoffset={r.offset / _QP_RANGE:.6f}"
        for r in found
    )


@dataclasses.dataclass(kw_only=True)
class Blocks(sink.Sink):
    """The base of outputs that are made of blocks; see `offsets`."""

    block: int = sink.option(BLOCK, "Side of a block in pixels", least=1)
    strength: float = sink.option(
        STRENGTH,
        "QP steps between the least and the most salient block, 0 to 24",
        least=0,
        most=24,
    )
    floor: float = sink.option(
        FLOOR,
        "Most QP steps by which a block is quantised more coarsely",
        least=0,
        most=_QP_RANGE,
    )

    def grid(self, map_: np.ndarray) -> np.ndarray:
        """The offsets of a map."""
        return offsets(
            map_,
            size=self.size,
            block=self.block,
            strength=self.strength,
            floor=self.floor,
        )


@dataclasses.dataclass(kw_only=True)
class Offsets(Blocks):
    """Grids of QP offsets of all frames, in four files.

    * NAME.npy: int8 [frames, rows, columns].
    * NAME.json: block, strength, floor, size, fps, frames, note, format.
    * NAME.txt: a line "FRAME P 0" for each frame and then its grid, a line a
      row, offsets within -12 ... 12. It is the layout that FFmpeg's
      development version documents for `-qpfile` of libx264.
    * NAME.addroi: the mean grid of the clip as a filter of FFmpeg.
    """

    BESIDE = (".json", ".txt", ".addroi")

    def open(self) -> None:
        """See `sink.Sink`."""
        width, height = self.size
        self._shape = -(-height // self.block), -(-width // self.block)
        self._sum = np.zeros(self._shape, np.int64)
        self._array = self.enter(self.hidden(self.path).open("wb"))
        self._write_header()
        json_path, text_path, filter_path = self.paths()[1:]
        self._about = self.text(json_path)
        self._text = self.text(text_path)
        self._filter = self.text(filter_path)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        grid = self.grid(map_)
        self._array.write(grid.tobytes())
        self._sum += grid
        rows = np.clip(grid, -_MOST, _MOST).tolist()
        lines = (" ".join(map(str, row)) for row in rows)
        self._text.write("\n".join([f"{self.count} P 0", *lines]) + "\n")
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        # NumPy leaves room in a header for the first axis to grow.
        self._array.seek(0)
        self._write_header()
        mean = np.rint(self._sum / max(self.count, 1)).astype(np.int8)
        found = rectangles(mean, size=self.size, block=self.block)
        self._filter.write(addroi(found) + "\n")
        rows, columns = self._shape
        about = {
            "format": "int8 [frames, rows, columns], steps of QP",
            "frames": self.count,
            "fps": self.fps,
            "size": list(self.size),
            "rows": rows,
            "columns": columns,
            **self.settings(),
            "note": self.note,
        }
        self._about.write(sink.to_json(about, indent=2) + "\n")

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._array,
            {
                "descr": "|i1",
                "fortran_order": False,
                "shape": (self.count, *self._shape),
            },
        )


@dataclasses.dataclass(kw_only=True)
class Encoder(Blocks):
    """The clip itself, with more bits where people look: MP4.

    The encoder gets the offsets of each frame as regions of interest, at a
    constant rate factor: sizes follow the content, and `crf` sets the level.
    A note of the weights goes into the file's comment; the picture is that of
    the source, without sound. Odd sizes get their last column or row twice.
    """

    codec: str = sink.option(
        "h264", "Codec of the encoded video", choices=tuple(CODECS)
    )
    #: Smaller is better and larger; the scales of the two encoders differ.
    crf: float = sink.option(
        23.0, "Rate factor of the encoded video, 0 to 51", least=0, most=51
    )
    #: Further ones of the encoder, by FFmpeg's names.
    encoder_options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def open(self) -> None:
        """See `sink.Sink`."""
        encoder, needed = CODECS[self.codec]
        width, height = self.size
        self._even = (width + width % 2, height + height % 2)
        self._ticks = writer.Ticks(self.fps)
        self._first_time = 0.0
        with writer.naming(self.path):
            container = av.open(
                os.fspath(self.hidden(self.path)),
                "w",
                options={"movflags": "faststart"},
            )
        self._container = self.enter(_closed(container))
        if self.note:
            self._container.metadata["comment"] = self.note
        stream = self._container.add_stream(encoder, rate=self._ticks.rate)
        stream.width, stream.height = self._even
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(self.crf),
            "preset": "medium",
            **needed,
            **self.encoder_options,
        }
        # BT.709, and labelled so; see `video`.
        context = stream.codec_context
        context.time_base = self._ticks.base
        context.sample_aspect_ratio = self.pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        if encoder == "libx265":
            # Apple's players know HEVC by this name only.
            context.codec_tag = "hvc1"
        self._stream = stream

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        if not self.count:
            self._first_time = time
        width, height = self.size
        padded = np.pad(
            frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"
        )
        picture = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709"
        )
        self._ticks.stamp(picture, time - self._first_time)
        found = rectangles(self.grid(map_), size=self._even, block=self.block)
        with writer.naming(self.path):
            self._container.mux(self._stream.encode(_marked(picture, found)))
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        with writer.naming(self.path):
            self._container.mux(self._stream.encode())
            self._container.close()
        writer.check_written(self.path, self.count, at=self.hidden(self.path))


@contextlib.contextmanager
def _closed(
    container: av.container.OutputContainer,
) -> Iterator[av.container.OutputContainer]:
    try:
        yield container
    finally:
        # What went wrong first is what the caller has to see; a whole file
        # has been closed by then.
        with contextlib.suppress(av.error.FFmpegError):
            container.close()


def _marked(
    picture: av.VideoFrame, found: Sequence[Rectangle]
) -> av.VideoFrame:
    """A frame with regions of interest.

    PyAV cannot attach them itself, so the frame goes through a chain of
    FFmpeg's filters, made anew because `addroi` takes no commands.
    """
    if not found:
        return picture
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=picture.time_base,
        )
    ]
    chain += [
        graph.add(
            "addroi",
            x=str(r.x),
            y=str(r.y),
            w=str(r.width),
            h=str(r.height),
            qoffset=f"{r.offset / _QP_RANGE:.6f}",
        )
        for r in found
    ]
    chain.append(graph.add("buffersink"))
    graph.link_nodes(*chain)
    graph.configure()
    graph.vpush(picture)
    return graph.vpull()
