"""From fixated pixels to DHF1K's density maps, bit for bit; a centre prior.

Maps and fixations are `[H, W]`; pixel (y, x) is row y, column x. A fixation
map is binary: a pixel was looked at or was not, however often. A density map
is uint8 and its largest value is 255, unless nobody looked.
"""

import functools
import math

import numpy as np

# Half of the peak at 15 pixels from the centre: a full width of 30 pixels.
SIGMA = 30 / (2 * math.sqrt(2 * math.log(2)))

# (H, W) of the released maps, which the recipe was found on.
SIZE = (360, 640)

# The released maps peak two pixels right of and below each fixated pixel. It
# looks like an indexing slip of the benchmark's own program, but it is in
# every released map, so it is in ours.
SHIFT = 2


def density_map(
    counts: np.ndarray, *, sigma: float = SIGMA, shift: int = SHIFT
) -> np.ndarray:
    """Blurs fixated pixels by the recipe of DHF1K's released maps.

    Each gets a Gaussian, of full width 30 pixels at half maximum and centred
    two pixels right of and below it. Their sum is divided by its maximum,
    multiplied by 255 and rounded, halves up. They are not cut off anywhere but
    at the border of the image.

    Args:
        counts: `[H, W]`, how many Gaussians there are at each pixel: one for
            each that is fixated in DHF1K, True.
        sigma: their standard deviation, in pixels.
        shift: how far right of and below its pixel each is centred, in pixels;
            0 for other datasets than DHF1K.

    Returns:
        uint8 `[H, W]`; all zero where there is no fixation.
    """
    height, width = counts.shape
    rows = np.flatnonzero(counts.any(axis=1))
    columns = np.flatnonzero(counts.any(axis=0))
    if not rows.size:
        return np.zeros((height, width), np.uint8)
    # A Gaussian is a product of one along x and one along y, and few rows and
    # columns are fixated at all. Not by `@`: to wake BLAS' threads costs more
    # than such small products.
    along_x = np.einsum(
        "rc,cx->rx",
        counts[np.ix_(rows, columns)].astype(np.float64),
        _gaussians(width, sigma, shift)[columns],
    )
    total = np.einsum(
        "ry,rx->yx", _gaussians(height, sigma, shift)[rows], along_x
    )
    total *= 255 / total.max()
    total += 0.5
    return total.astype(np.uint8)  # Cuts the fraction off: rounded halves up.


def _gaussians(size: int, sigma: float, shift: int) -> np.ndarray:
    """float64 `[size, size]`: row i is the Gaussian of a fixation at i."""
    distance = np.arange(1 - size, size) - shift
    bell = np.exp(-(distance**2) / (2 * sigma**2))
    return np.lib.stride_tricks.sliding_window_view(bell, size)[::-1]


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map that looks at the middle: the baseline that looks at no frame.

    A Gaussian whose standard deviation is a quarter of each side.

    Returns:
        float64 [height, width], 1 in the middle.
    """

    def bell(length: int) -> np.ndarray:
        x = (np.arange(length) + 0.5) / length - 0.5
        return np.exp(-0.5 * (x / 0.25) ** 2)

    return np.outer(bell(height), bell(width))


@functools.lru_cache(maxsize=8)
def centre_map(height: int, width: int) -> np.ndarray:
    """The centre prior as a map of a model, uint8 [height, width]."""
    return np.rint(centre_prior(height, width) * 255.0).astype(np.uint8)
