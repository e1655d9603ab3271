"""I3D over every window of a video, sharing what windows share, exactly.

`geometry` says what windows share, and `layers` computes it.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import itertools
import math
from typing import Any

import keras
from keras import ops
import numpy as np

from lsts_tf import parts
from lsts_tf.networks import i3d
from lsts_tf.networks.sliding import arithmetic, geometry, layers, layout

FRONT_ENDS = ("window", "continuous")
# Frames of the largest chunk computed at once: larger ones take no less time on
# a CPU, and more memory.
_CHUNK = 4
# Layers whose activations are the largest.
_FIRST = tuple(
    layer.name
    for layer in itertools.takewhile(
        lambda layer: layer.name != "MaxPool3d_4a_3x3", i3d.layers()
    )
)


def check_front_end(front_end: str, lookahead: int | None) -> None:
    """Raises ValueError for a front end or lookahead that there is not."""
    if front_end not in FRONT_ENDS:
        raise ValueError(
            f"The front end must be one of {', '.join(FRONT_ENDS)}. "
            f"Received: front_end={front_end!r}"
        )
    if lookahead is not None and (front_end == "window" or lookahead < 0):
        raise ValueError(
            'Only "continuous" looks ahead, by 0 frames or more. '
            f"Received: lookahead={lookahead}, front_end={front_end!r}"
        )


def _check(**sizes: int) -> None:
    if min(sizes.values()) < 1:
        received = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            "A window, its stride and a chunk have at least one frame. "
            f"Received: {received}"
        )


def _chunks(chunk: int, stride: int) -> tuple[int, ...]:
    """Windows of each chunk size, the largest first.

    Few sizes, so that few functions are made, each in some seconds. The one
    between is for live streams, which do not wait for a large one.
    """
    sizes = {max(1, n // stride) for n in (chunk, min(chunk, _CHUNK), 1)}
    return tuple(sorted(sizes, reverse=True))


class _Stage:
    """A layer with what it remembers from chunk to chunk, compiled alone.

    While a function runs, old and new state are there at once: of one layer,
    where a function of all layers would double the whole state.

    Args:
      plan: with which the layer was laid out, and no other one.
      layer: a function of a run and of what the stage before gives.
      recent: gives the skip behind the layer, the mean of each window's last
        steps, where one is wanted; or None.
      compile: see `SlidingI3D`.
    """

    def __init__(
        self,
        plan: layout.Plan,
        layer: Callable[[layout.Run, Any], Any],
        recent: Callable[[layout.Run, Any], Any] | None,
        compile: Callable[[Callable], Callable],
    ):
        self.name = plan.layer
        self._layer = layer
        self._recent = recent
        self._compile = compile
        self._dtype = plan.dtype
        self.histories = plan.histories
        # Copied: a tensor made of NumPy's array takes its memory twice.
        self._weights = [
            ops.copy(ops.convert_to_tensor(array, plan.dtype))
            for array in plan.weights
        ]
        plan.weights.clear()  # The layer keeps the plan.
        self._functions: dict[tuple[int, bool], Callable] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets the video."""
        # Of each history its pieces.
        self._state: list[collections.deque[Any]] = []
        self._windows = 0  # Of the chunks that the pieces are made for.

    def state(self, windows: int) -> list[list[Any]]:
        """Pieces of each history, for a chunk of so many windows."""
        if self._windows != windows:
            self._state = [
                self._cut(history, old, windows)
                for history, old in itertools.zip_longest(
                    self.histories, self._state
                )
            ]
            self._windows = windows
        return [list(pieces) for pieces in self._state]

    def _cut(
        self,
        history: layout.History,
        old: collections.deque[Any] | None,
        windows: int,
    ) -> collections.deque[Any]:
        """Pieces of a history, made of `old` ones, or else of zeros."""
        count, entries = history.pieces(windows)
        if old is None:
            piece = ops.zeros(history.array(entries), self._dtype)
            return collections.deque([piece] * count, count)
        if len(old) == count and old[0].shape[history.axis] == entries:
            return old
        # Whatever is before what is wanted.
        blank = ops.zeros(history.array(count * entries), self._dtype)
        whole = ops.concatenate(
            [ops.convert_to_tensor(each) for each in (blank, *old)],
            history.axis,
        )
        stop = whole.shape[history.axis]
        places = range(stop - count * entries, stop, entries)
        before = (slice(None),) * history.axis
        return collections.deque(
            [whole[(*before, slice(n, n + entries))] for n in places], count
        )

    def remember(self, newest: Iterable[Any]) -> None:
        """Adds the newest piece of each history."""
        for pieces, piece in zip(self._state, newest, strict=True):
            pieces.append(piece)

    def __call__(
        self,
        x: Any,
        windows: int,
        *,
        emits: bool,
        start: Any = None,
        end: Any = None,
    ) -> tuple[Any, Any]:
        """Returns what comes behind the layer, and its skip or None.

        Arguments are those of `layout.Run`. Without features to emit there is
        nothing behind the last stages: None.
        """
        key = (windows, emits)
        if key not in self._functions:
            self._functions[key] = self._compile(
                functools.partial(self._run, *key, False)
            )
        y, skip, newest = self._functions[key](
            self._weights, self.state(windows), x, start, end
        )
        self.remember(newest)
        return y, skip

    def stand_still(self, x: Any, *, emits: bool) -> tuple[Any, Any]:
        """Does the same where all before `x`, of one window, equals it.

        Once a video, so not worth a compiled function.
        """
        y, skip, newest = self._run(
            1, emits, True, self._weights, [], x, None, None
        )
        counts = [history.pieces(1)[0] for history in self.histories]
        self._state = [
            collections.deque([piece] * count, count)
            for piece, count in zip(newest, counts, strict=True)
        ]
        self._windows = 1
        return y, skip

    def inside(
        self, x: Any, windows: int, state: Sequence[Sequence[Any]]
    ) -> tuple[Any, Any, list[Any]]:
        """Does the same as a pure function, inside of a video.

        Returns:
          What comes behind the layer, its skip or None, and the newest piece
          of each history.
        """
        args = (self._weights, state, x, None, None)
        return self._run(windows, True, False, *args)

    def _run(
        self,
        windows: int,
        emits: bool,
        is_still: bool,
        weights: Sequence[Any],
        state: Sequence[Sequence[Any]],
        x: Any,
        start: Any,
        end: Any,
    ) -> tuple[Any, Any, list[Any]]:
        run = layout.Run(windows, weights, state, emits, start, end, is_still)
        y = self._layer(run, x)
        skip = None
        if self._recent and y is not None:
            skip = self._recent(run, y)
        count = len(self.histories)
        return y, skip, [run.left_behind[n] for n in range(count)]


class SlidingI3D:
    """Pooled Mixed_5c features of every window of a video, and skips.

    >>> sliding = SlidingI3D(network, window=79)      # doctest: +SKIP
    >>> for frames in chunks:                         # doctest: +SKIP
    ...     features = sliding.push(frames)           # doctest: +SKIP
    >>> features = sliding.finish()                   # doctest: +SKIP

    The front end "window" gives what `i3d.pool` gives behind `i3d.build` for
    each window alone, up to rounding.

    "continuous" is another front end: it computes dense values only, as if
    the whole video were one window. A window's features are its own steps
    (the same labels), without borders: they see real frames before and behind
    the window where "window" sees zeros. Zeros are seen only at the ends of
    the video: an activation whose label is below 0 or above the last frame is
    zero behind every layer, as are the frames there. The last step of a
    window looks `delay` frames beyond its last frame, so features come that
    much later, and those of the last windows from `finish`. With a smaller
    `lookahead`, for live streams, a window's steps are the newest ones of its
    phase that see at most `lookahead` frames beyond it.

    With another `end_point` features are what it gives, without pooling. With
    `skips`, earlier end points of I3D come too (`push_parts`): of each
    window the mean over its last steps, exactly as `i3d.recent` has them.

    Attributes:
      feature_shape: of one window's features, [steps, rows, columns, 1024].
      part_shapes: {end point: shape} of all parts, the features' first.
      delay: frames behind a window's last one that must arrive before its
        features come; 0 for "window".
      projections: {skip: a function of [windows, *its shape]} that skips go
        through before they wait for the features, which takes less memory
        where it makes them smaller. None at first.
      costs: multiply-adds for one window, by layer of i3d's table.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        window: int = 79,
        stride: int = 1,
        front_end: str = "window",
        lookahead: int | None = None,
        skips: Sequence[str] = (),
        end_point: str = parts.MAIN,
        dtype: str = "float32",
        chunk: int = _CHUNK,
        first_chunk: int | None = None,
        compile: Callable[[Callable], Callable] | None = None,
        compile_all: Callable[[Callable], Callable] | None = None,
    ):
        """Lays out the computation for a network's weights as they are now.

        Args:
          network: from `i3d.build`, at least up to Mixed_5c; 224 x 224 where
            its input has no fixed size.
          window: frames of a window.
          stride: frames between the starts of successive windows.
          front_end: "window" or "continuous".
          lookahead: for "continuous", frames beyond a window that may be
            used; None for as many as its steps see.
          skips: end points that are wanted besides, some of `parts.SKIPS`.
          end_point: whose activations are the features; pooled if Mixed_5c.
          dtype: "float32", or "bfloat16" for a coarser, faster front end.
          chunk: frames computed at once where so many are there, else 4, or
            one window's. More are faster on a GPU and need more memory.
          first_chunk: windows that the layers before MaxPool3d_4a compute at
            once, if a chunk's are a multiple of it; None for all of them.
            Their activations are so large that few windows need less memory,
            and with borders less time on a CPU.
          compile: wraps a function of arrays, for instance `tf.function` or
            `jax.jit`; None runs operation by operation.
          compile_all: wraps the function of all layers and their state, by
            which chunks inside of a video then go, as for a runtime that plans
            all at once; only for "continuous".

        Raises:
          ValueError: a size below 1, an unknown front end or skip, a skip
            behind the end point, or a lookahead without "continuous".
        """
        _check(
            window=window,
            stride=stride,
            chunk=chunk,
            first_chunk=first_chunk or 1,
        )
        check_front_end(front_end, lookahead)
        parts.check_skips(skips)
        i3d.check_order(skips, end_point)
        _, _, height, width, channels = network.input_shape
        self._size = (height or 224, width or 224, channels)
        self._window = window
        self._stride = stride
        self._dtype = dtype
        self._is_continuous = front_end == "continuous"
        self._compile_all = compile_all
        self._at_once: dict[int, Callable] = {}
        self._end_point = end_point
        self._is_pooled = end_point == parts.MAIN
        self.feature_shape = i3d.shapes(window, *self._size[:2])[end_point]
        self._pooling = i3d.pooling_kernel(*self.feature_shape[:3])
        if self._is_pooled:
            self.feature_shape = i3d.feature_shape(window, *self._size[:2])
        self.part_shapes: dict[str, tuple[int, ...]] = {
            end_point: self.feature_shape,
            **i3d.skip_shapes(skips, window, *self._size[:2]),
        }
        self.delay = 0
        if self._is_continuous:
            *_, (_, _, last) = geometry.tracks(
                window, stride, end_point, borders=False
            )
            self.delay = geometry.delay_of(last, stride, lookahead)
        # By how many windows each skip comes before the features do. What is
        # early waits in a queue, outside of the state that each chunk copies.
        self._early_by: dict[str, int] = {}
        self.projections: Mapping[str, Callable[[Any], Any]] = {}
        self._oldest = -window
        self.costs: dict[str, float] = {}
        self._stages: list[_Stage] = []
        for plan, layer, recent in self._lay_out(layout.Units(network), skips):
            self._stages.append(
                _Stage(plan, layer, recent, compile or (lambda f: f))
            )
            if plan.cost:
                self.costs[plan.layer] = plan.cost
        self._chunks = _chunks(chunk, stride)
        # One function of all layers takes no chunk in parts.
        self._first_chunk = None if compile_all else first_chunk
        self._first = len(
            list(
                itertools.takewhile(
                    lambda stage: stage.name in _FIRST, self._stages
                )
            )
        )
        self.reset()

    def _lay_out(
        self, units: layout.Units, skips: Sequence[str]
    ) -> Iterator[tuple[layout.Plan, Callable, Callable | None]]:
        """Yields each stage's plan, layer and what takes its skip."""
        shapes = i3d.shapes(self._window, *self._size[:2])
        size: tuple[int, ...] = self._size
        is_whole = False
        borders = not self._is_continuous

        def plan_of(name: str) -> layout.Plan:
            return layout.Plan(
                name, self._stride, borders=borders, dtype=self._dtype
            )

        for layer, before, after in geometry.tracks(
            self._window, self._stride, self._end_point, borders=borders
        ):
            name = layer.name
            # The first label of a chunk may be that of the video's first frame.
            first = -after.head - after.grid(self._stride)
            self._oldest = max(self._oldest, first)
            if (
                borders
                and not is_whole
                and not after.is_worth_sharing(self._stride)
            ):
                is_whole = True
                plan = plan_of("assembly")
                place = layout.Place(plan, before, size)
                yield plan, layers.Assembly(place), None
            plan = plan_of(name)
            built = (
                layers.whole(plan, layer, units, shapes[name])
                if is_whole
                else layers.shared(
                    layout.Place(plan, before, size), layer, units
                )
            )
            size = shapes[name][1:]
            recent: Callable | None = None
            if name in skips:
                count = parts.recent_steps(after.steps, after.spacing)
                delay = self.delay
                if is_whole:
                    recent = functools.partial(_mean_of_last, count)
                else:
                    delay = geometry.least_delay(after, self._stride, delay)
                    recent = layers.Assembly(
                        layout.Place(plan, after, size),
                        count=count,
                        delay=delay,
                    ).mean
                self._early_by[name] = (self.delay - delay) // self._stride
            yield plan, built, recent
        if self._is_pooled:
            # What windows share is averaged once, and assembled when smaller.
            yield plan_of("average"), self._average_space, None
            size = self.feature_shape[1:]
        if not is_whole:
            plan = plan_of("assembly")
            place = layout.Place(plan, after, size)
            yield plan, layers.Assembly(place, delay=self.delay), None
        yield plan_of("features"), self._end, None

    def _average_space(self, run: layout.Run, x: Any) -> Any:
        """Averages a signal, or whole windows, over space."""
        del run

        def average(y: Any) -> Any:
            return arithmetic.average_space(y, self._pooling[1:])

        if isinstance(x, layout.Signal):
            return x.each(average)
        return arithmetic.over_steps(average, x)

    def _end(self, run: layout.Run, x: Any) -> Any:
        """Features of whole windows, window by window."""
        del run
        if self._is_pooled:
            x = arithmetic.average_time(x, self._pooling[0])
        return ops.swapaxes(x, 0, 1)

    @property
    def state_bytes(self) -> int:
        """Size of what is remembered between the fastest chunks."""
        width = 4 if self._dtype == "float32" else 2
        whole = self._chunks[0]
        return width * sum(
            math.prod(history.array(math.prod(history.pieces(windows))))
            for stages, windows in (
                (self._stages[: self._first], self._part_of(whole)),
                (self._stages[self._first :], whole),
            )
            for stage in stages
            for history in stage.histories
        )

    def _part_of(self, windows: int) -> int:
        """Windows of a chunk that the first layers compute at once."""
        some = self._first_chunk or windows
        return windows if windows % some else some

    def reset(self) -> None:
        """Forgets the video; the next frame pushed is frame 0 of another."""
        # So many frames before the video that a chunk ends with a window.
        self._early = -self._window % self._stride
        self._pending = np.zeros((self._early, *self._size), np.float32)
        self._seen = 0
        self._emitted = 0
        for stage in self._stages:
            stage.reset()
        self._waiting: dict[str, collections.deque] = {
            name: collections.deque([None] * count)
            for name, count in self._early_by.items()
        }

    def stand_still(self, frame: np.ndarray) -> None:
        """Begins a video that stood still before the first frame pushed.

        That frame then ends the first window, and each `stride`-th after it
        another one. One frame is computed for all before it.

        Args:
          frame: float32 [height, width, channels] in [-1, 1].
        """
        self.reset()
        frames = np.repeat(frame[None], self._stride, axis=0)
        emits = self._is_continuous
        found = self._pass(
            frames, 1, lambda stage, x, *_: stage.stand_still(x, emits=emits)
        )
        for name, waiting in self._waiting.items():
            if waiting:
                (row,) = self._rows(name, found[name])
                self._waiting[name] = collections.deque([row] * len(waiting))
        self._pending = frames[1:]
        # Counted as if so many windows had come that no label lies before the
        # video.
        self._emitted = max(0, 1 - -self._oldest // self._stride)
        self._seen = self._early + self._window
        self._seen += (self._emitted - 1) * self._stride

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Takes the next frames; returns features alone, see `push_parts`."""
        return self.push_parts(frames)[self._end_point]

    def push_parts(
        self, frames: np.ndarray, *, wait: bool = False
    ) -> dict[str, np.ndarray]:
        """Takes the next frames; returns what they complete.

        Any n gives the same features; multiples of `chunk` are the fastest.

        Args:
          frames: float32 [n, height, width, channels] in [-1, 1], n >= 0.
          wait: for a recorded video, in chunks of any size: frames that do
            not fill the fastest chunk wait for the next call, or the end.

        Returns:
          {end point: float32 [m, *its shape]}, see `part_shapes`, of the
          windows that became complete, in order: those that end at frames
          window - 1, window - 1 + stride, ... ("continuous": `delay` frames
          later). Skips are what `projections` make of them.

        Raises:
          ValueError: frames of another shape.
        """
        if frames.ndim != 4 or frames.shape[1:] != self._size:
            raise ValueError(
                f"Frames must be [n, {', '.join(map(str, self._size))}]. "
                f"Received: shape {frames.shape}"
            )
        self._pending = np.concatenate(
            [self._pending, np.asarray(frames, np.float32)]
        )
        return self._drain(None, self._chunks[:1] if wait else self._chunks)

    def finish(self) -> np.ndarray:
        """Ends the video; returns features alone, see `finish_parts`."""
        return self.finish_parts()[self._end_point]

    def finish_parts(self) -> dict[str, np.ndarray]:
        """Ends the video; returns the windows that waited for more of it.

        Call `reset` before the next video.
        """
        frames = self._seen + len(self._pending) - self._early
        windows = (frames - self._window) // self._stride + 1
        missing = windows - self._emitted
        if missing < 1:
            return self._nothing()
        # A whole chunk, though part of it is blank, takes less time than making
        # the function of another size.
        size = self._chunks[0] * self._stride
        blank = np.zeros((self.delay + size, *self._size), np.float32)
        self._pending = np.concatenate([self._pending, blank])
        end = frames - 1 if self._is_continuous else None
        found = self._drain(end, self._chunks[:1])
        return {name: part[:missing] for name, part in found.items()}

    def _nothing(self) -> dict[str, np.ndarray]:
        return {
            name: np.zeros((0, *shape), np.float32)
            for name, shape in self.part_shapes.items()
        }

    def _drain(
        self, end: int | None, sizes: Sequence[int]
    ) -> dict[str, np.ndarray]:
        found = []
        while len(self._pending) >= sizes[-1] * self._stride:
            windows = next(
                size
                for size in sizes
                if size * self._stride <= len(self._pending)
            )
            count = windows * self._stride
            chunk = self._pending[:count]
            self._pending = self._pending[count:]
            if new := self._advance(chunk, windows, end):
                found.append(new)
        if not found:
            return self._nothing()
        return {
            name: np.concatenate([some[name] for some in found])
            for name in self.part_shapes
        }

    def _advance(
        self, frames: np.ndarray, windows: int, end: int | None
    ) -> dict[str, np.ndarray]:
        self._seen += len(frames)
        start = self._seen - self._early - self._window
        if self._is_continuous:
            is_plain = end is None and start - len(frames) >= self._oldest
        else:
            # Small chunks compute some unneeded borders, to save a function.
            is_plain = start >= 0 or windows < self._chunks[0]
        emits = is_plain or self._is_continuous

        def through(
            stage: _Stage, x: Any, some: int, newer: int
        ) -> tuple[Any, Any]:
            bounds: dict[str, Any] = {}
            if self._is_continuous and not is_plain:
                last = 2**30 if end is None else end
                at = start - newer * self._stride
                bounds["start"] = ops.convert_to_tensor(at, "int32")
                bounds["end"] = ops.convert_to_tensor(last, "int32")
            return stage(x, some, emits=emits, **bounds)

        if self._compile_all and is_plain:
            if windows not in self._at_once:
                self._at_once[windows] = self._compile_all(self._through_all)
            features, newest = self._at_once[windows](
                frames, [stage.state(windows) for stage in self._stages]
            )
            for stage, pieces in zip(self._stages, newest, strict=True):
                stage.remember(pieces)
        else:
            features = self._pass(frames, windows, through)
        complete = (start - self.delay) // self._stride + 1
        new = min(windows, max(0, complete - self._emitted))
        self._emitted += new
        found = {}
        for name, part in features.items():
            waiting = self._waiting.get(name, collections.deque())
            waiting.extend(self._rows(name, part))
            rows = [waiting.popleft() for _ in range(windows)]
            if new:
                found[name] = np.stack(rows[windows - new :]).astype(np.float32)
        return found

    def _rows(self, name: str, part: Any) -> list[np.ndarray]:
        """Returns what a step gives for each of its windows."""
        part = self.projections.get(name, ops.convert_to_tensor)(part)
        return list(ops.convert_to_numpy(part))

    def _through_all(
        self, frames: Any, states: Sequence[Sequence[Sequence[Any]]]
    ) -> tuple[dict[str, Any], list[list[Any]]]:
        """Does what `_pass` does, as a pure function of frames and state."""
        before, left_behind = iter(states), []
        windows = frames.shape[0] // self._stride

        def through(stage: _Stage, x: Any, *_: int) -> tuple[Any, Any]:
            y, skip, newest = stage.inside(x, windows, next(before))
            left_behind.append(newest)
            return y, skip

        return self._pass(frames, windows, through), left_behind

    def _pass(
        self,
        frames: Any,
        windows: int,
        through: Callable[[_Stage, Any, int, int], tuple[Any, Any]],
    ) -> dict[str, Any]:
        """Passes frames through all stages.

        Args:
          frames: of a chunk.
          windows: that it completes.
          through: gives what comes behind a stage, and its skip or None, of
            what comes before it, of a number of windows, behind which so many
            of the chunk are left.

        Returns:
          {end point: [windows, *its shape]}; nothing where none is emitted.
        """
        dense = ops.convert_to_tensor(frames, self._dtype)
        some = self._part_of(windows)
        skips: dict[str, list[Any]] = collections.defaultdict(list)

        def along(
            stages: Sequence[_Stage], x: Any, count: int, newer: int
        ) -> Any:
            for stage in stages:
                x, skip = through(stage, x, count, newer)
                if skip is not None:
                    skips[stage.name].append(skip)
                if x is None:
                    break
            return x

        signals = []
        for newer in range(windows - some, -1, -some):
            stop = (windows - newer) * self._stride
            part = dense[stop - some * self._stride : stop]
            signal = layout.Signal(part, None, None)
            signals.append(
                along(self._stages[: self._first], signal, some, newer)
            )
        x = layout.joined(signals)
        x = along(self._stages[self._first :], x, windows, 0)
        if x is None:
            return {}
        return {
            self._end_point: x,
            **{
                name: arithmetic.concatenate(each, 0)
                for name, each in skips.items()
            },
        }


def _mean_of_last(count: int, run: layout.Run, x: Any) -> Any:
    """Averages the last steps of whole windows."""
    del run
    return ops.mean(x[-count:], 0)
