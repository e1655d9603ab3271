"""More bits where people look: QP offsets for blocks of a frame.

An offset is in steps of H.264's quantiser parameter (QP), 0 to 51: below zero
is finer and costs bits, above zero is coarser and saves them. Six steps double
the size of a quantiser's step. A grid of offsets is int8 [rows, columns], for
blocks of `block` x `block` pixels from the upper left corner; those at the
right and lower edge may reach beyond the frame.

`Encoder` hands libx264 and libx265 regions of interest that travel with each
frame; adaptive quantisation has to be on. `Offsets` writes files for other
ways; docs/encoding.md says which there are, and what was tried.
"""

from collections.abc import Iterator
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lsts_tf import option
from lsts_tf.outputs import sink

if TYPE_CHECKING:
    from scipy import sparse

_QP_RANGE = 51
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

    def addroi(self) -> str:
        """Arguments of FFmpeg's filter of this name."""
        qoffset = f"{self.offset / _QP_RANGE:.6f}"
        return "x={}:y={}:w={}:h={}:qoffset={}".format(*self[:4], qoffset)


def _overlaps(cells: int, pixels: int, block: int) -> "sparse.csr_array":
    """Which shares of a block each cell of a map fills, along one axis.

    The cells divide the frame's pixels equally; the last block is cut off.

    Returns:
        float64 [blocks, cells]; each row's sum is 1.
    """
    from scipy import sparse  # a third of a second

    edges = np.append(np.arange(0, pixels, block), pixels) * (cells / pixels)
    # What lies before the edge, in each cell.
    before = np.clip(edges[:, None] - np.arange(cells), 0, 1)
    # Almost all of it is zero.
    return sparse.csr_array(np.diff(before, axis=0) / np.diff(edges)[:, None])


def _runs(row: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, offset) of equal neighbours, without zeros."""
    bounds = np.flatnonzero(np.diff(row)) + 1
    for first, last in zip([0, *bounds], [*bounds, len(row)], strict=True):
        if row[first]:
            yield int(first), int(last), int(row[first])


class Blocks(sink.Sink):
    """The base of outputs that are made of blocks; see `grid`."""

    #: 16 is what H.264 has, 64 AV1.
    block: int = option.field(16, "Side of a block in pixels", least=1)
    strength: float = option.field(
        8.0,
        "QP steps between the least and the most salient block, 0 to 24",
        least=0,
        most=24,
    )
    floor: float = option.field(
        4.0,
        "Most QP steps by which a block may become coarser",
        least=0,
        most=_QP_RANGE,
    )

    def grid(self, map_: np.ndarray) -> np.ndarray:
        """QP offsets of a frame, int8 [rows, columns], from its map.

        docs/encoding.md has the formula. If an offset is above `floor`, all
        are lowered by what it is too high, and the frame grows. The map is
        float [h, w], not negative; a constant one changes nothing.
        """
        width, height = self.size
        rows = _overlaps(map_.shape[0], height, self.block)
        columns = _overlaps(map_.shape[1], width, self.block)
        saliency = (columns @ (rows @ map_).T).T
        saliency /= saliency.max() or 1.0
        level = 6 * math.log2(np.exp2(self.strength * saliency / 6).mean())
        grid = level - self.strength * saliency
        grid -= max(0.0, grid.max() - self.floor)
        return np.rint(grid).astype(np.int8)

    def rectangles(self, grid: np.ndarray) -> list[Rectangle]:
        """A grid as rectangles that do not overlap; 0 is left out."""
        width, height = self.size
        done = []
        # {(first column, last column + 1, offset): first row}, still growing.
        growing: dict[tuple[int, int, int], int] = {}
        for row in range(len(grid) + 1):
            runs = set(_runs(grid[row])) if row < len(grid) else set()
            for run in growing.keys() - runs:
                first, last, offset = run
                x, y = first * self.block, growing.pop(run) * self.block
                right = min(last * self.block, width)
                lower = min(row * self.block, height)
                done.append(Rectangle(x, y, right - x, lower - y, offset))
            for run in runs:
                growing.setdefault(run, row)
        return sorted(done, key=lambda r: (r.y, r.x))


@sink.output("roi", "roi.npy")
class Offsets(Blocks):
    """Grids of QP offsets of all frames, in four files; docs/encoding.md."""

    BESIDE = (".json", ".txt", ".addroi")
    DRAWS = False

    def _open(self) -> None:
        width, height = self.size
        self._shape = -(-height // self.block), -(-width // self.block)
        self._sum = np.zeros(self._shape, np.int64)
        array_path, *others = self.paths()
        self._array = self.array(array_path, self._shape, "|i1")
        self._about, self._text, self._filter = map(self.text, others)

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        grid = self.grid(map_)
        self._array.write(grid.tobytes())
        self._sum += grid
        rows = np.clip(grid, -12, 12).tolist()  # The format holds no more.
        lines = (" ".join(map(str, row)) for row in rows)
        self._text.write("\n".join([f"{self.count} P 0", *lines]) + "\n")

    def _finish(self) -> None:
        mean = np.rint(self._sum / max(self.count, 1)).astype(np.int8)
        filters = (f"addroi={each.addroi()}" for each in self.rectangles(mean))
        self._filter.write((",\n".join(filters) or "null") + "\n")
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


@sink.output("encoded", "encoded.mp4")
class Encoder(Blocks):
    """The clip itself, with more bits where people look: MP4.

    The encoder gets the offsets of each frame as regions of interest, at a
    constant rate factor: sizes follow the content, and `crf` sets the level.
    A note of the weights goes into the file's comment; the picture is that of
    the source, without sound. Odd sizes get their last column or row twice.
    """

    codec: str = option.field(
        "h264", "Codec of the encoded video", choices=tuple(CODECS)
    )
    #: Smaller is better and larger; the scales of the two encoders differ.
    crf: float = option.field(
        23.0, "Rate factor of the encoded video, 0 to 51", least=0, most=51
    )

    def _open(self) -> None:
        encoder, options = CODECS[self.codec]
        self._film = self.film(
            self.size,
            encoder=encoder,
            options={"crf": str(self.crf), "preset": "medium", **options},
            comment=self.note,
        )

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        # PyAV cannot attach regions itself; and the filters are made anew
        # because `addroi` takes no commands.
        found = self.rectangles(self.grid(map_))
        self._film.write(
            frame, time, filters=[("addroi", one.addroi()) for one in found]
        )
