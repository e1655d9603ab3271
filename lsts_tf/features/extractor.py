"""I3D as a front end: Mixed_5c of every window, after average pooling.

A window of 79 frames has features [5, 5, 5, 1024] (`i3d.feature_shape`).
`--front_end=window` computes each window as if it were alone, sharing what
windows have in common where that changes nothing; `--front_end=continuous`
is I3D once over the whole video, see `sliding_i3d`. Skips are earlier end
points, see `parts`. Sizes below are those of 224 x 224.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import gc
import itertools
import math
from typing import Any

from absl import logging
import keras
import numpy as np
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.features import eight_bits, front_end, preprocess
from lsts_tf.features import flow as flow_lib
from lsts_tf.networks import i3d, i3d_weights, tuned_i3d
from lsts_tf.networks.sliding import network as sliding_i3d

# Elements of a signal that are prepared and pushed at a time.
CHUNK = 4
# Frames of a step of I3D where that is on a GPU; see docs/performance.md.
_GPU_CHUNK = 32


class Extractor(front_end.FrontEnd):
    """I3D over every window of a video, for one or two streams.

    Args that `FrontEnd` does not have:
        sources: Sources of I3D's weights for each stream, in order of
            preference, see `i3d_weights.load`; None to ask for shapes alone.
        dtype: One of `parts.DTYPES`: the arithmetic of I3D. "int8" needs
            "continuous", see `eight_bits`; photographs, and the start of a
            clip that did not stand still before, are computed in float32.
        skips: End points wanted beside Mixed_5c, some of `parts.SKIPS`.
        end_point: Whose activations are the main part: Mixed_5c, pooled, or
            one in front of layers that are trained, as it is.
        lookahead: For live use of "continuous": frames beyond a window that
            are waited for; None for all that it sees. It is left out of
            `describe`, because a model trained with all may be served with
            less.
        seed: Seed of random weights.

    Raises:
        ValueError: An unknown choice; or a lookahead with "window".
    """

    def __init__(
        self,
        streams: Sequence[str],
        *,
        window: int,
        sources: Mapping[str, Sequence[str]] | None,
        name: str = "window",
        dtype: str = "float32",
        flow: str = "tvl1",
        size: tuple[int, int] = parts.SIZE,
        skips: Sequence[str] = (),
        end_point: str = parts.MAIN,
        lookahead: int | None = None,
        seed: int = 0,
    ) -> None:
        sliding_i3d.check_front_end(name, lookahead)
        if dtype == "int8" and name == "window":
            raise ValueError(
                "Only --front_end=continuous can be computed in int8. "
                f"Received: dtype={dtype}, front_end={name}"
            )
        parts.check_skips(skips)
        i3d.check_order(skips, end_point)
        super().__init__(
            streams, window=window, name=name, size=size, flow=flow
        )
        if flow == "dis" and "flow" in streams:
            _warn_of_dis()
        self.dtype = dtype
        self.skips = tuple(skips)
        self.end_point = end_point
        self.lookahead = lookahead
        self._sources = sources
        self._seed = seed
        self.weights: dict[str, i3d_weights.Weights] = {}
        self._networks: dict[str, keras.Model] = {}
        self._ends: dict[str, keras.Model] = {}
        for stream in self.streams:
            self.network(stream)
        self._sliding: dict[tuple[str, int], sliding_i3d.SlidingI3D] = {}
        # Whose turn it is to push into one of them.
        self._turns: dict[tuple[str, int], object] = {}
        self._stills: dict[str, Callable[[Any], dict]] = {}

    def network(self, stream: str) -> keras.Model:
        """I3D of a stream, loaded again if it was let go (`_shared`)."""
        if stream not in self._networks:
            height, width = self.size
            network = i3d.build(
                i3d_weights.CHANNELS[stream],
                height=height,
                width=width,
                name=f"i3d_{stream}",
            )
            if self._sources is not None:
                self.weights[stream] = i3d_weights.load(
                    network, stream, self._sources[stream], seed=self._seed
                )
            self._networks[stream] = network
        return self._networks[stream]

    @property
    def decoder_shape(self) -> tuple[int, int, int, int]:
        """Shape of what a decoder reads, behind layers that are trained."""
        return i3d.feature_shape(self.window, *self.size)

    def tuned(
        self, first: str, *, rate: float, dtype: str
    ) -> dict[str, keras.Model]:
        """{stream: I3D from `first` on}; see `tuned_i3d.build`."""
        return {
            stream: tuned_i3d.build(
                self.network(stream),
                first,
                frames=self.window,
                rate=rate,
                dtype=dtype,
            )
            for stream in self.streams
        }

    @property
    def skip_shapes(self) -> dict[str, tuple[int, int, int]]:
        """{end point: [rows, columns, channels]} of the skips."""
        return i3d.skip_shapes(self.skips, self.window, *self.size)

    def part_shapes(self, stream: str) -> dict[str, tuple[int, ...]]:
        """{name of a part: its shape} of one stream; the main part first."""
        main = self.decoder_shape
        if not self._is_pooled:
            main = i3d.shapes(self.window, *self.size)[self.end_point]
        skips = self.skip_shapes.items()
        return {stream: main, **{parts.name(stream, k): v for k, v in skips}}

    @property
    def note(self) -> str:
        """What every picture and score has to say of the weights, or ""."""
        random = [s for s in self.streams if self.weights[s].is_random]
        return f"random I3D weights ({', '.join(random)})" if random else ""

    def store_name(self, part: str) -> str:
        """Name of the folder in which the features of a part are stored."""
        end = "" if self._is_pooled else f"-{self.end_point}"
        return super().store_name(part) + end

    def describe(self) -> dict[str, Any]:
        """What a model's features come from; stands in its run folder.

        What is as published is not said, so that descriptions stay true
        when there are new choices.
        """
        found: dict[str, Any] = {
            "window": self.window,
            "front_end": self.name,
            "dtype": self.dtype,
        }
        if self.name == "continuous":
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

    def _in_range(self, stream: str, elements: Any) -> Any:
        """Frames or flows as I3D reads them."""
        if stream == "rgb":
            return preprocess.rgb(elements)
        return preprocess.flow(elements, self.size)

    @property
    def _is_pooled(self) -> bool:
        return self.end_point == parts.MAIN

    def encode_parts(self, stream: str, clip: Any) -> dict[str, Any]:
        """Features of one window; see `FrontEnd.encode_parts`."""
        if stream not in self._ends:
            with tf.init_scope():  # This may be traced.
                self._ends[stream] = i3d.at(
                    self.network(stream), (self.end_point, *self.skips)
                )
        ends = self._ends[stream](self._in_range(stream, clip)[None])
        found = self._parts_of(stream, ends, ends[self.end_point])
        return {name: part[0] for name, part in found.items()}

    def _parts_of(
        self, stream: str, ends: Mapping[str, Any], main: Any
    ) -> dict[str, Any]:
        """Parts out of {end point: [1, steps, ...]}, a window in a batch."""
        found = {stream: i3d.pool(main) if self._is_pooled else main}
        for skip in self.skips:
            found[parts.name(stream, skip)] = i3d.recent(ends[skip], skip)
        return found

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
        """Features of the windows of one signal; see `FrontEnd.features`.

        A signal of few windows, as `length` tells, is computed window by
        window where that is less work than sharing. One signal at a time: an
        earlier one that is not over ends with an error when it is continued.

        Raises:
            RuntimeError: Another signal was begun meanwhile.
        """
        if starts_still and length == 1 and self.name != "window":
            still = self.of_still(stream, next(iter(signal)))
            yield front_end.projected(still, projections)
            return
        sliding = self._shared(stream, stride)
        names = dict(
            zip(sliding.part_shapes, self.part_shapes(stream), strict=True)
        )
        sliding.projections = {
            end_point: projections[name]
            for end_point, name in names.items()
            if projections and name in projections
        }
        sliding.reset()
        shared_cost = sum(sliding.costs.values())
        if not starts_still and self._is_short(
            stream, shared_cost, length, stride
        ):
            yield from super().features(
                stream, signal, stride=stride, projections=projections
            )
            return
        turn = self._turns[stream, stride] = object()
        ended: list[int] = []
        elements = _played(stream, signal, sliding.delay, ended)
        first_end = self.window - 1
        if starts_still:
            first_end = 0
            for first in itertools.islice(elements, 1):
                whole = np.asarray(self._in_range(stream, first[None]))
                sliding.stand_still(whole[0])
                elements = itertools.chain([first], elements)
        given = 0
        while True:
            some = list(itertools.islice(elements, chunk or CHUNK))
            if self._turns[stream, stride] is not turn:
                raise RuntimeError(
                    "Another clip was started before this one ended. A model "
                    "takes one clip at a time; load a second one."
                )
            if some:
                prepared = np.asarray(self._in_range(stream, np.stack(some)))
                found = sliding.push_parts(prepared, wait=chunk is None)
            else:
                found = sliding.finish_parts()
            rows = list(zip(*found.values(), strict=True))
            total = None
            if ended and sliding.delay:
                more = max(ended[0] - 1 - first_end, -1)
                total = more // stride + 1
                rows = rows[: total - given]
            for row in rows:
                yield dict(zip(names.values(), row, strict=True))
            given += len(rows)
            if not some or given == total:
                return

    def _is_short(
        self, stream: str, shared_cost: float, length: int | None, stride: int
    ) -> bool:
        """Whether windows one by one cost fewer multiply-adds than sharing.

        Sharing also computes what the windows before the first whole one
        would share, so it pays only after some windows.
        """
        if length is None or (self.name, self.dtype) != ("window", "float32"):
            return False
        channels = i3d_weights.CHANNELS[stream]
        costs = i3d.multiply_adds(self.window, channels, *self.size)
        alone = sum(costs[x.name] for x in i3d.layers(self.end_point))
        count = max(length - self.window, -1) // stride + 1
        return count * alone < shared_cost * length / stride

    def of_still(self, stream: str, element: np.ndarray) -> dict[str, Any]:
        """Features of a window of equal elements, by the continuous front end.

        It sees a video's own frames on both sides of a window, so one step
        tells all. Computed in float32, of an element as of a signal; see
        `features`.
        """
        if stream not in self._stills:
            ends = i3d.at(
                i3d.of_still(self.network(stream)),
                (self.end_point, *self.skips),
            )
            self._stills[stream] = tf.function(ends, autograph=False)
        clip = self._in_range(stream, element[None])[None]
        steps = self._stills[stream](clip)
        count, *_ = i3d.shapes(self.window, *self.size)[self.end_point]
        main = tf.repeat(steps[self.end_point], count, axis=1)
        found = self._parts_of(stream, steps, main)
        return {name: part[0].numpy() for name, part in found.items()}

    @property
    def delay(self) -> int:
        """Frames behind a window that must come before its features do."""
        if self.name == "window":
            return 0
        return max(self._shared(stream, 1).delay for stream in self.streams)

    def _shared(self, stream: str, stride: int) -> sliding_i3d.SlidingI3D:
        key = (stream, stride)
        if key not in self._sliding:
            self._sliding[key] = sliding_i3d.SlidingI3D(
                self.network(stream),
                window=self.window,
                stride=stride,
                front_end=self.name,
                lookahead=self.lookahead,
                skips=self.skips,
                end_point=self.end_point,
                dtype="float32" if self.dtype == "int8" else self.dtype,
                chunk=_GPU_CHUNK if _has_gpu() else CHUNK,
                first_chunk=first_chunk(self.name, self.size),
                # Nothing to convert: it would be half of the tracing time.
                compile=functools.partial(tf.function, autograph=False),
                compile_all=(
                    eight_bits.Function if self.dtype == "int8" else None
                ),
            )
            # It has kernels of its own, and few need both: that saves 50 MB.
            # Layers refer to each other in circles.
            del self._networks[stream]
            self._ends.pop(stream, None)
            gc.collect()
        return self._sliding[key]


def first_chunk(
    front_end: str, size: tuple[int, int] = parts.SIZE
) -> int | None:
    """Windows that I3D's first layers take at once; see `SlidingI3D`.

    None for all of a chunk's, which is the fastest on a GPU.
    """
    is_large = math.prod(size) > math.prod(parts.SIZE)
    in_parts = is_large or front_end == "window"
    return CHUNK // 2 if in_parts and not _has_gpu() else None


def _has_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _played(
    stream: str, signal: Iterable[np.ndarray], ahead: int, ended: list[int]
) -> Iterator[np.ndarray]:
    """A signal, and what is played behind it for those who look ahead.

    That is the signal backwards, as what is played before a clip is
    (`windows.prefix`): zeros would look like a cut to black. It has no end,
    unless nobody sees it, with `ahead` 0. When the signal is over, its length
    is put into `ended`.
    """
    recent: collections.deque[np.ndarray] = collections.deque(maxlen=ahead + 1)
    count = 0
    for element in signal:
        recent.append(element)
        count += 1
        yield element
    ended.append(count)
    if not ahead or not recent:
        return
    there = list(recent)
    if stream == "flow":
        # Backwards, each motion is undone, the last one first.
        yield from itertools.cycle([-flow for flow in there[::-1]] + there)
    # The last frame stands already, and the first one is not repeated.
    yield from itertools.cycle([*there[-2::-1], *there[1:]] or there)


@functools.cache
def _warn_of_dis() -> None:
    """Once a process."""
    logging.warning("--flow=dis is for previews. %s.", flow_lib.DIS_WARNING)
