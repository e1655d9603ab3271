"""What it costs to score a folder of maps, PNG reading included.

    python -m benchmarks.evaluate

Writes frames of 640x360 in DHF1K's layout (predictions, densities, fixations),
then runs `lsts_tf.evaluate` on them from the shell: with one process, whose
CPU time is counted without that of starting, and with all cores by the clock.
Prints frames a second and core, and the minutes that DHF1K's 60,273 validation
frames would take (starting counted once); and the CPU time of each step
alone. The load of the machine stands beside: other work slows all of it.
"""

import os

# Before NumPy: a second thread would count as CPU time.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import cv2
import numpy as np

from lsts_tf.media import images
from lsts_tf.scoring import density, scorer, truth

_VIDEOS = flags.DEFINE_integer("videos", 10, "videos", 2)
_LENGTH = flags.DEFINE_integer("length", 200, "frames of a video", 1)
_STEPS = flags.DEFINE_bool("steps", True, "also time each step alone")

SIZE = (360, 640)
VALIDATION = 60_273


def write_video(root, number, length, rng):
    """Gaze that wanders, its density, and a guess with noise in it."""
    folders = [
        root / "maps" / f"{number:04d}",
        root / "annotation" / f"{number:04d}" / "maps",
        root / "annotation" / f"{number:04d}" / "fixation",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    noise = cv2.GaussianBlur(rng.standard_normal(SIZE), (0, 0), 20)
    noise = (noise - noise.min()) / np.ptp(noise)
    centres = rng.uniform([60, 100], [300, 540], (4, 2))
    for frame in range(length):
        centres = np.clip(
            centres + rng.normal(0, 4, centres.shape), 20, [339, 619]
        )
        spread = rng.normal(0, 12, (120, 2))
        points = np.rint(centres[rng.integers(4, size=120)] + spread)
        points = np.clip(points, 0, [359, 639]).astype(int)
        fixated = np.zeros(SIZE, np.uint8)
        fixated[tuple(points.T)] = 255
        blurred = density.density_map(fixated > 0)
        guess = cv2.blur(blurred, (31, 31)) * 0.7
        guess += 76 * np.roll(noise, 3 * frame, axis=1)
        for folder, image in zip(
            folders, (guess.astype(np.uint8), blurred, fixated), strict=True
        ):
            images.write_png(folder / images.file_name(frame), image)


def evaluate(root, output, *arguments):
    """Runs the program; returns its seconds by the clock and of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "lsts_tf.evaluate"),
            f"--predictions={root / 'maps'}",
            f"--annotations={root / 'annotation'}",
            f"--output={root / output / 'scores.json'}",
            *arguments,
        ],
        check=True,
        capture_output=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def steps(root):
    """CPU milliseconds a frame of each step, the median of rounds."""
    folder = truth.of_folder(root / "annotation")
    video, clip = next(iter(folder.clips.items()))
    frames = list(clip.frames)[:64]
    files = [
        root / "maps" / f"{video:04d}" / images.file_name(f) for f in frames
    ]
    fixated = [(video, f, *clip.fixations(f)) for f in frames]
    benchmark = scorer.Scorer(truth.FixationSet(fixated))
    predicted = [images.read(file) for file in files]
    densities = [clip.density(f) for f in frames]

    def score():
        for row, map_ in enumerate(predicted):
            benchmark.score(row, map_, densities[row])

    contenders = {
        "read map": lambda: [images.read(file) for file in files],
        "read density": lambda: [clip.density(f) for f in frames],
        "read fixations": lambda: [clip.fixations(f) for f in frames],
        "eight metrics": score,
    }
    seconds = {name: [] for name in contenders}
    for _ in range(7):
        for name, function in contenders.items():
            start = time.process_time()
            function()
            spent = time.process_time() - start
            seconds[name].append(1e3 * spent / len(frames))
    return {name: statistics.median(found) for name, found in seconds.items()}


def main(_):
    """Writes the frames, scores them, prints the figures."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    workers = len(os.sched_getaffinity(0))
    total = _VIDEOS.value * _LENGTH.value
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for number in range(601, 601 + _VIDEOS.value):
            write_video(root, number, _LENGTH.value, rng)
        small = pathlib.Path(folder) / "small"
        # A video for each process, which all start.
        for number in range(601, 601 + workers):
            write_video(small, number, 1, rng)
        print(f"{total} frames, {workers} cores, load {os.getloadavg()[0]:.1f}")
        _, starting = evaluate(small, "one", "--workers=1")
        wall_starting, _ = evaluate(small, "all")
        wall_one, cpu = evaluate(root, "one", "--workers=1")
        wall_all, _ = evaluate(root, "all")
        if _STEPS.value:
            for name, spent in steps(root).items():
                print(f"{name:40}{spent:8.2f} ms of CPU a frame")
        print(f"load {os.getloadavg()[0]:.1f}")
    a_frame = (cpu - starting) / total
    print(f"{'starting':40}{starting:8.1f} s of CPU")
    print(f"{'a frame':40}{1e3 * a_frame:8.2f} ms of CPU")
    print(f"{'frames a second and core':40}{1 / a_frame:8.0f}   goal: 200")
    for name, wall in (
        (f"starting {workers} processes", wall_starting),
        ("one process", wall_one),
        (f"{workers} processes", wall_all),
    ):
        print(f"{name:40}{wall:8.1f} s by the clock")
    by_count = VALIDATION * a_frame / workers / 60
    by_clock = VALIDATION / total * (wall_all - wall_starting) / 60
    by_clock += wall_starting / 60
    print(f"{VALIDATION} frames on {workers} cores, from CPU time: ", end="")
    print(f"{by_count:.1f} minutes; by the clock: {by_clock:.1f}.   goal: 5")


if __name__ == "__main__":
    app.run(main)
