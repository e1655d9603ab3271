"""What a saliency map says: where, how concentrated, how it moves.

A map is float [h, w], finite and not negative; its scale does not matter
except for `Region.peak`. Attention is the map divided by its sum, so shares of
it add up to one. Places are (x, y) in pixels of the source, of size (width,
height), as continuous coordinates: the frame is [0, width] x [0, height], and
the middle of its first pixel is (0.5, 0.5). Boxes are (left, top, right,
bottom). Lengths without a unit are in diagonals of the frame.

docs/attention.md defines what is measured, also of maps of zeros and constant
ones.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lsts_tf import option
from lsts_tf.media import files
from lsts_tf.outputs import sink

if TYPE_CHECKING:
    import pandas as pd

_FRACTION = 0.5
_LEAST_SHARE = 0.01
_LARGE_JUMP = 1 / 3
_ENDS_SECONDS = 2.0
_STOP_RADIUS = 0.1
_STOP_SECONDS = 0.1
_ROUNDING = 1e-6
# Lines in a pixel along which the area of a polygon is measured.
_LINES = 8

_NUMBERS = ["focus", "dispersion", "hot_spots", "jump"]

Place = tuple[float, float]


class Region(NamedTuple):
    """A part of the frame that stands out.

    `share` is of all attention, 0 to 1, `peak` the map's highest value in it.
    """

    centre: Place
    box: tuple[float, float, float, float]
    share: float
    peak: float


class Measures(NamedTuple):
    """All that is known of one frame; see docs/attention.md.

    Attributes:
        time: Seconds from the start of the clip.
        regions: The one with the largest share of attention first.
        areas: Share of attention of each area, and whether the strongest
            point is in it.
    """

    time: float
    regions: Sequence[Region] = ()
    strongest: Place | None = None
    centroid: Place | None = None
    dispersion: float | None = None
    entropy: float | None = None
    focus: float | None = None
    hot_spots: int = 0
    jump: float | None = None
    areas: Mapping[str, tuple[float | None, bool]] = {}


@dataclasses.dataclass(kw_only=True)
class Measurer:
    """Measures of one frame after the other, and of the clip that they are.

    Memory grows by some numbers a frame: tens of MB an hour. `areas` are
    polygons by name: float [corners, 2], (x, y) in pixels of the source.
    """

    size: tuple[int, int]
    fps: float = 25.0
    areas: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._covered: dict[str, np.ndarray] = {}
        self._rows: list[Measures] = []

    def __call__(self, map_: np.ndarray, time: float) -> Measures:
        """Measures of the next frame: of a map, float [h, w], and its seconds.

        Raises:
            ValueError: No map.
        """
        measures = self._measures(map_, time)
        # Nobody asks for its regions again.
        self._rows.append(measures._replace(regions=()))
        return measures

    def _measures(self, map_: np.ndarray, time: float) -> Measures:
        total = _total(map_)
        if not self._covered:
            self._covered = {
                name: coverage(polygon, map_.shape, self.size)
                for name, polygon in self.areas.items()
            }
        if not total:
            nothing = dict.fromkeys(self._covered, (None, False))
            return Measures(time, areas=nothing)
        height, width = map_.shape
        scale = self.size[0] / width, self.size[1] / height
        row, column = np.unravel_index(int(map_.argmax()), map_.shape)
        strongest = (column + 0.5) * scale[0], (row + 0.5) * scale[1]
        before = self._rows[-1].strongest if self._rows else None
        found = _regions(map_, total, scale)
        centroid, deviation = _moments(map_, scale)
        diagonal = math.hypot(*self.size)
        from scipy import special  # SciPy: a third of a second

        # Single precision is faster, and right to six digits.
        nats = special.entr(map_.astype(np.float32) / np.float32(total))
        entropy = nats.sum(dtype=np.float64) / math.log(max(map_.size, 2))
        # 0 for a single pixel, 1 for a uniform map.
        spread = min(max(float(entropy), 0.0), 1.0)
        return Measures(
            time=time,
            regions=found,
            strongest=strongest,
            centroid=centroid,
            dispersion=deviation / diagonal,
            entropy=spread,
            focus=1 - spread,
            hot_spots=len(found),
            jump=before and math.dist(before, strongest) / diagonal,
            areas={
                name: (
                    min(float(np.vdot(map_, covered)) / total, 1.0),
                    bool(covered[row, column] >= 0.5),
                )
                for name, covered in self._covered.items()
            },
        )

    def tables(
        self,
    ) -> tuple["pd.DataFrame", "pd.DataFrame", "pd.DataFrame"]:
        """All frames, a row each; float64, NaN where there is no value.

        Returns:
            "time" and numbers by their names; and of the areas by theirs: the
            shares of attention, and whether they hold the strongest point.
        """
        import pandas as pd  # half a second

        rows = pd.DataFrame(self._rows, columns=Measures._fields)

        def of_areas(item: int) -> pd.DataFrame:
            pairs = [row.areas.values() for row in self._rows]
            values = [[pair[item] for pair in some] for some in pairs]
            return pd.DataFrame(values, columns=[*self.areas], dtype=float)

        numbers = rows[["time", *_NUMBERS]].astype(float)
        return numbers, of_areas(0), of_areas(1)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds; see docs/attention.md."""
        table, shares, inside = self.tables()
        time, focus = table["time"], table["focus"].dropna()
        ends = _ENDS_SECONDS - _ROUNDING

        def means(some: Any) -> dict[str, Any]:
            areas = shares[some].mean().to_dict()
            return {**table[some][_NUMBERS].mean().to_dict(), "areas": areas}

        ratio = focus.std(ddof=0) / focus.mean() if focus.any() else 0.0
        result = {
            "mean": means(slice(None)),
            "first_2_seconds": means(time - time.min() < ends),
            "last_2_seconds": means(time.max() - time <= ends),
            "focus_consistency": max(0.0, 1 - ratio) if focus.size else None,
            "large_jumps": int((table["jump"] > _LARGE_JUMP).sum()),
            "areas": {
                name: {
                    "mean_share": shares[name].mean(),
                    "share_of_frame": float(
                        coverage(polygon, (360, 640), self.size).mean()
                    ),
                    "strongest_inside": inside[name].mean(),
                }
                for name, polygon in self.areas.items()
            },
        }
        points = ((row.time, row.strongest) for row in self._rows)
        return {
            "frames": len(table),
            "fps": self.fps,
            "size": list(self.size),
            **plain(result),
            "gaze_path": [
                {
                    "start": round(stop.start, 6),
                    "end": round(stop.end, 6),
                    "place": plain(stop.place),
                }
                for stop in gaze_path(points, fps=self.fps, size=self.size)
            ],
        }


def _total(map_: np.ndarray) -> float:
    """The sum of a map."""
    if map_.ndim != 2 or not map_.size or map_.dtype.kind not in "buif":
        raise ValueError(
            "A map is [h, w] of real numbers. "
            f"Received: {map_.dtype} {list(map_.shape)}"
        )
    total = float(map_.sum(dtype=np.float64))
    if not math.isfinite(total) or map_.min() < 0:
        raise ValueError(
            "A map must have finite values, none of them below zero. Received: "
            f"{map_.min()} to {map_.max()}"
        )
    return total


def _regions(map_: np.ndarray, total: float, scale: Place) -> list[Region]:
    """Regions of a map with attention, and of this sum.

    `scale` is pixels of the source in a pixel of the map, along x and y.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(map_ >= _FRACTION * map_.max(), np.ones((3, 3)))
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        inside = np.where(labels[place] == number, map_[place], 0)
        mass = float(inside.sum(dtype=np.float64))
        if mass < _LEAST_SHARE * total:
            continue
        rows, columns = place
        y, x = ndimage.center_of_mass(inside.astype(np.float64))
        first = np.array([columns.start, rows.start])
        last = np.array([columns.stop, rows.stop])
        left, top, right, bottom = [*first * scale, *last * scale]
        centre_x, centre_y = (first + (x, y) + 0.5) * scale
        found.append(
            Region(
                centre=(float(centre_x), float(centre_y)),
                box=(float(left), float(top), float(right), float(bottom)),
                share=mass / total,
                peak=float(inside.max()),
            )
        )
    return sorted(found, key=lambda region: -region.share)


def _moments(map_: np.ndarray, scale: Place) -> tuple[Place, float]:
    """Centroid, and mean distance from it in pixels; see `_regions`."""
    means, variance = [], 0.0
    for axis in (0, 1):
        weights = map_.sum(axis=axis, dtype=np.float64)
        places = (np.arange(len(weights)) + 0.5) * scale[axis]
        means.append(float(np.average(places, weights=weights)))
        variance += np.average((places - means[-1]) ** 2, weights=weights)
    return (means[0], means[1]), math.sqrt(variance)


# === Areas of interest ===


def coverage(
    polygon: np.ndarray, shape: tuple[int, ...], size: tuple[int, int]
) -> np.ndarray:
    """Which part of each pixel of a map lies in an area.

    Args:
        polygon: float [corners, 2]: (x, y) in pixels of the source. Where the
            outline crosses itself, even-odd.
        shape: (h, w) of the map.
        size: (width, height) of the source.

    Returns:
        float32 [h, w], 0 to 1: exact along x, and in steps of an eighth of
        a pixel along y.
    """
    height, width = shape
    starts = polygon * (width / size[0], height / size[1])
    ends = np.roll(starts, -1, axis=0)
    y = (np.arange(height * _LINES)[:, None] + 0.5) / _LINES
    # Half open, so that a corner between two edges counts once.
    hit = (y < starts[:, 1]) != (y < ends[:, 1])
    rise = np.where(hit, ends[:, 1] - starts[:, 1], 1)
    x = starts[:, 0] + (y - starts[:, 1]) * (ends - starts)[:, 0] / rise
    crossings = np.sort(np.where(hit, x, np.inf), axis=1)
    covered = np.zeros((len(y), width))
    column = np.arange(width)
    # Of an odd number of edges one is not hit. Two at infinity cancel out.
    for i in range(len(starts) // 2 * 2):
        # What lies left of the crossing, in each pixel.
        left = np.clip(crossings[:, i, None] - column, 0, 1)
        covered += left if i % 2 else -left
    mean = covered.reshape(height, _LINES, width).mean(axis=1)
    return mean.astype(np.float32)


def read_areas(
    path: str | os.PathLike, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Areas of interest from a JSON file; see docs/attention.md.

    Returns:
        Polygons by name, float64 [corners, 2] in pixels of the source.

    Raises:
        OSError: It cannot be read.
        files.FileError: It is something else.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise files.FileError(path, f"not JSON ({error}).") from error
    scales = {"pixels": (1, 1), "fractions": size}
    about = data if isinstance(data, dict) else {}
    unit, areas = about.get("unit"), about.get("areas")
    if unit not in scales or not isinstance(areas, dict) or not areas:
        raise files.FileError(
            path,
            'areas are {"unit": "pixels", "areas": {NAME: [[x, y], ...]}}, of '
            'one area or more; the unit is "pixels" or "fractions".',
        )
    found = {}
    for name, corners in areas.items():
        try:
            polygon = np.array(corners, np.float64)
        except (TypeError, ValueError):
            polygon = np.empty(0)
        has_corners = polygon.shape[1:] == (2,) and len(polygon) > 2
        if not (has_corners and np.isfinite(polygon).all()):
            raise files.FileError(
                path, f"area {name!r} is not three or more corners [x, y]."
            )
        found[name] = polygon * scales[unit]
        if not coverage(found[name], (64, 64), size).any():
            raise files.FileError(
                path,
                f"area {name!r} covers nothing of a frame of {size[0]} x "
                f"{size[1]} pixels. Is its unit {unit}?",
            )
    return found


# === Of a whole clip ===


class Stop(NamedTuple):
    """A stop of the gaze path: seconds, and the mean of the strongest points.

    `frames` is in how many the strongest point was there.
    """

    start: float
    end: float
    place: Place
    frames: int = 1


def gaze_path(
    points: Iterable[tuple[float, Place | None]],
    *,
    fps: float,
    size: tuple[int, int],
) -> list[Stop]:
    """Where the strongest point rests, one stop after the other.

    Frames without attention end nothing. `points` are the seconds and the
    strongest point of each frame.
    """

    def longer(stop: Stop, end: float, point: Place) -> Stop | None:
        """The stop with one more frame, or None if the point is not near."""
        if math.dist(stop.place, point) > _STOP_RADIUS * math.hypot(*size):
            return None
        frames = stop.frames + 1
        (x, y), (to_x, to_y) = stop.place, point
        place = x + (to_x - x) / frames, y + (to_y - y) / frames
        return Stop(stop.start, end, place, frames)

    stops: list[Stop] = []
    new: Stop | None = None
    for time, point in points:
        if point is None:
            continue
        end = time + 1 / fps
        if not stops:
            stops.append(Stop(time, end, point))
        elif same := longer(stops[-1], end, point):
            stops[-1], new = same, None
        else:
            new = (new and longer(new, end, point)) or Stop(time, end, point)
            if new.end - new.start >= _STOP_SECONDS - _ROUNDING:
                stops[-1] = stops[-1]._replace(end=new.start)
                stops.append(new)
                new = None
    return stops


# === Outputs ===


class Measuring(sink.Sink):
    """The base of outputs that measure attention."""

    areas: str = option.field(
        "", "File of areas of interest, for json and report"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        areas = read_areas(self.areas, self.size) if self.areas else {}
        if areas:
            self.reads = {pathlib.Path(self.areas): "the areas of interest"}
        self.measure = Measurer(size=self.size, fps=self.fps, areas=areas)


@sink.output("json", "attention.jsonl")
class JsonLines(Measuring):
    """One JSON object a line and frame, and `summary.json` of the clip.

    docs/attention.md says what they hold.
    """

    BESIDE = ("summary.json",)
    DRAWS = False

    regions: int = option.field(
        3, "Number of regions per frame in json", least=0
    )

    def _open(self) -> None:
        self._lines, self._about = map(self.text, self.paths())

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        measures = self.measure(map_, time)
        some = list(measures.regions[: self.regions])
        line = {
            "frame": self.count,
            **plain(measures._replace(regions=some, areas={})),
            "time": round(time, 6),
            "areas": {n: plain(v) for n, (v, _) in measures.areas.items()},
        }
        self._lines.write(sink.to_json(line) + "\n")

    def _finish(self) -> None:
        result = {"note": self.note, **self.measure.summary()}
        self._about.write(sink.to_json(result, indent=2) + "\n")


def plain(value: Any) -> Any:
    """As JSON holds it: places to a hundredth, other numbers to 5 digits."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, tuple):
        return [round(float(each), 2) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(float(value), 5)
    return value
