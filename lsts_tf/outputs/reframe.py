"""Another aspect ratio: a crop that follows attention and holds still.

The crop is the largest one of the aspect that fits into the frame, of even
width and height, so it moves along one axis only. A position is the distance
of its left (or upper) edge from the frame's, in pixels, even. Numbers of
frames count from 0.

How the path is found, in two steps for each scene:

1. Dynamic programming over a grid of positions minimises

       sum over frames of (1 - kept) / fps  +  stiffness * travel

   where `kept` is the share of attention inside the crop and `travel` the way
   in lengths of the crop along its axis. So the crop rests, and moves where
   that keeps more attention than it costs. The minimum is over the whole
   scene, except that a position is settled once `lookahead` more seconds are
   known, so that memory does not grow with the length.
2. Each move is eased by a Gaussian of `ease` seconds along time, within the
   scene, and rounded to even pixels.

A scene begins where the histograms of two frames in a row differ by more than
`cut`: 8 x 8 x 8 colours of the frame shrunk to 96 x 54 pixels, half of the sum
of the differences of their shares, 0 to 1. Fades are no cuts.

Frames without attention cost nothing anywhere. Of positions that cost the same
the one nearer to the middle is taken.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import csv
import dataclasses
import math
import re
import tempfile
from typing import IO

import cv2
import numpy as np

from lsts_tf.media import draw as overlay
from lsts_tf.media import writer
from lsts_tf.outputs import sink

# Positions of the grid at most; a map has no finer detail.
_POSITIONS = 129
# Attention that the far edge has to win over the middle, as a share.
_TO_THE_MIDDLE = 1e-4
_BINS = 8
_SMALL = (96, 54)


def read_aspect(text: str) -> float:
    """Width by height of "9:16", "1:1", "4:5" or "0.8".

    Raises:
        ValueError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*(?:[:/x]\s*(\d+\.?\d*))?\s*", text)
    if found:
        width, height = float(found[1]), float(found[2] or 1)
        if width > 0 and height > 0:
            return width / height
    raise ValueError(
        f'An aspect is "WIDTH:HEIGHT", such as 9:16. Received: {text!r}'
    )


def crop_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """The largest even (width, height) of an aspect inside a frame.

    Args:
        size: (width, height) of the frame.
        aspect: Width by height, in pixels of the frame. What even numbers can
            come closest to it.

    Raises:
        ValueError: The frame is smaller than 2 x 2 pixels.
    """
    width, height = size[0] // 2 * 2, size[1] // 2 * 2
    if min(width, height) < 2:
        raise ValueError(
            "A frame that is cropped has at least 2 x 2 pixels. "
            f"Received: {size[0]} x {size[1]}"
        )
    if aspect <= width / height:
        return min(width, max(2, 2 * round(height * aspect / 2))), height
    return width, min(height, max(2, 2 * round(width / aspect / 2)))


def kept(
    map_: np.ndarray,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    positions: np.ndarray,
) -> np.ndarray | None:
    """Share of attention inside the crop at each position.

    Args:
        map_: float [h, w], not negative.
        size: (width, height) of the frame.
        crop: (width, height), less than the frame's along one axis at most.
        positions: float [n], pixels along that axis.

    Returns:
        float64 [n], 0 to 1, or None if there is no attention.
    """
    axis = _axis(size, crop)
    sums = map_.sum(axis=axis, dtype=np.float64)
    total = sums.sum()
    if not total:
        return None
    edges = np.linspace(0, size[axis], len(sums) + 1)
    inside = np.concatenate([[0.0], np.cumsum(sums)]) / total
    ends = np.interp(positions + crop[axis], edges, inside)
    return ends - np.interp(positions, edges, inside)


def _axis(size: tuple[int, int], crop: tuple[int, int]) -> int:
    """0 if the crop moves along the width, 1 along the height."""
    return int(size[1] - crop[1] > size[0] - crop[0])


class Cuts:
    """Finds cuts, frame by frame; see the module."""

    def __init__(self, *, threshold: float = 0.5) -> None:
        self._threshold = threshold
        self._before: np.ndarray | None = None

    def __call__(self, frame: np.ndarray) -> bool:
        """Whether a scene begins with this frame; the first one does.

        Args:
            frame: uint8 RGB [H, W, 3].
        """
        small = cv2.resize(frame, _SMALL, interpolation=cv2.INTER_AREA)
        counts = cv2.calcHist(
            [small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3
        )
        now = counts.ravel() / counts.sum()
        before, self._before = self._before, now
        if before is None:
            return True
        return float(np.abs(now - before).sum()) / 2 > self._threshold


class Path:
    """The path of a crop, from costs to positions, with a bounded delay.

    Args:
        positions: float [n], rising: the grid.
        move_cost: Of moving by one pixel.
        lookahead: Frames that have to be known before one is settled.
        ease: Deviation of the Gaussian in frames; 0 for none.

    Attributes:
        delay: Frames that may come after one before it has its position.
    """

    def __init__(
        self,
        *,
        positions: np.ndarray,
        move_cost: float,
        lookahead: int,
        ease: float,
    ) -> None:
        self._positions = np.asarray(positions, np.float64)
        places = self._positions
        self._moves = move_cost * np.abs(places[:, None] - places)
        self._lookahead = max(0, lookahead)
        radius = math.ceil(3 * ease)
        steps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (steps / max(ease, 1e-9)) ** 2)
        self._weights = weights / weights.sum()
        self._radius = radius
        self.delay = self._lookahead + radius
        self._clear()

    def _clear(self) -> None:
        """Begins a scene."""
        self._cost: np.ndarray | None = None
        # Where the best way to each position came from, frame by frame.
        self._from: collections.deque[np.ndarray] = collections.deque()
        self._settled: list[float] = []
        # How many of the settled ones are out, and are no longer in the list.
        self._out = self._dropped = 0

    def add(self, costs: np.ndarray) -> Iterator[float]:
        """Takes the next frame's cost of each position; yields positions."""
        best, way = self._arrive()
        self._cost = best + costs
        # Only differences matter, and a long scene must not grow the numbers.
        self._cost -= self._cost.min()
        self._from.append(way)
        if len(self._from) > self._lookahead:
            self._settle(1)
        yield from self._eased(ends=False)

    def end(self) -> Iterator[float]:
        """Ends the scene; yields what is left of it."""
        self._settle(len(self._from))
        yield from self._eased(ends=True)
        self._clear()

    def _arrive(self) -> tuple[np.ndarray, np.ndarray]:
        """Least cost of being at each position before this frame's own."""
        if self._cost is None:
            places = np.arange(len(self._moves))
            return np.zeros(len(places)), places
        ways = self._cost[:, None] + self._moves
        return ways.min(axis=0), ways.argmin(axis=0)

    def _settle(self, number: int) -> None:
        """Fixes the oldest frames, by the best way to the newest."""
        if self._cost is None:
            return
        place = int(self._cost.argmin())
        places = []
        for way in reversed(self._from):
            places.append(place)
            place = int(way[place])
        for place in places[: -number - 1 : -1]:
            self._settled.append(float(self._positions[place]))
            self._from.popleft()

    def _eased(self, *, ends: bool) -> Iterator[float]:
        """Yields the smoothed positions whose neighbours are settled."""
        have = self._dropped + len(self._settled)
        last = have - (0 if ends else self._radius)
        while self._out < last:
            around = np.arange(-self._radius, self._radius + 1) + self._out
            # Beyond the scene's ends the crop stands still.
            around = np.clip(around, 0, have - 1) - self._dropped
            settled = np.asarray(self._settled)
            yield float(settled[around] @ self._weights)
            self._out += 1
            if self._out - self._dropped > self._radius:
                self._settled.pop(0)
                self._dropped += 1


@dataclasses.dataclass(kw_only=True)
class Reframe(sink.Sink):
    """The clip in another aspect, and the path of its crop, in four files.

    * NAME.mp4: the crop, H.264, with the source's number of frames.
    * NAME.json: sizes, settings, cuts, and `frame`, `time`, `x`, `y`, `kept`
      of each frame.
    * NAME.csv: the same columns.
    * NAME.sendcmd: commands for FFmpeg's `crop`; its first line says how to
      use it.

    Frames wait for their position in a temporary file beside the output, for
    `lookahead` and three times `ease` seconds. A note of the weights is
    written on the picture. The crop has its aspect as it is seen, where pixels
    are not square too.
    """

    BESIDE = (".json", ".csv", ".sendcmd")

    aspect: str = sink.option("9:16", "Aspect of the reframed video")
    stiffness: float = sink.option(
        0.5,
        "Seconds of all attention that moving the crop by its length costs",
        least=0,
    )
    lookahead: float = sink.option(
        2.0, "Seconds that the crop sees ahead", least=0
    )
    ease: float = sink.option(
        0.3, "Seconds that ease a move of the crop", least=0
    )
    cut: float = sink.option(
        0.5,
        "Difference of two frames' colours that is a cut, 0 to 1",
        least=0,
        most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        aspect = read_aspect(self.aspect) / float(self.pixel_aspect)
        self.crop = crop_size(self.size, aspect)
        self._axis = _axis(self.size, self.crop)
        room = self.size[self._axis] - self.crop[self._axis]
        self._last = room // 2 * 2
        self._positions = np.linspace(
            0, self._last, min(room // 2 + 1, _POSITIONS)
        )
        middle = np.abs(self._positions - self._last / 2)
        self._bias = _TO_THE_MIDDLE * middle / max(self._last / 2, 1) / self.fps
        self._search = Path(
            positions=self._positions,
            move_cost=self.stiffness / self.crop[self._axis],
            lookahead=round(self.lookahead * self.fps),
            ease=self.ease * self.fps,
        )
        self._is_cut = Cuts(threshold=self.cut)
        self._cuts: list[int] = []
        self._done = 0
        self._kept = 0.0
        self._with_attention = 0
        # Of frames without a position: time, and attention before each edge.
        self._waiting: collections.deque[tuple[float, np.ndarray | None]] = (
            collections.deque()
        )
        self._before: tuple[float, tuple[int, int]] | None = None
        self._first_time = 0.0

    def open(self) -> None:
        """See `sink.Sink`."""
        json_path, csv_path, commands_path = self.paths()[1:]
        self._json = self.text(json_path)
        self._json.write('{"path": [')
        self._csv = csv.writer(self.text(csv_path), lineterminator="\n")
        self._csv.writerow(["frame", "time", "x", "y", "kept"])
        self._commands = self.text(commands_path)
        self._film = self.enter(
            writer.Writer(
                self.hidden(self.path),
                fps=self.fps,
                size=self.crop,
                pixel_aspect=self.pixel_aspect,
            )
        )
        file = self.enter(tempfile.TemporaryFile(dir=self._hidden))
        self._frames = _Queue(file, self.size, self._search.delay + 1)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        if self._is_cut(frame):
            if self.count:
                self._cuts.append(self.count)
            self._write_at(self._search.end())
        places = np.arange(0, self._last + 1, 2, dtype=np.float64)
        shares = kept(map_, size=self.size, crop=self.crop, positions=places)
        costs = self._bias
        if shares is not None:
            on_grid = np.interp(self._positions, places, shares)
            costs = costs + (1 - on_grid) / self.fps
        self._waiting.append((time, shares))
        self._frames.put(frame)
        self.count += 1
        self._write_at(self._search.add(costs))

    def finish(self) -> None:
        """See `sink.Sink`."""
        self._write_at(self._search.end())
        mean = None
        if self._with_attention:
            mean = round(self._kept / self._with_attention, 5)
        about = {
            "frames": self.count,
            "fps": self.fps,
            "start": {"frame": self.start[0], "seconds": self.start[1]},
            "first_map": self.first,
            "size": list(self.size),
            "pixel_aspect": list(self.pixel_aspect.as_integer_ratio()),
            "crop": list(self.crop),
            "cuts": self._cuts,
            "mean_kept": mean,
            **self.settings(),
            "note": self.note,
        }
        # The rest of the object that began before the frames.
        self._json.write("],\n" + sink.to_json(about)[1:] + "\n")

    def _write_at(self, positions: Iterable[float]) -> None:
        """Writes the frames that waited longest for their positions."""
        for position in positions:
            even = min(max(2 * round(position / 2), 0), self._last)
            x, y = place = (even, 0) if self._axis == 0 else (0, even)
            time, shares = self._waiting.popleft()
            share = None
            if shares is not None:
                share = round(float(shares[even // 2]), 5)
                self._kept += share
                self._with_attention += 1
            row = {
                "frame": self._done,
                "time": round(time, 6),
                "x": x,
                "y": y,
                "kept": share,
            }
            self._json.write(",\n"[not self._done :] + sink.to_json(row))
            self._csv.writerow(row.values())
            self._command(time, place)
            width, height = self.crop
            picture = self._frames.get()[y : y + height, x : x + width]
            if self.note:
                picture = overlay.annotate(picture, self.note)
            self._film.write(np.ascontiguousarray(picture), time)
            self._done += 1

    def _command(self, time: float, place: tuple[int, int]) -> None:
        """A line for FFmpeg where the crop moves, and one at the start."""
        before, self._before = self._before, (time, place)
        if before and before[1] == place:
            return
        # Between the two frames, so that rounding moves no frame.
        at = (before[0] + time) / 2 - self._first_time if before else 0.0
        if before is None:
            width, height = self.crop
            name = self.path.with_suffix(".sendcmd").name
            # The commands' times are from the first frame that is cropped.
            self._first_time = time
            first = self.start[0] + self.first
            trim = f"trim=start_frame={first},setpts=PTS-STARTPTS,"
            self._commands.write(
                f"# ffmpeg -i INPUT {'-an ' if first else ''}-vf "
                f"\"{trim if first else ''}sendcmd=f='{name}',"
                f'crop={width}:{height}:{place[0]}:{place[1]}" OUTPUT\n'
            )
        self._commands.write(
            f"{at:.6f} crop x {place[0]}, crop y {place[1]};\n"
        )


class _Queue:
    """Frames in the order they came, on disk: seconds of them are large.

    Args:
        file: Open for reading and writing.
        size: (width, height) of the frames.
        room: Frames that it holds at most.
    """

    def __init__(self, file: IO[bytes], size: tuple[int, int], room: int):
        self._file = file
        self._shape = (size[1], size[0], 3)
        self._bytes = math.prod(self._shape)
        self._room = room
        self._put = self._got = 0

    def put(self, frame: np.ndarray) -> None:
        """Takes a frame."""
        self._file.seek(self._put % self._room * self._bytes)
        self._file.write(np.ascontiguousarray(frame).data)
        self._put += 1

    def get(self) -> np.ndarray:
        """The oldest frame."""
        self._file.seek(self._got % self._room * self._bytes)
        self._got += 1
        data = self._file.read(self._bytes)
        return np.frombuffer(data, np.uint8).reshape(self._shape)
