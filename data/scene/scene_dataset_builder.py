"""Scene as a TensorFlow dataset: one example per photograph.

500 photographs of places, numbered from 1 on; 311 are 256x256, the others have
sizes of their own. Each was shown as large as a screen of 1920x1080 allows.
"""

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads Scene as its authors distribute it."""

    REPOSITORY = "Yanakz/Scene"
    FIXATIONS = "data/tidy/fixations.mat"
    SIZES = "data/tidy/imgInfo.mat"
    NUMBERS = range(1, 501)
    # Nothing tells it but the fixations: enlarged to such a screen, each of
    # them lies on a tenth of a pixel, as the eye tracker writes them.
    SCREEN = (1080, 1920)
    # How far away people sat is not told, so this is an assumption: the
    # authors' own program blurs by 8 pixels of 256, the height of most
    # photographs, and that of their other datasets by a degree.
    DEGREE = 8 / 256 * SCREEN[0]

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Photographs as the JPEG files of the distribution; density maps "
            "and fixation maps of all but each observer's first fixation."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Scene is a git repository of its authors:

        git clone https://github.com/Yanakz/Scene

    The manual folder, given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`, is that clone or the folder that holds it:

        <manual_dir>/data/stimuli/001.jpg ... 500.jpg
        <manual_dir>/data/tidy/fixations.mat
        <manual_dir>/data/tidy/imgInfo.mat

    Nothing else of the repository is read.
    """

    @staticmethod
    def pixels(coordinates: np.ndarray) -> np.ndarray:
        """Coordinates as the file has them -> pixels (x, y) from 0 on.

        The authors kept what is above 0 and at most the photograph's width or
        height, and mark it at the next whole number, counted from 1.
        """
        return np.ceil(coordinates) - 1

    def read_gaze(self, root: epath.Path) -> dict[int, still_dataset.Gaze]:
        """Where people looked, by number of the photograph.

        `fixations{i, j}` has a row (y, x, onset, duration) for each fixation
        of observer j in image i, or is empty; `imgInfo.size` has a row (H, W)
        for each image.
        """
        path = root / self.FIXATIONS
        cells = still_dataset.load_mat(path, "fixations")
        sizes = self._read_sizes(root)
        if cells.dtype != object or not 0 < len(cells) <= len(self.NUMBERS):
            raise still_dataset.structure_error(
                path, "its whole", "a row of cells for each image"
            )
        if len(sizes) != len(cells):
            raise ValueError(
                "imgInfo.mat must have the size of each image that "
                f"fixations.mat has. Received: {len(sizes)} sizes in "
                f"{root / self.SIZES}, {len(cells)} images in {path}."
            )
        return {
            number: still_dataset.Gaze(
                (int(size[0]), int(size[1])),
                [
                    self._read_cell(path, number, place, cell)
                    for place, cell in enumerate(row.flat, 1)
                ],
            )
            for number, (row, size) in enumerate(
                zip(cells, sizes, strict=True), 1
            )
        }

    def _read_sizes(self, root: epath.Path) -> np.ndarray:
        """(H, W) of each image, [N, 2]."""
        path = root / self.SIZES
        info = still_dataset.load_mat(path, "imgInfo")
        sizes = still_dataset.field(info, "size")
        if (
            sizes is None
            or sizes.ndim != 2
            or sizes.shape[1] != 2
            or not still_dataset.numeric(sizes)
        ):
            raise still_dataset.structure_error(
                path, "imgInfo.size", "a row (H, W) for each image"
            )
        return sizes

    def _read_cell(
        self, path: epath.Path, number: int, place: int, cell: np.ndarray
    ) -> np.ndarray:
        """An observer's fixations in order: float64 [N, 2], x and y."""
        if not cell.size:
            return np.zeros((0, 2))
        if (
            cell.ndim != 2
            or cell.shape[1] != 4
            or not still_dataset.numeric(cell)
        ):
            raise still_dataset.structure_error(
                path,
                f"fixations{{{number}, {place}}}, image {number:03d}.jpg",
                "rows (y, x, onset, duration)",
            )
        return cell[:, 1::-1].astype(np.float64)
