"""Curves and pictures of a run, for TensorBoard.

A picture shows, from left to right: the frame, where people looked, where the
model says they look, and that drawn over the frame. Frames are uint8 RGB
[H, W, 3]; maps are [360, 640] in [0, 1].
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import itertools
import os
import pathlib
import platform
import time
from typing import Any

import keras
import numpy as np
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api as hparams
import tensorflow as tf

from lsts_tf.features import dataset
from lsts_tf.media import draw as overlay
from lsts_tf.media import files
from lsts_tf.training import checkpoints


class Monitor:
    """Writes one run's events.

    Args:
        folder: Folder of the events; None: nothing is written.
        first_step: Step that the run starts from or goes on at. What was
            logged after it, before a kill, is removed from the files.
        note: Said on every picture, such as "random I3D weights".
        again: Which tags are logged again at `first_step` itself, so that
            they are removed from there, too; None: none.

    Everything that writes, from here to `close`, raises
    `checkpoints.StoppedError` where it cannot.

    Attributes:
        has_graph: Whether there is something under Graphs already.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        first_step: int,
        note: str = "",
        again: Callable[[str], bool] | None = None,
    ) -> None:
        self._note = note
        self._folder = folder
        self._failed = False
        self.has_graph = False
        with self._writing():
            self._writer = tf.summary.create_noop_writer()
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self.has_graph = _keep_until(folder, first_step, again)
                self._writer = tf.summary.create_file_writer(str(folder))

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        """What is logged inside is of this step."""
        try:
            with checkpoints.writing(self._folder or pathlib.Path()):
                if step is None:
                    yield
                else:
                    with self._writer.as_default(step=step):
                        yield
        except checkpoints.StoppedError:
            self._failed = True
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name."""
        with self._writing(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

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
        self.has_graph = True
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
        with self._writing():
            self._writer.flush()
            if self._folder is not None:
                for path in self._folder.glob("*tfevents*"):
                    files.sync(path)
                files.sync(self._folder)

    def close(self) -> None:
        """Flush and close; nothing where writing has failed already."""
        if self._failed:
            return
        with self._writing():
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
    data: dataset.Dataset, chosen: Sequence[tuple[dataset.Key, int]]
) -> list[np.ndarray]:
    """Frames of (video, frame) pairs, uint8 [H, W, 3], in that order."""
    found: dict[tuple[dataset.Key, int], np.ndarray] = {}
    numbers = {video for video, _ in chosen}
    for video in data.videos(numbers):
        wanted = {t for v, t in chosen if v == video.number}
        last = max(wanted) + 1
        frames = itertools.islice(video.frames(), last)
        for index, frame in enumerate(frames):
            if index in wanted:
                found[video.number, index] = frame
    return [found[video, int(target)] for video, target in chosen]


class Profile:
    """Profiles a few steps, for TensorBoard's profile page.

    Args:
        folder: Folder of the events.
        first: Step before which it begins.
        count: Steps; 0: none.
    """

    def __init__(self, folder: pathlib.Path, *, first: int, count: int) -> None:
        self._folder = folder
        self._first = first
        self._last = first + count
        self._runs = False

    def before(self, step: int) -> None:
        """Called before each step, by its number."""
        if step == self._first < self._last:
            tf.profiler.experimental.start(str(self._folder))
            self._runs = True
        elif step == self._last:
            self.close()

    def close(self) -> None:
        """Write what was profiled."""
        if self._runs:
            self._runs = False
            with checkpoints.writing(self._folder):
                tf.profiler.experimental.stop()


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


def _keep_until(
    folder: pathlib.Path, step: int, again: Callable[[str], bool] | None
) -> bool:
    """Leave of the events those up to `step`, each once, in one file.

    A killed run has logged more than its last checkpoint knows, and says it
    again when it goes on. Returns whether a graph is among them.
    """
    paths = sorted(folder.glob("*tfevents*"))
    if not paths:
        return False
    name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{step}"
    seen: set[Any] = set()
    with (
        files.replacing(folder / name, lasting=True) as temporary,
        tf.io.TFRecordWriter(str(temporary)) as writer,
    ):
        for record in itertools.chain.from_iterable(
            event_file_loader.RawEventFileLoader(str(path)).Load()
            for path in paths
        ):
            event = event_pb2.Event.FromString(record)
            what = event.WhichOneof("what")
            tags = tuple(value.tag for value in event.summary.value)
            if (event.step, what, tags) in seen or _is_said_again(event, step):
                continue
            if again and event.step == step and any(map(again, tags)):
                continue
            seen.add((event.step, what, tags))
            writer.write(record)
    for path in paths:
        if path.name != name:
            path.unlink()
    return any(what == "graph_def" for _, what, _ in seen)


def _is_said_again(event: event_pb2.Event, step: int) -> bool:
    """Whether a run that goes on after `step` logs this event itself."""
    if not event.HasField("summary"):
        return False
    plugins = {v.metadata.plugin_data.plugin_name for v in event.summary.value}
    at_start = event.step == step and "text" in plugins
    return event.step > step or at_start or "hparams" in plugins
