"""A trained model, from frames to maps.

A frame is uint8 RGB [H, W, 3]; a map is float32 [360, 640] in [0, 1], one for
each frame. What the frames before the first whole window see is a choice, see
`Predictor.maps`. A model of several targets gives the maps of a window's last
`hop` frames at once, and sees a window each `hop` frames.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
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
from lsts_tf import tuned_i3d  # noqa: F401
from lsts_tf import windows

MODELS = {"last": "model.keras", "best": "best.keras"}
BATCH = 8


class Predictor:
    """Saliency of every frame of a clip.

    Args:
        model: A decoder; see `decoder.build`.
        extractor: The front end that it was trained on.

    Attributes:
        geometry: Its windows, as if there were one for each frame.
        hop: Maps of a window.
        note: What every picture and score has to say of the weights, or "".
        batch: Maps that the decoder computes at a time.
    """

    def __init__(
        self, model: keras.Model, extractor: extractor_lib.Extractor
    ) -> None:
        self.model = model
        self.extractor = extractor
        self.geometry = windows.Geometry.of(
            extractor.streams, length=extractor.window
        )
        shape = model.output_shape
        self.hop = int(shape[1]) if len(shape) == 5 else 1
        self.note = extractor.note
        self.batch = BATCH
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

    @property
    def first_map(self) -> int:
        """First frame of a clip that has a map of its own."""
        return self.geometry.first_target - self.hop + 1

    def of_features(
        self, features: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Maps of windows' targets, of features in order.

        Args:
            features: {stream: [5, 5, 5, 1024]} each, and skips if the model
                takes any, by the names of their parts.
        """
        for maps in self.of_windows(features):
            yield maps[-1]

    def of_windows(
        self, features: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Maps [hop, 360, 640] of windows; arguments as `of_features`."""
        features = iter(features)
        while some := list(itertools.islice(features, self.batch)):
            # One batch size, so that one graph is traced.
            filled = some + some[-1:] * (self.batch - len(some))
            batch = {
                part: np.stack([f[part] for f in filled]).astype(np.float32)
                for part in some[0]
            }
            maps = self._call(batch).numpy()[: len(some), ..., 0]
            yield from maps.reshape(len(some), self.hop, *maps.shape[-2:])

    def maps(
        self,
        frames: Iterable[np.ndarray],
        *,
        first_frames: str = "mirror",
        stride: int = 1,
    ) -> Iterator[np.ndarray]:
        """One map for each frame of a clip of any length.

        Args:
            frames: uint8 [H, W, 3] each. Memory does not grow with their
                number.
            first_frames: What the first 78 (79) frames get, which have no
                whole window: "mirror" plays the clip backwards before its
                start; "repeat" holds the first frame; "copy" gives them the
                first map that exists, as the paper did (section 5.3).
            stride: Each so-manieth frame gets a map; every frame is seen.
                `windows.first_map` says which is the first.

        Raises:
            ValueError: "copy", and the clip is shorter than a window.
        """
        missing = self.first_map
        prepared: Iterator[Mapping[str, np.ndarray]] = map(
            self.extractor.prepare, frames
        )
        copy = first_frames == "copy"
        length = None
        if not copy:
            window = self.geometry.first_target + 1
            head = list(itertools.islice(prepared, max(missing + 1, self.hop)))
            if not head:
                return
            # A clip shorter than a hop needs more before it.
            missing = max(missing, window - len(head))
            if len(head) <= missing:
                length = missing + len(head)
            before = windows.prefix(missing, len(head), first_frames)
            played = (head[index] for index in before)
            prepared = itertools.chain(played, head, prepared)
        # With one map a window only windows that are wanted are computed.
        step = stride if self.hop == 1 else 1
        maps = self._each_map(prepared, length, step)
        if copy:
            first = next(maps, None)
            if first is None:
                raise ValueError(
                    "Copying needs a clip of more than "
                    f"{self.geometry.first_target} frames. Use "
                    "--first_frames=mirror."
                )
            copies = itertools.repeat(first, missing // step + 1)
            maps = itertools.chain(copies, maps)
        else:
            maps = itertools.islice(maps, missing - self.first_map, None)
        if self.hop > 1:
            start = windows.first_map(missing, first_frames, stride)
            maps = itertools.islice(maps, start, None, stride)
        yield from maps

    def _each_map(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        length: int | None,
        step: int,
    ) -> Iterator[np.ndarray]:
        """Maps of a clip's frames from `first_map` on, each `step`-th."""
        if self.hop == 1:
            found = self.extractor.of_clip(prepared, stride=step, length=length)
            yield from self.of_features(features for _, features in found)
            return
        # The last window: hops do not end with every clip.
        recent: collections.deque[Mapping[str, np.ndarray]] = collections.deque(
            maxlen=self.geometry.first_target + 1
        )
        count = 0

        def counted() -> Iterator[Mapping[str, np.ndarray]]:
            nonlocal count
            for element in prepared:
                recent.append(element)
                count += 1
                yield element

        found = self.extractor.of_clip(
            counted(), stride=self.hop, length=length
        )
        given = self.first_map
        for maps in self.of_windows(features for _, features in found):
            yield from maps
            given += self.hop
        if self.first_map < given < count:
            last = self.extractor.of_clip(list(recent), length=len(recent))
            for maps in self.of_windows(features for _, features in last):
                yield from maps[given - count :]

    __call__ = maps


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
