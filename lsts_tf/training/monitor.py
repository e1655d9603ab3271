"""Curves and pictures of a run, for TensorBoard.

A picture shows, from left to right: the frame, where people looked, where the
model says they look, and that drawn over the frame. Frames are uint8 RGB
[H, W, 3]; maps are [360, 640] in [0, 1].
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import platform
from typing import Any

import keras
import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api as hparams
import tensorflow as tf

from lsts_tf.features import dataset
from lsts_tf.media import draw, files
from lsts_tf.training import checkpoints


class Monitor:
    """Writes one run's events.

    Everything that writes raises `checkpoints.StoppedError` where it cannot.

    Args:
        folder: Folder of the events; None: nothing is written.
        first_step: Step that the run starts from or continues at. TensorBoard
            drops what was logged after it, before a kill.
        note: Said on every picture, such as "random I3D weights".
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        first_step: int,
        note: str = "",
    ) -> None:
        self._note = note
        self._folder = folder
        self._writer = tf.summary.create_noop_writer()
        if folder is not None:
            with checkpoints.writing(folder):
                self._writer = tf.summary.create_file_writer(str(folder))
                restart = event_pb2.Event(
                    step=first_step + 1,
                    session_log=event_pb2.SessionLog(
                        status=event_pb2.SessionLog.START
                    ),
                )
                tf.raw_ops.ImportEvent(
                    writer=self._writer._resource,
                    event=restart.SerializeToString(),
                )

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """What is logged inside is of this step."""
        with (
            checkpoints.writing(self._folder or pathlib.Path()),
            tf.summary.record_if(self._folder is not None),
            self._writer.as_default(step=step),
        ):
            yield

    def scalars(
        self, step: int, group: str, values: Mapping[str, float]
    ) -> None:
        """Log numbers by name; those of a group stand side by side."""
        with self._writing(step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)

    def text(self, step: int, name: str, text: str) -> None:
        """Log a text, shown line by line."""
        with self._writing(step):
            tf.summary.text(name, f"```\n{text}\n```")

    def settings(self, step: int, values: Mapping[str, Any]) -> None:
        """Show what defines the run under HParams."""
        shown = {
            name: ",".join(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        with self._writing(step):
            # TensorBoard takes runs of one trial for repetitions of it.
            trial = str((self._folder or pathlib.Path()).resolve())
            hparams.hparams(shown, trial_id=trial, start_time_secs=0.0)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Log the distribution of arrays by name."""
        with self._writing(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def graph(self, graph: tf.Graph) -> None:
        """Show a function's operations under Graphs."""
        with self._writing(0):
            tf.summary.graph(graph)

    def pictures(
        self,
        step: int,
        frames: Sequence[np.ndarray],
        truths: Iterable[np.ndarray],
        predictions: Iterable[np.ndarray],
    ) -> None:
        """Log a picture for each frame; the same frames over a whole run."""
        each = zip(frames, truths, predictions, strict=True)
        with self._writing(step):
            for number, (frame, truth, prediction) in enumerate(each):
                image = picture(frame, truth, prediction, note=self._note)
                tf.summary.image(f"windows/{number}", image[None])

    def flush(self) -> None:
        """Bring to disk what was logged."""
        if self._folder is None:
            return
        with checkpoints.writing(self._folder):
            self._writer.flush()
            for path in self._folder.glob("*tfevents*"):
                files.sync(path)
            files.sync(self._folder)

    def close(self) -> None:
        """Let go of the file; what was not flushed may be lost."""
        # A full disk has been told of by `flush`, which comes before.
        with contextlib.suppress(OSError, tf.errors.OpError):
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
    shown = draw.heat(draw.stretch(prediction))
    over = draw.annotate(draw.over(frame, prediction), note)
    return draw.side_by_side(frame, draw.heat(truth), shown, over)


def frames_of(
    data: dataset.Dataset, chosen: Sequence[tuple[dataset.Key, int]]
) -> list[np.ndarray]:
    """Frames of (video, frame) pairs, uint8 [H, W, 3], in that order."""
    videos = {v.number: v for v in data.videos({key for key, _ in chosen})}
    pictures: list[np.ndarray] = []
    for key, frame in chosen:
        jpegs = videos[key].jpegs[frame : frame + 1]
        pictures += dataclasses.replace(videos[key], jpegs=jpegs).frames()
    return pictures


def environment() -> str:
    """What the run runs on, line by line."""
    found = [
        f"python {platform.python_version()}",
        f"tensorflow {tf.__version__}",
        f"keras {keras.__version__}",
        f"numpy {np.__version__}",
        f"system {platform.platform()}",
        f"cores {os.cpu_count()}",
        f"threads {tf.config.threading.get_inter_op_parallelism_threads()} "
        f"inter, {tf.config.threading.get_intra_op_parallelism_threads()} "
        "intra (0: as many as cores)",
    ]
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        found.append(f"device {device.name} {details.get('device_name', '')}")
    return "\n".join(found)
