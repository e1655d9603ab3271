"""What a saliency map says: where, how concentrated, how it moves.

A map is float [h, w], finite and not negative; its scale does not matter
except for `Region.peak`. Attention is the map divided by its sum, so shares of
it add up to one. Places are (x, y) in pixels of the source, of size (width,
height), as continuous coordinates: the frame is [0, width] x [0, height], and
the middle of its first pixel is (0.5, 0.5). Boxes are (left, top, right,
bottom). Lengths without a unit are in diagonals of the frame.

A map of zeros has no attention: no regions, no places, `None` for every number
but `hot_spots`, which is 0. A constant map above zero is spread evenly: focus
0, one region that is the whole frame.

Definitions

region       Connected pixels (8 neighbours) at or above `fraction`, half by
             default, of the map's maximum; it holds a share of at least
             `LEAST_SHARE` of the attention. Centre: weighted by attention.
strongest    The middle of the pixel with the highest value; of several, the
             first in reading order.
hot spots    The number of regions.
centroid     Mean place, weighted by attention.
dispersion   Root of the mean squared distance from the centroid.
entropy      Shannon's, divided by that of a uniform map: 0 is one pixel, 1 is
             everywhere alike. Focus is 1 - entropy.
jump         How far the strongest point is from that of the frame before.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import cv2
import numpy as np

from lsts_tf.media import files
from lsts_tf.media import sink

FRACTION = 0.5
LEAST_SHARE = 0.01
LARGE_JUMP = 1 / 3
ENDS_SECONDS = 2.0
STOP_RADIUS = 0.1
STOP_SECONDS = 0.1
# Lines in a pixel along which the area of a polygon is measured.
_LINES = 8

_NUMBERS = ("focus", "dispersion", "hot_spots", "jump")

Place = tuple[float, float]


class Region(NamedTuple):
    """A part of the frame that stands out.

    Attributes:
        centre: (x, y), weighted by attention.
        box: (left, top, right, bottom).
        share: Of all attention, 0 to 1.
        peak: Highest value of the map in it.
    """

    centre: Place
    box: tuple[float, float, float, float]
    share: float
    peak: float


class Area(NamedTuple):
    """An area of interest.

    Attributes:
        name: As its author called it.
        polygon: float64 [corners, 2], (x, y) in pixels of the source.
    """

    name: str
    polygon: np.ndarray


class Measures(NamedTuple):
    """All that is known of one frame; the words are those of the module.

    Attributes:
        time: Seconds from the start of the clip.
        regions: The strongest first.
        areas: Share of attention of each area, and whether the strongest
            point is in it.
    """

    time: float
    regions: Sequence[Region]
    strongest: Place | None
    centroid: Place | None
    dispersion: float | None
    entropy: float | None
    focus: float | None
    hot_spots: int
    jump: float | None
    areas: Mapping[str, tuple[float | None, bool]]


def regions(
    map_: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    fraction: float = FRACTION,
    least_share: float = LEAST_SHARE,
) -> list[Region]:
    """Regions of a map, the largest share of attention first.

    Args:
        map_: float [h, w].
        size: (width, height) of the source; that of the map by default.
        fraction: Of the map's maximum, above 0 and up to 1.
        least_share: Smaller ones are left out.

    Raises:
        ValueError: `fraction` is out of range, or no map.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            "A region is bounded at a fraction of the maximum, above 0 and "
            f"not above 1. Received: fraction={fraction}"
        )
    map_, total = _checked(map_)
    if not total:
        return []
    scale_x, scale_y = _scale(map_, size)
    above = map_ >= fraction * map_.max()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        above.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    rows, columns = np.nonzero(above)
    label = labels[rows, columns]
    weight = map_[rows, columns].astype(np.float64)
    mass = np.bincount(label, weight, count)
    x = np.bincount(label, weight * (columns + 0.5), count)
    y = np.bincount(label, weight * (rows + 0.5), count)
    peak = np.zeros(count)
    np.maximum.at(peak, label, weight)
    found = []
    for i in range(1, count):
        if mass[i] < least_share * total:
            continue
        left, top, wide, high = (int(v) for v in stats[i, :4])
        found.append(
            Region(
                (x[i] / mass[i] * scale_x, y[i] / mass[i] * scale_y),
                (
                    left * scale_x,
                    top * scale_y,
                    (left + wide) * scale_x,
                    (top + high) * scale_y,
                ),
                float(mass[i] / total),
                float(peak[i]),
            )
        )
    return sorted(found, key=lambda region: -region.share)


def strongest(
    map_: np.ndarray, *, size: tuple[int, int] | None = None
) -> Place | None:
    """The strongest point of a map; see the module."""
    map_, total = _checked(map_)
    if not total:
        return None
    row, column = divmod(int(map_.argmax()), map_.shape[1])
    scale_x, scale_y = _scale(map_, size)
    return (column + 0.5) * scale_x, (row + 0.5) * scale_y


def centroid(
    map_: np.ndarray, *, size: tuple[int, int] | None = None
) -> Place | None:
    """Mean place of the attention."""
    moments = _moments(map_, size)
    return moments and moments[0]


def dispersion(
    map_: np.ndarray, *, size: tuple[int, int] | None = None
) -> float | None:
    """How far attention spreads around the centroid, in diagonals."""
    moments = _moments(map_, size)
    return moments and moments[1]


def entropy(map_: np.ndarray) -> float | None:
    """0 for a single pixel, 1 for a uniform map; None for zeros."""
    map_, total = _checked(map_)
    if not total:
        return None
    if map_.size == 1:
        return 0.0
    # -sum of p log p, with p = value / total. Single precision and no copy of
    # the pixels above zero: ten times faster, and right to six digits.
    values = map_.astype(np.float32, copy=False)
    logs = np.log2(np.maximum(values, np.finfo(np.float32).tiny))
    bits = math.log2(total) - (
        float(np.multiply(values, logs, out=logs).sum(dtype=np.float64)) / total
    )
    return min(max(bits / math.log2(map_.size), 0.0), 1.0)


def distance(one: Place, other: Place, size: tuple[int, int]) -> float:
    """Distance of two places of a frame of some size, in diagonals."""
    return math.dist(one, other) / math.hypot(*size)


def coverage(
    area: Area, shape: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Which part of each pixel of a map lies in an area.

    Args:
        area: The area. Where its outline crosses itself, even-odd.
        shape: (h, w) of the map.
        size: (width, height) of the source.

    Returns:
        float32 [h, w], 0 to 1: exact along x, and in steps of an eighth of
        a pixel along y.
    """
    height, width = shape
    corners = area.polygon * (width / size[0], height / size[1])
    y = (np.arange(height * _LINES) + 0.5) / _LINES
    crossings = np.full((len(y), len(corners)), np.inf)
    for i, (start, end) in enumerate(
        zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ):
        # Half open, so that a corner between two edges counts once.
        hit = (y < start[1]) != (y < end[1])
        if hit.any():
            slope = (end[0] - start[0]) / (end[1] - start[1])
            crossings[hit, i] = start[0] + (y[hit] - start[1]) * slope
    crossings.sort(axis=1)
    covered = np.zeros((len(y), width))
    column = np.arange(width)
    for i in range(len(corners) // 2 * 2):
        # What lies left of the crossing, in each pixel.
        left = np.clip(crossings[:, i, None] - column, 0, 1)
        some = np.isfinite(crossings[:, i, None])
        covered += np.where(some, left if i % 2 else -left, 0)
    mean = covered.reshape(height, _LINES, width).mean(axis=1)
    return mean.astype(np.float32)


def share(map_: np.ndarray, covered: np.ndarray) -> float | None:
    """Share of attention in an area; see `coverage`."""
    map_, total = _checked(map_)
    if not total:
        return None
    inside = float(np.vdot(map_, covered.astype(map_.dtype)))
    return min(max(inside / total, 0.0), 1.0)


def read_areas(path: str | os.PathLike, size: tuple[int, int]) -> list[Area]:
    """Areas of interest from a JSON file.

        {"unit": "pixels",
         "areas": {"logo": [[10, 20], [110, 20], [110, 60], [10, 60]]}}

    Args:
        path: The file. `unit` is "pixels" of the source, or "fractions" of
            its width and height. A polygon has at least three corners.
        size: (width, height) of the source.

    Raises:
        files.FileError: It is something else.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise files.FileError(
            path, f"cannot be read ({error.strerror})."
        ) from error
    except ValueError as error:
        raise files.FileError(path, f"not JSON ({error}).") from error
    if not isinstance(data, dict) or not isinstance(data.get("areas"), dict):
        raise files.FileError(
            path,
            'areas are {"unit": "pixels", "areas": {NAME: [[x, y], ...]}}.',
        )
    unit = data.get("unit")
    if unit not in ("pixels", "fractions"):
        raise files.FileError(
            path, f'"unit" is "pixels" or "fractions", not {unit!r}.'
        )
    scale = np.array(size if unit == "fractions" else (1, 1), np.float64)
    found = []
    for name, corners in data["areas"].items():
        polygon = _corners(path, name, corners) * scale
        area = Area(name, polygon)
        if not coverage(area, (64, 64), size).any():
            raise files.FileError(
                path,
                f"area {name!r} covers nothing of a frame of {size[0]} x "
                f"{size[1]} pixels. Is its unit {unit}?",
            )
        found.append(area)
    if not found:
        raise files.FileError(path, "there is no area in it.")
    return found


def as_areas(
    areas: Sequence[Area] | str | os.PathLike, size: tuple[int, int]
) -> Sequence[Area]:
    """Areas as they are, or those of a file; none of ""."""
    if isinstance(areas, str | os.PathLike):
        return read_areas(areas, size) if os.fspath(areas) else ()
    return areas


def _corners(path: str | os.PathLike, name: str, corners: object) -> np.ndarray:
    try:
        polygon = np.array(corners, np.float64)
    except (TypeError, ValueError):
        polygon = np.empty(0)
    if (
        polygon.ndim != 2
        or polygon.shape[1] != 2
        or len(polygon) < 3
        or not np.isfinite(polygon).all()
    ):
        raise files.FileError(
            path, f"area {name!r} is not three or more corners [x, y]."
        )
    return polygon


class Measurer:
    """Measures of one frame after the other.

    Args:
        size: (width, height) of the source.
        areas: Areas of interest.
        fraction: See `regions`.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        areas: Sequence[Area] = (),
        fraction: float = FRACTION,
    ) -> None:
        self._size = size
        self._areas = tuple(areas)
        self._fraction = fraction
        self._covered: dict[str, np.ndarray] = {}
        self._before: Place | None = None

    def __call__(self, map_: np.ndarray, time: float) -> Measures:
        """Measures of the next frame.

        Raises:
            ValueError: No map.
        """
        size = self._size
        found = regions(map_, size=size, fraction=self._fraction)
        moments = _moments(map_, size)
        spread = entropy(map_)
        point = strongest(map_, size=size)
        jump = None
        if point and self._before:
            jump = distance(point, self._before, size)
        self._before = point
        return Measures(
            time=time,
            regions=found,
            strongest=point,
            centroid=moments and moments[0],
            dispersion=moments and moments[1],
            entropy=spread,
            focus=None if spread is None else 1 - spread,
            hot_spots=len(found),
            jump=jump,
            areas=self._shares(map_, point),
        )

    def _shares(
        self, map_: np.ndarray, point: Place | None
    ) -> dict[str, tuple[float | None, bool]]:
        height, width = map_.shape
        if self._areas and not self._covered:
            self._covered = {
                area.name: coverage(area, (height, width), self._size)
                for area in self._areas
            }
        shares = {}
        for name, covered in self._covered.items():
            inside = False
            if point:
                row = int(point[1] * height / self._size[1])
                column = int(point[0] * width / self._size[0])
                inside = bool(covered[row, column] >= 0.5)
            shares[name] = (share(map_, covered), inside)
        return shares


class _Mean:
    """Mean, and deviation, of what is not None."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, value: float | None) -> None:
        if value is None:
            return
        # Welford's update: exact for constants, stable for long clips.
        self._count += 1
        step = value - self._mean
        self._mean += step / self._count
        self._squares += step * (value - self._mean)

    @property
    def mean(self) -> float | None:
        return self._mean if self._count else None

    @property
    def deviation(self) -> float:
        return math.sqrt(max(self._squares, 0.0) / max(self._count, 1))


class Stop(NamedTuple):
    """A stop of the gaze path.

    Attributes:
        start: Seconds.
        end: Seconds.
        place: Mean of the strongest points.
    """

    start: float
    end: float
    place: Place


class GazePath:
    """Where the strongest point rests, one stop after the other.

    A stop lasts while the strongest point stays within `STOP_RADIUS`
    diagonals of the stop's mean place, or leaves it for less than
    `STOP_SECONDS`. Frames without attention end nothing.

    Args:
        fps: Frames a second.
        size: (width, height) of the source.
    """

    def __init__(self, *, fps: float, size: tuple[int, int]) -> None:
        self._frame = 1 / fps
        self._size = size
        self._done: list[Stop] = []
        self._now: _Stay | None = None
        self._next: _Stay | None = None

    def add(self, time: float, point: Place | None) -> None:
        """Takes the strongest point of the next frame."""
        if point is None:
            return
        if self._now is None:
            self._now = _Stay(time, point)
        elif self._near(self._now, point):
            self._now.add(time, point)
            self._next = None
        elif self._next is None or not self._near(self._next, point):
            self._next = _Stay(time, point)
        else:
            self._next.add(time, point)
        if self._next and self._lasts(self._next) >= STOP_SECONDS - 1e-6:
            self._done.append(self._now.stop(self._next.start))
            self._now, self._next = self._next, None

    def _near(self, stay: "_Stay", point: Place) -> bool:
        return distance(stay.place, point, self._size) <= STOP_RADIUS

    def _lasts(self, stay: "_Stay") -> float:
        return stay.last + self._frame - stay.start

    def stops(self) -> list[Stop]:
        """All stops so far."""
        if self._now is None:
            return []
        return [*self._done, self._now.stop(self._now.last + self._frame)]


class _Stay:
    """A stop that is not over."""

    def __init__(self, time: float, point: Place) -> None:
        self.start = self.last = time
        self.place = point
        self._count = 1

    def add(self, time: float, point: Place) -> None:
        self.last = time
        self._count += 1
        x, y = self.place
        self.place = (
            x + (point[0] - x) / self._count,
            y + (point[1] - y) / self._count,
        )

    def stop(self, end: float) -> Stop:
        return Stop(self.start, end, self.place)


class Summary:
    """Measures of a whole clip, gathered frame by frame.

    Memory holds the last seconds and the gaze path.

    Args:
        fps: Frames a second.
        size: (width, height) of the source.
        areas: Areas of interest.
    """

    def __init__(
        self,
        *,
        fps: float,
        size: tuple[int, int],
        areas: Sequence[Area] = (),
    ) -> None:
        self._fps = fps
        self._size = size
        self._areas = tuple(areas)
        self._count = 0
        self._all = _Means(areas)
        self._first = _Means(areas)
        self._last: collections.deque[Measures] = collections.deque()
        self._large_jumps = 0
        self._strongest_in = dict.fromkeys((a.name for a in areas), 0)
        self._path = GazePath(fps=fps, size=size)
        self._start = 0.0

    def add(self, measures: Measures) -> None:
        """Takes the next frame."""
        if not self._count:
            self._start = measures.time
        self._count += 1
        self._all.add(measures)
        if measures.time - self._start < ENDS_SECONDS - 1e-6:
            self._first.add(measures)
        # Only the numbers: regions of two seconds would be held for nothing.
        self._last.append(measures._replace(regions=()))
        while measures.time - self._last[0].time > ENDS_SECONDS - 1e-6:
            self._last.popleft()
        self._large_jumps += (measures.jump or 0) > LARGE_JUMP
        for name, (_, inside) in measures.areas.items():
            self._strongest_in[name] += inside
        self._path.add(measures.time, measures.strongest)

    def result(self) -> dict[str, Any]:
        """What `summary.json` holds; see docs/attention.md."""
        last = _Means(self._areas)
        for measures in self._last:
            last.add(measures)
        focus = self._all.numbers["focus"]
        consistency = None
        if focus.mean is not None:
            ratio = focus.deviation / focus.mean if focus.mean else 0.0
            consistency = max(0.0, 1 - ratio)
        return {
            "frames": self._count,
            "fps": self._fps,
            "size": list(self._size),
            "mean": self._all.result(),
            "first_2_seconds": self._first.result(),
            "last_2_seconds": last.result(),
            "focus_consistency": _ratio(consistency),
            "large_jumps": self._large_jumps,
            "areas": {
                area.name: {
                    "mean_share": _ratio(self._all.areas[area.name].mean),
                    "share_of_frame": _ratio(
                        float(coverage(area, (360, 640), self._size).mean())
                    ),
                    "strongest_inside": _ratio(
                        self._strongest_in[area.name] / self._count
                        if self._count
                        else None
                    ),
                }
                for area in self._areas
            },
            "gaze_path": [
                {
                    "start": round(stop.start, 6),
                    "end": round(stop.end, 6),
                    "place": _place(stop.place),
                }
                for stop in self._path.stops()
            ],
        }


class _Means:
    """Means of the numbers and of the areas' shares."""

    def __init__(self, areas: Iterable[Area]) -> None:
        self.numbers = {name: _Mean() for name in _NUMBERS}
        self.areas = {area.name: _Mean() for area in areas}

    def add(self, measures: Measures) -> None:
        for name, mean in self.numbers.items():
            mean.add(getattr(measures, name))
        for name, mean in self.areas.items():
            mean.add(measures.areas[name][0])

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            name: _ratio(mean.mean) for name, mean in self.numbers.items()
        }
        result["areas"] = {
            name: _ratio(mean.mean) for name, mean in self.areas.items()
        }
        return result


class JsonLines(sink.Sink):
    """One JSON object a line and frame, and `summary.json` of the clip.

    A line holds `frame` (from 0), `time`, `regions` (the strongest, each with
    `centre`, `box`, `share` and `peak`), `strongest`, `centroid`,
    `dispersion`, `entropy`, `focus`, `hot_spots`, `jump` and `areas`, as
    docs/attention.md says. Places are in pixels of the source, to a hundredth.
    `summary.json` lies beside it.

    Args:
        path: The lines, such as attention.jsonl.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        regions: How many of the strongest are written.
        fraction: See `regions`.
        areas: Areas of interest, or a file of them, or "".
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        regions: int = 3,
        fraction: float = FRACTION,
        areas: Sequence[Area] | str | os.PathLike = (),
    ) -> None:
        super().__init__(path=path, fps=fps, size=size, note=note)
        areas = as_areas(areas, size)
        if regions < 0:
            raise ValueError(
                "The number of regions is not negative. "
                f"Received: regions={regions}"
            )
        self._regions = regions
        self._measure = Measurer(size=size, areas=areas, fraction=fraction)
        self._summary = Summary(fps=fps, size=size, areas=areas)

    def open(self) -> None:
        """See `sink.Sink`."""
        self._lines = self.text(self.path)
        self._about = self.text(self.path.with_name("summary.json"))

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        del frame
        measures = self._measure(map_, time)
        self._summary.add(measures)
        line = to_record(self.count, measures, self._regions)
        self._lines.write(sink.to_json(line) + "\n")
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        result = {"note": self.note, **self._summary.result()}
        self._about.write(sink.to_json(result, indent=2) + "\n")


def to_record(number: int, measures: Measures, k: int) -> dict[str, Any]:
    """A frame as JSON holds it, with its `k` strongest regions."""
    return {
        "frame": number,
        "time": round(measures.time, 6),
        "regions": [
            {
                "centre": _place(region.centre),
                "box": [round(float(v), 2) for v in region.box],
                "share": _ratio(region.share),
                "peak": _ratio(region.peak),
            }
            for region in measures.regions[:k]
        ],
        "strongest": _place(measures.strongest),
        "centroid": _place(measures.centroid),
        "dispersion": _ratio(measures.dispersion),
        "entropy": _ratio(measures.entropy),
        "focus": _ratio(measures.focus),
        "hot_spots": measures.hot_spots,
        "jump": _ratio(measures.jump),
        "areas": {
            name: _ratio(value) for name, (value, _) in measures.areas.items()
        },
    }


def _place(place: Place | None) -> list[float] | None:
    return place and [round(float(v), 2) for v in place]


def _ratio(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)


def _checked(map_: np.ndarray) -> tuple[np.ndarray, float]:
    """The map and its sum."""
    map_ = np.asarray(map_)
    if map_.ndim != 2 or not map_.size or map_.dtype.kind not in "buif":
        raise ValueError(
            "A map is [h, w] of real numbers. "
            f"Received: {map_.dtype} {list(map_.shape)}"
        )
    total = float(map_.sum(dtype=np.float64))
    if not math.isfinite(total) or map_.min() < 0:
        raise ValueError(
            "A map has no value below zero and none that is not finite. "
            f"Received: {map_.min()} to {map_.max()}"
        )
    return map_, total


def _scale(
    map_: np.ndarray, size: tuple[int, int] | None
) -> tuple[float, float]:
    """Pixels of the source in a pixel of the map, along x and y."""
    height, width = map_.shape
    if size is None:
        return 1.0, 1.0
    return size[0] / width, size[1] / height


def _moments(
    map_: np.ndarray, size: tuple[int, int] | None
) -> tuple[Place, float] | None:
    """Centroid, and dispersion."""
    map_, total = _checked(map_)
    if not total:
        return None
    scale_x, scale_y = _scale(map_, size)
    means, variance = [], 0.0
    for axis, scale in ((0, scale_x), (1, scale_y)):
        weights = map_.sum(axis=axis, dtype=np.float64) / total
        places = (np.arange(len(weights)) + 0.5) * scale
        mean = float(weights @ places)
        means.append(mean)
        variance += float(weights @ (places - mean) ** 2)
    height, width = map_.shape
    diagonal = math.hypot(width * scale_x, height * scale_y)
    return (means[0], means[1]), math.sqrt(variance) / diagonal
