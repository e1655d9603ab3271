"""CPU time of the metrics, per frame of 640x360, in one process and thread.

    python -m benchmarks.metrics

Prints frames a CPU-second of all eight metrics on 8-bit maps and on float
maps, of each metric alone and of those of a training's validation, and how
many times the CPU time a plain NumPy program takes: one that cuts the map at
each distinct value of a fixation, and repeats shuffled AUC and AUC-Borji on
100 random splits, map by map.

Each figure is the median over rounds in which all contenders take turns, so
that other work on the machine slows all of them alike.
"""

import os

# Before NumPy: a second thread of its BLAS would count as CPU time.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import statistics
import time

from absl import app, flags
import cv2
import numpy as np

from lsts_tf.scoring import density, metrics

_FRAMES = flags.DEFINE_integer("frames", 32, "Frames to score", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of all contenders", 1)

SIZE = (360, 640)
SPLITS = 100
# As `lsts_tf.train`, which imports TensorFlow.
VALIDATION = ("auc_judd", "nss", "cc", "sim", "kld")


def scene(rng):
    """A frame: prediction, density, fixations and those of other frames."""

    def gaze(count, clusters):
        centres = rng.normal([180, 320], [60, 110], (clusters, 2))
        points = centres[rng.integers(clusters, size=count)]
        points = np.rint(points + rng.normal(0, 12, (count, 2))).astype(int)
        return np.unique(np.clip(points, 0, [359, 639]), axis=0)

    fixations = gaze(rng.integers(70, 170), 4)
    others = gaze(1300, 30)
    fixated = np.zeros(SIZE, np.uint8)
    fixated[tuple(fixations.T)] = 1
    truth = density.density_map(fixated)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    prior = np.exp(-(((y - 180) / 90) ** 2) - ((x - 320) / 160) ** 2)
    noise = cv2.GaussianBlur(rng.standard_normal(SIZE), (0, 0), 20)
    blurred = cv2.GaussianBlur(truth / 255.0, (0, 0), 15)
    pred = blurred + 0.4 * prior + noise
    pred = np.clip(pred - 0.05, 0, None)
    return pred / pred.max(), truth, fixations, others


def oracle(pred, truth, fixations, others, baseline, rng):
    """The eight metrics in plain NumPy, by their words."""
    pred = pred.astype(np.float64)
    fixated, other = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    fixated[tuple(fixations.T)] = True
    other[tuple(others.T)] = True
    unit = (pred - pred.min()) / (pred.max() - pred.min())
    n = fixated.sum()

    points = [(0.0, 0.0), (1.0, 1.0)]
    for threshold in set(pred[fixated].tolist()):
        above = pred >= threshold
        hits = (above & fixated).sum() / n
        alarms = (above & ~fixated).sum() / (~fixated).sum()
        points.append((alarms, hits))
    points.sort()
    auc_judd = np.trapezoid(*np.array(points).T[::-1])

    def split(pixels):
        negative = np.zeros(SIZE, int)
        np.add.at(negative.ravel(), pixels, 1)
        points = [(0.0, 0.0), (1.0, 1.0)]
        for k in range(11):
            above = unit >= k * 0.1
            hits = (above & fixated).sum() / n
            points.append(((above * negative).sum() / pixels.size, hits))
        points.sort()
        return np.trapezoid(*np.array(points).T[::-1])

    candidates = np.flatnonzero(other)
    sauc = np.mean(
        [split(rng.permutation(candidates)[:n]) for _ in range(SPLITS)]
    )
    auc_borji = np.mean(
        [split(rng.integers(pred.size, size=n)) for _ in range(SPLITS)]
    )

    def share(x, low=0.0):
        return (x - low) / (x - low).sum()

    eps = 2.0**-52
    p, q = share(pred), share(truth.astype(np.float64))
    p0, b0 = (share(x, x.min()) for x in (pred, baseline.astype(np.float64)))
    return {
        "auc_judd": auc_judd,
        "sauc": sauc,
        "auc_borji": auc_borji,
        "nss": ((pred - pred.mean()) / pred.std(ddof=1))[fixated].mean(),
        "cc": np.corrcoef(pred.ravel(), truth.ravel())[0, 1],
        "sim": np.minimum(p0, share(truth, float(truth.min()))).sum(),
        "kld": (q * np.log(eps + q / (p + eps))).sum(),
        "infogain": np.log2((eps + p0[fixated]) / (eps + b0[fixated])).mean(),
    }


def cpu_seconds(function):
    """CPU time of one call, of all threads of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main(_):
    """Times everything in turns and prints the table."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    count = _FRAMES.value
    scenes = [scene(rng) for _ in range(count)]
    floats = [pred.astype(np.float32) for pred, *_ in scenes]
    bytes_ = [np.rint(pred * 255).astype(np.uint8) for pred in floats]
    baseline = scenes[0][1]
    distribution = metrics.distribution(baseline)

    def score(preds, names=()):
        return [
            metrics.score(
                pred,
                truth,
                fixations,
                others=others,
                baseline=distribution,
                metrics=names,
            )
            for pred, (_, truth, fixations, others) in zip(
                preds, scenes, strict=True
            )
        ]

    def slow():
        return oracle(bytes_[0], *scenes[0][1:], baseline, rng)

    fast, plain = score(bytes_)[0], slow()
    for metric, value in plain.items():
        print(f"{metric:10} {fast[metric]:9.5f}   plain {value:9.5f}")

    contenders = {
        "histograms alone": lambda: [
            cv2.calcHist([pred, truth], [0, 1], None, [256] * 2, [0, 256] * 2)
            for pred, (_, truth, *_) in zip(bytes_, scenes, strict=True)
        ],
        "all eight, 8 bits": lambda: score(bytes_),
        "all eight, exact float32": lambda: score(floats),
        "those of validation, 8 bits": lambda: score(bytes_, VALIDATION),
    }
    for metric in metrics.METRICS:
        contenders[f"{metric}, 8 bits"] = lambda metric=metric: score(
            bytes_, [metric]
        )
    seconds = {name: [] for name in contenders}
    plain_seconds = []
    for i in range(_ROUNDS.value):
        for name, function in contenders.items():
            seconds[name].append(cpu_seconds(function) / count)
        if i % 5 == 0:
            plain_seconds.append(cpu_seconds(slow))
    print(f"\n{'':34}{'ms':>8}{'best':>8}{'frames a CPU-second':>21}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:34}{1e3 * middle:8.3f}{1e3 * min(values):8.3f}"
            f"{1 / middle:15.0f}, best {1 / min(values):.0f}"
        )
    middle = statistics.median(plain_seconds)
    ratio = middle / statistics.median(seconds["all eight, 8 bits"])
    print(f"{'plain program':34}{1e3 * middle:8.1f}")
    print(f"plain program / all eight at 8 bits: {ratio:.0f}")


if __name__ == "__main__":
    app.run(main)
