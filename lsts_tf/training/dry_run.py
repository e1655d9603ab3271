"""What a training would take: windows, steps, gigabytes of stores, parameters.

All of it is counted, from the dataset's lengths and the shapes of layers.
Nothing is computed, and nothing is written.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
import pathlib
import shutil

from lsts_tf import experiment, windows
from lsts_tf.features import dataset
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.training import input_pipeline, trainer

GIGA = 1e9
# Bytes of a stored number, a float16, and of a record's target.
_HALF, _TARGET = 2, 8


def lines(
    settings: experiment.Experiment, data: dataset.Dataset | None = None
) -> Iterator[str]:
    """What a training takes, on the dataset as built or on `data`, in lines."""
    if data is None:
        data = dataset.open_datasets(settings.dataset_names, settings.data_dir)
    frames, number = {}, {}
    training, validation = input_pipeline.choose_videos(data, settings)
    for name, videos, stride in (
        ("training", training, settings.train_stride),
        ("validation", validation, settings.val_stride),
    ):
        frames[name] = [data.frame_counts[video] for video in videos]
        number[name] = windows.num_windows(
            frames[name], settings.geometry(stride)
        )
        yield (
            f"{name}: {number[name]:,} windows of {settings.window} frames "
            f"in {len(videos)} videos"
        )
    in_epoch = input_pipeline.steps_per_epoch(
        number["training"], settings.batch_size
    )
    yield (
        f"steps: {in_epoch * settings.epochs:,}, {in_epoch:,} an epoch of "
        f"{settings.batch_size} windows, {settings.epochs} epochs"
    )
    front_end = front_end_lib.load(
        **settings.front_end_arguments() | {"sources": None}
    )
    wanted = store_bytes(settings, front_end, frames, number)
    root = pathlib.Path(settings.store_dir).absolute()
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    yield (
        f"stores: {wanted / GIGA:.2f} GB of flows and features in all; "
        f"{free / GIGA:.2f} GB are free at {existing}"
    )
    model = trainer.build_model(
        settings,
        feature_shape=front_end.decoder_shape,
        skip_shapes=front_end.skip_shapes,
        front_end=front_end,
    )
    yield f"model: {model.count_params():,} parameters"


def store_bytes(
    settings: experiment.Experiment,
    front_end: front_end_lib.FrontEnd,
    frames: Mapping[str, Sequence[int]],
    number: Mapping[str, int],
) -> int:
    """Bytes of all flows and features that a training reads.

    By "training" and "validation", `frames` are those of each video, and
    `number` is that of all windows.
    """
    copies = {"validation": 1}
    if settings.features == "stored":
        copies["training"] = 1 + settings.flip + settings.views
    wanted = sum(number[name] * count for name, count in copies.items())
    wanted *= sum(
        _TARGET + _HALF * math.prod(shape)
        for stream in settings.streams
        for shape in front_end.part_shapes(stream).values()
    )
    if "flow" in settings.streams:
        flow = _TARGET + _HALF * math.prod(front_end.signal_spec("flow").shape)
        wanted += sum(n - 1 for name in copies for n in frames[name]) * flow
    return wanted
