"""How well a saliency map predicts where people looked in a frame.

A prediction and a density (the blurred ground truth) are maps `[H, W]` of any
scale; fixations are the pixels that were looked at, each counted once. A
metric is a function of a `levels.Frame` that returns one number. NaN means
"not defined for this frame": the mean over a set leaves it out. `PROTOCOLS` is
the table of all metrics, `score` applies it to a frame.

The default protocol, "dhf1k", is the official program of the DHF1K benchmark,
which is the MIT saliency benchmark's. Where that program draws at random, this
module computes the expectation exactly. Other protocols:

* "paper": what the LSTS authors' program scored. It measures CC against
  fixations, and its shuffled AUC mixes up rows and columns. Its numbers are
  **not comparable** with other papers'.
* "aim": the AIM 2024 and NTIRE 2026 challenges: SIM of maps that only sum to
  1, AUC-Judd without random order.

The differentiable forms are in `lsts_tf.networks.losses`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import NamedTuple

import cv2
import numpy as np

from lsts_tf.scoring import levels

Frame = levels.Frame

_NAN = float("nan")
_EPSILON = 2.0**-52
_TINY = np.finfo(np.float64).tiny

# === The metrics ===


def auc_judd(frame: Frame) -> float:
    """Area under the ROC curve with a threshold at every fixation.

    Negatives are all pixels that are not fixated. The official program breaks
    ties by adding noise of up to 1e-7 to the map; here it is the expectation
    of that: pixels of equal value stand in random order. (So a float map whose
    values differ by less than the noise scores otherwise than officially.)

    No fixation, or every pixel fixated: NaN. A constant prediction with N
    fixations: 0.5 + 0.5 / (N + 1).

    Returns:
        0 … 1 (a little above the true area, by up to 0.5 / N).
    """
    n, negatives = frame.fixated.size, frame.negatives
    if not n or not negatives:
        return _NAN
    # The i-th fixation from the top is the threshold that finds i of n, and
    # the negatives among the pixels at or above it. Points joined by straight
    # lines, the area over the curve is (sum of false alarms) / n, less half
    # of the last one's. In random order half of the equal pixels are above a
    # fixation, and k / (k + 1) of the other ones above the last of k.
    above, at_least = frame.ranks(frame.scaled(frame.values))
    equal = at_least - above
    alarms = (above + equal / 2).sum() - n * n / 2
    lowest = frame.values.argmin()
    k = np.count_nonzero(frame.values == frame.values[lowest])
    tied = (equal[lowest] - k) * k / (k + 1)
    last = above[lowest] - (n - k) + tied
    return 1 - (alarms - last / 2) / (n * negatives)


def sauc(frame: Frame) -> float:
    """Shuffled AUC: are these fixations told from those of other frames?

    The map is scaled to 0 … 1 and cut at 0, 0.1 … 1; the negatives are the
    fixations of other frames. Officially each of 100 splits draws min(N, M) of
    these M pixels; since the area is linear in the rate of false alarms, its
    mean over splits is the area with all M.

    No fixation, no other fixation, or a constant prediction: NaN. Fixations
    of the frame itself among the others stay there.

    Returns:
        0 … 1.
    """
    if frame.pred.is_constant or not (frame.fixated.size and frame.others.size):
        return _NAN
    negatives = frame.prediction_at(frame.others)
    return _threshold_auc(frame, _share_at_least(frame, negatives))


def auc_borji(frame: Frame) -> float:
    """AUC with 11 thresholds; negatives are drawn from all pixels.

    Officially each of 100 splits draws N pixels with replacement, fixated
    ones included; its mean over splits is the area with all pixels.

    None or one fixation, or a constant prediction: NaN.

    Returns:
        0 … 1.
    """
    if frame.fixated.size < 2 or frame.pred.is_constant:
        return _NAN
    _, at_least = frame.ranks(levels.THRESHOLDS)
    return _threshold_auc(frame, at_least / frame.pixels)


def nss(frame: Frame, *, freedom: int = 1, constant: float = _NAN) -> float:
    """Normalised scanpath saliency: standard scores at the fixations.

    The mean of `(S - mean) / std`; the standard deviation divides by
    `H * W - freedom`.

    No fixation: NaN. A constant prediction: `constant`.

    Returns:
        Standard deviations.
    """
    if not frame.fixated.size:
        return _NAN
    if frame.pred.is_constant:
        return constant
    mean = frame.pred.sum / frame.pixels
    deviation = np.sqrt(frame.pred.squares / (frame.pixels - freedom))
    return (frame.values - mean).mean() / deviation


def cc(frame: Frame, *, constant: float = _NAN) -> float:
    """Pearson's correlation of prediction and density.

    A constant prediction or a constant density (all zero too): `constant`.

    Returns:
        -1 … 1.
    """
    pred, density = frame.pred, frame.density
    if pred.is_constant or density.is_constant:
        return constant
    return frame.products / np.sqrt(pred.squares * density.squares)


def sim(frame: Frame) -> float:
    """Similarity: how much of the two distributions overlaps.

    The sum of the minima of both maps, each scaled to 0 … 1 by its extremes
    and then to sum 1. An all-zero map stays zero.

    An all-zero prediction or density: 0, which **counts** in means, also for
    frames that nobody looked at. A constant map other than zero: NaN.

    Returns:
        0 … 1.
    """
    pred, density = frame.pred, frame.density
    if any(map_.low == map_.high != 0 for map_ in (pred, density)):
        return _NAN
    if pred.high == pred.low or density.high == density.low:
        return 0.0
    p, q = pred.each - pred.low, density.each - density.low
    p /= levels.total(p, pred.counts)
    q /= levels.total(q, density.counts)
    return frame.overlap(p, q)


def kld(frame: Frame, *, zero: float | None = None) -> float:
    """Kullback-Leibler divergence of the prediction from the density, in nats.

    `sum(Q log(eps + Q / (P + eps)))` of maps with sum 1, eps = 2^-52; an
    all-zero map stays zero. Negative values (of bicubic resizing) count as 0;
    officially they give a complex number.

    An all-zero density: 0. An all-zero prediction: finite, about 26. A
    constant map is nothing special. If `zero` is given, it is the score
    wherever either is all zero.

    Returns:
        0 for equal maps. Less is better.
    """
    pred, sum_p, sum_q = frame.pred, frame.pred.sum, frame.density.sum
    if pred.low < 0:
        sum_p = levels.total(np.maximum(pred.each, 0.0), pred.counts)
    if zero is not None and not (sum_p and sum_q):
        return zero
    if not sum_q:
        return 0.0
    q, counts, p, weights = frame.looked_at()
    q = q / sum_q
    p = np.maximum(p, 0.0) / (sum_p or 1.0)
    # The logarithm of a quotient is a difference, and each half depends on one
    # map. The outer eps would add at most eps to the sum.
    cross = np.einsum("i,i->", weights, np.log(p + _EPSILON)) / sum_q
    return levels.total(q * np.log(np.maximum(q, _TINY)), counts) - cross


def infogain(frame: Frame) -> float:
    """Information gain over a baseline, in bits per fixation.

    The mean over fixations of `log2(eps + P) - log2(eps + B)`, eps = 2^-52, of
    prediction and baseline, each a `distribution`.

    No fixation, a constant prediction (all zero too) or a constant baseline:
    NaN.

    Returns:
        Above 0 is better than the baseline.
    """
    if not frame.fixated.size or frame.pred.is_constant:
        return _NAN
    p = frame.values - frame.pred.low
    p /= frame.pred.sum - frame.pred.low * frame.pixels
    b = frame.baseline.ravel()[frame.fixated]
    return (np.log2(_EPSILON + p) - np.log2(_EPSILON + b)).mean()


def distribution(map_: np.ndarray) -> np.ndarray:
    """A map scaled to 0 … 1 by its extremes and then to sum 1.

    From `[H, W]` to float64 `[H, W]`; NaN if the map is constant.
    """
    values = levels.as_float(map_).reshape(map_.shape)
    values -= values.min()
    total = values.sum()
    return values / total if total else np.full_like(values, _NAN)


def _threshold_auc(frame: Frame, alarms: np.ndarray) -> float:
    """Area under (alarms, hits) `[11]` at the thresholds, and (0, 0)."""
    hits = _share_at_least(frame, frame.values)
    between = (alarms[:-1] - alarms[1:]) * (hits[:-1] + hits[1:])
    return (between.sum() + alarms[-1] * hits[-1]) / 2


def _share_at_least(frame: Frame, values: np.ndarray) -> np.ndarray:
    """Share of some of the prediction's values at or above each threshold."""
    unit = frame.scaled(values)
    reached = np.searchsorted(levels.THRESHOLDS, unit, side="right")
    counts = np.bincount(reached, minlength=levels.THRESHOLDS.size + 1)
    return np.cumsum(counts[:0:-1])[::-1] / values.size


# === Protocol "aim" ===


def aim_auc_judd(frame: Frame) -> float:
    """As `auc_judd`, but all pixels equal to a fixation count as above it.

    No fixation: 0.5. Every pixel fixated: NaN.
    """
    n, negatives = frame.fixated.size, frame.negatives
    if not n or not negatives:
        return 0.5 if not n else _NAN
    _, at_least = frame.ranks(frame.scaled(frame.values))
    alarms = at_least.sum() - n * (n + 1) / 2
    last = at_least.max() - n
    return 1 - (alarms - last / 2) / (n * negatives)


def aim_sim(frame: Frame) -> float:
    """As `sim`, of maps that are only scaled to sum 1."""
    p = frame.pred.each / (frame.pred.sum or 1.0)
    q = frame.density.each / (frame.density.sum or 1.0)
    return frame.overlap(p, q)


# === Protocol "paper" ===


def paper_auc_judd(frame: Frame) -> float:
    """A threshold at each distinct value; rates rounded to four digits.

    No fixation or a constant prediction: 0.5. Every pixel fixated: NaN.
    """
    n, negatives = frame.fixated.size, frame.negatives
    if frame.pred.is_constant or not n:
        # A constant map scaled to 0 … 1 is NaN, above no threshold.
        return 0.5
    values, counts = np.unique(-frame.values, return_counts=True)
    found = np.cumsum(counts)
    _, at_least = frame.ranks(frame.scaled(-values))
    alarms = at_least - found
    return _rounded_area(found, alarms, n, negatives)


def paper_sauc(frame: Frame) -> float:
    """Fixed thresholds on the raw map, and negatives at swapped indices.

    No fixation: NaN; so is a frame taller than wide whose swapped indices
    leave it. Values below 0 occur.
    """
    if not frame.fixated.size:
        return _NAN
    height, width = frame.map.shape
    scale = 255 if frame.map.dtype == np.uint8 else 1
    values = frame.map.astype(np.float32) / np.float32(scale)
    # Their linear number takes the height for the width, and is taken apart
    # as (column - 1, row); their loop over 100 splits repeats one number.
    linear = frame.others // width * height + frame.others % width
    rows, columns = linear % height - 1, linear // height
    if columns.size and columns.max() >= width:
        return _NAN  # Their program stops with an IndexError.
    thresholds = (np.arange(1, 10) / 10).astype(np.float32)[:, None]
    hits = (values.ravel()[frame.fixated] >= thresholds).sum(axis=1)
    alarms = (values[rows, columns] > thresholds).sum(axis=1)
    # Equal hits keep their order of ascending thresholds.
    order = np.argsort(hits, kind="stable")
    n = frame.fixated.size
    return _rounded_area(hits[order], alarms[order], n, n)


def paper_cc(frame: Frame) -> float:
    """Pearson's correlation of the prediction and the map of fixations.

    No fixation, every pixel fixated, or a constant prediction: NaN.
    """
    n, negatives = frame.fixated.size, frame.negatives
    if frame.pred.is_constant or not n or not negatives:
        return _NAN
    # With a map of zeros and ones, in closed form.
    score = nss(frame, freedom=0) * n / frame.pixels
    return score / np.sqrt(n * negatives / frame.pixels**2)


def _rounded_area(
    found: np.ndarray, alarms: np.ndarray, positives: int, negatives: int
) -> float:
    """Area under rates that float32 holds to four digits."""
    if negatives == 0:
        return _NAN
    hits, false = (
        np.concatenate([[0.0], np.round(np.float32(x) / np.float32(n), 4), [1]])
        for x, n in ((found, positives), (alarms, negatives))
    )
    return np.trapezoid(hits, false)


# === All of them ===


class Metric(NamedTuple):
    """A row of the table: a metric and the arguments of `score` it needs.

    Of two models the better has more of it, or less if `less_is_better`.
    """

    function: Callable[[Frame], float]
    needs: Sequence[str]
    less_is_better: bool = False


PROTOCOLS: Mapping[str, Mapping[str, Metric]] = {
    "dhf1k": {
        "auc_judd": Metric(auc_judd, ["fixations"]),
        "sauc": Metric(sauc, ["fixations", "others"]),
        "auc_borji": Metric(auc_borji, ["fixations"]),
        "nss": Metric(nss, ["fixations"]),
        "cc": Metric(cc, ["density"]),
        "sim": Metric(sim, ["density"]),
        "kld": Metric(kld, ["density"], less_is_better=True),
        "infogain": Metric(infogain, ["fixations", "baseline"]),
    },
    "paper": {
        "auc_judd": Metric(paper_auc_judd, ["fixations"]),
        "sauc": Metric(paper_sauc, ["fixations", "others"]),
        "nss": Metric(functools.partial(nss, freedom=0), ["fixations"]),
        "cc": Metric(paper_cc, ["fixations"]),
    },
    "aim": {
        "auc_judd": Metric(aim_auc_judd, ["fixations"]),
        "nss": Metric(
            functools.partial(nss, freedom=0, constant=0.0), ["fixations"]
        ),
        "cc": Metric(functools.partial(cc, constant=0.0), ["density"]),
        "sim": Metric(aim_sim, ["density"]),
        "kld": Metric(
            functools.partial(kld, zero=_NAN), ["density"], less_is_better=True
        ),
    },
}
METRICS = tuple(PROTOCOLS["dhf1k"])


def uses(truth: str, protocol: str) -> bool:
    """Whether a metric of a protocol needs an argument of `score`."""
    rows = PROTOCOLS.get(protocol, {}).values()
    return any(truth in row.needs for row in rows)


def score(
    pred: np.ndarray,
    density: np.ndarray | None = None,
    fixations: np.ndarray | None = None,
    *,
    others: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    metrics: Iterable[str] = (),
    protocol: str = "dhf1k",
) -> dict[str, float]:
    """Scores of a frame by several metrics at once.

    Args:
        pred: predicted map, of any real type. 8-bit maps are the fastest. One
            of another size than the ground truth is resized to it: by
            `resize` for "dhf1k", bilinearly for the other protocols, whose
            programs do so. Without a density it has the size of the truth.
        density: density map `[H, W]`, for cc, sim and kld.
        fixations: (row, column) of the pixels looked at, integers `[N, 2]`. A
            pixel given twice counts once.
        others: the same of other frames, for sauc; see `other_frames`.
        baseline: a `distribution` `[H, W]`, for infogain.
        metrics: names, in the order of the result. Default: all that the
            protocol has and the given ground truth allows.
        protocol: a key of `PROTOCOLS`.

    Returns:
        {metric: number}.

    Raises:
        ValueError: if a shape, name or protocol is not one of the above, a
            map is not finite, or the ground truth of a metric is missing.
    """
    truth = {
        "density": density,
        "fixations": fixations,
        "others": others,
        "baseline": baseline,
    }
    given = {name for name, value in truth.items() if value is not None}
    rows = _selected(tuple(metrics), protocol, given)
    maps = {"pred": pred, "density": density, "baseline": baseline}
    for name, map_ in maps.items():
        if map_ is None:
            continue
        if map_.ndim != 2 or 0 in map_.shape:
            raise ValueError(
                f"`{name}` must have the shape [H, W]. Received: "
                f"{list(map_.shape)}. Frames are scored one at a time."
            )
        size = map_.shape
    if density is not None and density.shape != size:
        raise ValueError(
            "`baseline` must have the size of the density, "
            f"{density.shape}. Received: {size}. Resize it with `resize`."
        )
    if pred.shape != size:
        pred = (resize if protocol == "dhf1k" else _bilinear)(pred, size)
    is_dense = any("density" in row.needs for row in rows.values())
    frame = Frame(
        pred,
        density if is_dense else None,
        fixated=_linear("fixations", fixations, size),
        others=_linear("others", others, size),
        baseline=baseline,
    )
    return {name: float(row.function(frame)) for name, row in rows.items()}


def _selected(
    names: Sequence[str], protocol: str, given: set[str]
) -> dict[str, Metric]:
    """The metrics to compute; an error for what cannot be computed."""
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"`protocol` must be one of {', '.join(PROTOCOLS)}. "
            f"Received: {protocol!r}."
        )
    known = PROTOCOLS[protocol]
    for name in names:
        if name not in known:
            raise ValueError(
                f"A metric of protocol {protocol!r} must be one of "
                f"{', '.join(known)}. Received: {name!r}."
            )
        if missing := set(known[name].needs) - given:
            raise ValueError(
                f"{name} needs {' and '.join(known[name].needs)}. "
                f"Missing: {', '.join(sorted(missing))}."
            )
    names = names or [n for n in known if given.issuperset(known[n].needs)]
    if not names:
        raise ValueError(
            "No ground truth. Give `density` or `fixations` or both."
        )
    return {name: known[name] for name in names}


def _linear(
    name: str, points: np.ndarray | None, size: tuple[int, ...]
) -> np.ndarray:
    """Linear numbers of some pixels, ascending, each once."""
    if points is None or not points.size:
        return np.zeros(0, np.intp)
    rule = f"`{name}` must be integers (row, column), [N, 2], inside {size}"
    shape = list(points.shape)
    if shape[1:] != [2] or points.dtype.kind not in "iu":
        raise ValueError(f"{rule}. Received: {points.dtype} {shape}.")
    try:
        pixels = np.ravel_multi_index(tuple(points.T.astype(np.intp)), size)
    except ValueError:
        raise ValueError(
            f"{rule}. Received: {points.min(axis=0)} ... {points.max(axis=0)}. "
            "Drop points outside the frame."
        ) from None
    # As `np.unique`, which takes five times as long.
    pixels = np.sort(pixels.astype(np.int32))
    return pixels[np.append(True, pixels[1:] != pixels[:-1])]


# === Where the negatives of shuffled AUC come from ===


def other_frames(index: int, total: int, *, seed: int = 0) -> np.ndarray:
    """Frames whose fixations are the negatives of frame `index`.

    As in the official program: ten are drawn without replacement from all
    `total` frames of the set, or all of a smaller set, the same video and the
    frame itself included. The draw follows from `seed` and `index` alone, in
    whatever order frames are scored.

    Returns:
        int64 `[10]` at most.
    """
    rng = np.random.default_rng([seed, index])
    return rng.choice(total, min(10, total), replace=False)


# === Predictions of another size ===


def resize(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes maps as MATLAB's `imresize` does, which the benchmark calls.

    Bicubic with a = -0.5 and half-pixel centres; the border is mirrored; the
    kernel is stretched where an axis shrinks. Neither rounded nor clipped, so
    values may leave the range of `maps`. From `[..., h, w]` to float64
    `[..., H, W]`, by the size (H, W).
    """
    rows, columns = map(_resize_weights, maps.shape[-2:], size)
    return rows @ np.asarray(maps, np.float64) @ columns.T


@functools.lru_cache(maxsize=64)
def _resize_weights(length: int, target: int) -> np.ndarray:
    """What each of `length` pixels gives to each of `target`."""
    scale = target / length
    stretch = max(1.0, 1.0 / scale)
    reach = int(np.ceil(2.0 * stretch))
    centres = (np.arange(target) + 0.5) / scale - 0.5
    beyond = np.arange(-reach, length + reach)
    weights = _cubic((centres[:, None] - beyond) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    # Mirrored with the border pixel repeated: 1 0 | 0 1 2 ...
    mirrored = np.pad(np.arange(length), reach, "symmetric")
    matrix = weights @ np.eye(length)[mirrored]
    matrix.setflags(write=False)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _bilinear(map_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if map_.dtype != np.uint8:
        map_ = map_.astype(np.float64)
    return cv2.resize(map_, size[::-1], interpolation=cv2.INTER_LINEAR)
