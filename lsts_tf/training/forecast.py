"""What a training would take: windows, steps, memory, disk and time.

Counts come from the dataset's lengths, memory from the model's layers, and
time from a few steps on made-up features. Nothing is written.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
import resource
import shutil
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import parts
from lsts_tf import windows
from lsts_tf.features import dataset
from lsts_tf.features import fill
from lsts_tf.features import preprocess
from lsts_tf.networks import i3d
from lsts_tf.networks import i3d_weights
from lsts_tf.training import accumulation
from lsts_tf.training import devices
from lsts_tf.training import input_pipeline
from lsts_tf.training import trainer as trainer_lib

# Steps that are timed, after one that compiles.
TIMED = 3
# Copies of each weight: itself, its gradient, and what the optimiser keeps.
SLOTS = {"rmsprop": 1, "adamw": 2}
_GB = 1e9


def step_bytes(
    model: keras.Model,
    *,
    batch_size: int,
    accumulate: int = 1,
    optimizer: str = "rmsprop",
    ema: bool = False,
) -> int:
    """Memory of a training step, predicted from the layers.

    All outputs of the layers stay until the way back; a window's target and
    features come on top. With accumulation see `accumulation.peak_bytes`.
    Not counted are what TensorFlow frees early, the convolutions' scratch
    memory, and what the allocator keeps of freed memory, which no layer
    tells: docs/performance.md says how far that goes.

    Args:
        model: The decoder.
        batch_size: Windows of a step on one replica.
        accumulate: Micro-batches.
        optimizer: "rmsprop" or "adamw".
        ema: Whether there is a moving average of the weights.

    Returns:
        Bytes, of TensorFlow's tensors alone.
    """
    weights = 4 * sum(math.prod(v.shape) for v in model.trainable_variables)
    still = 4 * sum(math.prod(v.shape) for v in model.non_trainable_variables)
    fixed = weights * (2 + SLOTS[optimizer] + bool(ema)) + still
    target = 4 * 2 * math.prod(preprocess.MAP_SIZE)
    if accumulate == 1:
        inner = accumulation.activation_bytes(model)
        return fixed + batch_size * (inner + target)
    micro = batch_size // accumulate
    peak = accumulation.peak_bytes(model, windows=batch_size, micro=micro)
    # The truth of the batch is 8-bit, that of a micro-batch float32.
    features = sum(
        math.prod(t.shape[1:]) * tf.as_dtype(t.dtype).size for t in model.inputs
    )
    return fixed + batch_size * (features + target // 4) + micro * target + peak


def lines(settings: experiment.Experiment) -> Iterator[str]:
    """What a training takes, line by line as it is known."""
    data = dataset.open_datasets(settings.dataset_names, settings.data_dir)
    counts = data.frame_counts
    frames = {}
    for name, setting, otherwise in (
        ("training", "train_videos", "train"),
        ("validation", "val_videos", ""),
    ):
        chosen = data.numbers(settings.videos(setting), otherwise=otherwise)
        videos = data.choose(chosen, name, settings.geometry())
        frames[name] = [counts[v] for v in videos]
    strides = {
        "training": settings.train_stride,
        "validation": settings.val_stride,
    }
    number = {
        name: windows.num_windows(each, settings.geometry(strides[name]))
        for name, each in frames.items()
    }
    in_epoch = input_pipeline.steps_per_epoch(
        number["training"], settings.batch_size
    )
    steps = in_epoch * settings.epochs
    for name, each in frames.items():
        yield (
            f"{name}: {number[name]:,} windows of {settings.window} frames "
            f"in {len(each)} videos"
        )
    yield (
        f"steps: {steps:,}, {in_epoch:,} an epoch of {settings.batch_size} "
        f"windows, {settings.epochs} epochs"
    )
    yield from _disk(settings, data, frames, number)
    strategy = devices.choose_strategy(settings.strategy)
    size = parts.parse_size(settings.input_size)
    networks = {}
    if settings.finetune_from:
        networks = {
            stream: i3d.build(
                i3d_weights.CHANNELS[stream], height=size[0], width=size[1]
            )
            for stream in settings.streams
        }
    trainer = trainer_lib.Trainer(
        settings,
        strategy,
        feature_shape=i3d.feature_shape(settings.window, *size),
        skip_shapes=i3d.skip_shapes(settings.skips, settings.window, *size),
        networks=networks,
        steps=steps,
    )
    replicas = strategy.num_replicas_in_sync
    predicted = step_bytes(
        trainer.model,
        batch_size=settings.batch_size // replicas,
        accumulate=settings.accumulate,
        optimizer=settings.optimizer,
        ema=bool(settings.ema),
    )
    yield (
        f"model: {trainer.model.count_params():,} parameters, on {replicas} "
        f"replicas, {predicted / _GB:.2f} GB a step on each by its layers"
    )
    seconds = measure(trainer, settings)
    encoding = 0.0
    if settings.features == "live":
        rows = settings.batch_size // replicas
        encoding = rows * sum(
            live_seconds(stream, settings) for stream in settings.streams
        )
    seconds += encoding
    yield (
        f"memory: {peak_bytes() / _GB:.2f} GB at most in this process, after "
        f"{1 + TIMED} steps on made-up features"
    )
    yield (
        f"time: {seconds:.2f} s a step, {settings.batch_size / seconds:.1f} "
        f"windows a second, {steps * seconds / 3600:.2f} hours for all steps; "
        + (
            f"{encoding:.2f} s of a step are I3D's, by one window; flow, "
            "reading and validation come on top"
            if settings.features == "live"
            else "features, reading and validation come on top"
        )
    )


def _disk(
    settings: experiment.Experiment,
    data: dataset.Dataset,
    frames: Mapping[str, Sequence[int]],
    number: Mapping[str, int],
) -> Iterator[str]:
    size = parts.parse_size(settings.input_size)
    main = i3d.feature_shape(settings.window, *size)
    if settings.finetune_from:
        end_point = parts.stem(settings.finetune_from)
        main = i3d.shapes(settings.window, *size)[end_point]
    skips = i3d.skip_shapes(settings.skips, settings.window, *size)
    record = 2 * sum(map(math.prod, (main, *skips.values())))
    copies = len(settings.streams) * (1 + settings.flip + settings.views)
    wanted = number["validation"] * record * len(settings.streams)
    if settings.features == "stored":
        wanted += number["training"] * record * copies
    if "flow" in settings.streams:
        flow = 2 * 2 * math.prod(parts.half(size))
        kept = [*frames["validation"]]
        if settings.features == "stored":
            kept += frames["training"]
        wanted += sum(n - 1 for n in kept) * flow
    each = (
        data.datasets.values() if isinstance(data, dataset.Joint) else (data,)
    )
    folders = [
        fill.store_folder(pathlib.Path(settings.store_dir), one.name)
        for one in each
    ]
    there = sum(
        path.stat().st_size
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    )
    yield (
        f"stores: {wanted / _GB:.2f} GB of flows and features; "
        f"{', '.join(map(str, folders))} have {there / _GB:.2f} GB, of this or "
        "other experiments"
    )
    root = pathlib.Path(settings.store_dir).absolute()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    yield f"disk: {free / _GB:.2f} GB free at {root}"


def measure(
    trainer: trainer_lib.Trainer,
    settings: experiment.Experiment,
    *,
    timed: int = TIMED,
) -> float:
    """Seconds of a step on made-up features, the median of `timed` steps."""

    def read(part: input_pipeline.Part) -> tf.data.Dataset:
        rows = settings.batch_size // part.total
        return tf.data.Dataset.from_tensors(
            made_up(trainer.model, rows)
        ).repeat((1 + timed) * part.here)

    seconds = []
    for batch in devices.distribute(trainer.strategy, read):
        start = time.perf_counter()
        trainer.train_step(batch)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def live_seconds(
    stream: str, settings: experiment.Experiment, *, timed: int = TIMED
) -> float:
    """Seconds of I3D for a window of live features, the median of `timed`.

    Up to where the decoder, or the part of I3D that is trained, begins.
    """
    size = parts.parse_size(settings.input_size)
    first = settings.finetune_from
    channels = i3d_weights.CHANNELS[stream]
    network = i3d.build(
        channels,
        end_point=parts.stem(first) if first else parts.MAIN,
        height=size[0],
        width=size[1],
    )
    call = tf.function(network, autograph=False)
    rng = np.random.default_rng(0)
    shape = (1, settings.window, *size, channels)
    clip = tf.constant(rng.uniform(-1, 1, shape), tf.float32)
    seconds = []
    for _ in range(1 + timed):
        start = time.perf_counter()
        call(clip).numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


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
    # [rows, columns], behind the number of maps where there are several.
    shape = model.output_shape[1:-1]
    truth = rng.integers(0, 256, (count, *shape, 2)).astype(np.uint8)
    truth[..., 1] *= truth[..., 1] > 254
    return features, truth


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
