"""A trained model, from frames to maps.

A frame is uint8 RGB [H, W, 3]; a map is float32 [360, 640] in [0, 1], one for
each frame. What the frames before the first whole window see is a choice, see
`Predictor.maps`. Three ways lead to the same maps: `Predictor(frames)` for
arrays, `Predictor.maps` for clips of any length, `Predictor.stream` for frames
that are still being made. A model of several targets gives the maps of a
window's last `hop` frames at once, and sees a window each `hop` frames.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import pathlib
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import experiment, parts, windows
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import images
from lsts_tf.networks import decoder

if TYPE_CHECKING:
    from lsts_tf.features import fill

BATCH = 4


class Predictor:
    """Saliency of every frame of a clip.

    >>> import numpy as np
    >>> import lsts_tf
    >>> predictor = lsts_tf.Predictor.load()
    >>> predictor(np.zeros((2, 180, 320, 3), np.uint8)).shape
    (2, 360, 640)

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
        self, model: keras.Model, extractor: front_end_lib.FrontEnd
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
        self._call = _compiled(model)

    @classmethod
    def load(
        cls,
        run_dir: str | pathlib.Path = experiment.STARTER,
        *,
        model: str = "last",
        sources: Mapping[str, Sequence[str]] | None = None,
        lookahead: int | None = None,
        batch: int = BATCH,
        dtype: str | None = None,
    ) -> "Predictor":
        """The model of a run folder.

        Args:
            run_dir: A folder that `train` made; "hf://owner/name", one on
                Hugging Face; by default the starter, the trained model that
                comes with the package.
            model: "last", or "best" for the highest CC in validation.
            sources: {stream: sources of I3D's weights}, if they are not
                where the run says; see `i3d_weights.load`.
            lookahead: For live use of a model with --front_end=continuous:
                number of frames that a map waits for, if not for all that it
                sees. Fewer frames give different maps sooner; see `delay`.
            batch: Maps that the decoder computes at a time.
            dtype: Arithmetic of I3D, one of `parts.DTYPES`, if not that of the
                training. Maps then differ slightly.

        Raises:
            FileNotFoundError: There is no trained model.
            ValueError: I3D's weights are not those it was trained on; or a
                lookahead or "int8" for --front_end=window.
        """
        folder = experiment.run_folder(str(run_dir))
        settings = experiment.load(folder / experiment.FLAGFILE)
        path = experiment.model_file(folder, model)
        if not path.is_file() and folder == experiment.STARTER:
            raise FileNotFoundError(
                f"The starter has only the model 'last'. Received: {model!r}"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"No trained model at {path}. Train one with `python -m "
                f"lsts_tf.train --flagfile={folder / experiment.FLAGFILE}`."
            )
        if path.name == experiment.HUB_WEIGHTS:
            path = folder  # Keras reads both of its files.
        arguments = settings.front_end_arguments()
        arguments["sources"] |= dict(sources or {})
        other = {"dtype": dtype} if dtype else {}
        extractor = front_end_lib.load(**arguments | other, lookahead=lookahead)
        trained_on = json.loads(
            (folder / front_end_lib.DESCRIPTION).read_text()
        )
        if differences := front_end_lib.differences(
            trained_on | other, extractor.describe()
        ):
            raise ValueError(
                f"The model in {folder} was trained with a front end that "
                f"differs from the present one: {differences}"
            )
        found = cls(keras.models.load_model(path, compile=False), extractor)
        found.batch = batch
        return found

    @property
    def first_map(self) -> int:
        """First frame of a clip that has a map of its own."""
        return self.geometry.first_target - self.hop + 1

    def of_features(
        self,
        features: Iterable[Mapping[str, np.ndarray]],
        *,
        batch: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Maps [360, 640] of windows' targets, in order, `batch` at a time.

        Features are {stream: [5, 5, 5, 1024]} each, and skips if the model
        takes any, by the names of their parts.
        """
        return (maps[-1] for maps in self.of_windows(features, batch=batch))

    def of_windows(
        self,
        features: Iterable[Mapping[str, np.ndarray]],
        *,
        batch: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Maps [hop, 360, 640] of windows; arguments as `of_features`."""
        return self._each(features, batch or self.batch, self._call)

    def _each(
        self,
        features: Iterable[Mapping[str, np.ndarray]],
        size: int,
        call: Callable[[Any], Any],
    ) -> Iterator[np.ndarray]:
        features = iter(features)
        while some := list(itertools.islice(features, size)):
            # One batch size, so that one graph is traced.
            filled = some + some[-1:] * (size - len(some))
            together = {
                part: np.stack([f[part] for f in filled]).astype(np.float32)
                for part in some[0]
            }
            maps = call(together).numpy()[: len(some), ..., 0]
            yield from maps.reshape(len(some), self.hop, *maps.shape[-2:])

    def __call__(
        self,
        frames: np.ndarray | Sequence[np.ndarray],
        *,
        first_frames: str = "repeat",
    ) -> np.ndarray:
        """Maps of all frames of a clip at once; see `maps`.

        From uint8 [T, H, W, 3] to float32 [T, 360, 640], fewer with "skip".

        Raises:
            ValueError: Something else than frames; or as `maps`.
        """
        size = self.model.output_shape[-3:-1]
        each = self.maps(frames, first_frames=first_frames)
        kind = np.dtype((np.float32, size))
        count = -1 if first_frames == "skip" else len(frames) or -1
        return np.fromiter(each, kind, count=count)

    def maps(
        self,
        frames: Iterable[np.ndarray],
        *,
        first_frames: str = "repeat",
        stride: int = 1,
    ) -> Iterator[np.ndarray]:
        """One map for each frame of a clip of any length.

        Args:
            frames: uint8 [H, W, 3] each. Memory does not grow with their
                number.
            first_frames: What the first 78 (79) frames get, which have no
                whole window: "repeat" holds the first frame; "mirror" plays
                the clip backwards before its start; "copy" gives them the
                first map that exists, as the paper did (section 5.3);
                "skip" leaves them out.
            stride: Predict every Nth frame; every frame is seen.
                `windows.first_map` says which one is the first.

        Raises:
            ValueError: "copy" or "skip", and no window fits into the clip.
        """
        missing = self.first_map
        prepared: Iterator[Mapping[str, np.ndarray]] = map(
            self.extractor.prepare, frames
        )
        # With one map a window only windows that are wanted are computed.
        step = stride if self.hop == 1 else 1
        if first_frames in ("copy", "skip"):
            maps = self._of_clip(prepared, step)
            first = next(maps, None)
            if first is None:
                raise ValueError(
                    "--first_frames=copy and skip need a frame with a "
                    "complete window, so a clip of more than "
                    f"{self.geometry.first_target} frames. Received: a shorter "
                    "one; use --first_frames=mirror."
                )
            is_left_out = first_frames == "skip" and self.hop == 1
            copies = 0 if is_left_out else missing // step
            maps = itertools.chain(itertools.repeat(first, copies + 1), maps)
        else:
            window = self.geometry.first_target + 1
            starts_still = first_frames == "repeat" and self.hop == 1
            # Two tell a still from a video.
            enough = 2 if starts_still else max(missing + 1, self.hop)
            head = list(itertools.islice(prepared, enough))
            if not head:
                return
            # A clip shorter than a hop needs more before it.
            missing = max(missing, window - len(head))
            starts_still |= len(head) == 1
            before: Sequence[int] = ()
            if not starts_still:
                before = windows.prefix(missing, len(head), first_frames)
            length = len(before) + len(head) if len(head) < enough else None
            played = (head[index] for index in before)
            maps = self._of_clip(
                itertools.chain(played, head, prepared),
                step,
                length=length,
                starts_still=starts_still,
            )
            maps = itertools.islice(maps, missing - self.first_map, None)
        if self.hop > 1:
            start = windows.first_map(missing, first_frames, stride)
            maps = itertools.islice(maps, start, None, stride)
        yield from maps

    def stream(
        self, frames: Iterable[np.ndarray], *, chunk: int = BATCH
    ) -> Iterator[np.ndarray]:
        """The same for frames that are still being made, with little delay.

        The first frame is held, as by "repeat". The map of frame n comes
        before frame n + `delay(chunk)` + 1 is asked for. One clip at a time.

        Args:
            frames: See `maps`.
            chunk: Frames that are computed together. 4 is the fastest; 1 has
                no delay and costs more arithmetic for each frame.

        Raises:
            ValueError: `chunk` is below 1; something else than frames; or the
                model gives the maps of several frames at once.
            RuntimeError: Another clip was begun before this one was over.
        """
        if chunk < 1:
            raise ValueError(
                f"A chunk has at least one frame. Received: chunk={chunk}"
            )
        if self.hop > 1:
            raise ValueError(
                f"This model gives {self.hop} maps at once, which is too late "
                "for a stream. Use `maps`."
            )
        maps = self._windows_of(
            map(self.extractor.prepare, frames),
            batch=chunk,
            chunk=chunk,
            starts_still=True,
        )
        return (each[-1] for each in maps)

    def delay(self, chunk: int = BATCH) -> int:
        """How many frames `stream` may ask for before it gives the map of one.

        One less than the chunk. The continuous front end looks ahead, and
        adds that, and again one less than the chunk.
        """
        ahead = self.extractor.delay
        return ahead + (chunk - 1) * (2 if ahead else 1)

    def _of_clip(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        step: int,
        *,
        length: int | None = None,
        starts_still: bool = False,
    ) -> Iterator[np.ndarray]:
        """Maps of a clip's windows in order, each `step`-th."""
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

        found = self._windows_of(
            prepared if self.hop == 1 else counted(),
            stride=step * self.hop,
            length=length,
            starts_still=starts_still,
        )
        given = self.first_map
        for maps in found:
            yield from maps
            given += self.hop
        if self.first_map < given < count:
            last = self._windows_of(list(recent), length=len(recent))
            for maps in last:
                yield from maps[given - count :]

    def _windows_of(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        batch: int | None = None,
        **arguments: Any,
    ) -> Iterator[np.ndarray]:
        """Maps of a clip's windows; arguments as of `FrontEnd.of_clip`."""
        projections, rest = self._halves
        found = self.extractor.of_clip(
            prepared, projections=projections, **arguments
        )
        features = (each for _, each in found)
        return self._each(features, batch or self.batch, rest)

    @functools.cached_property
    def _halves(
        self,
    ) -> tuple[dict[str, Callable[[Any], Any]], Callable[[Any], Any]]:
        """The decoder in two, for clips, whose skips wait for the features.

        What it makes of each skip alone, which waits because it is smaller, and
        what it makes of these and of the features.
        """
        if not self.extractor.skip_shapes:
            return {}, self._call
        skips = [
            parts.name(stream, skip)
            for stream in self.extractor.streams
            for skip in self.extractor.skip_shapes
        ]
        own, rest = decoder.split(self.model, skips)
        return {k: _compiled(v) for k, v in own.items()}, _compiled(rest)

    def of_stores(self, kept: "fill.Stores", video: Any) -> np.ndarray:
        """Maps of every frame of a video whose features are stored.

        Returns:
            uint8 [T, 360, 640]; the frames before the first window carry a
            copy of its map, and short clips are mirrored where the stores'
            are.
        """
        short = next(iter(kept.geometry.values())).short
        geometry = dataclasses.replace(self.geometry, short=short)
        hops = geometry.hops(kept.truth.length(video), self.hop)
        rows = {
            part: {int(t): row for row, t in enumerate(store.targets(video))}
            for part, store in kept.features.items()
        }
        features = (
            {
                part: store.read(video, [rows[part][target]])[0]
                for part, store in kept.features.items()
            }
            for target, _ in hops
        )
        found: list[np.ndarray] = []
        for (_, frames), maps in zip(
            hops, self.of_windows(features), strict=True
        ):
            found.extend(images.to_uint8(maps[-len(frames) :]))
        return np.stack([found[0]] * hops[0][1].start + found)


def _compiled(model: Any) -> Callable[[Any], Any]:
    """A model as a function, in inference."""

    def call(inputs: Any) -> Any:
        exact = tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), inputs)
        return model(exact, training=False)

    return tf.function(call, autograph=False)
