"""The measures of AIM 2024, NTIRE 2026 and CrowdSAL, by their program.

That program (github.com/msu-video-group/NTIRE26_Saliency_Prediction) differs
from the DHF1K benchmark in how it reads maps and in each measure, so its scores
compare with no others:

* A map is the mean of its channels, stretched to 0 … 1 by its own extremes. The
  prediction is then resized bilinearly to the truth's size.
* Fixations are counted as often as they occur.
* A frame that nobody looked at has no NSS and no AUC. That program stops there.

Maps are [H, W] or [H, W, channels] of any real type; fixations are integers
[N, 2], (row, column) in pixels of the truth.
"""

from collections.abc import Iterator, Sequence
import functools

import cv2
import numpy as np

MEASURES = ("auc_judd", "cc", "sim", "nss")

_NONE = np.float32(0)
# Of a map that are read together.
_ROWS = 32
_TINY = 1e-7
_EPSILON = np.finfo(np.float32).eps
# Of the divergence.
_LEAST = 2.2204e-16


class Map:
    """A map stretched to 0 … 1, in float32 and some rows at a time.

    So little memory stays in a core's cache, and none has to be got from the
    system.

    Args:
        map_: [H, W] or [H, W, channels].

    Attributes:
        levels: uint8, uint16 or float32 [H, W], not stretched: the sum of the
            channels.
        total: Sum of the stretched map.
    """

    def __init__(self, map_: np.ndarray) -> None:
        levels = map_ if map_.ndim == 2 else map_.sum(axis=2)
        if levels.dtype not in (np.uint8, np.uint16):
            levels = levels.astype(np.float32)
        self.levels = levels
        low, high = self.levels.min(), self.levels.max()
        self._low, self._span = low, np.float32(high - low) + _EPSILON
        total = cv2.sumElems(self.levels)[0] - self.levels.size * float(low)
        self.total = total / float(self._span)

    @property
    def mean(self) -> float:
        """Mean of the stretched map."""
        return self.total / self.levels.size

    def blocks(self) -> Iterator[slice]:
        """Rows that are read together."""
        height = self.levels.shape[0]
        for start in range(0, height, _ROWS):
            yield slice(start, min(start + _ROWS, height))

    def rows(self, at: slice) -> np.ndarray:
        """Some rows, stretched; 0 everywhere of a constant map."""
        found = self.levels[at] - self._low
        return np.divide(
            found, self._span, dtype=np.float32, casting="same_kind"
        )

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The stretched map at some pixels."""
        return (self.levels[rows, columns] - self._low) / self._span

    def at_least(self, levels: np.ndarray) -> np.ndarray:
        """How many pixels are at or above each of some levels of the map."""
        if self.levels.dtype.kind == "f":
            return self.levels.size - np.searchsorted(self._ordered, levels)
        return self._counts[levels]

    @functools.cached_property
    def _ordered(self) -> np.ndarray:
        return np.sort(self.levels, axis=None)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """How many pixels are at or above each whole number."""
        top = int(self.levels.max()) + 1
        counts = cv2.calcHist([self.levels], [0], None, [top], [0, top])
        # It counts in float32, which is exact up to 16 million.
        counts = counts.ravel().astype(np.intp)
        return counts[::-1].cumsum()[::-1]

    def resized(self, size: tuple[int, ...]) -> "Map":
        """At another size (H, W); its extremes are not stretched again."""
        if self.levels.shape == size:
            return self
        map_ = cv2.resize(
            self.rows(slice(None)), size[::-1], interpolation=cv2.INTER_LINEAR
        )
        found = Map.__new__(Map)
        found.levels, found._low, found._span = map_, _NONE, np.float32(1)
        found.total = cv2.sumElems(map_)[0]
        return found


def score(
    pred: np.ndarray, truth: np.ndarray, fixations: np.ndarray
) -> dict[str, float]:
    """Scores of a frame by all of `MEASURES`; see `scores`.

    Args:
        pred: The predicted map, of any size.
        truth: The map of where people looked.
        fixations: Where they looked.
    """
    return scores([Map(pred)], Map(truth), fixations)[0]


def scores(
    maps: Sequence[Map], truth: Map, fixations: np.ndarray
) -> list[dict[str, float]]:
    """Scores of several predictions of one frame.

    Args:
        maps: The predictions, of any size.
        truth: The map of where people looked.
        fixations: Where they looked.

    Returns:
        {measure: number} of each; NaN for "nss" and "auc_judd" without a
        fixation.

    Raises:
        ValueError: A fixation lies outside of the truth, or is not integer.
    """
    size = truth.levels.shape
    rows, columns = _inside(fixations, size)
    maps = [map_.resized(size) for map_ in maps]
    found = []
    for map_, (overlap, *sums) in zip(maps, _sums(maps, truth), strict=True):
        products, squares, squares_of_truth = sums
        deviation, deviation_of_truth = (
            np.sqrt(total / map_.levels.size) + _TINY
            for total in (squares, squares_of_truth)
        )
        # Of the standardised maps.
        products /= deviation * deviation_of_truth
        power = squares / deviation**2
        power *= squares_of_truth / deviation_of_truth**2
        nss = auc = float("nan")
        if len(rows):
            values = map_.at(rows, columns) - map_.mean
            nss = float(values.mean() / deviation)
            auc = auc_judd(map_, rows, columns)
        cc = float(products / np.sqrt(power + _TINY))
        found.append(
            {"auc_judd": auc, "cc": cc, "sim": float(overlap), "nss": nss}
        )
    return found


def _sums(maps: Sequence[Map], truth: Map) -> np.ndarray:
    """What SIM and CC add up, of several predictions.

    Returns:
        float64 [predictions, 4]: the overlap with the truth, of maps that have
        the sum 1 (a constant one has the sum 0); and of maps that have the mean
        0 their product, the prediction's squares and the truth's.
    """
    found = np.zeros((len(maps), 4))
    for at in truth.blocks():
        y = truth.rows(at)
        centred = y - np.float32(truth.mean)
        squares = _dot(centred, centred)
        for map_, sums in zip(maps, found, strict=True):
            x = map_.rows(at)
            total = map_.total + _TINY
            least = y * np.float32(total / (truth.total + _TINY))
            np.minimum(x, least, out=least)
            x -= np.float32(map_.mean)
            sums += (
                least.sum() / total,
                _dot(x, centred),
                _dot(x, x),
                squares,
            )
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # Row by row, because a sum of many float32 is not exact enough.
    return float(np.vecdot(a, b).sum(dtype=np.float64))


def auc_judd(map_: Map, rows: np.ndarray, columns: np.ndarray) -> float:
    """Area under the ROC curve with a threshold at each fixation.

    A pixel as high as the threshold counts as above it. The program means to
    subtract the number of fixated pixels from that of all, and subtracts the
    number of different columns of the array of fixations: 2, or 1 where row
    and column are equal in each. Published scores contain it.

    Args:
        map_: The prediction.
        rows: Of the fixations, at least one.
        columns: Likewise.
    """
    total = len(rows)
    chosen = np.sort(map_.levels[rows, columns])[::-1]
    above = map_.at_least(chosen)
    slip = 1 if (rows == columns).all() else 2
    hits = np.arange(1, total + 1)
    alarms = (above - hits) / (map_.levels.size - slip)
    return float(
        np.trapezoid(
            np.concatenate([[0.0], hits / total, [1.0]]),
            np.concatenate([[0.0], alarms, [1.0]]),
        )
    )


def kld(pred: np.ndarray, truth: np.ndarray) -> float:
    """Kullback-Leibler divergence, which the program defines and never reports.

    Args:
        pred: The predicted map, of any size.
        truth: The map of where people looked.

    Returns:
        Nats; NaN if a map is constant.
    """
    q = Map(truth)
    p = Map(pred).resized(q.levels.shape)
    if not (p.total and q.total):
        return float("nan")
    share, other = (m.rows(slice(None)) / m.total for m in (p, q))
    return float((other * np.log(_LEAST + other / (share + _LEAST))).sum())


def _inside(
    fixations: np.ndarray, size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of fixations."""
    points = np.asarray(fixations)
    if not points.size:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or points.dtype.kind not in "iu"
        or (points < 0).any()
        or (points >= size).any()
    ):
        raise ValueError(
            "Fixations must be integers [N, 2], (row, column), inside a map "
            f"of {list(size)}. Received: {points.dtype} {list(points.shape)}, "
            f"from {points.min(axis=0)} to {points.max(axis=0)}."
        )
    return points[:, 0], points[:, 1]
