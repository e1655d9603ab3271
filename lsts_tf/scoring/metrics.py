"""How well a saliency map predicts where people looked.

A prediction is a map `[B, H, W]` of any scale; a density is the blurred ground
truth `[B, H, W]`, also of any scale; fixations are the pixels looked at, each
counted once. A metric is a function that returns one number a frame, `[B]`.
NaN means "not defined for this frame": the mean over a set leaves it out.

The default protocol, "dhf1k", is the official program of the DHF1K benchmark,
which is the MIT saliency benchmark's, with the expectation in the place of
each random draw, exactly and not by repetition:

* `auc_judd`, fixations: ROC with a threshold at every fixation; the negatives
  are all other pixels.
* `sauc`, fixations: ROC with 11 thresholds; the negatives are the fixations of
  other frames.
* `auc_borji`, fixations: the same; the negatives are all pixels.
* `nss`, fixations: mean of `(S - mean) / std`, the std with N - 1.
* `cc`, density: Pearson's correlation.
* `sim`, density: sum of the minima of both maps, each scaled to 0 … 1 and then
  to sum 1.
* `kld`, density: `sum(Q log(eps + Q / (P + eps)))`, natural logarithm, maps
  with sum 1; negative predictions count as 0.
* `infogain`, fixations: mean of `log2(eps + P) - log2(eps + B)` of prediction
  and baseline, each scaled as for `sim`.

eps is 2^-52. What scores which edge case stands with each function.
Other protocols:

* "paper": what the LSTS authors' program scored (auc_judd, sauc, nss, cc). It
  measures CC against fixations, and its shuffled AUC mixes up rows and
  columns. Its numbers are **not comparable** with other papers'.
* "aim": the AIM 2024 and NTIRE 2026 challenges (auc_judd, nss, cc, sim, kld):
  SIM of maps that only sum to 1, AUC-Judd without random order.

Two kinds of maps take two ways to the same definitions. An 8-bit map, what
the benchmark reads, has 256 levels: one joint histogram of prediction and
density holds all that there is to know of them, and the rest is small tables
(`_Levels`). Any other map is scored pixel by pixel (`_Pixels`). NumPy arrays
give float64 from either. 8-bit tensors of Keras take the first way on their
device, also inside a compiled function; so does `FrameMean`, for who trains by
`keras.Model.compile` (`lsts_tf.train` calls `score` after each epoch). The
differentiable forms are in `lsts_tf.networks.losses`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import cv2
import keras
import numpy as np

METRICS = (
    "auc_judd",
    "sauc",
    "auc_borji",
    "nss",
    "cc",
    "sim",
    "kld",
    "infogain",
)
# What each protocol knows.
PROTOCOLS = {
    "dhf1k": METRICS,
    "paper": ("auc_judd", "sauc", "nss", "cc"),
    "aim": ("auc_judd", "nss", "cc", "sim", "kld"),
}
# Thresholds of sAUC and AUC-Borji are k * 0.1, which NumPy and Octave round
# up for these k. A pixel exactly at k / 10 of the range stays below them.
# MATLAB's colon counts from both ends and rounds up the first only.
_ROUNDED_UP = {"octave": (3, 6, 7), "matlab": (3,)}
_STEPS = 10
_EPSILON = 2.0**-52
_JITTER = 1e-7
# A map whose largest value is a power of two beyond this one is scaled.
_SAFE = 400
_LEVELS = 256
_BUCKETS = 1 << 16
# The buckets of the thresholds, to within one.
_NEAR_STEPS = np.arange(_STEPS + 1) * (_BUCKETS - 1) // _STEPS
# Frames whose tables are worked on together: 4 MB, and few calls of NumPy.
_CHUNK = 8
# cv2.calcHist returns float32, which counts exactly up to here.
_EXACT_COUNT = 1 << 24


def score(
    pred: Any,
    density: Any = None,
    fixations: Any = None,
    *,
    other: Any = None,
    baseline: Any = None,
    metrics: Iterable[str] | None = None,
    protocol: str = "dhf1k",
    jitter: str = "expected",
    sauc_splits: int | Any = None,
    borji_splits: int | Any = None,
    thresholds: str = "octave",
    seed: int = 0,
    frames: Sequence[int] | None = None,
    dtype: Any = None,
) -> dict[str, Any]:
    """Scores of a batch of frames by several metrics at once.

    Maps of another size than the ground truth are resized to it, by `resize`
    for "dhf1k" and bilinearly for the other protocols, which do so. Tensors
    are not resized.

    Args:
        pred: predicted maps `[B, H, W]` or `[B, H, W, 1]`. uint8 takes the
            fast way; any other type is exact as it is. Tensors must be
            integers 0 … 255.
        density: density maps `[B, H, W]`; for cc, sim and kld.
        fixations: pixels looked at: maps `[B, H, W]` (anything above zero),
            or coordinates (row, column) as integers `[B, N, 2]`, padded with
            negative rows, or a list of B arrays `[N, 2]`. A pixel given
            twice counts once. Tensors: maps only.
        other: fixations of other frames, for sauc, in the same forms; see
            `OtherFixations`.
        baseline: baseline map `[H, W]` or maps `[B, H, W]`, for infogain.
        metrics: names, in the order of the result. Default: all that the
            protocol has and the given ground truth allows.
        protocol: "dhf1k", "paper" or "aim".
        jitter: order of equal pixels in AUC-Judd. "expected": the exact mean
            over all random orders; "sample": one run of the official random
            jitter; "none": the official program with its jitter switched
            off. "aim" has none.
        sauc_splits: None for the exact mean over the random splits of sauc;
            a number of splits to sample; or the pixels of each split, as
            linear numbers `row * W + column`, `[B, splits, n]` or a list of
            B arrays `[splits, n]`.
        borji_splits: the same for auc_borji.
        thresholds: rounding of the thresholds `0:0.1:1` of sauc and
            auc_borji, "octave" (NumPy too) or "matlab". It decides about
            pixels exactly on a threshold.
        seed: of everything sampled.
        frames: number of each frame in its set, from which (with the seed)
            its random numbers follow, whatever the batches. Default: 0 … B-1.
        dtype: of what is computed on tensors. Default: Keras' float type.
            float32 is within 2e-6 of float64, which arrays are computed in.

    Returns:
        {metric: `[B]`}: float64 arrays; for tensors, tensors of `dtype`.

    Raises:
        ValueError: if a shape, name or option is not one of the above, a map
            is not finite, or the ground truth of a metric is missing.
    """
    given = {"density": density, "fixations": fixations}
    given |= {"other": other, "baseline": baseline}
    names = _selected(metrics, protocol, given)
    _check_option("jitter", jitter, ("expected", "sample", "none"))
    _check_option("thresholds", thresholds, tuple(_ROUNDED_UP))
    if protocol == "aim":
        jitter = "none"
    options = _Options(protocol, jitter, thresholds, dtype)
    splits = {"sauc": sauc_splits, "auc_borji": borji_splits}
    if keras.ops.is_tensor(pred):
        if jitter == "sample" or any(s is not None for s in splits.values()):
            raise ValueError(
                "Tensors are scored by expectation only. Received: "
                f"jitter={jitter!r} or splits. Convert the maps to NumPy "
                "(`keras.ops.convert_to_numpy`) to sample."
            )
        return _score_tensors(names, options, pred, **given)

    pred = _maps("pred", pred)
    batch = len(pred)
    if density is not None:
        density = _maps("density", density, batch)
    size = _truth_size(pred, density, fixations)
    fixated = _flat_pixels("fixations", fixations, batch, size)
    others = _flat_pixels("other", other, batch, size)
    baselines = _baselines(baseline, batch, size)

    def frame(i: int) -> _Frame:
        sampler = _Sampler(seed, i if frames is None else frames[i])
        map_ = pred[i]
        if map_.shape != size:
            map_ = (resize if protocol == "dhf1k" else _bilinear)(map_, size)
        return _Frame(
            pred=map_,
            density=None if density is None else density[i],
            fixated=fixated[i],
            others=others[i],
            baseline=baselines[i],
            sauc_pixels=sampler.others(sauc_splits, i, fixated[i], others[i]),
            borji_pixels=sampler.anywhere(borji_splits, i, fixated[i], size),
            sampler=sampler,
        )

    result = {name: np.empty(batch) for name in names}
    for start in range(0, batch, _CHUNK):
        chunk = [frame(i) for i in range(start, min(start + _CHUNK, batch))]
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = _score_frames(names, options, chunk)
        for name in names:
            result[name][start : start + len(chunk)] = scores[name]
    return result


def auc_judd(pred, fixations, **options):
    """Area under the ROC curve with a threshold at every fixation.

    Negatives are all pixels that are not fixated. The official program breaks
    ties by adding noise of up to 1e-7 to the map; here it is the expectation
    of that: pixels of equal value stand in random order. (So is a float map
    whose values differ by less than the noise, other than officially.)

    No fixation, or every pixel fixated: NaN. A constant prediction with N
    fixations: 0.5 + 0.5 / (N + 1), or NaN with `jitter="none"`, where ties
    all count against the map. In "aim": 0.5 without fixations.

    Args:
        pred: as in `score`.
        fixations: as in `score`.
        **options: `jitter`, `seed`, `frames` and `protocol` of `score`.

    Returns:
        `[B]`, 0 … 1 (a little above the true area, by up to 0.5 / N).
    """
    names = ("auc_judd",)
    return score(pred, fixations=fixations, metrics=names, **options)[names[0]]


def sauc(pred, fixations, other, **options):
    """Shuffled AUC: are these fixations told from those of other frames?

    The map is scaled to 0 … 1 and cut at 0, 0.1 … 1. Officially each of 100
    splits draws min(N, M) of the M pixels of `other`; since the area is linear
    in the rate of false alarms, its mean over splits is the area with all M.

    No fixation, no other fixation, or a constant prediction: NaN. Fixations
    of the frame itself among the others stay there.

    Args:
        pred: as in `score`.
        fixations: as in `score`.
        other: as in `score`; officially of `OtherFixations`.
        **options: `sauc_splits`, `thresholds`, `seed`, `frames` and
            `protocol` of `score`. In "paper", whose program is also NaN for
            frames taller than wide when its swapped indices leave the frame,
            `other` was one neighbouring frame, and values below 0 occur.

    Returns:
        `[B]`, 0 … 1.
    """
    names = ("sauc",)
    truth = {"fixations": fixations, "other": other}
    return score(pred, metrics=names, **truth, **options)[names[0]]


def auc_borji(pred, fixations, **options):
    """AUC with 11 thresholds; negatives are drawn from all pixels.

    Officially each of 100 splits draws N pixels with replacement, fixated
    ones included; its mean over splits is the area with all pixels.

    None or one fixation, or a constant prediction: NaN.

    Args:
        pred: as in `score`.
        fixations: as in `score`.
        **options: `borji_splits`, `thresholds`, `seed` and `frames` of
            `score`.

    Returns:
        `[B]`, 0 … 1.
    """
    names = ("auc_borji",)
    return score(pred, fixations=fixations, metrics=names, **options)[names[0]]


def nss(pred, fixations, **options):
    """Normalised scanpath saliency: standard scores at the fixations.

    The standard deviation divides by N - 1 ("paper" and "aim": by N).

    No fixation, or a constant prediction: NaN ("aim": a constant scores 0).

    Args:
        pred: as in `score`.
        fixations: as in `score`.
        **options: `protocol` of `score`.

    Returns:
        `[B]`, in standard deviations.
    """
    names = ("nss",)
    return score(pred, fixations=fixations, metrics=names, **options)[names[0]]


def cc(pred, density, **options):
    """Pearson's correlation of prediction and density.

    A constant prediction or a constant density (all zero too): NaN ("aim": 0).
    For the correlation with fixations of protocol "paper" give `score` the
    fixations; `density` is not looked at there.

    Args:
        pred: as in `score`.
        density: as in `score`.
        **options: none but `protocol` ("dhf1k", "aim") of `score`.

    Returns:
        `[B]`, -1 … 1.
    """
    names = ("cc",)
    return score(pred, density, metrics=names, **options)[names[0]]


def sim(pred, density, **options):
    """Similarity: how much of the two distributions overlaps.

    Each map is scaled to 0 … 1 by its extremes, then to sum 1 ("aim": only to
    sum 1). An all-zero map stays zero.

    An all-zero prediction or density: 0, which **counts** in means, also for
    frames that nobody looked at. A constant map other than zero: NaN.

    Args:
        pred: as in `score`.
        density: as in `score`.
        **options: `protocol` of `score`.

    Returns:
        `[B]`, 0 … 1.
    """
    names = ("sim",)
    return score(pred, density, metrics=names, **options)[names[0]]


def kld(pred, density, **options):
    """Kullback-Leibler divergence of the prediction from the density, in nats.

    Maps are scaled to sum 1; an all-zero map stays zero. Negative values (of
    bicubic resizing) count as 0; officially they give a complex number.

    An all-zero density: 0. An all-zero prediction: finite, about 26. A
    constant map is nothing special. "aim": NaN if either is all zero.

    Args:
        pred: as in `score`.
        density: as in `score`.
        **options: `protocol` of `score`.

    Returns:
        `[B]`, 0 for equal maps. Less is better.
    """
    names = ("kld",)
    return score(pred, density, metrics=names, **options)[names[0]]


def infogain(pred, fixations, baseline, **options):
    """Information gain over a baseline, in bits a fixation.

    All maps are scaled to 0 … 1 by their extremes, then to sum 1.

    No fixation, a constant prediction (all zero too) or a constant baseline:
    NaN.

    Args:
        pred: as in `score`.
        fixations: as in `score`.
        baseline: as in `score`.
        **options: none but `protocol` ("dhf1k") of `score`.

    Returns:
        `[B]`; above 0 is better than the baseline.
    """
    names = ("infogain",)
    truth = {"fixations": fixations, "baseline": baseline}
    return score(pred, metrics=names, **truth, **options)[names[0]]


# === Where the negatives of shuffled AUC come from ===


def other_frames(
    index: int, total: int, *, seed: int = 0, count: int = 10
) -> np.ndarray:
    """Frames whose fixations are the negatives of frame `index`.

    As in the official program: drawn without replacement from all frames of
    the set, the same video and the frame itself included. The draw follows
    from `seed` and `index` alone, in whatever order frames are scored.

    Args:
        index: number of the frame in its set.
        total: number of frames in the set.
        seed: of the draw.
        count: how many frames; all, if the set has fewer.

    Returns:
        int64 `[min(count, total)]`.
    """
    rng = np.random.default_rng([seed, index])
    return rng.choice(total, min(count, total), replace=False)


class OtherFixations:
    """The negatives of shuffled AUC for every frame of a set.

    `others[i]` is the union of the fixations of `other_frames(i, ...)`.
    Fixations of frame i itself are not taken out.
    """

    def __init__(
        self,
        fixations: Sequence[np.ndarray],
        *,
        seed: int = 0,
        count: int = 10,
    ):
        """Over the fixations of a whole set.

        Args:
            fixations: coordinates (row, column) `[N, 2]` of each frame.
            seed: of the draw.
            count: how many frames for each.
        """
        self._fixations = fixations
        self._seed = seed
        self._count = count

    def __len__(self) -> int:
        return len(self._fixations)

    def frames(self, index: int) -> np.ndarray:
        """Numbers of the frames that frame `index` is told from."""
        return other_frames(
            index, len(self), seed=self._seed, count=self._count
        )

    def __getitem__(self, index: int) -> np.ndarray:
        """Their fixations, each pixel once: int64 `[M, 2]`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        drawn = [self._fixations[i] for i in self.frames(index)]
        points = np.concatenate(drawn).astype(np.int64).reshape(-1, 2)
        keys = _distinct(points[:, 0] << 32 | points[:, 1])
        return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=-1)


# === Predictions of another size ===


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes maps as MATLAB's `imresize` does, which the benchmark calls.

    Bicubic with a = -0.5 and half-pixel centres; the border is mirrored; the
    kernel is stretched where an axis shrinks. Neither rounded nor clipped, so
    values may leave the range of `maps`.

    Args:
        maps: `[..., h, w]`.
        size: (H, W).

    Returns:
        float64 `[..., H, W]`.
    """
    rows = _resize_weights(maps.shape[-2], size[0])
    columns = _resize_weights(maps.shape[-1], size[1])
    return rows @ np.asarray(maps, np.float64) @ columns.T


@functools.lru_cache(maxsize=64)
def _resize_weights(length: int, target: int) -> np.ndarray:
    """What each of `length` pixels gives to each of `target`."""
    scale = target / length
    stretch = max(1.0, 1.0 / scale)
    centres = (np.arange(target) + 0.5) / scale - 0.5
    reach = 2.0 * stretch
    taps = np.arange(2 * int(np.ceil(reach)) + 1) - int(np.ceil(reach))
    at = np.floor(centres).astype(np.int64)[:, None] + taps
    weights = _cubic((centres[:, None] - at) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    # Mirrored with the border pixel repeated: 1 0 | 0 1 2 ...
    folded = at % (2 * length)
    folded = np.minimum(folded, 2 * length - 1 - folded)
    matrix = np.zeros((target, length))
    np.add.at(matrix, (np.arange(target)[:, None], folded), weights)
    matrix.setflags(write=False)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _bilinear(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if map_.dtype != np.uint8:
        map_ = map_.astype(np.float64)
    return cv2.resize(map_, size[::-1], interpolation=cv2.INTER_LINEAR)


# === The mean over a set, for `keras.Model.compile` ===


@keras.saving.register_keras_serializable(package="lsts_tf")
class FrameMean(keras.metrics.Metric):
    """Mean of a metric over frames; frames that score NaN are left out.

    The state is a sum and a count, so replicas with different numbers of
    frames give the mean that one gives. `result()` is NaN before any frame
    counted.

    `y_true` is `[B, H, W, C]`: density in 0 … 1, fixated pixels, and, where the
    metric needs them, fixations of other frames (sauc) and a baseline
    (infogain). `y_pred` is `[B, H, W, 1]` in 0 … 1. For a metric by name both
    are first rounded to 256 levels, so that a training shows what the saved
    PNGs will score.

    Args:
        metric: a name of `METRICS`, or a serialisable function of (`y_true`,
            `y_pred`) that returns `[B]`, as those of `networks.losses` do.
        name: default: the metric's.
        dtype: of the computation. float32 is within 2e-6 of float64.
    """

    def __init__(
        self,
        metric: str | Callable[..., Any],
        *,
        name: str | None = None,
        dtype: Any = None,
    ):
        if isinstance(metric, str):
            _selected([metric], "dhf1k", None)
            super().__init__(name=name or metric, dtype=dtype)
        else:
            super().__init__(name=name or metric.__name__, dtype=dtype)
        self.metric = metric
        self.total = self.add_variable(
            (), initializer="zeros", name="total", aggregation="sum"
        )
        self.count = self.add_variable(
            (), initializer="zeros", name="count", aggregation="sum"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds the frames of a batch.

        Args:
            y_true: `[B, H, W, C]`.
            y_pred: `[B, H, W, 1]`.
            sample_weight: `[B]`, or None. A frame of weight 0 does not count.
        """
        values = keras.ops.cast(self._values(y_true, y_pred), self.dtype)
        valid = keras.ops.logical_not(keras.ops.isnan(values))
        weights = keras.ops.cast(valid, self.dtype)
        if sample_weight is not None:
            weights = weights * keras.ops.cast(sample_weight, self.dtype)
        values = keras.ops.where(valid, values, 0.0)
        self.total.assign_add(keras.ops.sum(values * weights))
        self.count.assign_add(keras.ops.sum(weights))

    def _values(self, y_true, y_pred):
        if not isinstance(self.metric, str):
            return self.metric(y_true, y_pred)
        channels = _CHANNELS[: y_true.shape[-1]]
        truth = {name: y_true[..., i] for i, name in enumerate(channels)}
        for name in {"density", "baseline"}.intersection(truth):
            truth[name] = grey(truth[name])
        pred = grey(y_pred[..., 0])
        options = _Options("dhf1k", "expected", "octave", self.dtype)
        names = _selected([self.metric], "dhf1k", truth)
        return _score_tensors(names, options, pred, **truth)[self.metric]

    def result(self):
        """The mean, or NaN if no frame counted."""
        return keras.ops.where(
            self.count > 0,
            self.total / keras.ops.maximum(self.count, 1e-12),
            float("nan"),
        )

    def get_config(self):
        """Name, dtype and metric."""
        metric = self.metric
        if not isinstance(metric, str):
            metric = keras.saving.serialize_keras_object(metric)
        return {**super().get_config(), "metric": metric}

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        config = dict(config)
        if not isinstance(config["metric"], str):
            config["metric"] = keras.saving.deserialize_keras_object(
                config["metric"]
            )
        return cls(**config)


_CHANNELS = ("density", "fixations", "other", "baseline")


def grey(maps: Any) -> Any:
    """Tensors in 0 … 1 as integers 0 … 255, as `preprocess.to_uint8` rounds.

    Args:
        maps: of any float type and shape; what is outside is clipped.

    Returns:
        int32, of the same shape.
    """
    maps = keras.ops.cast(maps, "float32")
    maps = keras.ops.round(keras.ops.clip(maps, 0.0, 1.0) * 255.0)
    return keras.ops.cast(maps, "int32")


# === What a frame is made of ===


@dataclasses.dataclass(frozen=True)
class _Options:
    protocol: str
    jitter: str
    thresholds: str
    dtype: Any = None


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One frame of NumPy arrays. Pixels are linear numbers, row by row."""

    pred: np.ndarray  # [H, W]
    # Any of the others may be None, which mypy need not follow.
    density: Any  # [H, W]
    fixated: Any  # each pixel once
    others: Any  # each pixel once
    baseline: Any  # a `_Baseline`
    sauc_pixels: Any  # pooled over splits; None: `others`
    borji_pixels: Any  # pooled over splits; None: all pixels
    sampler: Any  # a `_Sampler`


@dataclasses.dataclass(frozen=True)
class _Moments:
    """What a definition asks about a map; squares are about the mean."""

    low: Any
    high: Any
    total: Any
    squares: Any

    @property
    def constant(self):
        return self.low == self.high

    @property
    def zero(self):
        return self.constant & (self.low == 0)


class _Baseline:
    """A baseline map, whose logarithm is taken only where it is asked for."""

    def __init__(self, map_: np.ndarray):
        # Of integers only the fixated pixels are made floats.
        is_float = map_.dtype.kind == "f"
        self._map = _in_range(map_) if is_float else map_.ravel()
        self._low = float(self._map.min())
        self._constant = self._low == float(self._map.max())
        self._total = float(self._map.sum(dtype=np.float64))

    def shares(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels' shares of the map's sum above its minimum."""
        if self._constant:
            return np.full(pixels.shape, np.nan)
        shares = self._map[pixels].astype(np.float64) - self._low
        shares /= self._total - self._low * self._map.size
        return shares


def _score_frames(
    names: Sequence[str], options: _Options, frames: Sequence[_Frame]
) -> dict[str, Any]:
    """{metric: `[B]`} of frames of one size and type."""
    if not _DENSITY.intersection(names):
        frames = [dataclasses.replace(f, density=None) for f in frames]
    maps = [x for x in (frames[0].pred, frames[0].density) if x is not None]
    countable = maps[0].size < _EXACT_COUNT
    if countable and all(map_.dtype == np.uint8 for map_ in maps):
        levels = _levels_of(frames, options.thresholds)
        return {
            name: _DEFINITIONS[name](levels, options)
            if not _by_frame(name, options)
            else [_score_pixels(name, options, f, None) for f in frames]
            for name in names
        }
    scores: dict[str, list] = {name: [] for name in names}
    for frame in frames:
        source = _Pixels(frame, options.thresholds)
        for name in names:
            scores[name].append(_score_pixels(name, options, frame, source))
    return scores


def _by_frame(name: str, options: _Options) -> bool:
    """Whether the numbers of `_Levels` are not enough."""
    if options.protocol == "paper":
        return name in ("auc_judd", "sauc")
    return name == "auc_judd" and options.jitter == "sample"


def _score_pixels(
    name: str, options: _Options, frame: _Frame, source: "_Pixels | None"
) -> Any:
    if not _by_frame(name, options):
        return _DEFINITIONS[name](source, options)
    if name == "sauc":
        return _paper_sauc(frame.pred, frame.fixated, frame.others)
    if options.protocol == "paper":
        return _paper_auc_judd(source or _Pixels(frame, options.thresholds))
    noisy = frame.pred + frame.sampler.noise(frame.pred.shape)
    noisy_frame = dataclasses.replace(frame, pred=noisy)
    official = dataclasses.replace(options, jitter="none")
    return _auc_judd(_Pixels(noisy_frame, options.thresholds), official)


# === The definitions, one for each metric ===
#
# `s` is a `_Levels` or a `_Pixels`; its numbers are NumPy's (one frame) or
# tensors `[B]`, and `s.xp` is `numpy` or `keras.ops`. Divisions by zero are
# left to themselves and their results replaced at the end.


def _auc_judd(s, options):
    xp, n = s.xp, s.fixations
    negatives = s.pixels - n
    above, equal, fixated = s.ranks
    # The lowest level with a fixation: where their running count begins.
    running = xp.cumsum(fixated, axis=-1)
    lowest = (fixated > 0) & (running == fixated)
    zero = xp.zeros_like(above)
    n_lowest, equal_lowest, above_lowest = (
        xp.sum(xp.where(lowest, x, zero), axis=-1)
        for x in (fixated, equal, above)
    )
    # The i-th fixation from the top is the threshold that finds i of n, and
    # the negatives among the pixels at or above it. Points joined by straight
    # lines, the area over the curve is (sum of false alarms) / n, less half
    # of the last one's; counts are integers until the division.
    if options.jitter == "none":
        alarms = xp.sum(fixated * (above + equal), axis=-1) - n * (n + 1) / 2
        last = above_lowest + equal_lowest - n
        undefined = s.pred.constant & (options.protocol != "aim")
    else:
        # In random order half of the equal pixels are above a fixation, and
        # k / (k + 1) of the others above the last of k.
        alarms = xp.sum(fixated * (above + equal / 2), axis=-1) - n * n / 2
        tied = (equal_lowest - n_lowest) * n_lowest / (n_lowest + 1)
        last = above_lowest - (n - n_lowest) + tied
        undefined = False
    area = 1 - (alarms - last / 2) / (n * negatives)
    area = xp.where(undefined | (negatives == 0), float("nan"), area)
    empty = 0.5 if options.protocol == "aim" else float("nan")
    return xp.where(n == 0, empty, area)


def _sauc(s, options):
    del options
    return _threshold_auc(s, s.alarms_of_others)


def _auc_borji(s, options):
    del options
    area = _threshold_auc(s, s.alarms_anywhere)
    return s.xp.where(s.fixations > 1, area, float("nan"))


def _threshold_auc(s, alarms):
    """Area under (alarms, hits) `[..., 11]`, at thresholds 0, 0.1 … 1."""
    xp, hits = s.xp, s.hits
    origin = xp.zeros_like(hits[..., :1])
    next_hits = xp.concatenate([hits[..., 1:], origin], axis=-1)
    next_alarms = xp.concatenate([alarms[..., 1:], origin], axis=-1)
    strips = (alarms - next_alarms) * (hits + next_hits) / 2
    area = xp.sum(strips, axis=-1)
    return xp.where(s.pred.constant, float("nan"), area)


def _nss(s, options):
    xp = s.xp
    freedom = s.pixels - (1 if options.protocol == "dhf1k" else 0)
    value = s.deviation / s.fixations / xp.sqrt(s.pred.squares / freedom)
    constant = 0.0 if options.protocol == "aim" else float("nan")
    value = xp.where(s.pred.constant, constant, value)
    return xp.where(s.fixations == 0, float("nan"), value)


def _cc(s, options):
    xp = s.xp
    if options.protocol == "paper":
        # Pearson's r with a map of zeros and ones, in closed form.
        n = s.fixations
        squares = n * (s.pixels - n) / s.pixels
        cross, constant = s.deviation, (n == 0) | (n == s.pixels)
    else:
        squares, constant = s.density.squares, s.density.constant
        cross = s.cross
    # Roots apart: the product of squares may overflow float32.
    value = cross / (xp.sqrt(s.pred.squares) * xp.sqrt(squares))
    undefined = 0.0 if options.protocol == "aim" else float("nan")
    return xp.where(s.pred.constant | constant, undefined, value)


def _sim(s, options):
    xp = s.xp
    if options.protocol == "aim":
        return s.overlap(from_low=False)
    p, q = s.pred, s.density
    value = xp.where(p.zero | q.zero, 0.0, s.overlap(from_low=True))
    undefined = (p.constant & ~p.zero) | (q.constant & ~q.zero)
    return xp.where(undefined, float("nan"), value)


def _kld(s, options):
    value = s.divergence
    if options.protocol == "aim":
        zero = s.pred.zero | s.density.zero
        return s.xp.where(zero, float("nan"), value)
    return value


def _infogain(s, options):
    del options
    gain = s.gain / s.fixations
    undefined = s.pred.constant | (s.fixations == 0)
    return s.xp.where(undefined, float("nan"), gain)


_DEFINITIONS = {
    "auc_judd": _auc_judd,
    "sauc": _sauc,
    "auc_borji": _auc_borji,
    "nss": _nss,
    "cc": _cc,
    "sim": _sim,
    "kld": _kld,
    "infogain": _infogain,
}
_DENSITY = frozenset({"cc", "sim", "kld"})
_NEEDS = {
    "auc_judd": ("fixations",),
    "sauc": ("fixations", "other"),
    "auc_borji": ("fixations",),
    "nss": ("fixations",),
    "cc": ("density",),
    "sim": ("density",),
    "kld": ("density",),
    "infogain": ("fixations", "baseline"),
}


# === Protocol "paper" ===


def _paper_auc_judd(s):
    """A threshold at each distinct value; rates rounded to four digits."""
    if s.pred.constant:
        return 0.5  # Its scaled map is NaN, above no threshold.
    above, equal, fixated = (x[s.ranks[2] > 0] for x in s.ranks)
    if not fixated.size:
        return 0.5
    found = np.cumsum(fixated[::-1])
    alarms = (above + equal)[::-1] - found
    return _rounded_area(found, alarms, s.fixations, s.pixels - s.fixations)


def _paper_sauc(map_, fixated, others):
    """Fixed thresholds on the raw map, and negatives at swapped indices."""
    if not fixated.size:
        return float("nan")
    height, width = map_.shape
    scale = 255 if map_.dtype == np.uint8 else 1
    values = map_.astype(np.float32) / np.float32(scale)
    # Their linear number takes the height for the width, and is taken apart
    # as (column - 1, row); their loop over 100 splits repeats one number.
    linear = others // width * height + others % width
    rows, columns = linear % height - 1, linear // height
    if columns.size and columns.max() >= width:
        return float("nan")  # Their program stops with an IndexError.
    negatives = values[rows, columns]
    # Descending, so that equal hits keep their order of ascending thresholds
    # under the stable sort below.
    thresholds = (np.arange(1, 10) / 10).astype(np.float32)
    hits = (values.ravel()[fixated] >= thresholds[:, None]).sum(axis=1)
    alarms = (negatives > thresholds[:, None]).sum(axis=1)
    order = np.argsort(hits, kind="stable")
    return _rounded_area(hits[order], alarms[order], fixated.size, fixated.size)


def _rounded_area(found, alarms, positives, negatives):
    """Area under rates that float32 holds to four digits."""
    if negatives == 0:
        return float("nan")
    hits, false = (
        np.concatenate([[0.0], np.round(np.float32(x) / np.float32(n), 4), [1]])
        for x, n in ((found, positives), (alarms, negatives))
    )
    return np.trapezoid(hits, false)


# === 8-bit maps: tables of 256 levels ===


class _Levels:
    """Maps of the levels 0 … 255, known by how often each level occurs.

    Counts are `[..., 256]`, floats that hold integers.
    """

    def __init__(
        self,
        xp: Any,
        pixels: int,
        *,
        counts: Any,
        joint: Any = None,
        density_counts: Any = None,
        density_sums: Any = None,
        fixated: Any = None,
        others: Any = None,
        anywhere: Any = None,
        gain: Any = None,
        thresholds: str = "octave",
    ):
        """From counts.

        Args:
            xp: `numpy` or `keras.ops`.
            pixels: of a frame.
            counts: pixels of each level of the prediction.
            joint: `[..., 256, 256]`, pixels of each level of the prediction
                and each of the density.
            density_counts: pixels of each level of the density.
            density_sums: sum of the density over the pixels of each level of
                the prediction.
            fixated: fixations at each level of the prediction.
            others: the negatives of sAUC.
            anywhere: the negatives of AUC-Borji; default: `counts`.
            gain: from each level's share of the prediction `[..., 256]`, the
                sum over fixations of log2 of what it is to the baseline's.
            thresholds: rounding of the thresholds.
        """
        self.xp = xp
        self.pixels = pixels
        self._counts = counts
        self._joint = joint
        self._density_counts = density_counts
        self._density_sums = density_sums
        self._fixated = fixated
        self._others = others
        self._anywhere = counts if anywhere is None else anywhere
        self._gain = gain
        self._dtype = keras.backend.standardize_dtype(counts.dtype)
        self._levels = xp.arange(_LEVELS, dtype=self._dtype)
        self._thresholds = thresholds

    @functools.cached_property
    def fixations(self):
        return self.xp.sum(self._fixated, axis=-1)

    @functools.cached_property
    def pred(self):
        return self._moments(self._counts)

    @functools.cached_property
    def density(self):
        return self._moments(self._density_counts)

    def _moments(self, counts):
        xp, levels = self.xp, self._levels
        occurs = counts > 0
        total = xp.sum(counts * levels, axis=-1)
        return _Moments(
            low=xp.min(xp.where(occurs, levels, _LEVELS), axis=-1),
            high=xp.max(xp.where(occurs, levels, -1), axis=-1),
            total=total,
            squares=xp.sum(counts * self._about_mean(total) ** 2, axis=-1),
        )

    def _about_mean(self, total):
        return self._levels - total[..., None] / self.pixels

    @property
    def ranks(self):
        """Pixels above and at each level, and fixations at it, ascending."""
        above = self.pixels - self.xp.cumsum(self._counts, axis=-1)
        return above, self._counts, self._fixated

    @property
    def deviation(self):
        """Sum over fixations of S - mean."""
        about = self._about_mean(self.pred.total)
        return self.xp.sum(self._fixated * about, axis=-1)

    @property
    def cross(self):
        xp = self.xp
        mean = self.density.total[..., None] / self.pixels
        about = self._density_sums - mean * self._counts
        return xp.sum(self._about_mean(self.pred.total) * about, axis=-1)

    def overlap(self, *, from_low: bool) -> Any:
        p = self._shares(self.pred, from_low)
        q = self._shares(self.density, from_low)
        if self.xp is not np:
            minima = self.xp.minimum(p[..., :, None], q[..., None, :])
            return self.xp.sum(self._joint * minima, axis=(-2, -1))
        # Frame by frame, in a buffer that stays in the cache.
        minima = np.empty((_LEVELS, _LEVELS))
        sums = []
        for table, p_levels, q_levels in zip(self._joint, p, q, strict=True):
            np.minimum.outer(p_levels, q_levels, out=minima)
            sums.append(np.vecdot(table, minima).sum())
        return np.array(sums)

    def _shares(self, moments: _Moments, from_low: bool) -> Any:
        """Each level as a share of the map's sum; NaN if the sum is 0."""
        xp, total = self.xp, moments.total[..., None]
        if not from_low:
            return self._levels / xp.maximum(total, 1e-7)
        low = moments.low[..., None]
        above = xp.maximum(self._levels - low, 0.0)
        return above / (total - low * self.pixels)

    @property
    def divergence(self):
        # log(eps + Q / (P + eps)) = log(Q + eps (P + eps)) - log(P + eps), and
        # beside a level of Q other than 0 the inner eps is lost: in all not
        # more than eps. So two tables of logarithms do for all pairs; both in
        # units of the uniform map, which keeps them small.
        xp, levels = self.xp, self._levels
        total = self._total_or_one(self.density)
        p = levels / self._total_or_one(self.pred)
        q = xp.where(levels > 0, levels, 1.0) / total
        p_log = xp.log((p + _EPSILON) * self.pixels)
        q_log = xp.log(q * self.pixels)
        # Divided last: until then the weights are integers.
        entropy = xp.sum(self._density_counts * levels * q_log, axis=-1)
        cross = xp.sum(self._density_sums * p_log, axis=-1)
        return (entropy - cross) / total[..., 0]

    def _total_or_one(self, moments):
        xp = self.xp
        return xp.where(moments.total > 0, moments.total, 1.0)[..., None]

    @property
    def gain(self):
        return self._gain(self._shares(self.pred, from_low=True))

    @functools.cached_property
    def hits(self):
        """Share of the fixations at or above each threshold, `[..., 11]`."""
        return self._rates(self._fixated)

    @property
    def alarms_of_others(self):
        return self._rates(self._others)

    @property
    def alarms_anywhere(self):
        return self._rates(self._anywhere)

    def _rates(self, counts):
        xp = self.xp
        total = xp.sum(counts, axis=-1)[..., None]
        at_least = total - xp.cumsum(counts, axis=-1) + counts
        first = self._first_levels
        return xp.take_along_axis(at_least, first, axis=-1) / total

    @functools.cached_property
    def _first_levels(self):
        """The lowest level at or above each threshold, integers `[..., 11]`.

        (p - low) / range >= k / 10 in integers: 10 (p - low) >= k range, or >
        where the threshold is rounded up. The division below is exact where it
        comes out even, and clear of an integer elsewhere.
        """
        xp, low = self.xp, self.pred.low[..., None]
        steps = xp.arange(_STEPS + 1, dtype=self._dtype)
        up = [k in _ROUNDED_UP[self._thresholds] for k in range(_STEPS + 1)]
        excess = xp.array(np.asarray(up) / 2, dtype=self._dtype)
        range_ = self.pred.high[..., None] - low
        first = low + xp.ceil((range_ * steps + excess) / _STEPS)
        # Beyond the last level only if the map is constant.
        first = xp.minimum(first, _LEVELS - 1)
        return first.astype(np.intp) if xp is np else xp.cast(first, "int32")


def _log2_ratio(xp, shares, baseline):
    # One logarithm, because in float32 the difference of two of about -34
    # bits (a share of 0) loses the sixth digit.
    return xp.log2((shares + _EPSILON) / (baseline + _EPSILON))


def _levels_of(frames: Sequence[_Frame], thresholds: str) -> _Levels:
    """Histograms of 8-bit frames of one size."""
    first = frames[0]
    counts = np.empty((len(frames), _LEVELS))
    joint = density_counts = density_sums = None
    if first.density is None:
        for row, frame in zip(counts, frames, strict=True):
            map_ = np.ascontiguousarray(frame.pred)
            table = cv2.calcHist([map_], [0], None, [_LEVELS], [0, _LEVELS])
            row[:] = table.ravel()
    else:
        levels = np.arange(_LEVELS, dtype=np.float64)
        density_counts, density_sums = np.empty((2, *counts.shape))
        joint = np.empty((len(frames), _LEVELS, _LEVELS))
        for i, frame in enumerate(frames):
            pair = [frame.pred, frame.density]
            pair = [np.ascontiguousarray(map_) for map_ in pair]
            limits = [0, _LEVELS] * 2
            table = joint[i]
            table[:] = cv2.calcHist(pair, [0, 1], None, [_LEVELS] * 2, limits)
            # All that is asked of the table while it is in the cache.
            np.sum(table, axis=1, out=counts[i])
            np.sum(table, axis=0, out=density_counts[i])
            np.vecdot(table, levels, out=density_sums[i])

    def at(pixels):
        if pixels[0] is None:
            return None
        rows = [
            np.bincount(frame.pred.ravel()[which], minlength=_LEVELS)
            for which, frame in zip(pixels, frames, strict=True)
        ]
        return np.array(rows, np.float64)

    def gain(shares):
        return np.array(
            [
                _log2_ratio(
                    np,
                    row[frame.pred.ravel()[frame.fixated]],
                    frame.baseline.shares(frame.fixated),
                ).sum()
                for row, frame in zip(shares, frames, strict=True)
            ]
        )

    others = [
        f.others if f.sauc_pixels is None else f.sauc_pixels for f in frames
    ]
    return _Levels(
        np,
        first.pred.size,
        counts=counts,
        joint=joint,
        density_counts=density_counts,
        density_sums=density_sums,
        fixated=at([f.fixated for f in frames]),
        others=at(others),
        anywhere=at([f.borji_pixels for f in frames]),
        gain=gain,
        thresholds=thresholds,
    )


def _score_tensors(
    names: Sequence[str],
    options: _Options,
    pred: Any,
    density: Any = None,
    fixations: Any = None,
    other: Any = None,
    baseline: Any = None,
) -> dict[str, Any]:
    """The 8-bit way on tensors: scatter-add for the histograms."""
    if options.protocol == "paper":
        raise ValueError("Protocol 'paper' takes NumPy arrays only.")
    ops = keras.ops
    dtype = options.dtype or keras.backend.floatx()
    for map_ in (pred, density, baseline):
        if map_ is not None and keras.backend.is_float_dtype(map_.dtype):
            raise ValueError(
                "Maps as tensors must be integers 0 ... 255. Received: "
                f"{map_.dtype}. Round them, convert them to NumPy to score "
                "them exactly, or take the functions of `networks.losses`."
            )
    given = {
        "density": density,
        "fixations": fixations,
        "other": other,
        "baseline": baseline,
    }
    for name, map_ in given.items():
        if map_ is not None:
            _check_tensor(name, map_, pred)
    batch, pixels = ops.shape(pred)[0], pred.shape[1] * pred.shape[2]
    levels = ops.reshape(ops.cast(pred, "int32"), (-1, pixels))
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32"), -1)

    def histogram(keys, size, weights):
        sums = ops.segment_sum(
            ops.reshape(weights, (-1,)),
            ops.reshape(keys + offsets * size, (-1,)),
            num_segments=batch * size,
        )
        return ops.reshape(sums, (-1, size))

    def flat(maps):
        return ops.reshape(maps, (-1, pixels))

    def looked_at(maps):
        if maps is None:
            return None
        return histogram(levels, _LEVELS, ops.cast(flat(maps) > 0, dtype))

    every = ops.ones_like(levels, dtype=dtype)
    if density is not None and _DENSITY.intersection(names):
        grey = flat(ops.cast(density, "int32"))
        joint = histogram(levels * _LEVELS + grey, _LEVELS**2, every)
        joint = ops.reshape(joint, (-1, _LEVELS, _LEVELS))
        counts = ops.sum(joint, axis=-1)
        density_counts = ops.sum(joint, axis=-2)
        # Not by a matrix product, which GPUs round to ten bits.
        grey_levels = ops.arange(_LEVELS, dtype=dtype)
        density_sums = ops.sum(joint * grey_levels, axis=-1)
    else:
        joint = density_counts = density_sums = None
        counts = histogram(levels, _LEVELS, every)

    def gain(shares):
        above = flat(ops.cast(baseline, "int32"))
        above = above - ops.min(above, axis=-1, keepdims=True)
        # A sum of integers is exact. Zero, of a constant: NaN everywhere.
        total = ops.sum(above, axis=-1, keepdims=True)
        reference = ops.cast(above, dtype) / ops.cast(total, dtype)
        shares = ops.take_along_axis(shares, levels, axis=-1)
        bits = _log2_ratio(ops, shares, reference)
        return ops.sum(ops.where(flat(fixations) > 0, bits, 0.0), axis=-1)

    source = _Levels(
        ops,
        pixels,
        counts=counts,
        joint=joint,
        density_counts=density_counts,
        density_sums=density_sums,
        fixated=looked_at(fixations),
        others=looked_at(other),
        gain=gain,
        thresholds=options.thresholds,
    )
    return {name: _DEFINITIONS[name](source, options) for name in names}


def _check_tensor(name: str, map_: Any, pred: Any) -> None:
    """Raises ValueError if a map has not the size of the prediction.

    As far as sizes are known when a function is compiled.
    """
    want, has = tuple(pred.shape), tuple(map_.shape)
    if len(want) == 4 and want[-1] == 1:
        want = want[:-1]
    if len(has) == 4 and has[-1] == 1:
        has = has[:-1]
    if name == "baseline" and len(has) == 2:
        has = (None, *has)
    fits = len(want) == len(has) == 3 and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(want, has, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Tensors have the shape [B, H, W] of `pred`, {list(pred.shape)}. "
            f"Received: `{name}` {list(map_.shape)}. They are not resized; "
            "resize them, or give arrays."
        )


# === Any other maps: pixel by pixel ===


class _Pixels:
    """One frame of real numbers, exactly."""

    xp = np

    def __init__(self, frame: _Frame, thresholds: str):
        self._frame = frame
        self._thresholds = _thresholds(thresholds)
        self.pixels = frame.pred.size
        self._values = _in_range(frame.pred)
        self.pred, self._about = _moments(self._values)

    @functools.cached_property
    def _density(self) -> np.ndarray:
        return _in_range(self._frame.density)

    @functools.cached_property
    def _density_moments(self) -> tuple[_Moments, np.ndarray]:
        return _moments(self._density)

    @property
    def density(self) -> _Moments:
        return self._density_moments[0]

    @property
    def fixations(self) -> np.int64:
        return np.int64(self._frame.fixated.size)

    @property
    def deviation(self):
        return self._about[self._frame.fixated].sum()

    @property
    def cross(self):
        return np.einsum("i,i->", self._about, self._density_moments[1])

    def overlap(self, *, from_low: bool) -> Any:
        p = _shares(self._values, self.pred, from_low, self.pixels)
        q = _shares(self._density, self.density, from_low, self.pixels)
        return np.minimum(p, q, out=p).sum()

    @property
    def divergence(self):
        # See `_Levels.divergence`. Only where the density is not 0.
        values = self._values
        if self.pred.low < 0:
            values = np.maximum(values, 0.0)
        weighed = self._density > 0
        p, q = values[weighed], self._density[weighed]
        p /= values.sum() or 1.0
        q /= q.sum() or 1.0
        entropy = np.einsum("i,i->", q, np.log(q))
        return entropy - np.einsum("i,i->", q, np.log(p + _EPSILON))

    @property
    def gain(self):
        fixated, baseline = self._frame.fixated, self._frame.baseline
        shares = _shares(
            self._values[fixated], self.pred, from_low=True, pixels=self.pixels
        )
        return _log2_ratio(np, shares, baseline.shares(fixated)).sum()

    @functools.cached_property
    def _scale(self) -> float:
        return (_BUCKETS - 1) / ((self.pred.high - self.pred.low) or 1.0)

    @functools.cached_property
    def _resolved(self) -> tuple[np.ndarray, np.ndarray]:
        """What `_above` needs: a coarse count, and the pixels it leaves out.

        A monotone map puts every pixel into one of 65,536 buckets. Buckets
        hold pixels of other buckets apart, so only the pixels that share one
        with a fixation, or lie next to a threshold, are compared one by one.
        """
        buckets = self._buckets(self._values)
        close = np.zeros(_BUCKETS, bool)
        if self._frame.fixated is not None:
            close[buckets[self._frame.fixated]] = True
        for beside in (-1, 0, 1):
            close[np.clip(_NEAR_STEPS + beside, 0, _BUCKETS - 1)] = True
        coarse = np.bincount(buckets, minlength=_BUCKETS)
        coarse[close] = 0
        higher = coarse.sum() - np.cumsum(coarse)
        return higher, np.sort(self._values[close[buckets]])

    def _buckets(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.pred.low) * self._scale).astype(np.intp)

    @functools.cached_property
    def ranks(self):
        """As `_Levels.ranks`, of the values that fixations have."""
        values = self._values[self._frame.fixated]
        levels, fixated = np.unique(values, return_counts=True)
        higher, sorted_ = self._resolved
        upto = np.searchsorted(sorted_, levels, side="right")
        below = np.searchsorted(sorted_, levels, side="left")
        above = higher[self._buckets(levels)] + sorted_.size - upto
        as_float = (
            x.astype(np.float64) for x in (above, upto - below, fixated)
        )
        return tuple(as_float)

    @functools.cached_property
    def hits(self):
        return self._rates(self._frame.fixated)

    @property
    def alarms_of_others(self):
        drawn = self._frame.sauc_pixels
        return self._rates(self._frame.others if drawn is None else drawn)

    @property
    def alarms_anywhere(self):
        if self._frame.borji_pixels is not None:
            return self._rates(self._frame.borji_pixels)
        higher, sorted_ = self._resolved
        below = np.searchsorted(self._unit(sorted_), self._thresholds)
        return (higher[_NEAR_STEPS] + sorted_.size - below) / self.pixels

    def _rates(self, pixels: np.ndarray) -> np.ndarray:
        values = np.sort(self._unit(self._values[pixels]))
        below = np.searchsorted(values, self._thresholds)
        return (values.size - below) / np.float64(values.size)

    def _unit(self, values: np.ndarray) -> np.ndarray:
        low, high = self.pred.low, self.pred.high
        return (values - low) / (high - low)


def _in_range(map_: np.ndarray) -> np.ndarray:
    """A map's values as float64, whose squares do not leave float64 either.

    No metric asks for a map's scale, and a power of two changes no digit.
    """
    values = map_.astype(np.float64).ravel()
    # Smaller types cannot leave it.
    if map_.dtype.kind != "f" or map_.dtype.itemsize < values.itemsize:
        return values
    largest = max(-values.min(), values.max())
    exponent = int(np.frexp(largest)[1])
    if largest == 0 or not np.isfinite(largest) or abs(exponent) < _SAFE:
        return values
    return np.ldexp(values, -exponent)


def _moments(values: np.ndarray) -> tuple[_Moments, np.ndarray]:
    """Moments, and the values less their mean."""
    total = values.sum()
    if not np.isfinite(total):
        raise ValueError(
            "Maps must be finite. Received a map with NaN or infinity. Find "
            "out where it comes from."
        )
    about = values - total / values.size
    moments = _Moments(
        low=values.min(),
        high=values.max(),
        total=total,
        squares=np.einsum("i,i->", about, about),
    )
    return moments, about


def _shares(
    values: np.ndarray, moments: _Moments, from_low: bool, pixels: int
) -> np.ndarray:
    """Values as shares of the sum of their map."""
    if not from_low:
        return values / max(moments.total, 1e-7)
    shares = values - moments.low
    shares /= moments.total - moments.low * pixels
    return shares


def _thresholds(rounding: str) -> np.ndarray:
    values = np.arange(_STEPS + 1) / _STEPS
    up = list(_ROUNDED_UP[rounding])
    values[up] = np.nextafter(values[up], 1.0)
    return values


# === Random draws ===


class _Sampler:
    """Random numbers of one frame, the same in whatever order of frames."""

    def __init__(self, seed: int, frame: int):
        self._seed = [seed, int(frame)]

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, purpose])

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """The official jitter: uniform, 0 … 1e-7."""
        return self._rng(0).random(shape) * _JITTER

    def others(
        self, splits: Any, frame: int, fixated: Any, others: Any
    ) -> np.ndarray | None:
        """Pixels of all splits, min(N, M) of `others` in each."""
        if splits is None or others is None or fixated is None:
            return None
        if not isinstance(splits, (int, np.integer)):
            return np.asarray(splits[frame]).ravel()
        count, rng = min(fixated.size, others.size), self._rng(1)
        drawn = [rng.permutation(others)[:count] for _ in range(splits)]
        return np.concatenate(drawn)

    def anywhere(
        self, splits: Any, frame: int, fixated: Any, size: tuple[int, int]
    ) -> np.ndarray | None:
        """Pixels of all splits, N of the frame in each, with replacement."""
        if splits is None or fixated is None:
            return None
        if not isinstance(splits, (int, np.integer)):
            return np.asarray(splits[frame]).ravel()
        total = splits * fixated.size
        return self._rng(2).integers(size[0] * size[1], size=total)


# === What comes in ===


def _check_option(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}. "
            f"Received: {value!r}."
        )


def _selected(
    metrics: Iterable[str] | None, protocol: str, given: dict | None
) -> tuple[str, ...]:
    """Names of the metrics to compute; an error for what cannot be."""
    _check_option("protocol", protocol, tuple(PROTOCOLS))
    known = PROTOCOLS[protocol]

    def missing(name):
        needs = _NEEDS[name]
        if protocol == "paper" and name == "cc":
            needs = ("fixations",)
        return [x for x in needs if given is not None and given.get(x) is None]

    if metrics is None:
        names = tuple(name for name in known if not missing(name))
        if not names:
            raise ValueError(
                "No ground truth. Give `density` or `fixations` or both."
            )
        return names
    names = tuple(metrics)
    for name in names:
        _check_option(f"a metric of protocol {protocol!r}", name, known)
        if missing(name):
            raise ValueError(
                f"{name} needs {' and '.join(_NEEDS[name])}. "
                f"Missing: {', '.join(missing(name))}."
            )
    return names


def _maps(name: str, maps: Any, batch: int | None = None) -> np.ndarray:
    """An array `[B, H, W]`; booleans as uint8."""
    maps = np.asarray(maps)
    if maps.ndim == 4 and maps.shape[-1] == 1:
        maps = maps[..., 0]
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(
            f"`{name}` must have the shape [B, H, W]. Received: "
            f"{list(maps.shape)}. A single map is `map[None]`."
        )
    if batch is not None and len(maps) != batch:
        raise ValueError(
            f"`{name}` must have as many frames as `pred`. "
            f"Received: {len(maps)} and {batch}."
        )
    return maps.view(np.uint8) if maps.dtype == bool else maps


def _is_coordinates(fixations: Any, size: tuple[int, int] | None) -> bool:
    if isinstance(fixations, (list, tuple)):
        return True
    shape = np.shape(fixations)
    return len(shape) == 3 and shape[-1] == 2 and shape[1:] != size


def _truth_size(pred: Any, density: Any, fixations: Any) -> tuple[int, int]:
    """Height and width of the ground truth."""
    if density is not None:
        return density.shape[1:]
    if fixations is None or _is_coordinates(fixations, pred.shape[1:]):
        return pred.shape[1:]
    return _maps("fixations", fixations).shape[1:]


def _flat_pixels(
    name: str, fixations: Any, batch: int, size: tuple[int, int]
) -> list[np.ndarray] | list[None]:
    """Linear numbers of the pixels looked at, each once, for each frame."""
    if fixations is None:
        return [None] * batch
    if not _is_coordinates(fixations, size):
        maps = _maps(name, fixations, batch)
        if maps.shape[1:] != size:
            raise ValueError(
                f"`{name}` must have the size of the density, {size}. "
                f"Received: {maps.shape[1:]}. Fixations are not resized."
            )
        return [np.flatnonzero(map_ > 0) for map_ in maps]
    if len(fixations) != batch:
        raise ValueError(
            f"`{name}` must have as many frames as `pred`. "
            f"Received: {len(fixations)} and {batch}."
        )
    return [_linear(name, np.asarray(points), size) for points in fixations]


def _linear(name: str, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if not points.size:
        return np.zeros(0, np.intp)
    rule = f"`{name}` must be integers (row, column), [N, 2], inside {size}"
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or points.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{rule}. Received: {points.dtype} {list(points.shape)}."
        )
    rows, columns = points.T.astype(np.intp)
    if rows.min() < 0:
        rows, columns = rows[rows >= 0], columns[rows >= 0]
    if not rows.size:
        return rows
    if rows.max() >= size[0] or columns.max() >= size[1] or columns.min() < 0:
        raise ValueError(
            f"{rule}. Received: rows {rows.min()} ... {rows.max()}, columns "
            f"{columns.min()} ... {columns.max()}. Rows of padding are "
            "negative; drop points outside of the frame."
        )
    return _distinct(rows * size[1] + columns)


def _distinct(values: np.ndarray) -> np.ndarray:
    """As `np.unique`, which takes five times as long."""
    values = np.sort(values)
    first = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def _baselines(
    baseline: Any, batch: int, size: tuple[int, int]
) -> list[_Baseline] | list[None]:
    if baseline is None:
        return [None] * batch
    maps = np.asarray(baseline)
    if maps.shape[-2:] != size or maps.ndim not in (2, 3):
        raise ValueError(
            f"`baseline` must have the size of the ground truth, {size}. "
            f"Received: {list(maps.shape)}. Resize it with `resize`."
        )
    if maps.ndim == 2:
        return [_Baseline(maps)] * batch
    return [_Baseline(map_) for map_ in _maps("baseline", maps, batch)]
