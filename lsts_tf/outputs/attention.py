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

region       Connected pixels (8 neighbours) at or above half of the map's
             maximum that hold at least 1 % of the attention. Centre: weighted
             by attention.
strongest    The middle of the pixel with the highest value; of several, the
             first in reading order.
hot spots    The number of regions.
centroid     Mean place, weighted by attention.
dispersion   Root of the mean squared distance from the centroid.
entropy      Shannon's, divided by that of a uniform map: 0 is one pixel, 1 is
             everywhere alike. Focus is 1 - entropy.
jump         How far the strongest point is from that of the frame before.
"""

import array
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lsts_tf.media import files
from lsts_tf.outputs import sink

_FRACTION = 0.5
_LEAST_SHARE = 0.01
_LARGE_JUMP = 1 / 3
_ENDS_SECONDS = 2.0
_STOP_RADIUS = 0.1
_STOP_SECONDS = 0.1
_ROUNDING = 1e-6
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
    map_: np.ndarray, *, size: tuple[int, int] | None = None
) -> list[Region]:
    """Regions of a map, the largest share of attention first.

    Args:
        map_: float [h, w].
        size: (width, height) of the source; that of the map by default.

    Raises:
        ValueError: No map.
    """
    map_, total = _checked(map_)
    if not total:
        return []
    scale_x, scale_y = _scale(map_, size)
    labels = ndimage.label(
        map_ >= _FRACTION * map_.max(), structure=np.ones((3, 3))
    )[0]
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = place
        inside = np.where(labels[place] == number, map_[place], 0)
        mass = float(inside.sum(dtype=np.float64))
        if mass < _LEAST_SHARE * total:
            continue
        y, x = ndimage.center_of_mass(inside.astype(np.float64))
        found.append(
            Region(
                (
                    (columns.start + x + 0.5) * scale_x,
                    (rows.start + y + 0.5) * scale_y,
                ),
                (
                    columns.start * scale_x,
                    rows.start * scale_y,
                    columns.stop * scale_x,
                    rows.stop * scale_y,
                ),
                mass / total,
                float(inside.max()),
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


def moments(
    map_: np.ndarray, *, size: tuple[int, int] | None = None
) -> tuple[Place, float] | tuple[None, None]:
    """Centroid, and dispersion; see the module."""
    map_, total = _checked(map_)
    if not total:
        return None, None
    scales = _scale(map_, size)
    means, variance = [], 0.0
    for axis, scale in enumerate(scales):
        weights = map_.sum(axis=axis, dtype=np.float64) / total
        places = (np.arange(len(weights)) + 0.5) * scale
        mean = float(weights @ places)
        means.append(mean)
        variance += float(weights @ (places - mean) ** 2)
    height, width = map_.shape
    diagonal = math.hypot(width * scales[0], height * scales[1])
    return (means[0], means[1]), math.sqrt(variance) / diagonal


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
    """

    def __init__(
        self, *, size: tuple[int, int], areas: Sequence[Area] = ()
    ) -> None:
        self._size = size
        self._areas = tuple(areas)
        self._covered: dict[str, np.ndarray] = {}
        self._before: Place | None = None

    def __call__(self, map_: np.ndarray, time: float) -> Measures:
        """Measures of the next frame.

        Raises:
            ValueError: No map.
        """
        size = self._size
        found = regions(map_, size=size)
        centroid, dispersion = moments(map_, size=size)
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
            centroid=centroid,
            dispersion=dispersion,
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
        if not self._covered:
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


@dataclasses.dataclass
class Stop:
    """A stop of the gaze path.

    Attributes:
        start: Seconds.
        end: Seconds.
        place: Mean of the strongest points.
        count: Frames in which the strongest point was there.
    """

    start: float
    end: float
    place: Place
    count: int = 1

    def add(self, end: float, point: Place) -> None:
        """Takes another frame."""
        self.end = end
        self.count += 1
        x, y = self.place
        self.place = (
            x + (point[0] - x) / self.count,
            y + (point[1] - y) / self.count,
        )


class GazePath:
    """Where the strongest point rests, one stop after the other.

    A stop lasts while the strongest point stays within a tenth of the diagonal
    of the stop's mean place, or leaves it for less than a tenth of a second.
    Frames without attention end nothing.

    Args:
        fps: Frames a second.
        size: (width, height) of the source.

    Attributes:
        stops: All of them so far.
    """

    def __init__(self, *, fps: float, size: tuple[int, int]) -> None:
        self._frame = 1 / fps
        self._size = size
        self.stops: list[Stop] = []
        self._next: Stop | None = None

    def add(self, time: float, point: Place | None) -> None:
        """Takes the strongest point of the next frame."""
        if point is None:
            return
        end = time + self._frame
        if not self.stops:
            self.stops.append(Stop(time, end, point))
        elif self._near(self.stops[-1], point):
            self.stops[-1].add(end, point)
            self._next = None
        elif self._next and self._near(self._next, point):
            self._next.add(end, point)
        else:
            self._next = Stop(time, end, point)
        new = self._next
        if new and new.end - new.start >= _STOP_SECONDS - _ROUNDING:
            self.stops[-1].end = new.start
            self.stops.append(new)
            self._next = None

    def _near(self, stop: Stop, point: Place) -> bool:
        return distance(stop.place, point, self._size) <= _STOP_RADIUS


class Summary:
    """Measures of a whole clip, gathered frame by frame.

    Memory grows by some numbers a frame: less than 10 MB an hour.

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
        # A row for each frame: time, the numbers, and of each area its share
        # and whether the strongest point is in it.
        self._values = array.array("d")
        self._path = GazePath(fps=fps, size=size)

    def add(self, measures: Measures) -> None:
        """Takes the next frame."""
        numbers = [getattr(measures, name) for name in _NUMBERS]
        shares = [v for pair in measures.areas.values() for v in pair]
        self._values.extend(
            math.nan if v is None else v
            for v in (measures.time, *numbers, *shares)
        )
        self._path.add(measures.time, measures.strongest)

    def column(self, name: str) -> np.ndarray:
        """Values of all frames, NaN where there is none: float64 [frames].

        Args:
            name: "time", "focus", "dispersion", "hot_spots" or "jump".
        """
        return self._rows()[:, ("time", *_NUMBERS).index(name)]

    def shares(self) -> np.ndarray:
        """Shares of attention of the areas: float64 [frames, areas]."""
        return self._rows()[:, 1 + len(_NUMBERS) :: 2]

    def _rows(self) -> np.ndarray:
        columns = 1 + len(_NUMBERS) + 2 * len(self._areas)
        return np.array(self._values).reshape(-1, columns)

    def result(self) -> dict[str, Any]:
        """What `summary.json` holds; see docs/attention.md."""
        times, focus = self.column("time"), self.column("focus")
        shares = self.shares()
        inside = self._rows()[:, 2 + len(_NUMBERS) :: 2]
        ends = _ENDS_SECONDS - _ROUNDING

        def means(some: Any) -> dict[str, Any]:
            found: dict[str, Any] = {
                name: _mean(self.column(name)[some]) for name in _NUMBERS
            }
            found["areas"] = {
                area.name: _mean(shares[some, i])
                for i, area in enumerate(self._areas)
            }
            return found

        focus = focus[~np.isnan(focus)]
        consistency = None
        if focus.size:
            ratio = focus.std() / focus.mean() if focus.any() else 0.0
            consistency = max(0.0, 1 - ratio)
        return {
            "frames": len(times),
            "fps": self._fps,
            "size": list(self._size),
            "mean": means(slice(None)),
            "first_2_seconds": means(times - times[:1] < ends),
            "last_2_seconds": means(times[-1:] - times <= ends),
            "focus_consistency": _plain(consistency),
            "large_jumps": int((self.column("jump") > _LARGE_JUMP).sum()),
            "areas": {
                area.name: {
                    "mean_share": _mean(shares[:, i]),
                    "share_of_frame": _plain(
                        float(coverage(area, (360, 640), self._size).mean())
                    ),
                    "strongest_inside": _mean(inside[:, i]),
                }
                for i, area in enumerate(self._areas)
            },
            "gaze_path": [
                {
                    "start": round(stop.start, 6),
                    "end": round(stop.end, 6),
                    "place": _plain(stop.place),
                }
                for stop in self._path.stops
            ],
        }


@dataclasses.dataclass(kw_only=True)
class Measuring(sink.Sink):
    """The base of outputs that measure attention."""

    areas: str = sink.option(
        "", "File of areas of interest, for json and report"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._areas = read_areas(self.areas, self.size) if self.areas else []
        self._measure = Measurer(size=self.size, areas=self._areas)
        self._summary = Summary(fps=self.fps, size=self.size, areas=self._areas)


@dataclasses.dataclass(kw_only=True)
class JsonLines(Measuring):
    """One JSON object a line and frame, and `summary.json` of the clip.

    A line holds `frame` (from 0), `time`, `regions` (the strongest, each with
    `centre`, `box`, `share` and `peak`), `strongest`, `centroid`,
    `dispersion`, `entropy`, `focus`, `hot_spots`, `jump` and `areas`, as
    docs/attention.md says. Places are in pixels of the source, to a hundredth.
    """

    BESIDE = ("summary.json",)

    regions: int = sink.option(3, "Regions of a frame in json", least=0)

    def open(self) -> None:
        """See `sink.Sink`."""
        self._lines, self._about = map(self.text, self.paths())

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        measures = self._measure(map_, time)
        self._summary.add(measures)
        line = to_record(self.count, measures, self.regions)
        self._lines.write(sink.to_json(line) + "\n")
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        result = {"note": self.note, **self._summary.result()}
        self._about.write(sink.to_json(result, indent=2) + "\n")


def to_record(number: int, measures: Measures, k: int) -> dict[str, Any]:
    """A frame as JSON holds it, with its `k` strongest regions."""
    some = measures._replace(regions=measures.regions[:k], areas={})
    return {
        "frame": number,
        **_plain(some),
        "time": round(measures.time, 6),
        "areas": {n: _plain(share) for n, (share, _) in measures.areas.items()},
    }


def _plain(value: Any) -> Any:
    """As JSON holds it: places to a hundredth, other numbers to 5 digits."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, tuple):
        return [round(float(each), 2) for each in value]
    return round(float(value), 5) if isinstance(value, float) else value


def _mean(values: np.ndarray) -> float | None:
    """Mean of those that are no NaN."""
    values = values[~np.isnan(values)]
    return _plain(float(values.mean())) if values.size else None


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
