"""Curves and pictures of a run, for TensorBoard.

A picture shows, from left to right: the frame, where people looked, where the
model says they look, and that drawn over the frame. Frames are uint8 RGB
[H, W, 3]; maps are [360, 640] in [0, 1].
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import pathlib

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import event_file_writer
import tensorflow as tf

from lsts_tf import dataset
from lsts_tf import overlay


class Monitor:
    """Writes one run's events.

    Args:
        folder: Folder of the events.
        first_step: Step that the run starts from or goes on at. What was
            logged from there on, before a kill, disappears from the curves.
        note: Said on every picture, such as "random I3D weights".
    """

    def __init__(
        self, folder: pathlib.Path, *, first_step: int, note: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _purge_from(folder, first_step)
        self._writer = tf.summary.create_file_writer(str(folder))
        self._note = note

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def text(self, step: int, name: str, text: str) -> None:
        """Log a text, shown line by line."""
        with self._writer.as_default(step=step):
            tf.summary.text(name, f"```\n{text}\n```")

    def pictures(
        self,
        step: int,
        frames: Sequence[np.ndarray],
        truths: Iterable[np.ndarray],
        predictions: Iterable[np.ndarray],
    ) -> None:
        """Log a picture for each frame; the same frames over a whole run."""
        each = zip(frames, truths, predictions, strict=True)
        with self._writer.as_default(step=step):
            for number, (frame, truth, prediction) in enumerate(each):
                image = picture(frame, truth, prediction, note=self._note)
                tf.summary.image(f"windows/{number}", image[None])

    def flush(self) -> None:
        """Bring to disk what was logged."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def picture(
    frame: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    note: str = "",
) -> np.ndarray:
    """Frame, truth, prediction and overlay side by side: uint8 RGB.

    The prediction is shown over its own range, because its shape is what one
    wants to see early in training, when all of it is grey.
    """
    low, high = float(prediction.min()), float(prediction.max())
    shown = (prediction - low) / max(high - low, 1e-6)
    over = overlay.blend(frame, shown)
    if note:
        over = overlay.annotate(over, note)
    return overlay.side_by_side(
        frame, overlay.heat(truth), overlay.heat(shown), over
    )


def frames_of(
    data: dataset.Dataset, chosen: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Frames of (video, frame) pairs, uint8 [H, W, 3], in that order."""
    found: dict[tuple[int, int], np.ndarray] = {}
    numbers = {video for video, _ in chosen}
    for video in data.videos(numbers):
        wanted = {t for v, t in chosen if v == video.number}
        last = max(wanted) + 1
        frames = itertools.islice(video.frames(), last)
        for index, frame in enumerate(frames):
            if index in wanted:
                found[video.number, index] = frame
    return [found[int(video), int(target)] for video, target in chosen]


def _purge_from(folder: pathlib.Path, step: int) -> None:
    """Tell TensorBoard that a session starts at `step`.

    It then drops what earlier files of the folder say of this and later
    steps, so that a resumed run has no point twice.
    """
    writer = event_file_writer.EventFileWriter(str(folder))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    writer.add_event(event_pb2.Event(step=step, session_log=start))
    writer.close()
