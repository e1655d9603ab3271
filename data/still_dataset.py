"""What the datasets of stills share: a photograph is a video of one frame.

OSIE, Crowd and Scene come as git repositories of one layout: photographs in
`data/stimuli/`, named by their number, and a `fixations.mat` that tells for
each photograph where each observer looked, one fixation after the other. Maps
are not among them; they are made here:

* Each observer's first fixation is left out, and so are those that lie outside
  of the photograph.
* `fixations`: 255 at each pixel that one of the others lies on, else 0.
* `maps`: one Gaussian for each of the others, so that two on one pixel count
  twice; their sum is divided by its maximum, multiplied by 255 and rounded,
  halves up. The Gaussians are not cut off anywhere but at the border of the
  photograph. Their standard deviation is a degree of visual angle.

Photographs whose number is a multiple of 7 are for testing.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import io
import os
import re
from typing import Any, NamedTuple

import cv2
from etils import epath
import numpy as np
import scipy.io
import tensorflow as tf
import tensorflow_datasets as tfds

import gaze_dataset

STIMULI = "data/stimuli"

# None of the three has official splits.
TESTED = 7

# A still has no rate. Nothing is computed from it.
FPS = 1.0

# How many of an observer's fixations are left out, the first ones. Gaze rests
# on the cross before the photograph appears, and starts from there.
LEFT_OUT = 1


class Gaze(NamedTuple):
    """Where people looked in a photograph.

    Attributes:
        size: (H, W) of the photograph that coordinates refer to.
        observers: Of each, the fixations in order: float64 [N, 2], x and y as
            the file has them.
    """

    size: tuple[int, int]
    observers: list[np.ndarray]


class StillBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads a git repository of photographs and fixations."""

    # On GitHub.
    REPOSITORY = ""
    # In the repository.
    FIXATIONS = "data/eye/fixations.mat"
    # That photographs can have.
    NUMBERS = range(0)
    # (H, W) of all photographs; None where each has its own.
    SIZE: tuple[int, int] | None = None

    # A degree of visual angle, in pixels of the screen if there is one, or else
    # of the photographs.
    DEGREE = 0.0
    # (H, W) of the screen that photographs were enlarged or reduced to.
    SCREEN: tuple[int, int] | None = None

    @classmethod
    def sigma(cls, size: tuple[int, int]) -> float:
        """A degree of visual angle in pixels of a photograph of size (H, W)."""
        screen = cls.SCREEN or size
        scale = min(screen[0] / size[0], screen[1] / size[1])
        return cls.DEGREE / scale

    @staticmethod
    def pixels(coordinates: np.ndarray) -> np.ndarray:
        """Coordinates as the file has them -> pixels (x, y) from 0 on.

        MATLAB counts pixels from 1, and so do the authors' programs; they round
        to the nearest one. Whole numbers, but float64: any may be in a file.
        """
        return np.floor(coordinates + 0.5) - 1

    def read_gaze(self, root: epath.Path) -> dict[int, Gaze]:
        """Where people looked, by number of the photograph."""
        return read_structs(root / self.FIXATIONS, self.NUMBERS, self.SIZE)

    @contextlib.contextmanager
    def _advised(self) -> Iterator[None]:
        """Adds to what is wrong with a file where to get it."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"{error} Clone the whole repository again: "
                f"`git clone https://github.com/{self.REPOSITORY}`."
            ) from error

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self.SIZE or (None, None)
        return self.dataset_info_from_configs(
            features=gaze_dataset.features(
                height, width, name=tfds.features.Text()
            ),
            homepage=f"https://github.com/{self.REPOSITORY}",
            license=(
                "MIT (fixations); the photographs' rights are third parties'"
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, gaze_dataset.Example]]]:
        root = gaze_dataset.find_root(
            epath.Path(dl_manager.manual_dir), [STIMULI]
        )
        with self._advised():
            gaze = self.read_gaze(root)
        paths = find_stills(root / STIMULI, self.NUMBERS)
        with self._advised():
            _check_matched(root, paths, gaze)
        # TFDS takes a split without examples for a mistake: it is not here.
        return {
            split: self._generate_examples({n: paths[n] for n in numbers}, gaze)
            for split, numbers in (
                (tfds.Split.TRAIN, [n for n in paths if n % TESTED]),
                (tfds.Split.TEST, [n for n in paths if not n % TESTED]),
            )
            if numbers
        }

    def _generate_examples(
        self, paths: Mapping[int, epath.Path], gaze: Mapping[int, Gaze]
    ) -> Iterator[tuple[int, gaze_dataset.Example]]:
        for number, path in paths.items():
            yield number, self._example(number, path, gaze[number])

    def _example(
        self, number: int, path: epath.Path, gaze: Gaze
    ) -> gaze_dataset.Example:
        size = gaze.size
        points = np.concatenate(
            [self.pixels(fixations[LEFT_OUT:]) for fixations in gaze.observers]
            or [np.zeros((0, 2))]
        )
        points = inside(points, size).astype(np.int64)
        if not len(points):
            raise ValueError(
                f"Image {path.name} must have a fixation, after the first of "
                f"each observer. Received: none of {len(gaze.observers)} "
                f"observers inside {size[1]}x{size[0]}. Remove the image and "
                "its fixations."
            )
        with self._advised():
            frame = read_image(path, size)
        return {
            "video": number,
            "name": path.name,
            "fps": FPS,
            "num_frames": 1,
            "frames": [frame],
            "maps": [
                gaze_dataset.png(density_map(points, size, self.sigma(size)))
            ],
            "fixations": [gaze_dataset.png(fixation_map(points, size))],
        }


# === Maps ===


def inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Those of the pixels (x, y) that a photograph of size (H, W) has."""
    height, width = size
    return points[((points >= 0) & (points < (width, height))).all(axis=1)]


def fixation_map(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W]: 255 at each of the pixels (x, y), else 0."""
    fixated = np.zeros(size, np.uint8)
    fixated[points[:, 1], points[:, 0]] = 255
    return fixated


def density_map(
    points: np.ndarray, size: tuple[int, int], sigma: float
) -> np.ndarray:
    """One Gaussian a fixation, their sum scaled to 0 ... 255.

    Args:
        points: int [N, 2], pixels (x, y), all of them inside; N > 0. One that
            is there twice counts twice.
        size: (H, W).
        sigma: Standard deviation in pixels.

    Returns:
        uint8 [H, W], its largest value 255.
    """
    # A Gaussian is a product of one along y and one along x.
    along_x, along_y = (
        np.exp(
            -((np.arange(length) - points[:, axis, None]) ** 2) / (2 * sigma**2)
        )
        for axis, length in ((0, size[1]), (1, size[0]))
    )
    total = along_y.T @ along_x
    total *= 255 / total.max()
    total += 0.5
    return total.astype(np.uint8)  # Cuts the fraction off: rounded halves up.


# === Photographs ===


def find_stills(
    folder: epath.Path, numbers: Collection[int]
) -> dict[int, epath.Path]:
    """Photographs by number, in numeric order.

    Args:
        folder: What else lies there than JPEG files is passed over.
        numbers: Those that photographs can have.

    Raises:
        ValueError: A JPEG file has another name, or there is none.
    """
    first, last = (f"{n:03d}.jpg" for n in (min(numbers), max(numbers)))
    stills: dict[int, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in (
            ".jpg",
            ".jpeg",
        ):
            continue
        number = number_of(path.name, numbers)
        if number is None:
            raise ValueError(
                f"Images are named by their number, {first} to {last}. "
                f"Received: {os.fspath(path)}. Move it elsewhere, or name the "
                "repository of this dataset with --manual_dir."
            )
        stills[number] = path
    if not stills:
        raise ValueError(
            f"There must be at least one image, such as {first}. Received: "
            f"none in {os.fspath(folder)}. Clone the repository again."
        )
    return dict(sorted(stills.items()))


def number_of(name: str, numbers: Collection[int]) -> int | None:
    """The number of an image of this name; None if it is no image's name."""
    digits = re.fullmatch(r"([0-9]{3,4})\.jpg", name)
    number = int(digits[1]) if digits else -1
    return number if number in numbers and name == f"{number:03d}.jpg" else None


def _check_matched(
    root: epath.Path, paths: Mapping[int, epath.Path], gaze: Mapping[int, Gaze]
) -> None:
    """Raises unless each image has fixations and the other way round.

    A part of a dataset is a dataset, but not what a clone that was broken off
    left there.
    """
    told = (
        f"{len(paths)} images in {os.fspath(root / STIMULI)}, fixations of "
        f"{len(gaze)}"
    )
    for lacks, what in (
        (sorted(set(paths) - set(gaze)), "fixations of image"),
        (sorted(set(gaze) - set(paths)), "file of image"),
    ):
        if lacks:
            raise ValueError(
                "Each image must have its fixations, and fixations their "
                f"image. Received: {told}; no {what} {lacks[0]:03d}.jpg and "
                f"{len(lacks) - 1} more."
            )


def read_image(path: epath.Path, size: tuple[int, int]) -> bytes:
    """A photograph as a JPEG of three channels.

    Such a file stays as it is, byte for byte. Others are written anew: grey
    ones, and those that ask to be turned. They are not turned, because the
    programs that showed them and stored the fixations did not do it.

    Raises:
        ValueError: It cannot be decoded, or has another size.
    """
    data = _read(path)
    frame = gaze_dataset.decode(
        data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if frame is None:
        raise ValueError(
            f"Image {path.name} must be a whole JPEG file. Received: "
            f"{os.fspath(path)}, {len(data)} bytes that cannot be decoded."
        )
    if frame.shape[:2] != size:
        raise ValueError(
            f"Image {path.name} must be {size[1]}x{size[0]}, as its fixations "
            f"have it. Received: {frame.shape[1]}x{frame.shape[0]} in "
            f"{os.fspath(path)}."
        )
    turned = gaze_dataset.decode(data, cv2.IMREAD_COLOR)
    if (
        data.startswith(b"\xff\xd8")
        # OpenCV makes three channels of one and of four.
        and int(tf.image.extract_jpeg_shape(data)[2]) == 3
        and np.array_equal(turned, frame)
    ):
        return data
    return gaze_dataset.jpeg(frame)


# === fixations.mat ===


def load_mat(path: epath.Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file.

    Raises:
        ValueError: There is no such file or variable.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.name} must lie beside the images. Received: no file "
            f"{os.fspath(path)}."
        )
    data = _read(path)
    try:
        found = scipy.io.loadmat(io.BytesIO(data), variable_names=[name])
    # Of a damaged file SciPy raises whatever its readers happen to.
    except Exception as error:
        raise ValueError(
            f"{path.name} must be a MATLAB file, version 5 to 7. Received: "
            f"{os.fspath(path)}, {len(data)} bytes that cannot be read "
            f"({error})."
        ) from error
    if name not in found:
        raise ValueError(
            f"{path.name} must hold `{name}`. Received: {os.fspath(path)} "
            "without it."
        )
    return found[name]


def read_structs(
    path: epath.Path, numbers: Collection[int], size: tuple[int, int]
) -> dict[int, Gaze]:
    """What OSIE's and Crowd's fixations.mat tells, by number.

    `fixations{i}` has an image's name `img` and the cell array `subjects`, and
    `subjects{j}` has `fix_x` and `fix_y`, vectors of equal length.

    Args:
        path: The file.
        numbers: Those that images can have.
        size: (H, W) of all images.

    Raises:
        ValueError: The file is another one.
    """
    cells = load_mat(path, "fixations")
    gaze: dict[int, Gaze] = {}
    for index, cell in enumerate(cells.flat, 1):
        where = f"fixations{{{index}}}"
        image, subjects = field(cell, "img"), field(cell, "subjects")
        if image is None or image.dtype.kind != "U" or image.size != 1:
            raise structure_error(path, where, "a struct with the name `img`")
        name = str(image.flat[0])
        where = f"{where}, image {name}"
        number = number_of(name, numbers)
        if number is None or number in gaze:
            raise structure_error(path, where, "the name of an image, once")
        if subjects is None or subjects.dtype != object:
            raise structure_error(path, where, "a cell array `subjects`")
        observers = []
        for place, subject in enumerate(subjects.flat, 1):
            fixations = _columns(
                field(subject, "fix_x"), field(subject, "fix_y")
            )
            if fixations is None:
                raise structure_error(
                    path,
                    f"{where}, subjects{{{place}}}",
                    "as many numbers `fix_x` as `fix_y`",
                )
            observers.append(fixations)
        gaze[number] = Gaze(size, observers)
    return gaze


def field(struct: Any, name: str) -> np.ndarray | None:
    """A field of a struct, an array; None if it is none or has none."""
    names = getattr(getattr(struct, "dtype", None), "names", None) or ()
    if name not in names or struct.size != 1:
        return None
    value = struct[name].flat[0]
    return value if isinstance(value, np.ndarray) else None


def _columns(*vectors: np.ndarray | None) -> np.ndarray | None:
    """float64 [N, columns] of as many vectors of N; None if they are not."""
    if any(
        vector is None
        or not numeric(vector)
        or vector.size != max(vector.shape)
        for vector in vectors
        if vector is None or vector.size
    ):
        return None
    if len({vector.size for vector in vectors}) != 1:
        return None
    return np.stack(
        [vector.ravel().astype(np.float64) for vector in vectors], 1
    )


def numeric(array: np.ndarray) -> bool:
    """Whether all of it are finite real numbers."""
    return array.dtype.kind in "iuf" and bool(np.isfinite(array).all())


def structure_error(path: epath.Path, where: str, rule: str) -> ValueError:
    """Says what a MATLAB file must have, and where it has something else."""
    return ValueError(
        f"{path.name} must have {rule} at each of its places. Received: "
        f"something else at {where} of {os.fspath(path)}."
    )


def _read(path: epath.Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path.name} must be the file itself. Received: a pointer of Git "
            f"LFS in {os.fspath(path)}. Run `git lfs pull` there. Or:"
        )
    return data
