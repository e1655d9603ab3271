"""Where people looked: of one frame, of a set of frames, and as files.

There are two kinds of files. DHF1K's folders have, for each frame, a density
map and fixated pixels: `0601/maps/0001.png`, `0601/fixation/0001.png` and the
same fixations in `0601/fixation/maps/0001.mat` (variable `I`, full or sparse).
A table of gaze (see `gaze`) has points; density maps are made from them.

Frames are numbered from 0 here and from 1 in files. Fixations are int16
[N, 2], (row, column), each pixel once; densities are [H, W]. A file that cannot
be read is a `images.MapError`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import io
import math
import os
import pathlib
import re
import struct
from typing import Any, NamedTuple

from absl import flags
import cv2
import numpy as np
import pandas as pd

from lsts_tf import option
from lsts_tf.media import images
from lsts_tf.scoring import density, gaze

# How density maps are made from points: with DHF1K's own sigma and shift, or
# as plain Gaussians of any sigma.
RECIPES = ("dhf1k", "gaussian")
# A sparse matrix takes no more memory than a frame of 8K.
_MOST_PIXELS = 2**26
# Types of parts of MATLAB files.
_FLAGS, _MATRIX, _COMPRESSED = 6, 14, 15
_NUMBERS = frozenset([*range(1, 8), 9, 12, 13, 16, 17, 18])


def coordinates(fixated: np.ndarray) -> np.ndarray:
    """(row, column) of what is above zero in a map, int16 [N, 2]."""
    # Seven times as fast as `np.argwhere`.
    found = cv2.findNonZero((fixated > 0).view(np.uint8))
    if found is None:
        return np.zeros((0, 2), np.int16)
    return found.reshape(-1, 2)[:, ::-1].astype(np.int16)


def scaled(
    points: np.ndarray, size: tuple[int, ...], new: tuple[int, ...]
) -> np.ndarray:
    """Pixels of a map of another size, each where its centre falls."""
    if size == new:
        return points
    return np.floor((points + 0.5) * (np.array(new) / size)).astype(np.int16)


class FixationSet:
    """Fixations of all frames that are scored together.

    The frames are numbered through: rows, in the order of videos and frames.
    """

    def __init__(
        self,
        rows: Iterable[tuple[int, int, np.ndarray, tuple[int, ...]]],
    ):
        """Of (video, frame, fixations, size) in any order."""
        ordered = sorted(rows, key=lambda row: row[:2])
        # Few large arrays, because each process that scores gets a copy.
        points = [row[2].astype(np.int16) for row in ordered]
        self._frames = [row[:2] for row in ordered]
        self._rows = {frame: row for row, frame in enumerate(self._frames)}
        self._sizes = np.array([row[3] for row in ordered]).reshape(-1, 2)
        self._starts = np.cumsum([0, *map(len, points)])
        self._points = np.concatenate([np.zeros((0, 2), np.int16), *points])

    @classmethod
    def of_maps(
        cls, fixated: Iterable[tuple[int, int, np.ndarray]]
    ) -> "FixationSet":
        """Of (video, frame, [H, W] that is above 0 where somebody looked)."""
        return cls(
            (v, n, coordinates(map_), map_.shape) for v, n, map_ in fixated
        )

    def __len__(self) -> int:
        return len(self._frames)

    def row(self, video: int, frame: int) -> int:
        """Row of a frame; a KeyError if the set has no such frame."""
        return self._rows[video, frame]

    def __getitem__(self, row: int) -> np.ndarray:
        """Fixations of a frame."""
        return self._points[self._starts[row] : self._starts[row + 1]]

    def size(self, row: int) -> tuple[int, int]:
        """Size (H, W) of a frame's ground truth."""
        height, width = self._sizes[row].tolist()
        return height, width

    def neighbour(self, row: int) -> int:
        """The next frame of the video; of the last one, that before it."""
        video = self._frames[row][0]
        for other in (row + 1, row - 1):
            if 0 <= other < len(self) and self._frames[other][0] == video:
                return other
        return row

    def gathered(
        self, rows: Sequence[int], size: tuple[int, int]
    ) -> np.ndarray:
        """Fixations of several frames; those of other sizes are scaled."""
        return np.concatenate(
            [scaled(self[row], self.size(row), size) for row in rows]
        )


class Annotations(NamedTuple):
    """Where people looked in some videos.

    Attributes:
        clips: {video: its annotation}.
        about: What the scores record about the ground truth.
        problems: {kind: what is wrong}; "clashes" are names that have the same
            number as others.
    """

    clips: Mapping[int, "AnnotatedFiles | AnnotatedPoints"]
    about: Mapping[str, Any]
    problems: Mapping[str, Sequence[str]]


# === DHF1K's folders ===


@dataclasses.dataclass(frozen=True)
class AnnotatedFiles:
    """A video of DHF1K's folders.

    Attributes:
        files: {frame: the files of its density map and of its fixations}.
    """

    files: Mapping[int, tuple[str, str]]

    observers = False

    @property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames, ascending."""
        return tuple(self.files)

    def fixations(self, frame: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Fixated pixels of a frame, and the size (H, W) of their map."""
        fixated = _read_fixations(self.files[frame][1])
        return coordinates(fixated), fixated.shape

    def density(self, frame: int) -> np.ndarray:
        """Density map of a frame, uint8 [H, W]."""
        return images.read(self.files[frame][0])


# Where fixations are, and as what.
_KINDS = {"png": ("fixation", ".png"), "mat": ("fixation/maps", ".mat")}


def of_folder(
    folder: str | os.PathLike,
    *,
    fixations: str = "auto",
    videos: frozenset[int] = frozenset(),
) -> Annotations:
    """DHF1K's annotation folders; looks for files and does not read them.

    It holds 0601/maps, 0601/fixation and so on. Fixations are read as "png",
    as "mat", or as "auto", which are the pictures where there are any. It is
    looked into `videos`, or into all if none is named.

    Raises:
        images.MapError: There is no such folder, or none of a video in it.
    """
    top = images.numbered(folder, (), folders=True)
    clips: dict[int, AnnotatedFiles] = {}
    clashes, problems = list(top.clashes), []
    for number, path in top.entries.items():
        if videos and number not in videos:
            continue
        inside = pathlib.Path(path)
        try:
            densities = images.numbered(inside / "maps", (".png",))
            for kind in _KINDS if fixations == "auto" else [fixations]:
                place, suffix = _KINDS[kind]
                fixated = images.numbered(inside / place, (suffix,))
                if fixated.entries:
                    break
        except images.MapError as error:
            problems.append(str(error))
            continue
        clashes += [*densities.clashes, *fixated.clashes]
        both = densities.entries.keys() & fixated.entries.keys()
        for found, lacks in (
            (densities, "fixations"),
            (fixated, "density map"),
        ):
            problems += [
                f"{file}: the frame has no {lacks}"
                for n, file in found.entries.items()
                if n not in both
            ]
        files = {
            n - 1: (densities.entries[n], fixated.entries[n])
            for n in sorted(both)
        }
        clips[number] = AnnotatedFiles(files)
    if not clips:
        inner = pathlib.Path(folder) / "annotation"
        hint = f" Did you mean {inner}?" if inner.is_dir() else ""
        raise images.MapError(
            folder,
            "has no annotation of the videos asked for, such as "
            f"0601/maps/0001.png and 0601/fixation/0001.png.{hint}",
        )
    read = {f[-3:].lower() for c in clips.values() for _, f in c.files.values()}
    about = {"annotations": str(folder), "density": "files"}
    about["fixations"] = "+".join(sorted(read))
    wrong = {"clashes": clashes, "annotations": problems}
    return Annotations(clips, about, wrong)


def _read_fixations(path: str) -> np.ndarray:
    if not path.endswith(".mat"):
        return images.read(path)
    import scipy.io
    import scipy.sparse

    try:
        data = pathlib.Path(path).read_bytes()
        _check_types(data)
        matrix = scipy.io.loadmat(io.BytesIO(data), variable_names=["I"])["I"]
        is_sparse = scipy.sparse.issparse(matrix)
        if is_sparse:  # Or places outside of it are written to.
            matrix.check_format(full_check=True)
    except Exception as error:  # Damaged files raise all kinds of errors.
        raise images.MapError(
            path, f"holds no variable I that can be read ({error!r})."
        ) from error
    pixels = math.prod(matrix.shape)  # Of a sparse one `size` is another.
    if (
        matrix.ndim != 2
        or not 0 < pixels <= _MOST_PIXELS
        or matrix.dtype.kind not in "buif"
    ):
        raise images.MapError(
            path, f"I is a matrix, not {matrix.dtype} {list(matrix.shape)}."
        )
    return matrix.toarray() if is_sparse else matrix


def _check_types(data: bytes) -> None:
    """Raises ValueError for a part of a type of which SciPy would crash."""
    if data[126:128] not in (b"IM", b"MI") or 0 in data[:4]:
        return  # Of another version.
    order = "<II" if data[126:128] == b"IM" else ">II"
    place, end = 128, 128
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order, data, place)
        is_small = kind >> 16 > 0  # Type, size and values are in 8 bytes.
        kind &= 0xFFFF
        is_outer = place >= end
        place += 8
        if is_outer and kind == _COMPRESSED:  # It has a checksum.
            place += size
        elif kind == _MATRIX:  # Its parts follow; the first are its flags.
            end = max(end, place + size)
            head = data[place : place + 8]
            if size and head != struct.pack(order, _FLAGS, 8):
                raise ValueError("a matrix has no flags")
        elif is_outer or kind not in _NUMBERS:
            raise ValueError(f"a part has the type {kind}")
        elif not is_small:
            place += size + -size % 8


# === Tables of points ===


@dataclasses.dataclass(frozen=True)
class AnnotatedPoints:
    """A video of a list of points.

    Attributes:
        looks: A table with frame, x, y and observer; frames that nobody looked
            at are absent or have no x and y.
        observers: Whether it is known who looked where.
        size: (H, W) of the maps.
        blur: Makes the density map of a map of fixated pixels.
    """

    looks: pd.DataFrame
    observers: bool
    size: tuple[int, int]
    blur: Callable[[np.ndarray], np.ndarray]

    @property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames, ascending: from the first to the last."""
        return range(int(self.looks["frame"].max()) + 1)

    def fixations(self, frame: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Fixated pixels of a frame, and the size (H, W) of their map."""
        looks = self.looks[self.looks["frame"] == frame]
        return _pixels(looks), self.size

    def density(self, frame: int) -> np.ndarray:
        """Density map of a frame, uint8 [H, W]."""
        return self.density_of(self.fixations(frame)[0])

    def density_of(self, points: np.ndarray) -> np.ndarray:
        """Density map of some points."""
        fixated = np.zeros(self.size, bool)
        fixated[tuple(points.T)] = True
        return self.blur(fixated)

    def by_observer(self, frame: int) -> list[np.ndarray]:
        """The points of each observer who looked at a frame."""
        looks = self.looks[self.looks["frame"] == frame].dropna(subset="x")
        return [_pixels(own) for _, own in looks.groupby("observer")]


def _pixels(looks: pd.DataFrame) -> np.ndarray:
    points = looks[["y", "x"]].dropna().to_numpy(np.int16)
    return np.unique(points, axis=0)


def of_table(
    path: str | os.PathLike,
    *,
    size: tuple[int, int] = density.SIZE,
    recipe: str = "dhf1k",
    sigma: float = density.SIGMA,
    videos: frozenset[int] = frozenset(),
    settings: gaze.Settings = gaze.Settings(),  # noqa: B008 - frozen
) -> Annotations:
    """A table of points; those outside of the maps are left out.

    So does the benchmark's program; how many they are is recorded.

    Args:
        path: A table of one of `gaze.FORMATS`. A frame without x and y is one
            that nobody looked at; so are those between that are not mentioned.
        size: (H, W) of the maps.
        recipe: "dhf1k" or "gaussian"; see `density.density_map`.
        sigma: Of "gaussian", in pixels.
        videos: Those to keep; all, if none is named.
        settings: What the table does not say.

    Raises:
        images.MapError: It cannot be read; the message names the line.
        ValueError: DHF1K's recipe with another sigma or size.
    """
    if sigma <= 0:
        raise ValueError(f"--sigma must be above 0. Received: {sigma}")
    own = density.SIGMA, *density.SIZE
    if recipe == "dhf1k" and (sigma, *size) != own:
        # Its Gaussians are so many pixels wide, whatever they cover.
        raise ValueError(
            "DHF1K's recipe has Gaussians of sigma {0:.4f} on maps of {2}x{1}. "
            "Received: sigma {3} on maps of {5}x{4}. For others give "
            "--density=gaussian and a --sigma.".format(*own, sigma, *size)
        )
    table = gaze.Table(path)
    points = table.points(size, settings)
    points["video"] = table.numbered(points, videos)
    if videos:
        points = points[points["video"].isin(videos)]
    if not points["x"].notna().any():
        raise images.MapError(path, "has no point in the videos asked for.")
    points, outside = table.inside(points, size, settings)
    shift = density.SHIFT if recipe == "dhf1k" else 0
    blur = functools.partial(density.density_map, sigma=sigma, shift=shift)
    known = bool((points["observer"] != "").any())
    groups: Any = points.groupby("video")
    clips = {
        int(video): AnnotatedPoints(looks, known, size, blur)
        for video, looks in groups
    }
    about = {
        "annotations": str(path),
        "fixations": "points",
        "density": recipe,
        "sigma": sigma,
        "map_size": list(size),
        "points_outside": outside,
    }
    return Annotations(clips, about, {})


# === Flags ===

_GAZE = tuple(field.name for field in dataclasses.fields(gaze.Settings))
FLAGS: Mapping[str, Any] = {
    "annotations": option.field(
        "",
        "DHF1K's annotation folder, a table of gaze (docs/annotations.md), or, "
        "for --protocol=msu, the folder of the dataset.",
    ),
    "fixations": option.field(
        "auto",
        "Kind of DHF1K's fixation files to read; auto prefers PNG.",
        choices=("auto", *_KINDS),
    ),
    "density": option.field(
        "dhf1k", "How density maps are made from points.", choices=RECIPES
    ),
    "sigma": option.field(
        density.SIGMA,
        "Standard deviation of the Gaussian at each point, in pixels.",
        least=0,
    ),
    "map_size": option.field(
        "640x360",
        "Width x height of the maps that the points refer to.",
    ),
    "gaze_units": option.field(
        "", "Unit of x and y in a table of gaze.", choices=("", *gaze.UNITS)
    ),
    "time_unit": option.field(
        "", "Unit of times in a table of gaze.", choices=("", *gaze.TICKS)
    ),
    "screen": option.field(
        "",
        "Width x height of the film on the screen, in pixels, and where it "
        "began, such as 1280x720+320+180.",
    ),
    "pixels_per_degree": option.field(
        0.0, "Screen pixels per degree of visual angle.", least=0
    ),
    "rate": option.field(
        0.0, "Frames per second of films, for gaze given in times.", least=0
    ),
}


def from_flags(values: flags.FlagValues, videos: frozenset[int]) -> Annotations:
    """What `--annotations` names; an error for flags that would do nothing."""
    path = values.annotations
    if not path:
        raise ValueError(
            "Maps in folders are scored against --annotations, a folder of "
            "DHF1K's layout or a file of points. Received: none."
        )
    is_table = path.lower().endswith(gaze.SUFFIXES)
    _, of_folders, *of_tables = FLAGS
    idle = [of_folders] if is_table else of_tables
    given = [f"--{name}" for name in idle if values[name].present]
    if given:
        raise ValueError(
            "--fixations is for folders in DHF1K's layout; --density, "
            "--sigma, --map_size and the flags about gaze are for tables. "
            f"Received: {', '.join(given)} with --annotations={path}. Leave "
            "them out."
        )
    if not is_table:
        return of_folder(path, fixations=values.fixations, videos=videos)
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", values.map_size.lower())
    if not size:
        raise ValueError(
            "--map_size is width x height, such as 640x360. Received: "
            f"{values.map_size!r}"
        )
    return of_table(
        path,
        size=(int(size[2]), int(size[1])),
        recipe=values.density,
        sigma=values.sigma,
        videos=videos,
        settings=gaze.Settings(**{name: values[name].value for name in _GAZE}),
    )
