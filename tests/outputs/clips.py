"""Maps with a blob, and what an output makes of a clip."""

import numpy as np


def blob(x, y, sigma=30.0, shape=(360, 640)):
    """x, y, sigma are in pixels of the map, in continuous coordinates."""
    rows, columns = np.indices(shape) + 0.5
    squares = (columns - x) ** 2 + (rows - y) ** 2
    return np.exp(-squares / (2 * sigma**2)).astype(np.float32)


def written(
    kind, path, clip, *, size, fps=25, begin=0.0, start=(0, 0.0), **how
):
    """The path of an output that got all (frame, map)."""
    with kind(path=path, fps=fps, size=size, **how) as output:
        output.start = start
        for frame, map_ in clip:
            output.write(frame, map_, begin + output.count / fps)
    return path
