"""Another aspect ratio: a crop that follows attention and holds still.

The crop is the largest one of the aspect that fits into the frame, of even
width and height, so it moves along one axis only. A position is the distance
of its left (or upper) edge from the frame's, in pixels, even. Numbers of
frames count from 0.

docs/reframe.md says how its path is found: by dynamic programming within each
scene, then eased. The minimum is over the whole scene, except that a position
is settled once `lookahead` more seconds are known, so that few frames wait for
theirs. Frames without attention cost nothing anywhere. Of positions that cost
the same the one nearer to the middle is taken.
"""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import math
import re
import tempfile

import cv2
import numpy as np

from lsts_tf import option
from lsts_tf.media import draw
from lsts_tf.outputs import sink

# Positions of the grid at most; a map has no finer detail.
_POSITIONS = 129
# Attention that the far edge has to win over the middle, as a share.
_TO_THE_MIDDLE = 1e-4


def read_aspect(text: str) -> float:
    """Width by height of "9:16", "1:1", "4:5" or "0.8".

    Raises:
        ValueError: It is none.
    """
    width, _, height = re.sub("[/x]", ":", text).partition(":")
    try:
        aspect = float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        aspect = math.nan
    if not 0 < aspect < math.inf:
        raise ValueError(
            f"--aspect is WIDTH:HEIGHT, such as 9:16. Received: {text!r}"
        )
    return aspect


def crop_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """The largest even (width, height) closest to an aspect inside a frame.

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
        crop: The same, less than the frame's along one axis at most.
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


def _colours(frame: np.ndarray) -> np.ndarray:
    """Shares of 8 x 8 x 8 colours in a frame, shrunk to 96 x 54: [512]."""
    small = cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA)
    counts = cv2.calcHist([small], [0, 1, 2], None, [8] * 3, [0, 256] * 3)
    return counts.ravel() / counts.sum()


@dataclasses.dataclass(kw_only=True)
class Path:
    """The path of a crop, from costs to positions, with a bounded delay.

    Attributes:
        positions: float [n], rising: the grid.
        move_cost: Of moving by one pixel.
        lookahead: Frames that have to be known before one is settled.
        ease: Deviation of the Gaussian in frames; 0 for none.
        delay: Frames that may come after one before it has its position.
    """

    positions: np.ndarray
    move_cost: float
    lookahead: int
    ease: float

    def __post_init__(self) -> None:
        places = self.positions
        self._moves = self.move_cost * np.abs(places[:, None] - places)
        self._radius = radius = math.ceil(3 * self.ease)
        steps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (steps / max(self.ease, 1e-9)) ** 2)
        self._weights = weights / weights.sum()
        self.delay = self.lookahead + radius
        self._clear()

    def _clear(self) -> None:
        """Begins a scene."""
        # Least cost of a way to each position.
        self._cost = np.zeros(len(self.positions))
        # Where the best way to each position came from, frame by frame.
        self._from = collections.deque[np.ndarray]()
        self._settled: list[float] = []
        # How many of the settled ones are out.
        self._out = 0

    def add(self, costs: np.ndarray) -> Iterator[float]:
        """Takes the next frame's cost of each position; yields positions."""
        ways = self._cost[:, None] + self._moves
        self._from.append(ways.argmin(axis=0))
        self._cost = ways.min(axis=0) + costs
        # Only differences matter, and a long scene must not grow the numbers.
        self._cost -= self._cost.min()
        if len(self._from) > self.lookahead:
            self._settle(1)
        yield from self._eased(len(self._settled) - self._radius)

    def end(self) -> Iterator[float]:
        """Ends the scene; yields what is left of it."""
        self._settle(len(self._from))
        yield from self._eased(len(self._settled))
        self._clear()

    def _settle(self, number: int) -> None:
        """Fixes the oldest frames, by the best way to the newest."""
        place = int(self._cost.argmin())
        places = []
        for way in reversed(self._from):
            places.append(place)
            place = int(way[place])
        for place in places[: -number - 1 : -1]:
            self._settled.append(float(self.positions[place]))
            self._from.popleft()

    def _eased(self, last: int) -> Iterator[float]:
        """Yields smoothed positions up to `last`, which have neighbours."""
        reach = range(-self._radius, self._radius + 1)
        for here in range(self._out, last):
            # Beyond the scene's ends the crop stands still.
            end = len(self._settled) - 1
            around = [self._settled[min(max(here + k, 0), end)] for k in reach]
            yield float(np.dot(around, self._weights))
        self._out = max(self._out, last)


@sink.output("reframed", "reframed.mp4")
class Reframe(sink.Sink):
    """The clip in another aspect, and the path of its crop; docs/reframe.md.

    Frames wait for their position in a temporary file beside the output, for
    `lookahead` and three times `ease` seconds.
    """

    BESIDE = (".json", ".csv", ".sendcmd")

    aspect: str = option.field("9:16", "Aspect ratio of the reframed video")
    stiffness: float = option.field(
        0.5,
        "Cost of moving the crop by its length, in seconds of all attention",
        least=0,
    )
    lookahead: float = option.field(
        2.0, "Seconds of the clip that the crop looks ahead", least=0
    )
    ease: float = option.field(
        0.3,
        "Width in seconds of the Gaussian that smooths moves of the crop",
        least=0,
    )
    cut: float = option.field(
        0.5,
        "Difference in colour between frames that counts as a cut, 0 to 1",
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
        self._before: np.ndarray | None = None
        self._cuts: list[int] = []
        # Of frames without a position: time, and attention inside the crop at
        # each even position.
        self._waiting = collections.deque[tuple[float, np.ndarray | None]]()
        # Of the others: frame, time, x, y, kept.
        self._rows: list[tuple[int, float, int, int, float | None]] = []

    def _open(self) -> None:
        self._texts = [self.text(path) for path in self.paths()[1:]]
        self._film = self.film(self.crop)
        # Seconds of frames are large.
        self._bytes = 3 * math.prod(self.size)
        self._frames = self.enter(tempfile.TemporaryFile(dir=self._hidden))

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        before, self._before = self._before, _colours(frame)
        before = self._before if before is None else before
        # Half of the sum of the differences of shares is 0 to 1.
        if np.abs(before - self._before).sum() / 2 > self.cut:
            self._cuts.append(self.count)
            self._write_at(self._search.end())
        places = np.arange(0, self._last + 1, 2, dtype=np.float64)
        shares = kept(map_, size=self.size, crop=self.crop, positions=places)
        costs = self._bias
        if shares is not None:
            on_grid = np.interp(self._positions, places, shares)
            costs = costs + (1 - on_grid) / self.fps
        self._waiting.append((time, shares))
        self._seek(self.count)
        self._frames.write(frame.tobytes())
        self._write_at(self._search.add(costs))

    def _write_at(self, positions: Iterable[float]) -> None:
        """Writes the frames that waited longest for their positions."""
        width, height = self.crop
        for position in positions:
            even = min(max(2 * round(position / 2), 0), self._last)
            x, y = (even, 0) if self._axis == 0 else (0, even)
            time, shares = self._waiting.popleft()
            share = None
            if shares is not None:
                share = round(float(shares[even // 2]), 5)
            number = len(self._rows)
            self._rows.append((number, round(time, 6), x, y, share))
            self._seek(number)
            data = self._frames.read(self._bytes)
            frame = np.frombuffer(data, np.uint8).reshape(*self.size[::-1], 3)
            crop = frame[y : y + height, x : x + width]
            self._film.write(draw.annotate(crop, self.note), time)

    def _seek(self, number: int) -> None:
        """Goes to where a frame waits, in a ring of as many as may wait."""
        self._frames.seek(number % (self._search.delay + 1) * self._bytes)

    def _finish(self) -> None:
        self._write_at(self._search.end())
        columns = ["frame", "time", "x", "y", "kept"]
        shares = [row[-1] for row in self._rows if row[-1] is not None]
        about = {
            "path": [dict(zip(columns, r, strict=True)) for r in self._rows],
            "frames": self.count,
            "fps": self.fps,
            "start": {"frame": self.start[0], "seconds": self.start[1]},
            "first_map": self.first,
            "size": list(self.size),
            "pixel_aspect": list(self.pixel_aspect.as_integer_ratio()),
            "crop": list(self.crop),
            "cuts": self._cuts,
            "mean_kept": round(float(np.mean(shares)), 5) if shares else None,
            **self.settings(),
            "note": self.note,
        }
        about_file, table, commands = self._texts
        about_file.write(sink.to_json(about) + "\n")
        import pandas as pd  # half a second

        frame = pd.DataFrame(self._rows, columns=columns)
        frame.to_csv(table, index=False, lineterminator="\n")
        commands.writelines(self._commands() if self._rows else ())

    def _commands(self) -> Iterator[str]:
        """Lines for FFmpeg: how to use them, and where the crop moves."""
        _, start, *place, _ = self._rows[0]
        name = self.path.with_suffix(".sendcmd").name
        # The commands' times are from the first frame that is cropped.
        first = self.start[0] + self.first
        trim = f"trim=start_frame={first},setpts=PTS-STARTPTS,"
        size = ":".join(map(str, (*self.crop, *place)))
        yield (
            f"# ffmpeg -i INPUT {'-an ' if first else ''}-vf "
            f"\"{trim if first else ''}sendcmd=f='{name}',"
            f'crop={size}" OUTPUT\n'
        )
        yield "0.000000 crop x {}, crop y {};\n".format(*place)
        for (_, before, *old, _), (_, time, *new, _) in itertools.pairwise(
            self._rows
        ):
            if new != old:
                # Between the two frames, so that rounding moves no frame.
                at = (before + time) / 2 - start
                yield "{:.6f} crop x {}, crop y {};\n".format(at, *new)
