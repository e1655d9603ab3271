"""What a training step of the decoder costs: time, memory, and its input.

    python -m benchmarks.train                 # windows a second, by variant
    python -m benchmarks.train --memory        # by batch and micro-batches
    python -m benchmarks.train --input         # share of time spent waiting
    python -m benchmarks.train --pytorch       # beside benchmarks.pytorch
    python -m benchmarks.train --channels=64 --batches=4 --rounds=1  # a check

Variants take turns step by step in one process, so that ratios of CPU time
hold on a busy machine too. Each line of --memory is a process of its own:
"step" is how much its peak rises above what it has before its first step.
PyTorch is no dependency: `benchmarks.pytorch` says how to have it beside.
"""

import argparse
from collections.abc import Callable
import functools
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import keras
import numpy as np
import tensorflow as tf

import benchmarks
from lsts_tf import experiment, parts, windows
from lsts_tf.features import stores
from lsts_tf.training import input_pipeline
from lsts_tf.training import trainer as trainer_lib

GIGA = 1e9
# (batch, micro-batches) of the table of memory.
MEMORY = ((8, 1), (32, 1), (128, 1), (128, 4), (128, 16))


def parse() -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--input", action="store_true")
    parser.add_argument("--pytorch", action="store_true")
    parser.add_argument("--batches", default="8,32")
    parser.add_argument("--precisions", default="float32,mixed_bfloat16")
    parser.add_argument("--jit", action="store_true", help="XLA beside each")
    parser.add_argument("--streams", default="rgb")
    parser.add_argument("--loss", default="mse")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="of --memory")
    return parser.parse_args()


def make(
    flags: argparse.Namespace,
    batch: int,
    *,
    precision: str = "float32",
    jit: bool = False,
) -> tuple[trainer_lib.Trainer, experiment.Experiment]:
    """A trainer of the paper's decoder, and its settings."""
    settings = experiment.Experiment(
        streams=tuple(flags.streams.split(",")),
        batch_size=batch,
        accumulate=flags.accumulate,
        precision=precision,
        loss=flags.loss,
        jit=jit,
        strategy="one",
    )
    shape = (5, 5, 5, flags.channels)
    strategy = tf.distribute.get_strategy()
    trainer = trainer_lib.Trainer(settings, strategy, feature_shape=shape)
    return trainer, settings


def speed(flags: argparse.Namespace) -> None:
    """Prints windows a second and CPU time of each variant."""
    variants = {}
    for batch, precision, jit in itertools.product(
        map(int, flags.batches.split(",")),
        flags.precisions.split(","),
        (False, True) if flags.jit else (False,),
    ):
        trainer, _ = make(flags, batch, precision=precision, jit=jit)
        data = made_up(trainer.model, batch)
        trainer.train_step([data])
        name = f"batch {batch:>3}, {precision}{', XLA' if jit else ''}"
        variants[name] = (functools.partial(trainer.train_step, [data]), batch)
        if flags.pytorch and not jit:
            variants[f"{name}, PyTorch"] = (
                in_pytorch(flags, *data, precision),
                batch,
            )
    found: dict[str, list[tuple[float, float]]] = {n: [] for n in variants}
    for _ in range(flags.rounds):
        for name, (step, batch) in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            found[name].append(
                (
                    (time.perf_counter() - wall) / batch,
                    (time.process_time() - cpu) / batch,
                )
            )
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    base = None
    for name, times in found.items():
        wall = statistics.median(t for t, _ in times)
        cpu = statistics.median(t for _, t in times)
        base = base or cpu
        print(
            f"{name:32}: {1 / wall:7.1f} windows/s, {1e3 * cpu:6.1f} CPU-ms a "
            f"window, {base / cpu:.2f} times the first"
        )


def in_pytorch(
    flags: argparse.Namespace,
    features: dict[str, np.ndarray],
    truth: np.ndarray,
    precision: str,
) -> Callable[[], float]:
    """The same step by PyTorch, of a decoder that gives the same maps."""
    # Imported here, because PyTorch may not be there.
    from benchmarks import pytorch

    (inputs,) = features.values()
    trainer, settings = make(flags, len(inputs), precision=precision)
    step, maps = pytorch.training(
        trainer.model,
        settings,
        inputs.astype(np.float32),
        truth[..., 0].astype(np.float32) / 255,
    )
    if precision == "float32":
        ours = np.squeeze(trainer.model(features, training=False))
        print(
            f"PyTorch's maps differ by at most {np.abs(ours - maps).max():.1e}"
        )
    step()
    return step


def memory(flags: argparse.Namespace) -> None:
    """Prints what each batch takes, each in a process of its own."""
    for batch, accumulate in MEMORY:
        command = [
            *(sys.executable, "-m", "benchmarks.train", "--memory", "--one"),
            f"--batches={batch}",
            f"--accumulate={accumulate}",
            f"--channels={flags.channels}",
            f"--streams={flags.streams}",
            f"--loss={flags.loss}",
        ]
        subprocess.run(command, check=True)


def memory_of_one(flags: argparse.Namespace) -> None:
    """Prints what one batch takes in this process."""
    batch = int(flags.batches)
    trainer, _ = make(flags, batch)
    blocks = [
        made_up(trainer.model, batch // flags.accumulate)
        for _ in range(flags.accumulate)
    ]
    before = benchmarks.peak_bytes()
    for _ in range(2):
        trainer.train_step(blocks)
    peak = benchmarks.peak_bytes()
    print(
        f"batch {batch:>3} in {flags.accumulate:>2} micro-batches: step "
        f"{(peak - before) / GIGA:5.2f} GB, whole process "
        f"{peak / GIGA:5.2f} GB",
        flush=True,
    )


def made_up(
    model: keras.Model, count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch of random features, as after a ReLU, and random truth."""
    rng = np.random.default_rng(0)
    features = {
        tensor.name: np.maximum(
            rng.normal(-0.5, 1.0, (count, *tensor.shape[1:])), 0
        ).astype(np.float16)
        for tensor in model.inputs
    }
    shape = (count, *model.output_shape[1:-1], 2)
    truth = rng.integers(0, 256, shape).astype(np.uint8)
    truth[..., 1] *= truth[..., 1] > 254
    return features, truth


def waiting(flags: argparse.Namespace) -> None:
    """Prints how much longer steps take when features come from a store."""
    batch = int(flags.batches.split(",")[-1])
    steps = 3 + 2 * flags.rounds
    root = pathlib.Path(tempfile.mkdtemp(prefix="train-"))
    try:
        trainer, _ = make(flags, batch)
        data = make_store(root, trainer, count=4 * batch)
        batches = data.training(
            [slice(batch)],
            batch_size=batch,
            seed=0,
            first_step=0,
            last_step=steps,
        )
        waited, spent = [], []
        for _ in range(steps):
            start = time.perf_counter()
            values = next(batches)
            got = time.perf_counter()
            trainer.train_step(values)
            waited.append(got - start)
            spent.append(time.perf_counter() - start)
        share = sum(waited[3:]) / sum(spent[3:])
        cpu = time.process_time()
        for step in range(flags.rounds):
            data.read(*data.step(step, batch_size=batch, seed=0))
        cpu = (time.process_time() - cpu) / flags.rounds / batch
        print(
            f"load {os.getloadavg()[0]:.1f}; batch {batch}: "
            f"{100 * share:.2f} % of the time is spent waiting for the store, "
            f"which takes {1e3 * cpu:.2f} CPU-ms a window beside"
        )
    finally:
        shutil.rmtree(root)


def make_store(
    root: pathlib.Path, trainer: trainer_lib.Trainer, *, count: int
) -> input_pipeline.StoredWindows:
    """Windows of one made-up video of each stream, and their truth."""
    features, _ = made_up(trainer.model, count)
    kept = {}
    for stream, values in features.items():
        kept[stream] = stores.Store.create(
            root / stream,
            stores.Manifest(
                kind="features",
                dataset="made-up",
                shape=values.shape[1:],
                dtype="float16",
            ),
        )
        kept[stream].write(1, range(count), values)
    truth = stores.TruthStore.create(
        root / "truth",
        stores.Manifest(
            kind="truth", dataset="made-up", shape=(), dtype="uint8"
        ),
    )
    truth.write(1, maps=pngs(count, 9), fixations=pngs(count, 0))
    return input_pipeline.StoredWindows(
        kept, truth, videos=[1], geometry=windows.Geometry(length=1)
    )


def pngs(count: int, blur: int) -> list[bytes]:
    """Maps with a few points each, blurred or not, as PNG files."""
    rng = np.random.default_rng(blur)
    found = []
    for _ in range(count):
        image = np.zeros(parts.MAP_SIZE, np.float32)
        image[rng.integers(0, 360, 15), rng.integers(0, 640, 15)] = 1
        if blur:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        image = (255 * image / image.max()).astype(np.uint8)
        found.append(cv2.imencode(".png", image)[1].tobytes())
    return found


def main() -> None:
    """Measures and prints."""
    flags = parse()
    if flags.one:
        memory_of_one(flags)
    elif flags.memory:
        memory(flags)
    elif flags.input:
        waiting(flags)
    else:
        speed(flags)


if __name__ == "__main__":
    main()
