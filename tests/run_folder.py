"""What a training left in its run folder."""

import json
import pathlib

from tensorboard.backend.event_processing import plugin_event_accumulator

from lsts_tf.features import dataset, fill


def records(settings):
    path = pathlib.Path(settings.run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(settings):
    return events(pathlib.Path(settings.run_dir) / "logs")


def events(folder):
    """As TensorBoard loads them."""
    found = plugin_event_accumulator.EventAccumulator(
        str(folder), size_guidance={"tensors": 0}
    )
    found.Reload()
    return found


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
