"""Shuffled batches of features out of a store larger than a few caches.

    python -m benchmarks.stores --gigabytes=4.5

Writes a store of made-up features (two thirds zeros, as after a ReLU), reads
shuffled batches over all windows of all videos, and deletes it. Prints windows
a second, CPU time a window, and ratios to `numpy.load(mmap_mode="r")`, a window
at a time, in the same process on the same windows in turns. "cold" asks the
system to forget the files before each round; disks keep caches of their own.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import os
import pathlib
import shutil
import tempfile
import time

from absl import app, flags
import numpy as np

from lsts_tf.features import stores

GIGABYTES = flags.DEFINE_float("gigabytes", 4.5, "Size of the store.")
FOLDER = flags.DEFINE_string("folder", None, "Where; default: a temporary one.")
BATCHES = flags.DEFINE_integer("batches", 40, "Batches of each round.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each reader.")
THREADS = flags.DEFINE_integer("threads", 4, "Threads of the threaded reader.")

BATCH = 128
SHAPE = (5, 5, 5, 1024)
WINDOWS_PER_VIDEO = 500

Batch = list[tuple[int, int]]


def make(root: pathlib.Path, videos: int) -> stores.Store:
    """A store of `videos` videos, and how fast it was written."""
    store = stores.Store.create(
        root,
        stores.Manifest(
            kind="features", dataset="made-up", shape=SHAPE, dtype="float16"
        ),
    )
    rng = np.random.default_rng(0)
    pool = np.maximum(rng.normal(-0.5, 1, (20, *SHAPE)), 0).astype("float16")
    wall, cpu = time.perf_counter(), time.process_time()
    for video in range(videos):
        records = (
            # Another shift each time, so that no two windows are equal.
            np.roll(pool[n % 20], video * 1009 + n, axis=-1)
            for n in range(WINDOWS_PER_VIDEO)
        )
        store.write(video, range(WINDOWS_PER_VIDEO), records)
    count = videos * WINDOWS_PER_VIDEO
    size = count * store.file_dtype.itemsize / 1e9
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"wrote {videos} videos, {count} windows, {size:.2f} GB: "
        f"{size / wall:.2f} GB/s, {1e3 * cpu / count:.3f} CPU-ms a window"
    )
    return store


def read_mapped(store: stores.Store) -> Callable[[Batch], np.ndarray]:
    """The plain way: NumPy maps the file, a window at a time."""

    def read(batch: Batch) -> np.ndarray:
        return np.stack(
            [
                np.load(store.path(video), mmap_mode="r")["values"][row]
                for video, row in batch
            ]
        )

    return read


def forget(store: stores.Store) -> None:
    """Drops the store's files from the page cache."""
    for video in store.videos():
        fd = os.open(store.path(video), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def shuffled(
    videos: int, rng: np.random.Generator, batches: int
) -> list[Batch]:
    """Batches of windows drawn over all videos without repetition."""
    order = rng.permutation(videos * WINDOWS_PER_VIDEO)
    chosen = order[: batches * BATCH].reshape(-1, BATCH)
    return [
        [divmod(int(window), WINDOWS_PER_VIDEO) for window in batch]
        for batch in chosen
    ]


def measure(
    read: Callable[[Batch], np.ndarray], batches: list[Batch], threads: int
) -> tuple[float, float]:
    """Seconds and CPU-seconds of all batches, read and dropped."""
    wall, cpu = time.perf_counter(), time.process_time()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(batches), threads):
            # No more than one batch a thread is held.
            list(pool.map(read, batches[start : start + threads]))
    return time.perf_counter() - wall, time.process_time() - cpu


def run(root: pathlib.Path) -> None:
    """Writes, measures and prints."""
    record = int(np.prod(SHAPE)) * 2
    videos = max(1, round(GIGABYTES.value * 1e9 / record / WINDOWS_PER_VIDEO))
    store = make(root, videos)
    count = min(BATCHES.value, videos * WINDOWS_PER_VIDEO // BATCH)
    threads = THREADS.value

    def read(batch: Batch) -> np.ndarray:
        return np.concatenate([store.read(v, [i]) for v, i in batch])

    readers = {
        "numpy mmap, 1 thread": (read_mapped(store), 1),
        "store, 1 thread": (read, 1),
        f"store, {threads} threads": (read, threads),
    }
    rng = np.random.default_rng(1)
    for state in ("cold", "warm"):
        found: dict[str, list[tuple[float, float]]] = {n: [] for n in readers}
        for _ in range(ROUNDS.value):
            batches = shuffled(videos, rng, count)
            for name, (reader, workers) in readers.items():
                if state == "cold":
                    forget(store)
                else:
                    measure(reader, batches, workers)
                found[name].append(measure(reader, batches, workers))
        base_wall, base_cpu = np.median(found["numpy mmap, 1 thread"], axis=0)
        for name, times in found.items():
            wall, cpu = np.median(times, axis=0)
            windows = count * BATCH
            print(
                f"{state} {name:28}: {windows / wall:7.0f} windows/s, "
                f"{windows * record / wall / 1e9:5.2f} GB/s, "
                f"{1e3 * cpu / windows:.3f} CPU-ms a window; "
                f"{base_wall / wall:5.2f} times the rate, "
                f"{base_cpu / cpu:5.2f} times less CPU than mmap"
            )


def main(_: Sequence[str]) -> None:
    """Runs in a folder that is gone afterwards."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="stores-", dir=FOLDER.value))
    try:
        run(root)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    app.run(main)
