"""What a training left in its run folder."""

import json
import pathlib

from tensorboard.backend.event_processing import event_accumulator

from lsts_tf.features import dataset
from lsts_tf.features import fill


def records(settings):
    path = pathlib.Path(settings.run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(settings):
    events = event_accumulator.EventAccumulator(
        str(pathlib.Path(settings.run_dir) / "logs"),
        size_guidance={"tensors": 0, "images": 0},
    )
    events.Reload()
    return events


def scored_maps(settings, predictor, number=601):
    """Maps of a video as `evaluate` scores them, uint8 [T, 360, 640]."""
    kept = fill.ready_stores(
        pathlib.Path(settings.store_dir),
        dataset.Dataset(settings.dataset, settings.data_dir),
        [number],
        predictor.extractor,
        stride=1,
        purpose="test",
    )
    return predictor.of_stores(kept, number)
