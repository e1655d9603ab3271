"""Where people looked, as files.

Two kinds. DHF1K's folders have, for each frame, a density map and fixated
pixels: `0601/maps/0001.png`, `0601/fixation/0001.png` and the same fixations
in `0601/fixation/maps/0001.mat` (variable `I`). A list of points, JSON or CSV,
has the columns video, frame, x, y and perhaps observer; density maps are made
of the points.

Frames are numbered from 0 here and from 1 in files. Fixations are
coordinates (row, column), int16 [N, 2], each pixel once; densities are
[H, W]. What cannot be read is a `maps.MapError`.
"""

import array
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import json
import os
import pathlib
from typing import Any

import cv2
import numpy as np

from lsts_tf.media import images as maps
from lsts_tf.scoring import density as density_lib

# How density maps are made of points: sigma and shift are DHF1K's own, or
# plain Gaussians of any sigma.
RECIPES = ("dhf1k", "gaussian")
_COLUMNS = ("video", "frame", "x", "y")


@dataclasses.dataclass(frozen=True)
class AnnotatedFiles:
    """A video of DHF1K's folders.

    Attributes:
        densities: {frame: file of its density map}.
        fixated: {frame: file of its fixations}, of the same frames.
    """

    densities: Mapping[int, maps.File]
    fixated: Mapping[int, maps.File]

    observers = False

    @property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames, ascending."""
        return tuple(self.densities)

    def signature(self) -> list[tuple]:
        """What changes if a file does."""
        files = (*self.densities.values(), *self.fixated.values())
        return [tuple(file) for file in files]

    def fixations(self, frame: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Fixated pixels of a frame, and the size (H, W) of their map."""
        fixated = _read_fixations(self.fixated[frame].path)
        return _coordinates(fixated), (fixated.shape[0], fixated.shape[1])

    def density(self, frame: int) -> np.ndarray:
        """Density map of a frame, uint8 [H, W]."""
        return maps.read(self.densities[frame].path)


class Folder:
    """DHF1K's annotation folders.

    Attributes:
        clips: {video: its annotation}.
        clashes: Names that have the same number as others.
        problems: Frames with a density map and no fixations, or without it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        fixations: str = "auto",
        videos: frozenset[int] = frozenset(),
    ):
        """Looks for files; does not read them.

        Args:
            folder: Holds 0601/maps, 0601/fixation and so on.
            fixations: Which ones to read: "png", "mat", or "auto", which are
                the pictures where there are any.
            videos: Those to look into; all, if none is named.

        Raises:
            maps.MapError: There is no such folder, or none of a video in it.
        """
        self._which = fixations
        self._folder = pathlib.Path(folder)
        self.clips: dict[int, AnnotatedFiles] = {}
        self.problems: list[str] = []
        self._read_from: set[str] = set()
        found = maps.numbered(folder, (), folders=True)
        self.clashes = list(found.clashes)
        for number, file in found.entries.items():
            if not videos or number in videos:
                self._add(number, pathlib.Path(file.path))
        if not self.clips:
            inner = self._folder / "annotation"
            hint = f" Did you mean {inner}?" if inner.is_dir() else ""
            raise maps.MapError(
                folder,
                "has no annotation of a video that is asked for, such as "
                f"0601/maps/0001.png and 0601/fixation/0001.png.{hint}",
            )

    def _add(self, number: int, folder: pathlib.Path) -> None:
        try:
            densities = maps.numbered(folder / "maps", (".png",))
            fixated = self._fixated(folder / "fixation")
        except maps.MapError as error:
            self.problems.append(str(error))
            return
        self.clashes += [*densities.clashes, *fixated.clashes]
        both = densities.entries.keys() & fixated.entries.keys()
        for has, lacks, what in (
            (densities, fixated, "fixations"),
            (fixated, densities, "density map"),
        ):
            self.problems += [
                f"{file.path}: the frame has no {what}"
                for n, file in has.entries.items()
                if n not in lacks.entries
            ]
        self.clips[number] = AnnotatedFiles(
            *(
                {n - 1: f for n, f in part.entries.items() if n in both}
                for part in (densities, fixated)
            )
        )

    def _fixated(self, folder: pathlib.Path) -> maps.Numbered:
        if self._which != "mat":
            found = maps.numbered(folder, (".png",))
            if found.entries or self._which == "png":
                self._read_from.add("png")
                return found
        self._read_from.add("mat")
        return maps.numbered(folder / "maps", (".mat",))

    def describe(self) -> dict[str, Any]:
        """What the scores have to say of the ground truth."""
        return {
            "annotations": str(self._folder),
            "fixations": "+".join(sorted(self._read_from)),
            "density": "files",
        }


def _read_fixations(path: str) -> np.ndarray:
    if not path.endswith(".mat"):
        return maps.read(path)
    import scipy.io

    try:
        matrix = scipy.io.loadmat(path, variable_names=["I"])["I"]
    except KeyError:
        raise maps.MapError(path, "has no variable I.") from None
    except NotImplementedError:
        raise maps.MapError(
            path, "MATLAB's format 7.3; save it by `save -v7`."
        ) from None
    except Exception as error:  # Damaged files raise all kinds of errors.
        raise maps.MapError(path, f"cannot be read ({error}).") from error
    if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "buif":
        raise maps.MapError(
            path, f"I is a matrix, not {matrix.dtype} {list(matrix.shape)}."
        )
    return matrix


def _coordinates(fixated: np.ndarray) -> np.ndarray:
    """(row, column) of what is above zero, int16 [N, 2]."""
    # Seven times as fast as `np.argwhere`.
    found = cv2.findNonZero((fixated > 0).view(np.uint8))
    if found is None:
        return np.zeros((0, 2), np.int16)
    return found.reshape(-1, 2)[:, ::-1].astype(np.int16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedPoints:
    """A video of a list of points.

    Attributes:
        points: int16 [N, 2], (row, column), in the order of frames.
        frame_of: int32 [N], ascending.
        observer: int32 [N], or None.
        last: The last frame.
        size: (H, W) of the maps.
        sigma: Of the Gaussians, in pixels.
        shift: See `density.density_map`.
    """

    points: np.ndarray
    frame_of: np.ndarray
    observer: np.ndarray | None
    last: int
    size: tuple[int, int]
    sigma: float
    shift: int

    @property
    def observers(self) -> bool:
        """Whether it is known who looked where."""
        return self.observer is not None

    @property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames, ascending: from the first to the last."""
        return range(self.last + 1)

    def signature(self) -> list[Any]:
        """What changes if a point does."""
        arrays = (self.points, self.frame_of, self.observer)
        return [
            *(None if a is None else a.tobytes().hex() for a in arrays),
            *(self.last, self.size, self.sigma, self.shift),
        ]

    def fixations(self, frame: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Fixated pixels of a frame, and the size (H, W) of their map."""
        return np.unique(self.points[self._rows(frame)], axis=0), self.size

    def density(self, frame: int) -> np.ndarray:
        """Density map of a frame, uint8 [H, W]."""
        return self.density_of(self.points[self._rows(frame)])

    def density_of(self, points: np.ndarray) -> np.ndarray:
        """Density map of some points."""
        fixated = np.zeros(self.size, bool)
        fixated[tuple(points.T)] = True
        return density_lib.density_map(
            fixated, sigma=self.sigma, shift=self.shift
        )

    def by_observer(self, frame: int) -> list[np.ndarray]:
        """The points of each observer who looked at a frame."""
        if self.observer is None:
            return []
        rows = self._rows(frame)
        who = self.observer[rows]
        return [
            np.unique(self.points[rows][who == one], axis=0)
            for one in np.unique(who)
        ]

    def _rows(self, frame: int) -> slice:
        first, last = np.searchsorted(self.frame_of, [frame, frame + 1])
        return slice(int(first), int(last))


class Points:
    """A list of fixation points, JSON or CSV.

    Attributes:
        clips: {video: its annotation}.
        outside: How many points lie outside of the maps; they are left out,
            as the benchmark's program leaves them out.
    """

    clashes: Sequence[str] = ()
    problems: Sequence[str] = ()

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        size: tuple[int, int] = (360, 640),
        recipe: str = "dhf1k",
        sigma: float = density_lib.SIGMA,
        videos: frozenset[int] = frozenset(),
    ):
        """Reads all points.

        Args:
            path: CSV with a head line, or JSON: a list of objects, or an
                object with that list as "fixations". Both have video, frame
                (from 1), x and y (pixels; 0, 0 is the upper left one) and
                perhaps observer, all points or none. A frame without x and y
                is one that nobody looked at; so are those between that are
                not mentioned.
            size: (H, W) of the maps.
            recipe: "dhf1k" or "gaussian"; see `density.density_map`.
            sigma: Of "gaussian", in pixels.
            videos: Those to keep; all, if none is named.

        Raises:
            maps.MapError: It cannot be read; the message names the line.
            ValueError: An unknown recipe, or DHF1K's with another sigma or
                size.
        """
        if recipe not in RECIPES or not sigma > 0:
            raise ValueError(
                f"Density maps are made by one of {', '.join(RECIPES)} with a "
                f"positive sigma. Received: {recipe!r}, sigma={sigma}"
            )
        if recipe == "dhf1k" and sigma != density_lib.SIGMA:
            raise ValueError(
                f"DHF1K's recipe has sigma {density_lib.SIGMA:.4f}. Received: "
                f"{sigma}. Another one goes with --density=gaussian."
            )
        if recipe == "dhf1k" and tuple(size) != density_lib.SIZE:
            # Its Gaussians are so many pixels wide, whatever they cover.
            raise ValueError(
                "DHF1K's recipe is one for maps of {1}x{0}. Received: "
                "{3}x{2}. Another size goes with --density=gaussian and a "
                "--sigma of its own.".format(*density_lib.SIZE, *size)
            )
        self._about = {
            "annotations": str(path),
            "fixations": "points",
            "density": recipe,
            "sigma": sigma,
            "map_size": list(size),
        }
        shift = density_lib.SHIFT if recipe == "dhf1k" else 0
        self.outside = 0
        self._names: dict[str, int] = {}
        self._unnamed = ""
        # Four numbers a point, not objects: DHF1K has millions of points.
        rows: dict[int, array.array] = {}
        last: dict[int, int] = {}
        for video, frame, y, x, observer in self._parsed(pathlib.Path(path)):
            if videos and video not in videos:
                continue
            last[video] = max(last.get(video, 0), frame)
            inside = y is not None and 0 <= y < size[0] and 0 <= x < size[1]
            if inside:
                points = rows.setdefault(video, array.array("i"))
                points.extend((frame, y, x, observer))
            elif y is not None:
                self.outside += 1
        if not last:
            raise maps.MapError(path, "has no frame of a video asked for.")
        self.clips = {}
        for video in sorted(last):
            points = rows.get(video, array.array("i"))
            table = np.array(points, np.int32).reshape(-1, 4)
            table = table[np.argsort(table[:, 0], kind="stable")]
            self.clips[video] = AnnotatedPoints(
                points=table[:, 1:3].astype(np.int16),
                frame_of=table[:, 0],
                observer=table[:, 3] if self._names else None,
                last=last[video],
                size=size,
                sigma=sigma,
                shift=shift,
            )

    def describe(self) -> dict[str, Any]:
        """What the scores have to say of the ground truth."""
        return {**self._about, "points_outside": self.outside}

    def _parsed(self, path: pathlib.Path) -> Iterator[tuple]:
        try:
            for place, row in _records(path):
                yield self._point(path, place, row)
        except OSError as error:
            raise maps.MapError(
                path, f"cannot be read ({error.strerror})."
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise maps.MapError(path, f"is damaged ({error}).") from error

    def _point(self, path: pathlib.Path, place: str, row: Any) -> tuple:
        try:
            video, frame = _whole(row["video"]), _whole(row["frame"])
            x, y = (_pixel(row.get(name)) for name in ("x", "y"))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            frame = 0
        if frame < 1 or video < 0 or (x is None) != (y is None):
            raise maps.MapError(
                path,
                f"{place}: a point has a video, a frame from 1 and x and y; "
                f"the first two are whole numbers. Received: {row!r}",
            )
        name = row.get("observer")
        observer = -1
        if name not in (None, ""):
            observer = self._names.setdefault(str(name), len(self._names))
        elif x is not None:
            self._unnamed = self._unnamed or place
        if self._names and self._unnamed:
            # Together they would be taken for one more observer.
            raise maps.MapError(
                path,
                "all points say who looked, or none does. Received: "
                f"{self._unnamed} without an observer, others with one. Name "
                "all, or remove the observers.",
            )
        return video, frame - 1, y, x, observer


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (
        isinstance(value, float) and not value.is_integer()
    ):
        raise ValueError(value)
    return int(value)


def _pixel(value: Any) -> int | None:
    if value in (None, ""):
        return None
    return round(float(value))


def _records(path: pathlib.Path) -> Iterable[tuple[str, Any]]:
    if path.suffix.lower() == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            found = found.get("fixations")
        if not isinstance(found, list):
            raise maps.MapError(path, "has no list of fixations.")
        for number, row in enumerate(found, start=1):
            yield f"fixation {number}", row
        return
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacking = set(_COLUMNS) - set(reader.fieldnames or ())
        if lacking:
            raise maps.MapError(
                path,
                f"needs the columns {', '.join(_COLUMNS)} (observer). "
                f"Missing: {', '.join(sorted(lacking))}",
            )
        for row in reader:
            yield f"line {reader.line_num}", row


def is_list(path: str | os.PathLike) -> bool:
    """Whether it is a list of points, by its name, and no folder."""
    return pathlib.Path(path).suffix.lower() in (".json", ".csv")


def open_annotations(
    path: str | os.PathLike,
    *,
    fixations: str = "auto",
    size: tuple[int, int] = (360, 640),
    recipe: str = "dhf1k",
    sigma: float = density_lib.SIGMA,
    videos: frozenset[int] = frozenset(),
) -> Folder | Points:
    """DHF1K's folders, or a list of points; see `Folder` and `Points`."""
    if is_list(path):
        return Points(
            path, size=size, recipe=recipe, sigma=sigma, videos=videos
        )
    return Folder(path, fixations=fixations, videos=videos)
