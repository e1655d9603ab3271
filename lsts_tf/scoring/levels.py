"""What all metrics ask of a frame: which values occur, and how often.

A pixel has a value in the prediction and one in the density. An 8-bit map,
which is what the benchmark reads, has 256 levels, so one joint histogram of
prediction and density holds all that there is to know about them, in a few
thousand pairs instead of 230,400 pixels. In any other map each pixel is a pair
of its own. The metrics weigh pairs by their counts and need not know which.

Maps are `[H, W]`. K is the number of pairs, N that of fixated pixels. Pixels
are linear numbers, `row * W + column`.
"""

import functools

import cv2
import numpy as np

LEVELS = 256
# cv2.calcHist returns float32, which counts exactly up to here.
_EXACT_COUNT = 1 << 24
_BUCKETS = 1 << 16
# 0, 0.1 … 1, of sAUC and AUC-Borji. NumPy and Octave make them as k * 0.1 and
# round three of them up; a pixel exactly there stays below them.
THRESHOLDS = np.arange(11) * 0.1
# The C library hands free memory back at once if it is more than twice the
# largest block freed so far. To get it anew for each array of all pixels took
# longer than the metrics did, so a large block is taken and freed first.
np.empty(1 << 24, np.uint8)


class Frame:
    """A prediction and its ground truth.

    Attributes:
        map: the prediction as it was given, `[H, W]`.
        pixels: their number, H * W.
        pred: value of the prediction in each pair, float64 `[K]`.
        density: value of the density in each pair, float64 `[K]`; zeros where
            no density was given.
        counts: number of pixels with each pair, float64 `[K]`; None if each
            pixel is a pair of its own.
        fixated: fixated pixels, each once, `[N]`.
        others: fixated pixels of other frames, `[M]`.
        baseline: what `metrics.distribution` makes of the baseline, `[H, W]`.
        values: the prediction at the fixated pixels, float64 `[N]`.
    """

    def __init__(
        self,
        pred: np.ndarray,
        density: np.ndarray | None = None,
        *,
        fixated: np.ndarray | None = None,
        others: np.ndarray | None = None,
        baseline: np.ndarray | None = None,
    ):
        """Counts the pairs; arguments as the attributes."""
        none = np.zeros(0, np.intp)
        self.map = pred
        self.pixels = pred.size
        self.fixated = none if fixated is None else fixated
        self.others = none if others is None else others
        self.baseline = np.zeros_like(pred) if baseline is None else baseline
        maps = [pred] if density is None else [pred, density]
        self.counts: np.ndarray | None = None
        self.density = np.zeros(1)
        if pred.size < _EXACT_COUNT and all(m.dtype == np.uint8 for m in maps):
            self._flat = pred.ravel()
            self.pred, self.density, self.counts = _histogram(maps)
        else:
            self._flat = self.pred = as_float(pred)
            if density is not None:
                self.density = as_float(density)
        self.values = self.prediction_at(self.fixated)

    def prediction_at(self, pixels: np.ndarray) -> np.ndarray:
        """The prediction's values at some pixels, float64."""
        return self._flat[pixels].astype(np.float64)

    def total(self, values: np.ndarray) -> float:
        """Sum over all pixels of a value of each pair `[K]`."""
        weighed = values if self.counts is None else self.counts * values
        return float(weighed.sum())

    def product(self, a: np.ndarray, b: np.ndarray) -> float:
        """Sum over all pixels of the product of two values of each pair."""
        if self.counts is not None:
            a = self.counts * a
        # Not by BLAS, whose sums depend on the number of its threads.
        return float(np.einsum("i,i->", a, b))

    @functools.cached_property
    def low(self) -> float:
        """The least value of the prediction."""
        return float(self.pred.min())

    @functools.cached_property
    def high(self) -> float:
        """The largest value of the prediction."""
        return float(self.pred.max())

    @functools.cached_property
    def density_low(self) -> float:
        """The least value of the density."""
        return float(self.density.min())

    @functools.cached_property
    def density_high(self) -> float:
        """The largest value of the density."""
        return float(self.density.max())

    @functools.cached_property
    def sum(self) -> float:
        """Sum of the prediction."""
        return self.total(self.pred)

    @functools.cached_property
    def density_sum(self) -> float:
        """Sum of the density."""
        return self.total(self.density)

    @property
    def is_constant(self) -> bool:
        """Whether all pixels of the prediction have one value."""
        return self.low == self.high

    @functools.cached_property
    def about_mean(self) -> np.ndarray:
        """The prediction less its mean, `[K]`."""
        return self.pred - self.sum / self.pixels

    @functools.cached_property
    def squares(self) -> float:
        """Sum over all pixels of the square of what is `about_mean`."""
        return self.product(self.about_mean, self.about_mean)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values of the prediction, scaled to 0 … 1 by its extremes."""
        return (values - self.low) / ((self.high - self.low) or 1.0)

    def ranks(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of pixels above, and at or above, some values.

        Args:
            unit: `scaled` values at fixations, or some of `THRESHOLDS`.
        """
        values, before, beyond = self._ascending
        above, at_least = (
            before[-1] - before[np.searchsorted(values, unit, side)]
            for side in ("right", "left")
        )
        if beyond is not None:
            higher = beyond[_bucket(unit)]
            return higher + above, higher + at_least
        return above, at_least

    @functools.cached_property
    def _ascending(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Values, `scaled`, in ascending order, and pixels before each.

        Pairs of levels are in this order. To sort all pixels of any other map
        would take longer than all metrics: values are put into buckets, which
        are compared as a whole, and only those that share one with a value
        that `ranks` is asked for are sorted. The third result is, for each
        bucket, the number of the others in higher buckets.
        """
        if self.counts is not None:
            first = np.flatnonzero(np.diff(self.pred, prepend=-1.0))
            counts = np.add.reduceat(self.counts, first)
            before = np.concatenate([[0.0], np.cumsum(counts)])
            return self.scaled(self.pred[first]), before, None
        unit = self.scaled(self.pred)
        buckets = _bucket(unit)
        is_close = np.zeros(_BUCKETS + 1, bool)
        is_close[buckets[self.fixated]] = True
        is_close[_bucket(THRESHOLDS)] = True
        counts = np.bincount(buckets, minlength=_BUCKETS + 1)
        counts[is_close] = 0
        values = np.sort(unit[is_close[buckets]])
        beyond = counts.sum() - np.cumsum(counts)
        return values, np.arange(values.size + 1.0), beyond


def _bucket(unit: np.ndarray) -> np.ndarray:
    """The bucket of a value in 0 … 1, which grows with it."""
    return (unit * _BUCKETS).astype(np.intp)


def _histogram(
    maps: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of levels that occur, in ascending order, and their counts."""
    maps = [np.ascontiguousarray(map_) for map_ in maps]
    axes = len(maps)
    table = cv2.calcHist(
        maps, list(range(axes)), None, [LEVELS] * axes, [0, LEVELS] * axes
    ).ravel()
    pairs = np.flatnonzero(table > 0)
    counts = table[pairs].astype(np.float64)
    if axes == 1:
        return pairs.astype(np.float64), np.zeros(len(pairs)), counts
    pairs = pairs.astype(np.int32)
    pred, density = (x.astype(np.float64) for x in (pairs >> 8, pairs & 255))
    return pred, density, counts


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
