"""What all metrics ask of a frame: which values occur, and how often.

An 8-bit map, which is what the benchmark reads, has 256 levels, so one joint
histogram of prediction and density holds all that there is to know about them:
65,536 counts instead of 230,400 pairs of pixels. In any other map each pixel is
a value of its own. The metrics weigh values by their counts and need not know
which.

Maps are `[H, W]`. K is the number of values: 256, or H * W. N is the number of
fixated pixels. Pixels are linear numbers, `row * W + column`.
"""

import functools
from typing import Any

import cv2
import numpy as np

LEVELS = np.arange(256.0)
# cv2.calcHist returns float32, which counts exactly up to here.
_EXACT_COUNT = 1 << 24
# 0, 0.1 … 1, of sAUC and AUC-Borji. NumPy and Octave make them as k * 0.1 and
# round three of them up; a pixel exactly there stays below them.
THRESHOLDS = np.arange(11) * 0.1
_NONE = np.zeros(0, np.intp)
# The C library hands free memory back at once if it is more than twice the
# largest block freed so far. To get it anew for each array of all pixels took
# longer than the metrics did, so a large block is taken and freed first.
np.empty(1 << 24, np.uint8)


class Values:
    """The values of a map and how many pixels have each.

    Attributes:
        each: float64 `[K]`, in ascending order if there are counts.
        counts: number of pixels with each value, float64 `[K]`; None if each
            pixel is a value of its own.
        low, high: the least and the largest value of a pixel.
        is_constant: whether all pixels have one value.
    """

    def __init__(self, each: np.ndarray, counts: np.ndarray | None = None):
        """Arguments as the attributes."""
        self.each, self.counts = each, counts
        if counts is None:
            self.low, self.high = float(each.min()), float(each.max())
        else:
            present = each[np.flatnonzero(counts)]
            self.low, self.high = float(present[0]), float(present[-1])
        self.is_constant = self.low == self.high

    @functools.cached_property
    def sum(self) -> float:
        """Sum of the map."""
        return total(self.each, self.counts)

    @functools.cached_property
    def about_mean(self) -> np.ndarray:
        """The values less the mean of the map, `[K]`."""
        pixels = self.each.size if self.counts is None else self.counts.sum()
        return self.each - self.sum / pixels

    @functools.cached_property
    def squares(self) -> float:
        """Sum over all pixels of the square of what is `about_mean`."""
        each = self.about_mean
        weighed = each if self.counts is None else self.counts * each
        return float(np.einsum("i,i->", weighed, each))


def total(of_each: np.ndarray, counts: np.ndarray | None) -> float:
    """Sum over all pixels of a number for each value, `[K]`."""
    return float((of_each if counts is None else counts * of_each).sum())


class Frame:
    """A prediction and its ground truth.

    Attributes:
        map: the prediction as it was given, `[H, W]`.
        pixels: their number, H * W.
        pred: values of the prediction.
        density: values of the density; one zero where none was given.
        fixated: fixated pixels, each once, `[N]`.
        negatives: number of the other pixels.
        others: fixated pixels of other frames, `[M]`.
        baseline: what `metrics.distribution` makes of the baseline, `[H, W]`.
        values: the prediction at the fixated pixels, float64 `[N]`.
    """

    density = Values(np.zeros(1))

    def __init__(
        self,
        pred: np.ndarray,
        density: np.ndarray | None = None,
        *,
        fixated: np.ndarray = _NONE,
        others: np.ndarray = _NONE,
        baseline: Any = None,
    ):
        """Counts the values; arguments as the attributes."""
        self.map, self.pixels = pred, pred.size
        self.fixated, self.others, self.baseline = fixated, others, baseline
        self.negatives = self.pixels - fixated.size
        maps = [pred] if density is None else [pred, density]
        # Number of pixels with each level of prediction and of density.
        self._joint: np.ndarray | None = None
        if pred.size < _EXACT_COUNT and all(m.dtype == np.uint8 for m in maps):
            self._flat = pred.ravel()
            maps = [np.ascontiguousarray(map_) for map_ in maps]
            n, size = len(maps), LEVELS.size
            counts = cv2.calcHist(
                maps, [*range(n)], None, [size] * n, [0, size] * n
            )
            if density is not None:
                self._joint = counts.astype(np.float64)
                # Sum of the density at each level of the prediction.
                self._mass = np.vecdot(self._joint, LEVELS)
                by_density = cv2.reduce(counts, 0, cv2.REDUCE_SUM)
                self.density = Values(LEVELS, by_density[0].astype(np.float64))
                counts = cv2.reduce(counts, 1, cv2.REDUCE_SUM)
            self.pred = Values(LEVELS, counts.ravel().astype(np.float64))
        else:
            self._flat = as_float(pred)
            self.pred = Values(self._flat)
            if density is not None:
                self.density = Values(as_float(density))
        self.values = self.prediction_at(fixated)

    def prediction_at(self, pixels: np.ndarray) -> np.ndarray:
        """The prediction's values at some pixels, float64."""
        return self._flat[pixels].astype(np.float64)

    @functools.cached_property
    def products(self) -> float:
        """Sum over all pixels of the product of what is `about_mean`."""
        about = self.density.about_mean
        if self.pred.counts is not None:
            mean = self.density.sum / self.pixels
            about = self._mass - mean * self.pred.counts
        return float(np.einsum("i,i->", self.pred.about_mean, about))

    def overlap(self, p: np.ndarray, q: np.ndarray) -> float:
        """Sum over all pixels of the lesser of two numbers.

        Args:
            p: for each value of the prediction, `[K]`; may be overwritten.
            q: for each value of the density, `[K]`.
        """
        if self._joint is None:
            return float(np.minimum(p, q, out=p).sum())
        lesser = np.minimum.outer(p, q)
        # Row by row, because the sums of a larger product of BLAS depend on
        # the number of its threads.
        return float(np.vecdot(self._joint, lesser).sum())

    def looked_at(self) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
        """What lies where the density is above zero.

        Returns:
            Values of the density there and their counts, as in `Values`;
            values of the prediction there; and the sum of the density at each
            of these.
        """
        p, q = self.pred.each, self.density.each
        if self._joint is not None:
            return q, self.density.counts, p, self._mass
        at = np.flatnonzero(q > 0)
        q = q[at]
        return q, None, p[at], q

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values of the prediction, scaled to 0 … 1 by its extremes."""
        low, high = self.pred.low, self.pred.high
        return (values - low) / ((high - low) or 1.0)

    def ranks(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of pixels above, and at or above, some values.

        Args:
            unit: `scaled` values at fixations, or some of `THRESHOLDS`.
        """
        values, before = self._ascending
        above, at_least = (
            before[-1] - before[np.searchsorted(values, unit, side)]
            for side in ("right", "left")
        )
        return above, at_least

    @functools.cached_property
    def _ascending(self) -> tuple[np.ndarray, np.ndarray]:
        """Some values, `scaled`, in ascending order, and pixels before each.

        All levels; of any other map those that `ranks` is asked for and their
        next larger neighbours, because to sort all pixels takes longer than
        all metrics.
        """
        unit = self.scaled(self.pred.each)
        if self.pred.counts is not None:
            return unit, np.append(0.0, np.cumsum(self.pred.counts))
        asked = np.append(self.scaled(self.values), THRESHOLDS)
        asked = np.unique([asked, np.nextafter(asked, 2.0)])
        reached = np.searchsorted(asked, unit, side="right")
        counts = np.bincount(reached, minlength=asked.size + 1)
        return asked, np.cumsum(counts)


def as_float(map_: np.ndarray) -> np.ndarray:
    """A map's values as float64 `[H * W]`, scaled by a power of two.

    So that no sum and no square leaves float64. No metric depends on a map's
    scale, and a power of two changes no digit.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    values = map_.astype(np.float64).ravel()
    largest = max(-values.min(), values.max())
    if not np.isfinite(largest):
        raise ValueError(
            "Maps must be finite. Received: a map with NaN or infinity. Find "
            "out where it comes from."
        )
    if map_.dtype == np.float64 and largest > 0:
        # A power of two, and not one beyond float64 either.
        values *= np.ldexp(1.0, min(-np.frexp(largest)[1], 1000))
    return values
