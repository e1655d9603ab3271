"""Small datasets of stills in the layout of their authors, for tests."""

import cv2
import numpy as np
import scipy.io


def draw(size, number):
    """A photograph, BGR: a plain ground and a bright thing on it."""
    height, width = size
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (90, 60 + 10 * (number % 7), 120)
    centre = (width // 4 + number % 7 * width // 14, height // 3)
    cv2.circle(image, centre, min(size) // 8, (40, 220, 240), -1)
    return image


def look(size, number, observers=3):
    """Fixations [N, 2], x and y from 1 on, of each observer.

    The first is in the middle, the others are about the bright thing; one pixel
    is looked at twice.
    """
    height, width = size
    thing = np.array([width // 4 + number % 7 * width // 14, height // 3])
    paths = []
    for observer in range(observers):
        draws = np.random.default_rng([number, observer])
        around = thing + draws.uniform(-0.08, 0.08, (3, 2)) * (width, height)
        path = [(width / 2, height / 2), *around, thing]
        paths.append(np.round(np.clip(path, 1, (width, height)), 1))
    return paths


def write_image(path, image, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    path.write_bytes(data)


def write_images(root, sizes):
    """Writes a photograph for each number, of size (H, W)."""
    for number, size in sizes.items():
        write_image(
            root / "data" / "stimuli" / f"{number:03d}.jpg", draw(size, number)
        )


def column(values):
    """A cell array of one column."""
    cells = np.empty((len(values), 1), object)
    for index, value in enumerate(values):
        cells[index, 0] = value
    return cells


def structs(gaze):
    """What OSIE and Crowd hold: {number: [N, 2] of each observer} as cells."""
    return column(
        [
            {
                "img": f"{number:03d}.jpg",
                "subjects": column(
                    [
                        {
                            "fix_x": path[None, :, 0],
                            "fix_y": path[None, :, 1],
                            "fix_duration": np.full((1, len(path)), 200, "u2"),
                        }
                        for path in paths
                    ]
                ),
            }
            for number, paths in gaze.items()
        ]
    )


def cells(gaze):
    """What Scene holds: a row a photograph, a column an observer."""
    found = np.empty((len(gaze), max(map(len, gaze.values()))), object)
    for row, paths in enumerate(gaze.values()):
        for place in range(found.shape[1]):
            found[row, place] = np.zeros((0, 0))
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
