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
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import fractions
import math
import os
import pathlib
import re
import tempfile
from typing import IO

import cv2
import numpy as np

from lsts_tf.media import draw as overlay
from lsts_tf.media import sink
from lsts_tf.media import video
from lsts_tf.media import writer

STIFFNESS = 0.5
LOOKAHEAD = 2.0
EASE = 0.3
CUT = 0.5
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

    def __init__(self, *, threshold: float = CUT) -> None:
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
        self._ramp = self._positions * move_cost
        self._lookahead = max(0, lookahead)
        radius = math.ceil(3 * ease)
        steps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (steps / max(ease, 1e-9)) ** 2)
        self._weights = weights / weights.sum()
        self._radius = radius
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
        places = np.arange(len(self._positions))
        if self._cost is None:
            return np.zeros(len(places)), places
        # A way from below costs ramp[i] - ramp[j], one from above the
        # opposite, so each minimum over j is a running one.
        up = self._cost - self._ramp
        down = (self._cost + self._ramp)[::-1]
        from_below = _running_argmin(up)
        from_above = len(places) - 1 - _running_argmin(down)[::-1]
        below = up[from_below] + self._ramp
        above = self._cost[from_above] + self._ramp[from_above] - self._ramp
        return (
            np.minimum(below, above),
            np.where(below <= above, from_below, from_above),
        )

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


def _running_argmin(values: np.ndarray) -> np.ndarray:
    """Place of the least of the values up to each one, the first of equals."""
    lowest = np.minimum.accumulate(values)
    fresh = np.concatenate([[True], values[1:] < lowest[:-1]])
    return np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0))


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
    written on the picture.

    Args:
        path: NAME.mp4 (or .webm).
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        aspect: Such as "9:16".
        stiffness: Seconds of all attention that a move by the length of the
            crop costs; more is calmer.
        lookahead: Seconds, see the module.
        ease: Seconds, see the module.
        cut: See the module; 1 for none.
        picture: Whether the video is made, or only the path.
        first: Number of the clip's first frame that comes, from 0. Times are
            from the start of the clip all the same.
        pixel_aspect: Width of a pixel by its height. The crop has its aspect
            as it is seen, and pixels of that aspect too.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        aspect: str = "9:16",
        stiffness: float = STIFFNESS,
        lookahead: float = LOOKAHEAD,
        ease: float = EASE,
        cut: float = CUT,
        picture: bool = True,
        first: int = 0,
        pixel_aspect: fractions.Fraction = video.SQUARE,
    ) -> None:
        super().__init__(path=path, fps=fps, size=size, note=note)
        each = (stiffness, lookahead, ease)
        if not all(0 <= v < math.inf for v in each) or not 0 < cut <= 1:
            raise ValueError(
                "Stiffness, lookahead and ease are finite and not negative, "
                "and a cut is above 0 and up to 1. Received: "
                f"stiffness={stiffness}, lookahead={lookahead}, ease={ease}, "
                f"cut={cut}"
            )
        self.aspect = aspect
        self.crop = crop_size(size, read_aspect(aspect) / float(pixel_aspect))
        self._pixel_aspect = pixel_aspect
        self._settings = {
            "stiffness": stiffness,
            "lookahead": lookahead,
            "ease": ease,
            "cut": cut,
        }
        self._picture = picture
        self._first = first
        self._first_time = 0.0
        self._axis = _axis(size, self.crop)
        room = size[self._axis] - self.crop[self._axis]
        steps = min(room // 2 + 1, _POSITIONS)
        self._last = room // 2 * 2
        self._positions = np.linspace(0, self._last, steps)
        middle = np.abs(self._positions - self._last / 2)
        self._bias = _TO_THE_MIDDLE * middle / max(self._last / 2, 1) / fps
        self._search = Path(
            positions=self._positions,
            move_cost=stiffness / self.crop[self._axis],
            lookahead=round(lookahead * fps),
            ease=ease * fps,
        )
        self._is_cut = Cuts(threshold=cut)
        self._cuts: list[int] = []
        self._done = 0
        self._kept = 0.0
        self._with_attention = 0
        # Of frames without a position: time, and attention before each edge.
        self._waiting: collections.deque[tuple[float, np.ndarray | None]] = (
            collections.deque()
        )
        self._before: tuple[float, tuple[int, int]] | None = None

    def open(self) -> None:
        """See `sink.Sink`."""
        self._json = self.text(self.path.with_suffix(".json"))
        self._json.write('{"path": [')
        self._csv = csv.writer(
            self.text(self.path.with_suffix(".csv")), lineterminator="\n"
        )
        self._csv.writerow(["frame", "time", "x", "y", "kept"])
        self._commands = self.text(self.path.with_suffix(".sendcmd"))
        if self._picture:
            self._writer = self.enter(
                writer.Writer(
                    self.path,
                    fps=self.fps,
                    size=self.crop,
                    pixel_aspect=self._pixel_aspect,
                )
            )
            self._frames = self.enter(_Queue(self.path.parent, self.size))

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        if self._is_cut(frame):
            if self.count:
                self._cuts.append(self.count)
            for position in self._search.end():
                self._place(position)
        shares = kept(
            map_,
            size=self.size,
            crop=self.crop,
            positions=np.arange(0, self._last + 1, 2, dtype=np.float64),
        )
        costs = self._bias
        if shares is not None:
            on_grid = np.interp(
                self._positions, np.arange(0, self._last + 1, 2), shares
            )
            costs = costs + (1 - on_grid) / self.fps
        self._waiting.append((time, shares))
        if self._picture:
            self._frames.put(frame)
        self.count += 1
        for position in self._search.add(costs):
            self._place(position)

    def finish(self) -> None:
        """See `sink.Sink`."""
        for position in self._search.end():
            self._place(position)
        mean = None
        if self._with_attention:
            mean = round(self._kept / self._with_attention, 5)
        about = {
            "frames": self.count,
            "fps": self.fps,
            "start": {"frame": self.start[0], "seconds": self.start[1]},
            "first_map": self._first,
            "size": list(self.size),
            "aspect": self.aspect,
            "pixel_aspect": list(self._pixel_aspect.as_integer_ratio()),
            "crop": list(self.crop),
            "cuts": self._cuts,
            "mean_kept": mean,
            **self._settings,
            "note": self.note,
        }
        if self._picture:
            self._writer.finish()
        # The rest of the object that began before the frames.
        self._json.write("],\n" + sink.to_json(about)[1:] + "\n")

    def _place(self, position: float) -> None:
        """Writes the oldest waiting frame."""
        even = min(max(2 * round(position / 2), 0), self._last)
        place = (even, 0) if self._axis == 0 else (0, even)
        time, shares = self._waiting.popleft()
        share = None
        if shares is not None:
            share = round(float(shares[even // 2]), 5)
            self._kept += share
            self._with_attention += 1
        row = {
            "frame": self._done,
            "time": round(time, 6),
            "x": place[0],
            "y": place[1],
            "kept": share,
        }
        self._json.write(",\n"[not self._done :] + sink.to_json(row))
        self._csv.writerow(row.values())
        self._command(time, place)
        if self._picture:
            picture = _cropped(self._frames.get(), place, self.crop)
            if self.note:
                picture = overlay.annotate(picture, self.note)
            self._writer.write(picture, time)
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
            first = self.start[0] + self._first
            trim = f"trim=start_frame={first},setpts=PTS-STARTPTS,"
            self._commands.write(
                f"# ffmpeg -i INPUT {'-an ' if first else ''}-vf "
                f"\"{trim if first else ''}sendcmd=f='{name}',"
                f'crop={width}:{height}:{place[0]}:{place[1]}" OUTPUT\n'
            )
        self._commands.write(
            f"{at:.6f} crop x {place[0]}, crop y {place[1]};\n"
        )


def _cropped(
    frame: np.ndarray, place: Sequence[int], crop: Sequence[int]
) -> np.ndarray:
    (x, y), (width, height) = place, crop
    return np.ascontiguousarray(frame[y : y + height, x : x + width])


class _Queue:
    """Frames in the order they came, on disk: seconds of them are large.

    The file has as many places as were ever taken at once.
    """

    def __init__(self, folder: pathlib.Path, size: tuple[int, int]) -> None:
        self._folder = os.fspath(folder)
        self._shape = (size[1], size[0], 3)
        self._bytes = size[0] * size[1] * 3
        self._free: list[int] = []
        self._used: collections.deque[int] = collections.deque()
        self._file: IO[bytes]

    def __enter__(self) -> "_Queue":
        self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, frame: np.ndarray) -> None:
        """Takes a frame."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(
                f"A frame is uint8 {list(self._shape)}. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        place = self._free.pop() if self._free else len(self._used)
        self._file.seek(place * self._bytes)
        self._file.write(np.ascontiguousarray(frame).data)
        self._used.append(place)

    def get(self) -> np.ndarray:
        """The oldest frame."""
        place = self._used.popleft()
        self._file.seek(place * self._bytes)
        data = self._file.read(self._bytes)
        self._free.append(place)
        return np.frombuffer(data, np.uint8).reshape(self._shape)
