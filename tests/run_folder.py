"""What a training left in its run folder."""

import json
import pathlib

from tensorboard.backend.event_processing import event_accumulator


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
