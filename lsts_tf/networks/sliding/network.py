"""I3D over every window of a video, sharing what windows share, exactly.

`geometry` says what windows share, and `layers` computes it.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
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
        compile: Callable[[Callable], Callable] | None = None,
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
          compile: wraps a function of arrays, for instance `tf.function` or
            `jax.jit`; None runs operation by operation.

        Raises:
          ValueError: a size below 1, an unknown front end or skip, a skip
            behind the end point, or a lookahead without "continuous".
        """
        _check(window=window, stride=stride, chunk=chunk)
        check_front_end(front_end, lookahead)
        parts.check_skips(skips)
        i3d.check_order(skips, end_point)
        _, _, height, width, channels = network.input_shape
        self._size = (height or 224, width or 224, channels)
        self._window = window
        self._stride = stride
        self._dtype = dtype
        self._compile = compile or (lambda function: function)
        self._functions: dict[tuple[int, bool], Callable] = {}
        self._is_continuous = front_end == "continuous"
        self._end_point = end_point
        self._is_pooled = end_point == parts.MAIN
        self.feature_shape = i3d.shapes(window, *self._size[:2])[end_point]
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
        plan = layout.Plan(stride, borders=not self._is_continuous, dtype=dtype)
        self._layers: list[tuple[str, Any]] = []
        # Of each skip: what puts its last steps together, and their number.
        self._taps: dict[str, tuple[layers.Assembly | None, int]] = {}
        # By how many windows each skip comes before the features do. What is
        # early waits in a queue, outside of the state that each chunk copies.
        self._early_by: dict[str, int] = {}
        self._oldest = 0
        self._lay_out(plan, layout.folded_units(network), skips)
        self.costs = plan.costs
        self._histories = plan.histories
        self._weights = [
            ops.convert_to_tensor(array, dtype) for array in plan.weights
        ]
        plan.weights.clear()  # The layers keep the plan.
        self._chunks = _chunks(chunk, stride)
        self.reset()

    def _lay_out(
        self,
        plan: layout.Plan,
        units: Mapping[str, layout.Unit],
        skips: Sequence[str],
    ) -> None:
        shapes = i3d.shapes(self._window, *self._size[:2])
        size: tuple[int, ...] = self._size
        is_whole = False
        for layer, before, after in geometry.tracks(
            self._window, self._stride, self._end_point, borders=plan.borders
        ):
            plan.layer = name = layer.name
            # Chunks older than this see labels before the video.
            self._oldest = max(self._oldest, -after.head)
            at = layout.Place(plan, before, size)
            size = shapes[name][1:]
            behind = layout.Place(plan, after, size)
            if (
                plan.borders
                and not is_whole
                and not after.is_worth_sharing(self._stride)
            ):
                is_whole = True
                self._layers.append(("assembly", layers.Assembly(at)))
            built = (
                layers.whole(plan, layer, units, shapes[name])
                if is_whole
                else layers.shared(at, layer, units)
            )
            self._layers.append((name, built))
            if name in skips:
                count = parts.recent_steps(after.steps, after.spacing)
                recent, delay = None, self.delay
                if not is_whole:
                    delay = geometry.least_delay(after, self._stride, delay)
                    recent = layers.Assembly(behind, count=count, delay=delay)
                self._taps[name] = (recent, count)
                self._early_by[name] = (self.delay - delay) // self._stride
        if not is_whole:
            assembly = layers.Assembly(behind, delay=self.delay)
            self._layers.append(("assembly", assembly))

    @property
    def state_bytes(self) -> int:
        """Size of what is remembered between chunks."""
        width = 4 if self._dtype == "float32" else 2
        return width * sum(math.prod(shape) for shape in self._histories)

    def reset(self) -> None:
        """Forgets the video; the next frame pushed is frame 0 of another."""
        # So many frames before the video that a chunk ends with a window.
        self._early = -self._window % self._stride
        self._pending = np.zeros((self._early, *self._size), np.float32)
        self._seen = 0
        self._emitted = 0
        self._state: list[Any] = []  # Zeros, which take no memory before use.
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
        run = layout.Run(
            1, self._weights, (), emits=self._is_continuous, is_still=True
        )
        # Once a video, so not worth a compiled function.
        found, self._state = self._step(
            run, ops.convert_to_tensor(frames, self._dtype)
        )
        for name, part in zip(self.part_shapes, found, strict=False):
            if waiting := self._waiting.get(name):
                (row,) = _rows(part)
                self._waiting[name] = collections.deque([row] * len(waiting))
        self._pending = frames[1:]
        # Counted as if so many windows had come that no label lies before the
        # video.
        self._emitted = -(-self._oldest // self._stride)
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
          later).

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
        found = [self._nothing()]
        while len(self._pending) >= sizes[-1] * self._stride:
            windows = next(
                size
                for size in sizes
                if size * self._stride <= len(self._pending)
            )
            count = windows * self._stride
            chunk = self._pending[:count]
            self._pending = self._pending[count:]
            found.append(self._advance(chunk, windows, end))
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
        last = np.int32(2**30 if end is None else end)
        self._state = self._state or [
            ops.zeros(shape, self._dtype) for shape in self._histories
        ]
        features, self._state = self._function(windows, is_plain)(
            self._weights,
            self._state,
            ops.convert_to_tensor(frames, self._dtype),
            ops.convert_to_tensor(start, "int32"),
            ops.convert_to_tensor(last, "int32"),
        )
        complete = (start - self.delay) // self._stride + 1
        new = min(windows, max(0, complete - self._emitted))
        self._emitted += new
        found = self._nothing()
        for name, part in zip(self.part_shapes, features, strict=False):
            waiting = self._waiting.get(name, collections.deque())
            waiting.extend(_rows(part))
            rows = [waiting.popleft() for _ in range(windows)]
            if new:
                found[name] = np.stack(rows[windows - new :]).astype(np.float32)
        return found

    def _function(self, windows: int, is_plain: bool) -> Callable:
        """Returns the step function of a chunk size, made at first use.

        At the ends of a video it is another: "window" needs no right borders
        before the first window is complete, and "continuous" must zero what
        lies outside of the video.
        """
        key = (windows, is_plain)
        if key not in self._functions:

            def step(weights, state, frames, start, end):
                run = layout.Run(
                    windows,
                    weights,
                    state,
                    emits=is_plain or self._is_continuous,
                )
                if self._is_continuous and not is_plain:
                    run.start, run.end = start, end
                return self._step(run, frames)

            self._functions[key] = self._compile(step)
        return self._functions[key]

    def _step(
        self, run: layout.Run, frames: Any
    ) -> tuple[list[Any], list[Any]]:
        x: Any = layout.Signal(frames, None, None)
        taken = {}
        for name, layer in self._layers:
            x = layer(run, x)
            if x is None:
                break
            if name in self._taps:
                recent, count = self._taps[name]
                steps = recent(run, x) if recent else x[-count:]
                if run.emits:
                    taken[name] = ops.mean(steps, 0)
        left_behind = [run.left_behind[n] for n in range(len(self._histories))]
        if x is None:
            return [], left_behind
        if self._is_pooled:
            x = arithmetic.average(x)
        _, *skips = self.part_shapes
        return [
            ops.swapaxes(x, 0, 1),
            *(taken[name] for name in skips),
        ], left_behind


def _rows(part: Any) -> list[np.ndarray]:
    """Returns what a step gives for each of its windows."""
    return list(ops.convert_to_numpy(part))
