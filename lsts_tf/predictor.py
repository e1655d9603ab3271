"""A trained model, from frames to maps.

A frame is uint8 RGB [H, W, 3]; a map is float32 [360, 640] in [0, 1], one for
each frame. What the frames before the first whole window see is a choice, see
`Predictor.maps`. Three ways lead to the same maps: `Predictor(frames)` for
arrays, `Predictor.maps` for clips of any length, `Predictor.stream` for frames
that are still being made.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import json
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Registered so that saved models load.
from lsts_tf import decoder  # noqa: F401
from lsts_tf import experiment
from lsts_tf import extractor as extractor_lib
from lsts_tf import losses  # noqa: F401
from lsts_tf import optimizers  # noqa: F401
from lsts_tf import windows

MODELS = {"last": "model.keras", "best": "best.keras"}
BATCH = 8


class Predictor:
    """Saliency of every frame of a clip.

    >>> import numpy as np
    >>> import lsts_tf
    >>> predictor = lsts_tf.Predictor.load("workspace/runs/rgb")
    >>> predictor(np.zeros((2, 180, 320, 3), np.uint8)).shape
    (2, 360, 640)

    Args:
        model: A decoder; see `decoder.build`.
        extractor: The front end that it was trained on.

    Attributes:
        note: What every picture and score has to say of the weights, or "".
    """

    def __init__(
        self, model: keras.Model, extractor: extractor_lib.Extractor
    ) -> None:
        self.model = model
        self.extractor = extractor
        self.geometry = windows.Geometry.of(
            extractor.streams, length=extractor.window
        )
        self.note = extractor.note
        self._call = tf.function(
            lambda features: model(features, training=False)
        )

    @classmethod
    def load(
        cls, run_dir: str | pathlib.Path, *, model: str = "last"
    ) -> "Predictor":
        """The model of a run folder.

        Args:
            run_dir: A folder that `train` made.
            model: "last", or "best" for the highest CC in validation.

        Raises:
            FileNotFoundError: There is no trained model.
            ValueError: I3D's weights are not those it was trained on.
        """
        folder = pathlib.Path(run_dir)
        settings = experiment.load(folder / experiment.FLAGFILE)
        path = folder / MODELS[model]
        if not path.is_file():
            raise FileNotFoundError(
                f"No trained model at {path}. Train one with `python -m "
                f"lsts_tf.train --flagfile={folder / experiment.FLAGFILE}`."
            )
        extractor = extractor_lib.Extractor(**settings.front_end_arguments())
        trained_on = json.loads(
            (folder / extractor_lib.DESCRIPTION).read_text()
        )
        _check_front_end(folder, trained_on, extractor.describe())
        return cls(keras.models.load_model(path, compile=False), extractor)

    def of_features(
        self,
        features: Iterable[Mapping[str, np.ndarray]],
        *,
        batch: int = BATCH,
    ) -> Iterator[np.ndarray]:
        """Maps of features, {stream: [5, 5, 5, 1024]} each, in order."""
        features = iter(features)
        while some := list(itertools.islice(features, batch)):
            # One batch size, so that one graph is traced.
            filled = some + some[-1:] * (batch - len(some))
            together = {
                s: np.stack([f[s] for f in filled]).astype(np.float32)
                for s in self.extractor.streams
            }
            yield from self._call(together).numpy()[: len(some), ..., 0]

    def __call__(
        self, frames: Sequence[np.ndarray], *, first_frames: str = "mirror"
    ) -> np.ndarray:
        """Maps of all frames of a clip at once.

        Args:
            frames: uint8 [T, H, W, 3].
            first_frames: See `maps`.

        Returns:
            float32 [T, 360, 640].

        Raises:
            ValueError: Something else than frames; or as `maps`.
        """
        size = self.model.output_shape[1:3]
        found = np.empty((len(frames), *size), np.float32)
        each = self.maps(frames, first_frames=first_frames)
        for index, saliency in enumerate(each):
            found[index] = saliency
        return found

    def maps(
        self,
        frames: Iterable[np.ndarray],
        *,
        first_frames: str = "mirror",
    ) -> Iterator[np.ndarray]:
        """One map for each frame of a clip of any length.

        Args:
            frames: uint8 [H, W, 3] each. Memory does not grow with their
                number.
            first_frames: What the first 78 (79) frames get, which have no
                whole window: "mirror" plays the clip backwards before its
                start; "repeat" holds the first frame; "copy" gives them the
                first map that exists, as the paper did (section 5.3).

        Raises:
            ValueError: "copy", and the clip is shorter than a window.
        """
        return self._maps(frames, first_frames, None)

    def stream(
        self,
        frames: Iterable[np.ndarray],
        *,
        first_frames: str = "repeat",
        chunk: int = BATCH,
    ) -> Iterator[np.ndarray]:
        """The same for frames that are still being made, with little delay.

        The map of frame n comes before frame n + `delay(chunk)` + 1 is asked
        for. "mirror" and "copy" have to wait for frame 78 (79) first: that
        of frame n < 78 comes when that of frame 78 would. One clip at a time.

        Args:
            frames: See `maps`.
            first_frames: See `maps`.
            chunk: Frames that are computed together. 8 is the fastest; 1 has
                no delay and costs more arithmetic for each frame.

        Raises:
            ValueError: As `maps`, or `chunk` is below 1.
            RuntimeError: Another clip was begun before this one was over.
        """
        if chunk < 1:
            raise ValueError(
                f"A chunk has at least one frame. Received: chunk={chunk}"
            )
        return self._maps(frames, first_frames, chunk)

    def delay(self, chunk: int = BATCH) -> int:
        """How many frames `stream` may ask for before it gives the map of one.

        One less than the chunk. The continuous front end looks ahead, and
        adds that, and again one less than the chunk.
        """
        ahead = self.extractor.delay
        return ahead + (chunk - 1) * (2 if ahead else 1)

    def _maps(
        self, frames: Iterable[np.ndarray], first_frames: str, chunk: int | None
    ) -> Iterator[np.ndarray]:
        missing = self.geometry.first_target
        prepared: Iterator[Mapping[str, np.ndarray]] = map(
            self.extractor.prepare, frames
        )
        live, copy = chunk is not None, first_frames == "copy"
        wait = 0 if live and first_frames == "repeat" else missing
        head = list(itertools.islice(prepared, wait + 1))
        if copy and len(head) <= missing:
            raise ValueError(
                f"Copying needs a clip of more than {missing} frames. Use "
                "--first_frames=mirror."
            )
        if not head:
            return
        before = (
            () if copy else windows.prefix(missing, len(head), first_frames)
        )
        length = missing + len(head) if len(head) <= wait and not live else None
        # Played before all others, with maps that nobody gets, so that each
        # chunk ends with a frame whose map is due.
        idle = -(self.geometry.length - 1) % chunk if chunk else 0
        played = itertools.chain(
            itertools.repeat(head[0], idle),
            (head[index] for index in before),
            head,
            prepared,
        )
        found = self.extractor.of_clip(played, length=length, chunk=chunk)
        maps = self.of_features(
            (features for _, features in itertools.islice(found, idle, None)),
            batch=chunk or BATCH,
        )
        if copy:
            first = next(maps)
            maps = itertools.chain(itertools.repeat(first, missing + 1), maps)
        yield from maps


def _check_front_end(folder: pathlib.Path, trained_on: Any, now: Any) -> None:
    if trained_on != json.loads(json.dumps(now)):
        raise ValueError(
            f"The model in {folder} was trained on the features of "
            f"{_short(trained_on)}; what can be had now is {_short(now)}. "
            "Give it the same by --rgb_weights and --flow_weights."
        )


def _short(description: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{stream} {part['weights']} ({part['weights_sha256'][:12]})"
        for stream, part in description["streams"].items()
    )
