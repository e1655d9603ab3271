"""What a training left in its run folder."""

import json
import pathlib

import numpy as np
from tensorboard.backend.event_processing import plugin_event_accumulator

from lsts_tf.features import dataset, fill
from lsts_tf.media import images


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


def put_events_first(folder, place=0):
    """Lets TensorBoard read a folder's newest events before later ones.

    It reads files by their names, which are in order from one second to the
    next, but not within one.
    """
    (written,) = folder.glob("events*")
    written.rename(folder / f"{place}.tfevents")


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


def assert_straight_is_scored(settings, predictor, number=601):
    """A video's maps from its frames are those from the stores; its frames."""
    data = dataset.Dataset(settings.dataset, settings.data_dir)
    (video,) = data.videos([number])
    frames = list(video.frames())
    scored = scored_maps(settings, predictor, number)
    straight = np.stack(list(predictor.maps(frames, first_frames="copy")))
    assert straight.shape == scored.shape == (20, 360, 640)
    # Features are stored in half precision.
    difference = images.to_uint8(straight).astype(int) - scored
    assert np.abs(difference).max() <= 2
    return frames
