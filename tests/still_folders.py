"""Small datasets of stills in the layout of their authors, for tests."""

import cv2
import numpy as np
import scipy.io

from tests import clip_folders


def _thing(size, number):
    """Where the bright thing is, (x, y)."""
    height, width = size
    return width // 4 + number % 7 * width // 14, height // 3


def draw(size, number):
    """A photograph, BGR: a plain ground and a bright thing on it."""
    (image,) = clip_folders.plain(size, (90, 60 + 10 * (number % 7), 120))
    centre, radius = _thing(size, number), min(size) // 8
    return cv2.circle(image, centre, radius, (40, 220, 240), -1)


def look(size, number, observers=3):
    """Fixations [N, 2], x and y from 1 on, of each observer.

    The first is in the middle, the others are about the bright thing; one pixel
    is looked at twice.
    """
    thing, end = np.array(_thing(size, number)), np.array(size[::-1])
    paths = []
    for observer in range(observers):
        draws = np.random.default_rng([number, observer])
        around = thing + draws.uniform(-0.08, 0.08, (3, 2)) * end
        path = [end / 2, *around, thing]
        paths.append(np.round(np.clip(path, 1, end), 1))
    return paths


def write_images(root, sizes):
    """Writes a photograph for each number, of size (H, W)."""
    for number, size in sizes.items():
        path = root / "data" / "stimuli" / f"{number:03d}.jpg"
        clip_folders.write_picture(path, draw(size, number))


def column(values):
    """A cell array of one column."""
    cells = np.empty((len(values), 1), object)
    for index, value in enumerate(values):
        cells[index, 0] = value
    return cells


def structs(gaze):
    """What OSIE and Crowd hold: {number: [N, 2] of each observer} as cells."""

    def subject(path):
        return {
            "fix_x": path[None, :, 0],
            "fix_y": path[None, :, 1],
            "fix_duration": np.full((1, len(path)), 200, "u2"),
        }

    return column(
        [
            {
                "img": f"{number:03d}.jpg",
                "subjects": column([subject(path) for path in paths]),
            }
            for number, paths in gaze.items()
        ]
    )


def cells(gaze):
    """What Scene holds: a row a photograph, a column an observer."""
    found = np.empty((len(gaze), max(map(len, gaze.values()))), object)
    for place in np.ndindex(found.shape):
        found[place] = np.zeros((0, 0))
    for row, paths in enumerate(gaze.values()):
        for place, path in enumerate(paths):
            if len(path):
                times = [[0.2 + 0.3 * n, 0.25] for n in range(len(path))]
                found[row, place] = np.hstack([path[:, ::-1], times])
    return found


def write_mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def write_structs(root, gaze, size):
    """Writes OSIE or Crowd, all photographs of one size."""
    write_images(root, dict.fromkeys(gaze, size))
    write_mat(root / "data/eye/fixations.mat", fixations=structs(gaze))
    return root


def write_scene(root, gaze, sizes):
    """Writes Scene; numbers are 1 to N."""
    write_images(root, sizes)
    write_mat(root / "data/tidy/fixations.mat", fixations=cells(gaze))
    return root
