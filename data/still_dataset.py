"""What the datasets of stills share: a photograph is a video of one frame.

OSIE, Crowd and Scene come as git repositories of one layout: photographs in
`data/stimuli/`, named by their number, and a `fixations.mat` that tells for
each photograph where each observer looked, one fixation after the other. Maps
are not among them; they are made here:

* Each observer's first fixation is left out, and so are those that lie outside
  of the photograph.
* `fixations`: 255 at each pixel that one of the others lies on, else 0.
* `maps`: one Gaussian for each of the others, so that two on one pixel count
  twice (see `scoring.density`). Their standard deviation is a degree of visual
  angle.

Photographs whose number is a multiple of 7 are for testing.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import io
import os
import re
from typing import Any, ClassVar

import cv2
from etils import epath
import numpy as np
import scipy.io
import tensorflow as tf
import tensorflow_datasets as tfds

import gaze_dataset
from lsts_tf.media import files
from lsts_tf.scoring import density

STIMULI = "data/stimuli"

# None of the three has official splits.
TESTED = 7

# A still has no rate. Nothing is computed from it.
FPS = 1.0

# How many of an observer's fixations are left out, the first ones. Gaze rests
# on the cross before the photograph appears, and starts from there.
LEFT_OUT = 1

# Of each observer, the fixations in order: float64 [N, 2], x and y as the file
# has them.
Gaze = list[np.ndarray]

INSTRUCTIONS = """
    The dataset is given away by its authors as a git repository:

        git clone https://github.com/{repository}

    The manual folder, given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`, is that clone or the folder it lies in:

        <manual_dir>/data/stimuli/{first:03d}.jpg ... {last:03d}.jpg
        <manual_dir>/{fixations}

    Nothing else of the repository is read.
    """


class StillBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads a git repository of photographs and fixations."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": (
            "Photographs as the JPEG files of the distribution; density maps "
            "and fixation maps of all but each observer's first fixation."
        ),
    }

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format(
            repository=cls.REPOSITORY,
            first=cls.NUMBERS[0],
            last=cls.NUMBERS[-1],
            fixations=cls.FIXATIONS,
        )

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
        return read_structs(root / self.FIXATIONS, self.NUMBERS)

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
        self, number: int, path: epath.Path, observers: Gaze
    ) -> gaze_dataset.Example:
        with self._advised():
            frame, size = read_image(path, self.SIZE)
        points = np.concatenate(
            [self.pixels(fixations[LEFT_OUT:]) for fixations in observers]
            or [np.zeros((0, 2))]
        )
        is_inside = ((points >= 0) & (points < size[::-1])).all(axis=1)
        columns, rows = points[is_inside].astype(np.int64).T
        if not rows.size:
            raise ValueError(
                f"Image {path.name} must have a fixation, after the first of "
                f"each observer. Received: none of {len(observers)} observers "
                f"inside {size[1]}x{size[0]}. Remove the image and its "
                "fixations."
            )
        counts = np.zeros(size, np.int64)
        np.add.at(counts, (rows, columns), 1)
        map_ = density.density_map(counts, sigma=self.sigma(size), shift=0)
        fixated = np.uint8(255) * (counts > 0)
        maps, fixations = ([gaze_dataset.png(m)] for m in (map_, fixated))
        return gaze_dataset.example(
            number, FPS, [frame], maps, fixations, name=path.name
        )


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
                f"image. Received: {told}; no {what} "
                f"{files.named([f'{number:03d}.jpg' for number in lacks])}."
            )


def read_image(
    path: epath.Path, size: tuple[int, int] | None
) -> tuple[bytes, tuple[int, int]]:
    """A photograph as a JPEG of three channels, and its size (H, W).

    Such a file stays as it is, byte for byte. Others are written anew: grey
    ones, and those that ask to be turned. They are not turned, because the
    programs that showed them and stored the fixations did not do it.

    Raises:
        ValueError: It cannot be decoded, or has another size than `size`.
    """
    data = _read(path)
    # OpenCV refuses no bytes at all.
    encoded = np.frombuffer(data or b"\0", np.uint8)
    frame, turned = (
        cv2.imdecode(encoded, cv2.IMREAD_COLOR | how)
        for how in (cv2.IMREAD_IGNORE_ORIENTATION, 0)
    )
    if frame is None:
        raise ValueError(
            f"Image {path.name} must be a whole JPEG file. Received: "
            f"{os.fspath(path)}, {len(data)} bytes that cannot be decoded."
        )
    found = frame.shape[:2]
    if size and found != size:
        raise ValueError(
            f"Image {path.name} must be {size[1]}x{size[0]}. Received: "
            f"{found[1]}x{found[0]} in {os.fspath(path)}."
        )
    if (
        data.startswith(b"\xff\xd8")
        # OpenCV makes three channels of one and of four.
        and int(tf.image.extract_jpeg_shape(data)[2]) == 3
        and np.array_equal(turned, frame)
    ):
        return data, found
    return gaze_dataset.jpeg(frame[..., ::-1]), found


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


def read_structs(path: epath.Path, numbers: Collection[int]) -> dict[int, Gaze]:
    """What OSIE's and Crowd's fixations.mat tells, by number.

    `fixations{i}` has an image's name `img` and the cell array `subjects`, and
    `subjects{j}` has `fix_x` and `fix_y`, vectors of equal length.

    Args:
        path: The file.
        numbers: Those that images can have.

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
        gaze[number] = observers
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
    if (
        any(
            vector is None
            or not numeric(vector)
            or vector.size not in (0, max(vector.shape))
            for vector in vectors
        )
        or len({vector.size for vector in vectors}) != 1
    ):
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
