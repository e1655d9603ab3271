"""How fast and how equal the flow methods are; ratios in one process.

    python -m benchmarks.flow --video=PATH [--start=100] [--pairs=24]

CPU time is that of the process, because wall-clock time says nothing on a
shared machine. The methods take turns pair by pair, so that a busy neighbour
meets all of them. Prints one table for each part. --save and --other compare
with another version of OpenCV, which needs an environment of its own.
"""

from collections.abc import Iterator
import contextlib
import itertools
import os
import pathlib
import time

from absl import app, flags
import cv2
import numpy as np

from lsts_tf.features import flow
from lsts_tf.media import video

_VIDEO = flags.DEFINE_string("video", None, "A real video.", required=True)
_START = flags.DEFINE_integer("start", 0, "First frame.")
_PAIRS = flags.DEFINE_integer("pairs", 24, "How many pairs of frames.")
_STEP = flags.DEFINE_integer("step", 1, "Take every n-th frame.")
_SAVE = flags.DEFINE_string(
    "save", None, "File (.npz) for the flows of this process' OpenCV."
)
_OTHER = flags.DEFINE_string(
    "other", None, "Such a file, of the same pairs by another OpenCV."
)
_ROUNDS = flags.DEFINE_integer("rounds", 2, "How often the turns are taken.")

# DHF1K has 582,605 frames in 1,000 videos; the first of each has no flow.
_DHF1K_PAIRS = 582_605 - 1_000


def main(argv: list[str]) -> None:
    """Runs all parts."""
    del argv
    grays = _read()
    print(
        f"{_VIDEO.value}, {len(grays) - 1} pairs from frame {_START.value}, "
        f"every {_STEP.value}; OpenCV {cv2.__version__}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}"
    )
    flows = _turns(grays)
    _differences(flows)
    _known_motion()
    _scaling(grays)


def _read() -> np.ndarray:
    stop = _START.value + _STEP.value * _PAIRS.value + 1
    frames = itertools.islice(
        video.frames(_VIDEO.value), _START.value, stop, _STEP.value
    )
    return np.stack([flow.gray(frame) for frame in frames])


def _turns(grays: np.ndarray) -> dict[str, np.ndarray]:
    """Measures CPU time a pair, one pair of each method after the other."""
    methods = {name: flow.METHODS[name]() for name in flow.METHODS}
    start = time.process_time()
    methods["tvl1"](grays[0], grays[1])
    print(f"compiling tvl1: {time.process_time() - start:.1f} CPU-s\n")
    seconds = dict.fromkeys(methods, 0.0)
    flows: dict[str, list] = {name: [] for name in methods}
    for turn in range(_ROUNDS.value):
        for first, second in itertools.pairwise(grays):
            for name, compute in methods.items():
                start = time.process_time()
                result = compute(first, second)
                seconds[name] += time.process_time() - start
                if turn == 0:
                    flows[name].append(result)
    count = _ROUNDS.value * (len(grays) - 1)
    print("method   CPU ms/pair  pairs/s a core  times opencv  DHF1K core-h")
    for name, total in seconds.items():
        each = total / count
        print(
            f"{name:8s} {1e3 * each:11.2f} {1 / each:15.1f} "
            f"{seconds['opencv'] / total:13.2f} "
            f"{each * _DHF1K_PAIRS / 3600:13.2f}"
        )
    return {name: np.stack(results) for name, results in flows.items()}


def _differences(flows: dict[str, np.ndarray]) -> None:
    print("\nagainst opencv: end-point difference in px, correlation")
    print("method       mean   median      p99    corr   mean |flow|")
    want = flows["opencv"]
    if _SAVE.value:
        np.savez(_SAVE.value, flows=want, version=cv2.__version__)
    if _OTHER.value:
        with np.load(_OTHER.value) as other:
            flows = {**flows, f"cv {other['version']}": other["flows"]}
    for name, got in flows.items():
        error = np.linalg.norm(got - want, axis=-1)
        correlation = np.corrcoef(got.ravel(), want.ravel())[0, 1]
        print(
            f"{name:8s} {error.mean():8.4f} {np.median(error):8.4f} "
            f"{np.quantile(error, 0.99):8.4f} {correlation:7.4f} "
            f"{np.linalg.norm(got, axis=-1).mean():13.3f}"
        )


def _known_motion() -> None:
    """Prints the error on warped textures whose motion is known."""
    print("\nknown motion: mean end-point error in px, 10 px from the border")
    print("motion            " + "".join(f"{m:>9s}" for m in flow.METHODS))
    methods = {name: flow.METHODS[name]() for name in flow.METHODS}
    for label, matrix in {
        "shift 0.5, 0.25": [[1, 0, 0.5], [0, 1, 0.25]],
        "shift 2, -1": [[1, 0, 2], [0, 1, -1]],
        "shift -5, 3": [[1, 0, -5], [0, 1, 3]],
        "turn 1 degree": _about_centre(1.0, 1.0),
        "zoom 3 %": _about_centre(0.0, 1.03),
    }.items():
        errors: dict[str, list] = {name: [] for name in methods}
        for seed in range(3):
            first, second, truth = _warped(np.array(matrix, np.float64), seed)
            for name, compute in methods.items():
                error = np.linalg.norm(compute(first, second) - truth, axis=-1)
                errors[name].append(error[10:-10, 10:-10].mean())
        print(
            f"{label:18s}"
            + "".join(f"{np.mean(errors[name]):9.4f}" for name in methods)
        )


_CENTRE = 88.0


def _about_centre(degrees: float, scale: float) -> np.ndarray:
    return cv2.getRotationMatrix2D((_CENTRE, _CENTRE), degrees, scale)


def _warped(
    matrix: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = int(2 * _CENTRE)
    noise = np.random.default_rng(seed).random((side, side), np.float32)
    image = sum(
        cv2.GaussianBlur(noise, (0, 0), s) * s**1.5 for s in (1.5, 4, 10)
    )
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    moved = cv2.warpAffine(image, matrix, image.shape, flags=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side]
    places = np.stack([x, y, np.ones_like(x)], axis=-1)
    truth = places @ matrix.T - places[..., :2]
    crop = (slice(32, -32), slice(32, -32))
    return image[crop], moved[crop], truth[crop]


def _scaling(grays: np.ndarray) -> None:
    """Compares one core with two, in turns; Linux only.

    Binding the whole process to a core is what makes it one: XLA and OpenCV
    split one pair over threads of their own, so one caller alone keeps more
    than a core busy.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        print("\nscaling: not measured, there is one core")
        return
    # (cores, callers); flow.Flow has one caller more than cores by itself.
    turns = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    print("\nscaling, median of rounds: pairs/s by the clock, CPU ms/pair")
    for name, repeats in (("tvl1", 3), ("opencv", 1)):
        rates: dict = {turn: [] for turn in turns}
        costs: dict = {turn: [] for turn in turns}
        for _, turn in itertools.product(range(_ROUNDS.value), turns):
            method = flow.Flow(name)
            method.workers, method.batch = turn[1], 1
            with _bound(cores[: turn[0]]):
                cpu, wall = time.process_time(), time.perf_counter()
                list(method.pairs(np.concatenate([grays] * repeats)))
                cpu = time.process_time() - cpu
                wall = time.perf_counter() - wall
            count = repeats * len(grays) - 1
            rates[turn].append(count / wall)
            costs[turn].append(1e3 * cpu / count)
        for turn in turns:
            print(
                f"{name:8s} cores {turn[0]}, callers {turn[1]} "
                f"{np.median(rates[turn]):8.2f} {np.median(costs[turn]):8.2f}"
            )
        rate = {turn: np.median(found) for turn, found in rates.items()}
        one = max(rate[1, 1], rate[1, 2])
        print(
            f"{name:8s} two cores against one: {rate[2, 2] / one:.2f} with "
            f"two callers, {rate[2, 3] / one:.2f} with three"
        )


@contextlib.contextmanager
def _bound(cores: list[int]) -> Iterator[None]:
    """Lets this process, its present and new threads, run on `cores` only."""
    before = os.sched_getaffinity(0)
    _bind(set(cores))
    try:
        yield
    finally:
        _bind(before)


def _bind(cores: set[int]) -> None:
    for task in pathlib.Path("/proc/self/task").iterdir():
        # A thread may have ended meanwhile.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)


if __name__ == "__main__":
    app.run(main)
