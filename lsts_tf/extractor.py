"""Features of each window of a video: for the stores, and for predictions.

One door: frames reach a network here and nowhere else, so that what was
trained on is what is served. A frame is uint8 RGB [H, W, 3]; a feature is
float32 [5, 5, 5, 1024] for 79 frames (`i3d.feature_shape`), Mixed_5c after
average pooling, and belongs to the window of its target.

`Extractor` computes; `Stores` says where its results are kept, and `fill`
computes what is missing there, video by video.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import operator
import pathlib
import time
from typing import Any

from absl import logging
import keras
import numpy as np
import tensorflow as tf
import tqdm

from lsts_tf import dataset
from lsts_tf import flow as flow_lib
from lsts_tf import i3d
from lsts_tf import i3d_weights
from lsts_tf import preprocess
from lsts_tf import sliding_i3d
from lsts_tf import stores
from lsts_tf import windows

# Frames that are prepared and pushed at a time.
CHUNK = 8
# File of a run folder: what its features come from.
DESCRIPTION = "front_end.json"


_PREPARE: Mapping[str, Callable[[Any], Any]] = {
    "rgb": preprocess.rgb,
    "flow": preprocess.flow,
}


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
        seed: Seed of random weights.
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
        seed: int = 0,
    ) -> None:
        windows.check_streams(streams)
        self.streams = tuple(streams)
        self.window = window
        self.front_end = front_end
        self.dtype = dtype
        self.flow = flow_lib.Flow(flow)
        self.networks: dict[str, keras.Model] = {}
        self.weights: dict[str, i3d_weights.Weights] = {}
        for stream in self.streams:
            channels = i3d_weights.CHANNELS[stream]
            network = i3d.build(channels, name=f"i3d_{stream}")
            self.weights[stream] = i3d_weights.load(
                network, stream, sources[stream], seed=seed
            )
            self.networks[stream] = network
        self._sliding: dict[tuple[str, int], sliding_i3d.SlidingI3D] = {}
        self._alone: dict[str, Callable[[np.ndarray], tf.Tensor]] = {}

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """Shape of a feature, [5, 5, 5, 1024] for 79 frames."""
        return i3d.feature_shape(self.window)

    @property
    def note(self) -> str:
        """What every picture and score has to say of the weights, or ""."""
        random = [s for s in self.streams if self.weights[s].is_random]
        return f"random I3D weights ({', '.join(random)})" if random else ""

    def describe(self) -> dict[str, Any]:
        """What a model's features come from; stands in its run folder."""
        return {
            "window": self.window,
            "front_end": self.front_end,
            "dtype": self.dtype,
            "streams": {s: self._describe(s) for s in self.streams},
        }

    def _describe(self, stream: str) -> dict[str, Any]:
        weights = self.weights[stream]
        found = {
            "weights": weights.source,
            "weights_sha256": weights.checksum,
            "weights_random": weights.is_random,
            "preprocessing": preprocess.DESCRIPTION[stream],
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
        """
        each = {"rgb": preprocess.squeeze, "flow": flow_lib.gray}
        return {stream: each[stream](frame) for stream in self.streams}

    def flows(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Flows 1 … T - 1 of T frames: float16 [112, 112, 2], as stored."""
        yield from self._flows(map(flow_lib.gray, frames))

    def _flows(self, grays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for flow in self.flow.pairs(grays):
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
        mixed = self.networks[stream](_PREPARE[stream](clip)[None])
        return i3d.pool(mixed)[0]

    def features(
        self,
        stream: str,
        signal: Iterable[np.ndarray],
        *,
        stride: int = 1,
        length: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Features of the windows of one stream's signal.

        Args:
            stream: "rgb" or "flow".
            signal: Squeezed frames, uint8 [224, 224, 3]; or flows, float16
                [112, 112, 2].
            stride: Distance between windows.
            length: Number of elements of the signal, if known. A signal of
                few windows is then computed window by window, where that is
                less work than sharing.

        Yields:
            float32 [5, 5, 5, 1024]: first of the window that ends with the
            signal's element number `window` - 1, then each `stride` on.
        """
        sliding = self._slide(stream, stride)
        if length is not None and self._is_short(
            stream, sum(sliding.costs.values()), length, stride
        ):
            yield from self._each_window(stream, signal, stride)
            return
        signal = iter(signal)
        while chunk := list(itertools.islice(signal, CHUNK)):
            prepared = np.asarray(_PREPARE[stream](np.stack(chunk)))
            yield from sliding.push(prepared)
        yield from sliding.finish()

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
        alone = sum(i3d.multiply_adds(self.window, channels).values())
        count = max(length - self.window, -1) // stride + 1
        return count * alone < shared_cost * length / stride

    def _each_window(
        self, stream: str, signal: Iterable[np.ndarray], stride: int
    ) -> Iterator[np.ndarray]:
        if stream not in self._alone:
            self._alone[stream] = tf.function(
                functools.partial(self.encode, stream)
            )
        recent: collections.deque[np.ndarray] = collections.deque(
            maxlen=self.window
        )
        for index, element in enumerate(signal):
            recent.append(element)
            first, since = self.window - 1, index - self.window + 1
            if index >= first and since % stride == 0:
                yield self._alone[stream](np.stack(recent)).numpy()

    def _slide(self, stream: str, stride: int) -> sliding_i3d.SlidingI3D:
        key = (stream, stride)
        if key not in self._sliding:
            self._sliding[key] = sliding_i3d.SlidingI3D(
                self.networks[stream],
                window=self.window,
                stride=stride,
                front_end=self.front_end,
                dtype=self.dtype,
                compile=tf.function,
            )
        self._sliding[key].reset()
        return self._sliding[key]

    def of_clip(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        stride: int = 1,
        length: int | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Features of every window of a clip, in one pass.

        Args:
            prepared: Frames from `prepare`, frame 0 first. At most some tens
                of them are held at a time.
            stride: Distance between windows.
            length: Number of frames, if known; see `features`.

        Yields:
            (target, {stream: float32 [5, 5, 5, 1024]}).
        """
        geometry = windows.Geometry.of(
            self.streams, length=self.window, stride=stride
        )
        copies = itertools.tee(prepared, len(self.streams))
        found = {}
        for stream, copy in zip(self.streams, copies, strict=True):
            signal: Iterator[np.ndarray] = map(
                operator.itemgetter(stream), copy
            )
            if stream == "flow":
                signal = self._flows(signal)
            else:
                # Two streams see the same frames: from the first flow's on.
                signal = itertools.islice(signal, geometry.first, None)
            found[stream] = self.features(
                stream,
                signal,
                stride=stride,
                length=None if length is None else length - geometry.first,
            )
        each = zip(*found.values(), strict=False)
        for place, features in enumerate(each):
            target = geometry.first_target + place * stride
            yield target, dict(zip(found, features, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stores:
    """The stores of one dataset, one extractor and one stride.

    Attributes:
        truth: Density and fixation maps of every frame.
        flow: Flows; None where no stream needs them.
        features: Features of each stream.
        geometry: Which windows have features, for each stream.
    """

    truth: stores.TruthStore
    flow: stores.Store | None
    features: Mapping[str, stores.Store]
    geometry: Mapping[str, windows.Geometry]


def open_stores(
    root: pathlib.Path,
    *,
    dataset_name: str,
    extractor: Extractor,
    stride: int,
) -> Stores:
    """Open or make the stores in `root`.

    RGB features at stride 1 start with the first window that RGB alone has,
    and so serve LSTS-RGB and LSTS-RGB&Flow.

    Raises:
        ValueError: A store there was made with something else.
    """
    folder = pathlib.Path(root) / dataset_name.replace(":", "-")
    truth = stores.TruthStore.create(
        folder / "truth",
        stores.Manifest(
            kind="truth", dataset=dataset_name, shape=(), dtype="uint8"
        ),
    )
    flow = None
    if "flow" in extractor.streams:
        flow = stores.Store.create(
            folder / "flow",
            stores.Manifest(
                kind="flow",
                dataset=dataset_name,
                shape=(flow_lib.SIZE, flow_lib.SIZE, 2),
                dtype="float16",
                details={"flow": extractor.flow.describe()},
            ),
        )
    features, geometry = {}, {}
    for stream in extractor.streams:
        sharing = (stream,) if stride == 1 else extractor.streams
        geometry[stream] = windows.Geometry.of(
            sharing, length=extractor.window, stride=stride
        )
        details = extractor.describe() | extractor.describe()["streams"][stream]
        del details["streams"]
        details |= {"stride": stride, "first": geometry[stream].first}
        place = f"{stream}-{extractor.front_end}{extractor.window}"
        if stride > 1:
            place += f"-stride{stride}-first{geometry[stream].first}"
        features[stream] = stores.Store.create(
            folder / place,
            stores.Manifest(
                kind="features",
                dataset=dataset_name,
                shape=extractor.feature_shape,
                dtype="float16",
                details=details,
            ),
        )
    return Stores(truth=truth, flow=flow, features=features, geometry=geometry)


def ready_stores(
    root: pathlib.Path,
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: Extractor,
    *,
    stride: int,
    purpose: str,
) -> Stores:
    """Open the stores in `root` and compute what they lack; see `fill`."""
    kept = open_stores(
        root, dataset_name=data.name, extractor=extractor, stride=stride
    )
    fill(data, numbers, extractor, kept, purpose=purpose)
    return kept


class ExtractionError(RuntimeError):
    """Some videos failed; the others are in the stores."""


def fill(
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: Extractor,
    kept: Stores,
    *,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos.

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
        OSError: The disk is too small, said before the work starts.
    """
    missing = [n for n in numbers if _missing(n, kept)]
    if not missing:
        return
    _require_disk(data, missing, kept)
    failures: dict[int, str] = {}
    total = sum(data.frame_counts[n] for n in missing)
    logging.info(
        "Extracting %s of %d videos, %d frames, for %s.",
        " and ".join(extractor.streams),
        len(missing),
        total,
        purpose,
    )
    with tqdm.tqdm(
        total=total, desc=purpose, unit="frame", mininterval=1.0
    ) as bar:
        for video in data.videos(missing):
            start = time.perf_counter()
            try:
                extract_video(video, extractor, kept)
            except (ValueError, RuntimeError) as error:
                logging.error("Video %d: %s", video.number, error)
                failures[video.number] = str(error)
            bar.set_postfix(
                video=video.number, seconds=time.perf_counter() - start
            )
            bar.update(video.num_frames)
    if failures:
        raise ExtractionError(
            f"{len(failures)} of {len(missing)} videos failed; the others are "
            "stored. "
            + "; ".join(f"video {n}: {text}" for n, text in failures.items())
        )


def extract_video(
    video: dataset.Video, extractor: Extractor, kept: Stores
) -> None:
    """Compute and store what is missing of one video.

    Idempotent: what is stored stays as it is, so that workers of any engine
    may die and try again.

    Raises:
        ValueError: The video has no window, or no annotation.
    """
    number = video.number
    if number not in kept.truth:
        if not video.annotated:
            raise ValueError(
                f"Video {number} has no annotation, so nothing can be trained "
                "on it or scored. Choose other videos."
            )
        kept.truth.write(number, maps=video.maps, fixations=video.fixations)
    if kept.flow is not None and number not in kept.flow:
        with kept.flow.writer(
            number, count=video.num_frames - 1, first=1
        ) as writer:
            for flow in extractor.flows(video.frames()):
                writer.append(flow[None])
    for stream, store in kept.features.items():
        if number in store:
            continue
        geometry = kept.geometry[stream]
        targets = geometry.targets(video.num_frames)
        if not targets:
            raise ValueError(
                f"Video {number} has {video.num_frames} frames, fewer than "
                f"the {geometry.first_target + 1} that one window needs. "
                "Lower --window, or leave it out."
            )
        with store.writer(
            number,
            count=len(targets),
            first=targets.start,
            step=targets.step,
        ) as writer:
            signal = _signal(stream, video, kept, geometry)
            for feature in extractor.features(
                stream,
                signal,
                stride=geometry.stride,
                length=video.num_frames - geometry.first,
            ):
                writer.append(feature[None])


def _signal(
    stream: str,
    video: dataset.Video,
    kept: Stores,
    geometry: windows.Geometry,
) -> Iterator[np.ndarray]:
    """What I3D sees of a video, from the geometry's first frame on."""
    if stream == "rgb":
        frames = itertools.islice(video.frames(), geometry.first, None)
        yield from map(preprocess.squeeze, frames)
    elif kept.flow is not None:
        rows = range(kept.flow.length(video.number))
        for start in range(0, len(rows), CHUNK):
            chosen = list(rows[start : start + CHUNK])
            yield from kept.flow.read(video.number, chosen)


def _missing(number: int, kept: Stores) -> bool:
    wanted = [kept.truth, kept.flow, *kept.features.values()]
    return any(s is not None and number not in s for s in wanted)


def _require_disk(
    data: dataset.Dataset, numbers: Sequence[int], kept: Stores
) -> None:
    """Raise OSError unless everything that is missing fits on the disk."""
    needed = 0
    for number in numbers:
        frames = data.frame_counts[number]
        if kept.flow is not None and number not in kept.flow:
            needed += (frames - 1) * kept.flow.record_bytes
        for stream, store in kept.features.items():
            if number not in store:
                count = len(kept.geometry[stream].targets(frames))
                needed += count * store.record_bytes
    stores.require_free(
        kept.truth.root,
        needed,
        f"the flows and features of {len(numbers)} videos",
    )
