"""What it costs to score films by --protocol=msu, beside a plain program.

    python -m benchmarks.msu
    python -m benchmarks.msu --memory
    python -m benchmarks.msu --build=CLIP

The first writes films of 1920x1080 as the datasets have them: 10-bit grey,
almost without loss, Gaussians of 57.6 pixels at each of some fixations.
`lsts_tf.evaluate` scores them in one process, whose CPU time is counted without
that of starting. The plain program is written to the definitions in NumPy: it
unpacks both films to PNG, reads them again, goes over each map once for each
measure, and compares all pixels with the value at each fixation. Both must find
the same scores.

The second scores films of 480x270, each longer than the one before, and prints
the peak memory of the program.

The third enlarges the first --frames of a film to 1920x1080, reads it with its
gaze as the builders of such datasets do, and counts the bytes of an example.
"""

import os

# Before NumPy: a second thread would count as CPU time.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import av
import cv2
import numpy as np

import benchmarks
from lsts_tf.media import msu_files, video, writer

_FRAMES = flags.DEFINE_integer("frames", 300, "Frames to score", 2)
_PLAIN = flags.DEFINE_integer("plain", 6, "Frames of the plain program", 1)
_FIXATIONS = flags.DEFINE_integer("fixations", 75, "Fixations of a frame", 1)
_MEMORY = flags.DEFINE_boolean("memory", False, "Measure memory instead")
_LENGTHS = flags.DEFINE_list(
    "lengths", ["200", "1000", "3000"], "Frames of the films of --memory"
)
_BUILD = flags.DEFINE_string("build", "", "Film to build a dataset from")

SIZE = (1080, 1920)
SMALL = (270, 480)
# By the height of a film.
SIGMA = 57.6 / 1080
# Public and private test videos of CrowdSAL.
WHOLE = 2000 * 550
# All of its videos.
BUILT = 5000 * 552


def gaze(rng, frames, size):
    """Observers that follow a few places: fixations, and their densities."""
    height, width = size
    places = rng.uniform(0.2, 0.8, (4, 2)) * size
    spread = height / 18
    seen = rng.normal(places[rng.integers(4, size=_FIXATIONS.value)], spread)
    for _ in range(frames):
        seen = np.clip(
            rng.normal(seen, spread / 15), 0, (height - 1, width - 1)
        )
        points = np.rint(seen).astype(int)
        quarter = np.zeros((-(-height // 4), -(-width // 4)), np.float32)
        np.add.at(quarter, tuple((points // 4).T), 1)
        blurred = cv2.GaussianBlur(quarter, (0, 0), SIGMA * height / 4)
        density = cv2.resize(
            blurred, (width, height), interpolation=cv2.INTER_CUBIC
        )
        density -= density.min()
        yield (
            points,
            np.rint(density * (1023 / density.max())).astype(np.uint16),
        )


def write_films(root, frames, size):
    """A video of the test split, and a prediction of it."""
    rng = np.random.default_rng(0)
    for folder in ("Test/Saliency", "Test/Fixations", "model"):
        (root / folder).mkdir(parents=True)
    with (root / "Test" / "Fixations" / "3001.json").open("w") as file:
        for path in (
            root / "Test" / "Saliency" / "3001.mp4",
            root / "model" / "3001.mp4",
        ):
            is_truth = path.parent.name == "Saliency"
            with writer.Writer(
                path, fps=30, size=size[::-1], pixels="gray10"
            ) as film:
                for k, (seen, density) in enumerate(gaze(rng, frames, size)):
                    film.write(density)
                    if is_truth:
                        file.write("[,"[k > 0] + json.dumps(seen.tolist()))
        file.write("]")


def evaluate(root):
    """What the program used (CPU seconds, MB), and the scores of frames."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lsts_tf.evaluate", "--protocol=msu"),
            f"--predictions={root / 'model'}",
            f"--annotations={root}",
            f"--output={root / 'scores.json'}",
            "--workers=1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=pathlib.Path(__file__).parents[1],
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"evaluate left with {process.returncode}.")
    lines = (root / "scores.csv").read_text().splitlines()
    return (
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1e3 * 1.024,
        [list(map(float, line.split(",")[2:])) for line in lines[1:]],
    )


def memory(root):
    """Prints the peak memory at several lengths of film."""
    for frames in map(int, _LENGTHS.value):
        write_films(root / str(frames), frames, SMALL)
        _, peak, scores_ = evaluate(root / str(frames))
        assert len(scores_) == frames
        # A process is said to have had what its parent had when it began.
        assert peak > benchmarks.peak_bytes() / 1e6
        print(f"{frames:6,} frames of {SMALL[1]}x{SMALL[0]}: {peak:6.0f} MB")


def build(root):
    """Prints what a frame of a dataset takes."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
    import film_dataset

    folder = root / "Test" / "Videos"
    folder.mkdir(parents=True)
    shown = itertools.islice(video.frames(_BUILD.value), _FRAMES.value)
    count = 0
    with writer.Writer(folder / "3001.mp4", fps=30, size=SIZE[::-1]) as film:
        for frame in shown:
            film.write(cv2.resize(frame, SIZE[::-1]))
            count += 1
    write_films(root, count, SIZE)
    clip = msu_files.find(root).clips["3001"]
    start = time.process_time()
    example = film_dataset.read(clip)
    spent = time.process_time() - start
    kinds = ("frames", "maps", "fixations")
    bytes_ = [sum(map(len, example[kind])) / count for kind in kinds]
    for kind, each in zip(kinds, bytes_, strict=True):
        print(f"{kind:10}{each / 1e3:7.1f} kB a frame, of {count}")
    print(
        f"{BUILT:,} frames: {BUILT * sum(bytes_) / 1e9:.0f} GB, "
        f"{BUILT * spent / count / 3600:.1f} hours of CPU "
        f"({1e3 * spent / count:.1f} ms each)"
    )


# === The plain program ===


def unpack(film, folder, frames):
    """PNG files by FFmpeg's own encoder, as its command makes them."""
    folder.mkdir()
    with (
        av.open(str(film)) as source,
        av.open(str(folder / "%03d.png"), "w", format="image2") as target,
    ):
        source.streams.video[0].codec_context.thread_count = 1
        stream = target.add_stream("png", rate=30)
        stream.height, stream.width = SIZE
        # What FFmpeg chooses for what H.264 of 10 bits decodes to.
        stream.pix_fmt = "rgb48be"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            target.mux(stream.encode(frame.reformat(format="rgb48be")))
        target.mux(stream.encode())
    return sorted(folder.iterdir())


def read(path):
    """A map in [0, 1]."""
    map_ = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).mean(axis=2)
    return (map_ - map_.min()) / (map_.max() - map_.min() + 2.0**-23)


def scores(pred, truth, fixations):
    """The four measures, each by itself."""
    rows, columns = fixations.T
    n = len(fixations)
    chosen = np.sort(pred[rows, columns])[::-1]
    above = np.sum(pred >= chosen[:, None, None], axis=(1, 2))
    alarms = (above - np.arange(1, n + 1)) / (pred.size - 2)
    auc = np.trapezoid(np.arange(n + 2) / n, [0, *alarms, 1]) if n else np.nan
    a = (pred - pred.mean()) / (pred.std() + 1e-7)
    b = (truth - truth.mean()) / (truth.std() + 1e-7)
    cc = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-7)
    shares = [m / (m.sum() + 1e-7) for m in (pred, truth)]
    standard = (pred - pred.mean()) / (pred.std() + 1e-7)
    return [
        auc,
        cc,
        np.minimum(*shares).sum(),
        standard[rows, columns].mean(),
    ]


def plain(root, frames):
    """CPU seconds, bytes on disk, and the scores of some frames."""
    points = json.loads((root / "Test" / "Fixations" / "3001.json").read_text())
    start = time.process_time()
    predicted = unpack(root / "model" / "3001.mp4", root / "a", frames)
    truths = unpack(root / "Test" / "Saliency" / "3001.mp4", root / "b", frames)
    found = [
        scores(read(pred), read(truth), np.array(seen))
        for pred, truth, seen in zip(predicted, truths, points, strict=False)
    ]
    spent = time.process_time() - start
    size = sum(path.stat().st_size for path in [*predicted, *truths])
    return spent, size, found


def main(_):
    """Writes the films, scores them, prints the figures."""
    cv2.setNumThreads(1)
    frames, few = _FRAMES.value, min(_PLAIN.value, _FRAMES.value)
    with tempfile.TemporaryDirectory() as folder:
        if _MEMORY.value:
            memory(pathlib.Path(folder))
            return
        if _BUILD.value:
            build(pathlib.Path(folder))
            return
        root, short = pathlib.Path(folder, "all"), pathlib.Path(folder, "one")
        write_films(root, frames, SIZE)
        write_films(short, 1, SIZE)
        load = os.getloadavg()[0]
        starting, *_ = evaluate(short)
        spent, peak, ours = evaluate(root)
        slow, size, theirs = plain(root, few)
        print(f"load {load:.1f} … {os.getloadavg()[0]:.1f}")
    differ = np.abs(np.subtract(ours[:few], theirs)).max()
    a_frame, a_plain = (spent - starting) / (frames - 1), slow / few
    print(f"frames of {SIZE[1]}x{SIZE[0]}, {_FIXATIONS.value} fixations each")
    print(f"scores differ by at most {differ:.1e}")
    for name, each, disk in (
        ("evaluate --protocol=msu", a_frame, 0),
        ("plain program", a_plain, size / few),
    ):
        print(
            f"{name:26}{1e3 * each:9.1f} ms of CPU a frame{1 / each:9.2f} "
            f"frames a CPU second{disk * WHOLE / 1e9:10.0f} GB of disk for "
            f"{WHOLE:,} frames"
        )
    print(f"peak memory {peak:.0f} MB")
    print(f"ratio {a_plain / a_frame:.1f}   goal: 30")


if __name__ == "__main__":
    app.run(main)
