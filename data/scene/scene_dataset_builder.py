"""Scene as a TensorFlow dataset: one example per photograph.

500 photographs of places, numbered from 1 on; 311 are 256x256, the others have
sizes of their own. Each was shown as large as a screen of 1920x1080 allows.
"""

from etils import epath
import numpy as np

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads Scene as its authors distribute it."""

    REPOSITORY = "Yanakz/Scene"
    FIXATIONS = "data/tidy/fixations.mat"
    NUMBERS = range(1, 501)
    # Nothing tells it but the fixations: enlarged to such a screen, each of
    # them lies on a tenth of a pixel, as the eye tracker writes them.
    SCREEN = (1080, 1920)
    # How far away people sat is not told, so this is an assumption: the
    # authors' own program blurs by 8 pixels of 256, the height of most
    # photographs, and that of their other datasets by a degree.
    DEGREE = 8 / 256 * SCREEN[0]

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
        of observer j in image i, or is empty.
        """
        path = root / self.FIXATIONS
        cells = still_dataset.load_mat(path, "fixations")
        if (
            cells.dtype != object
            or cells.ndim != 2
            or not 0 < len(cells) <= len(self.NUMBERS)
        ):
            raise still_dataset.structure_error(
                path, "its whole", "a row of cells for each image"
            )
        gaze: dict[int, still_dataset.Gaze] = {}
        for (row, column), cell in np.ndenumerate(cells):
            if cell.size and (
                cell.ndim != 2
                or cell.shape[1] != 4
                or not still_dataset.numeric(cell)
            ):
                raise still_dataset.structure_error(
                    path,
                    f"fixations{{{row + 1}, {column + 1}}}, "
                    f"image {row + 1:03d}.jpg",
                    "rows (y, x, onset, duration)",
                )
            points = cell.reshape(-1, 4)[:, 1::-1].astype(np.float64)
            gaze.setdefault(row + 1, []).append(points)
        return gaze
