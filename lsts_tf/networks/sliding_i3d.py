"""I3D over every window of a video, sharing what windows share, exactly.

A window is `window` successive frames; one starts every `stride` frames, from
frame 0. Behind each layer a window has some steps, `spacing` frames apart (1
for frames, then 2, 4, 8). The label of step j of the window that starts at
frame s is s + spacing * j. Two steps with the same label are equal in all
windows, unless what they see includes the zeros that SAME padding puts before
or behind a window: those are the left and the right border of a window. So
behind each layer there are

- dense: one value for each label, shared by all windows that want it;
- left: the first `left` steps of each window, and
- right: its last `right` steps, computed for each window.

Labels lie on a grid of gcd(stride, spacing) frames. All of this follows from
the table in `i3d` by the rules in `follow`; no layer's sizes are written here.

A convolution over time is a sum over its temporal taps. The border of a
window needs partial sums of dense values: these are the very products that
the dense values themselves are sums of, so each is computed once and kept.
Where borders would leave hardly a shared step (the last two blocks at 79
frames), windows are assembled and run as a batch.

Frames arrive in chunks. Dense values appear as soon as the frames that they
see are there; left borders early, and wait for the rest of their window;
right borders with the last frame. Within a chunk, times are relative to the
start of the last window that the chunk completes.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any
from typing import NamedTuple

import keras
from keras import ops
import numpy as np

from lsts_tf import parts
from lsts_tf.networks import i3d

FRONT_ENDS = ("window", "continuous")
# Frames of the largest chunk computed at once: enough to fill the processor's
# vector units, and the convolutions' outputs still fit its caches in part.
_CHUNK = 8


# === Geometry ===


class Track(NamedTuple):
    """The steps of windows behind a layer.

    Attributes:
      steps: of one window.
      spacing: frames between successive steps.
      left: number of first steps that see the padding before the window.
      right: number of last steps that see the padding behind it.
      head: newest dense label there is when a window's last frame has
        arrived, counted from that window's start.
      ready: start of the newest window whose left border is computed by then,
        counted in the same way; None where there is no left border.
    """

    steps: int
    spacing: int
    left: int
    right: int
    head: int
    ready: int | None

    def grid(self, stride: int) -> int:
        """Returns the frames between successive dense labels."""
        return math.gcd(stride, self.spacing)

    def is_worth_sharing(self, stride: int) -> bool:
        """Whether borders and new dense labels are fewer than the steps."""
        new = stride // self.grid(stride)
        return self.left + self.right + new < self.steps


def frames_track(window: int) -> Track:
    """Returns the track of a window's frames."""
    return Track(window, 1, 0, 0, window - 1, None)


def follow(
    track: Track, kernel: int, step: int, stride: int, *, borders: bool = True
) -> Track:
    """Returns the track behind a layer.

    Output step j sees input steps `step * j - before + t`, t = 0 ... kernel-1.

    Args:
      track: in front of the layer.
      kernel: of the layer, in steps.
      step: the layer's temporal stride.
      stride: of the windows, in frames.
      borders: False treats the video as one window without ends.
    """
    before, _ = i3d.same_padding(track.steps, kernel, step)
    steps = -(-track.steps // step)
    spacing = track.spacing * step
    behind = track.spacing * (kernel - 1 - before)
    head = _floor(track.head - behind, math.gcd(stride, spacing))
    if not borders:
        return Track(steps, spacing, 0, 0, head, None)
    left = min(steps, -(-(track.left + before) // step))
    last = (track.steps - track.right + before - kernel) // step
    right = min(steps, steps - 1 - last)
    ready = track.ready
    newest = step * (left - 1) - before + kernel - 1
    if left and newest >= track.left:
        reach = _floor(track.head - track.spacing * newest, stride)
        ready = reach if ready is None else min(ready, reach)
    return Track(steps, spacing, left, right, head, ready)


def _floor(number: int, grid: int) -> int:
    return number // grid * grid


@dataclasses.dataclass(frozen=True)
class _Group:
    """Successive border steps that see the same kinds of steps.

    Attributes:
      first: the first step, counted from the window's first step.
      count: number of steps.
      border: tap -> first index into the border in front of the layer.
      dense: taps that see dense steps.
    """

    first: int
    count: int
    border: dict[int, int]
    dense: tuple[int, ...]


def _groups(
    track: Track,
    kernel: int,
    step: int,
    steps: range,
    *,
    is_left: bool,
    taps: Sequence[int],
) -> list[_Group]:
    before, _ = i3d.same_padding(track.steps, kernel, step)
    shared = range(track.left, track.steps - track.right)
    offset = 0 if is_left else shared.stop
    edge = range(track.left) if is_left else range(shared.stop, track.steps)

    def seen(j: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        at = {t: step * j - before + t for t in taps}
        return (
            tuple(t for t in taps if at[t] in edge),
            tuple(t for t in taps if at[t] in shared),
        )

    found = []
    for (border, dense), run in itertools.groupby(steps, seen):
        js = list(run)
        starts = {t: step * js[0] - before + t - offset for t in border}
        found.append(_Group(js[0], len(js), starts, dense))
    return found


def _both_ends(
    track: Track, out: Track, kernel: int, step: int, taps: Sequence[int]
) -> tuple[list[_Group], list[_Group]]:
    """Groups of the left and of the right output steps of a window's own."""
    right = range(out.steps - out.right, out.steps)
    return (
        _groups(track, kernel, step, range(out.left), is_left=True, taps=taps),
        _groups(track, kernel, step, right, is_left=False, taps=taps),
    )


# === Windows that do not move ===


def steps_of_still(
    window: int, end_point: str = parts.MAIN
) -> Iterator[tuple[str, Track, Track, int]]:
    """Yields what `of_still` computes.

    For instance, of 40 steps behind the first convolution 5 are computed.

    Yields:
      name of a layer, the track in front of it, the one behind it, and how
      many steps it is given. Those are padded as all of them would be, and
      what comes out holds both borders and a step between them, if there is
      one.
    """
    track = frames_track(window)
    for layer in i3d.layers(end_point):
        kernel, step = in_time(layer)
        after = follow(track, kernel, step, 1)
        steps = max(
            track.left + track.right + 1,
            step * (after.left + after.right) + 1,
        )
        steps += (track.steps - steps) % step
        yield layer.name, track, after, min(steps, track.steps)
        track = after


def of_still(
    network: keras.Model, end_points: Sequence[str], *, window: int
) -> keras.Model:
    """Returns a network of one frame for a window of equal frames, alone.

    All steps between the borders of such a window are equal, so one of them is
    computed, and repeated where a layer needs more. Of 138.94 billion
    multiply-adds for 79 frames of 224 x 224 pixels in RGB 39.77 are left.

    Args:
      network: from `i3d.build`, for any number of frames.
      end_points: those wanted.
      window: frames of the window.

    Returns:
      A model from [batch, 1, height, width, channels] to what `i3d.at` gives
      for that frame, repeated.
    """
    x = inputs = keras.Input((1, *network.input_shape[2:]))
    last = max(end_points, key=i3d.END_POINTS.index)
    front, found = network.input, {}
    for name, track, after, steps in steps_of_still(window, last):
        behind = network.get_layer(name).output
        x = keras.Model(front, behind)(_stretch(x, track, steps))
        front = behind
        if name in end_points:
            found[name] = _stretch(x, after, after.steps)
    return keras.Model(inputs, found, name=network.name)


def _stretch(x: Any, track: Track, steps: int) -> Any:
    """Makes `steps` of fewer or more, by those between the borders."""
    if x.shape[1] == steps:
        return x
    left, right = track.left, track.right
    middle = ops.repeat(x[:, left : left + 1], steps - left - right, axis=1)
    ends = x[:, :left], x[:, x.shape[1] - right :]
    return ops.concatenate([ends[0], middle, ends[1]], axis=1)


# === What a step function needs ===


class _Signal(NamedTuple):
    """Activations of one chunk behind a layer.

    Attributes:
      dense: [new labels, height, width, channels].
      left: [windows, left steps, height, width, channels], or None.
      right: [windows, right steps, height, width, channels], or None.
    """

    dense: Any
    left: Any
    right: Any

    def each(self, function: Callable[[Any], Any]) -> "_Signal":
        """Applies a function of [batch, height, width, channels] to all."""
        return _Signal(
            function(self.dense),
            _over_steps(function, self.left),
            _over_steps(function, self.right),
        )


def _over_steps(function: Callable[[Any], Any], x: Any) -> Any:
    if x is None:
        return None
    windows, steps, *size = x.shape
    y = function(ops.reshape(x, (windows * steps, *size)))
    return ops.reshape(y, (windows, steps, *y.shape[1:]))


@dataclasses.dataclass
class _Run:
    """One call of a step function: its arguments, and the state it leaves."""

    windows: int
    weights: Sequence[Any]
    state: Sequence[Any]
    # Whether right borders and features are wanted: not before the first
    # window is complete.
    emits: bool
    # Start of the chunk's last window and last frame of the video, where
    # labels outside of the video must be zero; else None.
    start: Any = None
    end: Any = None
    left_behind: dict[int, Any] = dataclasses.field(default_factory=dict)

    def inside(self, x: Any, head: int, grid: int) -> Any:
        """Zeroes dense values whose labels lie outside of the video."""
        if self.start is None:
            return x
        ages = grid * np.arange(x.shape[0] - 1, -1, -1, dtype="int32")
        labels = self.start + head - ages
        keep = ops.logical_and(labels >= 0, labels <= self.end)
        return x * ops.reshape(ops.cast(keep, x.dtype), (-1, 1, 1, 1))


class _Plan:
    """Collects weights, state and costs while the layers are laid out."""

    def __init__(self, stride: int, *, borders: bool):
        self.stride = stride
        self.borders = borders
        self.weights: list[np.ndarray] = []
        self.histories: list[tuple[int, ...]] = []
        # Multiply-adds for one window, by layer of the table.
        self.costs: dict[str, float] = {}
        self.layer = ""

    def follow(self, track: Track, kernel: int, step: int) -> Track:
        return follow(track, kernel, step, self.stride, borders=self.borders)

    def weight(self, array: np.ndarray) -> int:
        self.weights.append(np.ascontiguousarray(array, np.float32))
        return len(self.weights) - 1

    def count(self, cost: float) -> None:
        self.costs[self.layer] = self.costs.get(self.layer, 0.0) + cost

    def new_labels(self, track: Track) -> int:
        """Returns how many dense labels a window adds."""
        return self.stride // track.grid(self.stride)


class _History:
    """Keeps the last entries of an array that grows along its first axis."""

    def __init__(self, plan: _Plan, length: int, shape: Sequence[int]):
        self._length = max(length, 0)
        self._index = len(plan.histories)
        if self._length:
            plan.histories.append((self._length, *shape))

    def extend(self, run: _Run, new: Any) -> Any:
        """Returns old and new entries, in order."""
        if not self._length:
            return new
        whole = ops.concatenate([run.state[self._index], new])
        run.left_behind[self._index] = whole[-self._length :]
        return whole


class _Dense:
    """Dense values of a grid of labels, with as many old ones as are read.

    Readers announce themselves before the first call: `reads(newest,
    period)` says that a chunk reads labels newest, newest - period, ...
    """

    def __init__(self, plan: _Plan, head: int, grid: int, shape: Sequence[int]):
        self._plan = plan
        self._head = head
        self._grid = grid
        self._shape = shape
        self._length = 0
        self._history: _History | None = None

    def reads(self, newest: int, period: int) -> None:
        lag = (self._head - newest - period) // self._grid + 1
        self._length = max(self._length, lag)

    def close(self) -> None:
        """Ends the announcements."""
        self._history = _History(self._plan, self._length, self._shape)

    def extend(self, run: _Run, new: Any) -> Any:
        if self._history is None:
            raise RuntimeError("close() comes before extend().")
        return self._history.extend(run, new)

    def pick(self, whole: Any, newest: int, period: int, count: int) -> Any:
        """Returns `count` labels, the last one `newest`, in order of time."""
        last = whole.shape[0] - 1 - (self._head - newest) // self._grid
        step = period // self._grid
        first = last - step * (count - 1)
        return whole[first : last + 1 : step]


class _Delay:
    """Holds left borders back until the next layer can use them."""

    def __init__(
        self, plan: _Plan, track: Track, ready: int | None, size: Sequence[int]
    ):
        length = 0
        if track.left and track.ready is not None and ready is not None:
            length = (track.ready - ready) // plan.stride
        self._history = _History(plan, length, (track.left, *size))

    def __call__(self, run: _Run, left: Any) -> Any:
        if left is None:
            return None
        return self._history.extend(run, left)[: run.windows]


# === Layers over dense values and borders ===


class _Unit(NamedTuple):
    """A convolution with BatchNorm folded into kernel and bias."""

    kernel: np.ndarray
    bias: np.ndarray
    step: int
    spatial: tuple[int, int]


class _Pointwise:
    """1 x 1 x 1 units side by side: what they read, they read once."""

    def __init__(
        self,
        plan: _Plan,
        units: Sequence[_Unit],
        track: Track,
        size: Sequence[int],
    ):
        kernel = np.concatenate([unit.kernel[0] for unit in units], -1)
        self._kernel = plan.weight(kernel)
        self._bias = plan.weight(np.concatenate([u.bias for u in units]))
        self._track = track
        self._grid = track.grid(plan.stride)
        steps = plan.new_labels(track) + track.left + track.right
        plan.count(steps * kernel.size * math.prod(size[:2]))

    def __call__(self, run: _Run, x: _Signal) -> _Signal:
        kernel, bias = run.weights[self._kernel], run.weights[self._bias]

        def unit(y: Any) -> Any:
            return ops.relu(_convolve(y, kernel) + bias)

        y = x.each(unit)
        dense = run.inside(y.dense, self._track.head, self._grid)
        return y._replace(dense=dense)


class _Tapped:
    """A unit that spans time, from dense values, left and right borders.

    The dense taps that a sum needs are {all of them} or, at borders, some.
    Taps that always come together make one segment, which is convolved with
    its taps laid side by side as channels.
    """

    def __init__(
        self,
        plan: _Plan,
        unit: _Unit,
        track: Track,
        size: Sequence[int],
        pool: i3d.Pool | None = None,
    ):
        self._unit = unit
        self._pool = pool
        self._plan = plan
        kernel, step = unit.kernel.shape[0], unit.step
        self._track = track
        self.out = out = plan.follow(track, kernel, step)
        self._before, _ = i3d.same_padding(track.steps, kernel, step)
        self._size = _scaled(size, unit.spatial, unit.kernel.shape[-1])
        self._bias = plan.weight(unit.bias)
        self._kernels: dict[tuple[int, ...], int] = {}
        self._delay = _Delay(plan, track, out.ready, size)
        every = tuple(range(kernel))
        self._every = every
        self._left, self._right = _both_ends(track, out, kernel, step, every)
        self._lay_segments(plan, size)
        for group in (*self._left, *self._right):
            self._fold(tuple(group.border), group.count)

    def _lay_segments(self, plan: _Plan, size: Sequence[int]) -> None:
        groups = (*self._left, *self._right)
        sums = {self._every, *(group.dense for group in groups)}

        def member(tap: int) -> tuple[bool, ...]:
            return tuple(tap in taps for taps in sorted(sums))

        self._segments = [
            tuple(taps) for _, taps in itertools.groupby(self._every, member)
        ]
        grid = self.out.grid(plan.stride)
        self._grid = grid
        self._source = _Dense(
            plan, self._track.head, self._track.grid(plan.stride), size
        )
        self._products = []
        self._heads = []
        for taps in self._segments:
            ahead = self._track.spacing * (taps[-1] - self._before)
            head = _floor(self._track.head - ahead, grid)
            for tap in taps:
                self._source.reads(self._seen(head, tap), grid)
            products = _Dense(plan, head, grid, self._size)
            for newest, period, needed in self._readers(plan):
                if taps[0] in needed:
                    products.reads(newest, period)
            products.close()
            self._products.append(products)
            self._heads.append(head)
            self._fold(taps, plan.new_labels(self.out))
        self._source.close()

    def _readers(
        self, plan: _Plan
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Yields newest label, period and taps of each sum over segments."""
        yield self.out.head, self._grid, self._every
        for groups, start in (
            (self._left, self.out.ready or 0),
            (self._right, 0),
        ):
            for group in groups:
                for j in range(group.first, group.first + group.count):
                    newest = start + self.out.spacing * j
                    yield newest, plan.stride, group.dense

    def _seen(self, label: int, tap: int) -> int:
        """Returns the input label that a tap of an output label sees."""
        return label + self._track.spacing * (tap - self._before)

    def _fold(self, taps: tuple[int, ...], steps: int) -> None:
        """Keeps a kernel with some taps as channels; counts its cost."""
        if not taps:
            return
        kernel = np.concatenate([self._unit.kernel[t] for t in taps], 2)
        if taps not in self._kernels:
            self._kernels[taps] = self._plan.weight(kernel)
        self._plan.count(steps * kernel.size * math.prod(self._size[:2]))

    def _convolve(self, run: _Run, parts: Sequence[Any], taps: Any) -> Any:
        x = ops.concatenate(parts, -1) if len(parts) > 1 else parts[0]
        kernel = run.weights[self._kernels[tuple(taps)]]
        return _convolve(x, kernel, self._unit.spatial)

    def __call__(self, run: _Run, x: _Signal) -> _Signal:
        products = self._multiply(run, x.dense)
        count = run.windows * self._plan.new_labels(self.out)
        dense = self._sum(
            products, self._every, self.out.head, self._grid, count
        )
        dense = run.inside(self._end(run, dense), self.out.head, self._grid)
        left = right = None
        if self.out.left:
            held = self._delay(run, x.left)
            start = self.out.ready or 0
            left = self._border(run, held, self._left, products, start)
        if self.out.right and run.emits:
            right = self._border(run, x.right, self._right, products, 0)
        return _Signal(dense, left, right)

    def _multiply(self, run: _Run, new: Any) -> list[Any]:
        source = self._source.extend(run, new)
        count = run.windows * self._plan.new_labels(self.out)
        found = []
        for taps, head, products in zip(
            self._segments, self._heads, self._products, strict=True
        ):
            parts = [
                self._source.pick(
                    source, self._seen(head, tap), self._grid, count
                )
                for tap in taps
            ]
            product = self._convolve(run, parts, taps)
            found.append(products.extend(run, product))
        return found

    def _sum(
        self,
        products: Sequence[Any],
        taps: tuple[int, ...],
        newest: int,
        period: int,
        count: int,
    ) -> Any:
        terms = [
            dense.pick(whole, newest, period, count)
            for segment, dense, whole in zip(
                self._segments, self._products, products, strict=True
            )
            if segment[0] in taps
        ]
        return sum(terms[1:], start=terms[0])

    def _border(
        self,
        run: _Run,
        border: Any,
        groups: Sequence[_Group],
        products: Sequence[Any],
        start: int,
    ) -> Any:
        found = []
        for group in groups:
            y = None
            if group.border:
                parts = [
                    _steps(border, first, group.count, self._unit.step)
                    for first in group.border.values()
                ]
                y = self._convolve(run, parts, group.border)
                y = ops.reshape(y, (run.windows, group.count, *y.shape[1:]))
            if group.dense:
                sums = [
                    self._sum(
                        products,
                        group.dense,
                        start + self.out.spacing * (group.first + k),
                        self._plan.stride,
                        run.windows,
                    )
                    for k in range(group.count)
                ]
                shared = ops.stack(sums, 1)
                y = shared if y is None else y + shared
            found.append(y)
        y = ops.concatenate(found, 1) if len(found) > 1 else found[0]
        return _over_steps(lambda part: self._end(run, part), y)

    def _end(self, run: _Run, x: Any) -> Any:
        """Pools, adds the bias, rectifies.

        Pooling first gives the same: a maximum commutes with what rises.
        """
        if self._pool is not None:
            x = _pool_space(x, self._pool)
        return ops.relu(x + run.weights[self._bias])


class _TimeMax:
    """The maximum over some temporal taps, of dense values and borders.

    With one tap it only aligns a branch without temporal kernel with those
    that have one. Everything comes from a ReLU, so that the zeros of the
    padding can be left out.
    """

    def __init__(
        self,
        plan: _Plan,
        kernel: int,
        step: int,
        track: Track,
        size: Sequence[int],
        taps: Sequence[int],
    ):
        self._plan = plan
        self._track = track
        self._taps = taps
        self._step = step
        self.out = out = plan.follow(track, kernel, step)
        self._before, _ = i3d.same_padding(track.steps, kernel, step)
        self._grid = out.grid(plan.stride)
        self._delay = _Delay(plan, track, out.ready, size)
        self._left, self._right = _both_ends(track, out, kernel, step, taps)
        self._source = _Dense(plan, track.head, track.grid(plan.stride), size)
        for tap in taps:
            self._source.reads(self._seen(out.head, tap), self._grid)
        for groups, start in ((self._left, out.ready or 0), (self._right, 0)):
            for group in groups:
                for label in self._labels(group, start):
                    self._source.reads(label, plan.stride)
        self._source.close()

    def _seen(self, label: int, tap: int) -> int:
        return label + self._track.spacing * (tap - self._before)

    def _labels(self, group: _Group, start: int) -> Iterator[int]:
        for j in range(group.first, group.first + group.count):
            for tap in group.dense:
                yield self._seen(start + self.out.spacing * j, tap)

    def __call__(self, run: _Run, x: _Signal) -> _Signal:
        source = self._source.extend(run, x.dense)
        count = run.windows * self._plan.new_labels(self.out)
        dense = _maximum(
            self._source.pick(
                source, self._seen(self.out.head, tap), self._grid, count
            )
            for tap in self._taps
        )
        dense = run.inside(dense, self.out.head, self._grid)
        left = right = None
        if self.out.left:
            held = self._delay(run, x.left)
            start = self.out.ready or 0
            left = self._border(run, held, self._left, source, start)
        if self.out.right and run.emits:
            right = self._border(run, x.right, self._right, source, 0)
        return _Signal(dense, left, right)

    def _border(
        self,
        run: _Run,
        border: Any,
        groups: Sequence[_Group],
        source: Any,
        start: int,
    ) -> Any:
        found = []
        for group in groups:
            parts = [
                border[:, first : first + self._step * group.count : self._step]
                for first in group.border.values()
            ]
            for tap in group.dense:
                labels = self._labels(
                    dataclasses.replace(group, dense=(tap,)), start
                )
                picked = [
                    self._source.pick(
                        source, label, self._plan.stride, run.windows
                    )
                    for label in labels
                ]
                parts.append(ops.stack(picked, 1))
            found.append(_maximum(parts))
        return ops.concatenate(found, 1) if len(found) > 1 else found[0]


class _Inception:
    """A Mixed block."""

    def __init__(
        self,
        plan: _Plan,
        block: i3d.Mixed,
        units: Mapping[str, _Unit],
        track: Track,
        size: Sequence[int],
    ):
        first, second, third, fourth = i3d.branches(block)
        pool, last = fourth
        kernel, step = pool.kernel[0], pool.stride[0]
        self.out = plan.follow(track, kernel, step)
        # Held back once here, and in no branch.
        self._delay = _Delay(plan, track, self.out.ready, size)
        track = track._replace(ready=self.out.ready)
        heads = [units[branch[0].name] for branch in (first, second, third)]
        self._widths = [unit.bias.size for unit in heads]
        self._heads = _Pointwise(plan, heads, track, size)
        straight, *narrow = [(*size[:2], width) for width in self._widths]
        middle = i3d.same_padding(track.steps, kernel, step)[0]
        self._straight = _TimeMax(
            plan, kernel, step, track, straight, (middle,)
        )
        self._wide = [
            _Tapped(plan, units[branch[1].name], track, inside)
            for branch, inside in zip((second, third), narrow, strict=True)
        ]
        self._pool = pool
        self._pooled = _TimeMax(plan, kernel, step, track, size, range(kernel))
        self._last = _Pointwise(plan, [units[last.name]], self.out, size)

    def __call__(self, run: _Run, x: _Signal) -> _Signal:
        x = x._replace(left=self._delay(run, x.left))
        heads = self._heads(run, x)
        edges = np.cumsum([0, *self._widths])
        parts = [
            _Signal(*(None if y is None else y[..., a:b] for y in heads))
            for a, b in itertools.pairwise(edges)
        ]
        ends = [self._straight(run, parts[0])]
        for wide, part in zip(self._wide, parts[1:], strict=True):
            ends.append(wide(run, part))
        pooled = x.each(lambda y: _pool_space(y, self._pool))
        ends.append(self._last(run, self._pooled(run, pooled)))
        return _Signal(
            *(
                None if part[0] is None else ops.concatenate(part, -1)
                for part in zip(*ends, strict=True)
            )
        )


class _Pooling:
    """A max pooling of the table."""

    def __init__(
        self, plan: _Plan, pool: i3d.Pool, track: Track, size: Sequence[int]
    ):
        self._pool = pool
        kernel, step = pool.kernel[0], pool.stride[0]
        size = _scaled(size, pool.stride[1:], size[-1])
        self._time = _TimeMax(plan, kernel, step, track, size, range(kernel))
        self.out = self._time.out

    def __call__(self, run: _Run, x: _Signal) -> _Signal:
        return self._time(run, x.each(lambda y: _pool_space(y, self._pool)))


class _Assembly:
    """Whole windows out of dense values and borders."""

    def __init__(self, plan: _Plan, track: Track, size: Sequence[int]):
        self._stride = plan.stride
        self._delay = _Delay(plan, track, 0, size)
        shared = range(track.left, track.steps - track.right)
        self._labels = [track.spacing * j for j in shared]
        self._source = _Dense(plan, track.head, track.grid(plan.stride), size)
        for label in self._labels:
            self._source.reads(label, plan.stride)
        self._source.close()

    def __call__(self, run: _Run, x: _Signal) -> Any:
        """Returns [windows, steps, height, width, channels], or None."""
        source = self._source.extend(run, x.dense)
        left = self._delay(run, x.left)
        if not run.emits:
            return None
        picked = [
            self._source.pick(source, label, self._stride, run.windows)
            for label in self._labels
        ]
        parts = [left, ops.stack(picked, 1), x.right]
        parts = [part for part in parts if part is not None]
        return ops.concatenate(parts, 1) if len(parts) > 1 else parts[0]


class _RecentSteps:
    """A skip of each window: the mean over its last steps at a layer.

    The values are those that the next layer gets, so nothing is computed
    twice. Windows are `delay` frames old ("continuous").
    """

    def __init__(
        self,
        plan: _Plan,
        track: Track,
        size: Sequence[int],
        count: int,
        delay: int,
    ):
        self._stride = plan.stride
        steps = range(track.steps - count, track.steps)
        stop = track.steps - track.right
        # Border steps, counted within their border.
        self._lefts = slice(steps.start, track.left)
        self._rights = slice(max(0, steps.start - stop), None)
        self._delay = None
        if steps.start < track.left:
            self._delay = _Delay(plan, track, 0, size)
        # Behind the newest dense step of a window are those of its border.
        shift = 0 if plan.borders else _shift(track, delay)
        self._labels = [
            track.spacing * (j - shift) - delay
            for j in steps
            if track.left <= j < stop
        ]
        self._source = _Dense(plan, track.head, track.grid(plan.stride), size)
        for label in self._labels:
            self._source.reads(label, plan.stride)
        self._source.close()

    def __call__(self, run: _Run, x: _Signal) -> Any:
        """Returns [windows, height, width, channels], or None."""
        source = self._source.extend(run, x.dense)
        left = None if self._delay is None else self._delay(run, x.left)
        if not run.emits:
            return None
        found = []
        if left is not None:
            found.append(left[:, self._lefts])
        if self._labels:
            picked = [
                self._source.pick(source, label, self._stride, run.windows)
                for label in self._labels
            ]
            found.append(ops.stack(picked, 1))
        if x.right is not None:
            found.append(x.right[:, self._rights])
        steps = ops.concatenate(found, 1) if len(found) > 1 else found[0]
        return ops.mean(steps, 1)


class _RecentWhole:
    """The same of whole windows."""

    def __init__(self, count: int):
        self._count = count

    def __call__(self, run: _Run, x: Any) -> Any:
        """Returns [windows, height, width, channels]."""
        del run
        return ops.mean(x[:, -self._count :], 1)


def _delay_of(track: Track, stride: int, lookahead: int) -> int:
    """Returns how old windows are when features of a last layer come.

    Frames behind a window's last one that its last step sees, in strides, or
    as many as may be waited for.
    """
    beyond = max(0, track.spacing * (track.steps - 1) - track.head)
    return min(-(-beyond // stride) * stride, _floor(lookahead, stride))


def _shift(track: Track, delay: int) -> int:
    """Returns by how many steps a window's steps must be older ones."""
    newest = track.spacing * (track.steps - 1)
    return -(-max(0, newest - delay - track.head) // track.spacing)


class _Steps:
    """Features out of dense values alone, of windows `delay` frames old."""

    def __init__(
        self,
        plan: _Plan,
        track: Track,
        size: Sequence[int],
        delay: int,
        *,
        pooled: bool,
    ):
        self._stride = plan.stride
        shift = _shift(track, delay)
        self._labels = [
            track.spacing * (j - shift) - delay for j in range(track.steps)
        ]
        height, width, channels = size
        self._kernel = i3d.ONE
        if pooled:
            self._kernel = i3d.pooling_kernel(track.steps, height, width)
        _, rows, columns = self._kernel
        size = (height - rows + 1, width - columns + 1, channels)
        self._source = _Dense(plan, track.head, track.grid(plan.stride), size)
        for label in self._labels:
            self._source.reads(label, plan.stride)
        self._source.close()

    def __call__(self, run: _Run, x: _Signal) -> Any:
        pooled = ops.average_pool(x.dense, self._kernel[1:], 1, "valid")
        source = self._source.extend(run, pooled)
        picked = [
            self._source.pick(source, label, self._stride, run.windows)
            for label in self._labels
        ]
        return _average_time(ops.stack(picked, 1), self._kernel[0])


# === Layers over whole windows ===


class _Whole:
    """A layer of the table over [windows, steps, height, width, channels]."""

    def __init__(
        self,
        plan: _Plan,
        layer: i3d.Layer,
        units: Mapping[str, _Unit],
        size: Sequence[int],
    ):
        self._weights = {}
        self._branches = (
            i3d.branches(layer) if isinstance(layer, i3d.Mixed) else ((layer,),)
        )
        for part in itertools.chain(*self._branches):
            if isinstance(part, i3d.Conv):
                unit = units[part.name]
                self._weights[part.name] = (
                    plan.weight(unit.kernel),
                    plan.weight(unit.bias),
                )
                plan.count(unit.kernel.size * math.prod(size[:3]))

    def __call__(self, run: _Run, x: Any) -> Any:
        ends = []
        for branch in self._branches:
            y = x
            for part in branch:
                y = self._apply(run, part, y)
            ends.append(y)
        return ops.concatenate(ends, -1) if len(ends) > 1 else ends[0]

    def _apply(self, run: _Run, part: i3d.Conv | i3d.Pool, x: Any) -> Any:
        if isinstance(part, i3d.Pool):
            x = _over_steps(lambda y: _pool_space(y, part), x)
            return _pool_time(x, part.kernel[0], part.stride[0])
        kernel, bias = (run.weights[n] for n in self._weights[part.name])
        if part.kernel == i3d.ONE:
            return _over_steps(
                lambda y: ops.relu(_convolve(y, kernel[0]) + bias), x
            )
        return ops.relu(_convolve(x, kernel, part.stride) + bias)


# === Arithmetic ===


def _convolve(x: Any, kernel: Any, strides: Any = 1) -> Any:
    return ops.conv(
        x, kernel, strides, padding="same", data_format="channels_last"
    )


def _scaled(
    size: Sequence[int], spatial: Sequence[int], channels: int
) -> tuple[int, int, int]:
    height, width = (
        -(-n // step) for n, step in zip(size[:2], spatial, strict=True)
    )
    return height, width, channels


def _pool_space(x: Any, pool: i3d.Conv | i3d.Pool) -> Any:
    """Pools [batch, height, width, channels]; the rest is over time.

    A maximum over a box is one over space and then one over time, and three
    two-dimensional operations take a small part of the three-dimensional one.
    """
    if pool.kernel[1:] == pool.stride[1:] == (1, 1):
        return x
    return ops.max_pool(
        x, pool.kernel[1:], pool.stride[1:], "same", "channels_last"
    )


def _pool_time(x: Any, kernel: int, step: int) -> Any:
    """Pools steps of [windows, steps, ...], which are not negative."""
    steps = x.shape[1]
    before, after = i3d.same_padding(steps, kernel, step)
    padding = [(0, 0)] * len(x.shape)
    padding[1] = (before, after)
    x = ops.pad(x, padding)
    out = -(-steps // step)
    return _maximum(
        x[:, t : t + step * (out - 1) + 1 : step] for t in range(kernel)
    )


def _maximum(parts: Any) -> Any:
    first, *rest = parts
    for part in rest:
        first = ops.maximum(first, part)
    return first


def _steps(border: Any, first: int, count: int, step: int) -> Any:
    """Returns steps of all windows, as [windows * count, ...]."""
    x = border[:, first : first + step * (count - 1) + 1 : step]
    return ops.reshape(x, (-1, *x.shape[2:]))


def _average_time(x: Any, kernel: int) -> Any:
    """Averages steps of [windows, steps, ...]; stride 1, no padding."""
    out = x.shape[1] - kernel + 1
    terms = [x[:, t : t + out] for t in range(kernel)]
    return sum(terms[1:], start=terms[0]) / kernel


def _average(x: Any) -> Any:
    """Does what `i3d.pool` does, in two dimensions and then in one."""
    time, *space = i3d.pooling_kernel(*x.shape[1:4])
    x = _over_steps(lambda y: ops.average_pool(y, tuple(space), 1, "valid"), x)
    return _average_time(x, time)


# === The network ===


def _folded_units(network: keras.Model) -> dict[str, _Unit]:
    """Returns the units of an I3D with BatchNorm inside the kernels."""
    found = {}
    for unit in i3d.units():
        conv = network.get_layer(i3d.layer_name(unit.name, "conv_3d"))
        norm = network.get_layer(i3d.layer_name(unit.name, "batch_norm"))
        kernel, beta, mean, variance = (
            np.asarray(ops.convert_to_numpy(array), np.float64)
            for array in (
                conv.kernel,
                norm.beta,
                norm.moving_mean,
                norm.moving_variance,
            )
        )
        scale = 1 / np.sqrt(variance + i3d.EPSILON)
        found[unit.name] = _Unit(
            (kernel * scale).astype(np.float32),
            (beta - mean * scale).astype(np.float32),
            unit.stride[0],
            unit.stride[1:],
        )
    return found


def check_lookahead(lookahead: int | None, front_end: str) -> None:
    """Raises ValueError for a lookahead that a front end cannot have."""
    if lookahead is not None and (front_end == "window" or lookahead < 0):
        raise ValueError(
            'Only "continuous" looks ahead, by 0 frames or more. '
            f"Received: lookahead={lookahead}, front_end={front_end!r}"
        )


class SlidingI3D:
    """Pooled Mixed_5c features of every window of a video, and skips.

    >>> sliding = SlidingI3D(network, window=79)      # doctest: +SKIP
    >>> for frames in chunks:                         # doctest: +SKIP
    ...     features = sliding.push(frames)           # doctest: +SKIP
    >>> features = sliding.finish()                   # doctest: +SKIP

    The front end "window" gives what `i3d.build(..., pooled=True)` gives for
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
      watch: called for each layer with its name and a function that runs it;
        returns what that returns. For measuring.
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
          chunk: frames computed at once where so many are there, else 8, or
            one window's. More are faster on a GPU and need more memory.
          compile: wraps a function of arrays, for instance `tf.function` or
            `jax.jit`; None runs operation by operation.

        Raises:
          ValueError: a size below 1, an unknown front end or skip, a skip
            behind the end point, or a lookahead without "continuous".
        """
        if min(window, stride, chunk) < 1:
            raise ValueError(
                "A window, its stride and a chunk have at least one frame. "
                f"Received: window={window}, stride={stride}, chunk={chunk}"
            )
        if front_end not in FRONT_ENDS:
            raise ValueError(
                f"The front end must be one of {', '.join(FRONT_ENDS)}. "
                f"Received: front_end={front_end!r}"
            )
        check_lookahead(lookahead, front_end)
        parts.check_skips(skips)
        i3d.check_order(skips, end_point)
        _, _, height, width, channels = network.input_shape
        self._size = (height or 224, width or 224, channels)
        self._window = window
        self._stride = stride
        self._dtype = dtype
        self._compile = compile or (lambda function: function)
        self.watch: Callable[[str, Callable[[], Any]], Any]
        self.watch = lambda _, layer: layer()
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
        self._oldest = 0
        plan = _Plan(stride, borders=not self._is_continuous)
        self._layers: list[tuple[str, Any]] = []
        self._taps: dict[str, Any] = {}
        if self._is_continuous:
            self.delay = _delay_of(
                self._last_track(plan),
                stride,
                10**9 if lookahead is None else lookahead,
            )
        self._lay_out(plan, _folded_units(network), skips)
        self.costs = plan.costs
        self._histories = plan.histories
        self._weights = [
            ops.convert_to_tensor(array, dtype) for array in plan.weights
        ]
        # Few sizes, so that few functions are made, each in some seconds. The
        # one between is for live streams, which do not wait for a large one.
        frames = {chunk, min(chunk, _CHUNK), 1}
        sizes = {max(1, count // stride) for count in frames}
        self._chunks = tuple(sorted(sizes, reverse=True))
        self.reset()

    def _last_track(self, plan: _Plan) -> Track:
        track = frames_track(self._window)
        for layer in i3d.layers(self._end_point):
            track = plan.follow(track, *in_time(layer))
        return track

    def _lay_out(
        self, plan: _Plan, units: Mapping[str, _Unit], skips: Sequence[str]
    ) -> None:
        track = frames_track(self._window)
        size: tuple[int, ...] = self._size
        is_whole = False
        layers = i3d.layers(self._end_point)
        shapes = i3d.shapes(self._window, *self._size[:2])
        heads = [track.head]
        merged: i3d.Pool | None = None
        for layer, behind in zip(layers, (*layers[1:], None), strict=True):
            if layer is merged:
                size = shapes[layer.name][1:]
                continue
            plan.layer = layer.name
            after = plan.follow(track, *in_time(layer))
            if plan.borders and not is_whole:
                is_whole = not after.is_worth_sharing(plan.stride)
                if is_whole:
                    self._layers.append(
                        ("assembly", _Assembly(plan, track, size))
                    )
            if is_whole:
                built: Any = _Whole(plan, layer, units, shapes[layer.name])
            elif isinstance(layer, i3d.Mixed):
                built = _Inception(plan, layer, units, track, size)
            elif isinstance(layer, i3d.Pool):
                built = _Pooling(plan, layer, track, size)
            else:
                # A pooling over space alone goes before bias and ReLU.
                merged = None
                if (
                    isinstance(behind, i3d.Pool)
                    and behind.kernel[0] == 1
                    and layer.name not in skips
                ):
                    merged = behind
                built = _Tapped(plan, units[layer.name], track, size, merged)
            self._layers.append((layer.name, built))
            track = after
            heads.append(track.head)
            size = shapes[layer.name][1:]
            if layer.name in skips:
                count = parts.recent_steps(track.steps, track.spacing)
                self._taps[layer.name] = (
                    _RecentWhole(count)
                    if is_whole
                    else _RecentSteps(plan, track, size, count, self.delay)
                )
        plan.layer = "pool"
        if self._is_continuous:
            ends = _Steps(plan, track, size, self.delay, pooled=self._is_pooled)
            # Chunks older than this see labels before the video.
            self._oldest = -min(heads)
            self._layers.append(("pool", ends))
        elif not is_whole:
            self._layers.append(("assembly", _Assembly(plan, track, size)))

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
        self._state = [
            ops.zeros(shape, self._dtype) for shape in self._histories
        ]

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Takes the next frames; returns what they complete.

        Any n gives the same features; multiples of `chunk` are the fastest.

        Args:
          frames: float32 [n, height, width, channels] in [-1, 1], n >= 0.

        Returns:
          float32 [m, *feature_shape], the features of the windows that became
          complete, in order: those that end at frames window - 1,
          window - 1 + stride, ... ("continuous": `delay` frames later).

        Raises:
          ValueError: frames of another shape.
        """
        return self.push_parts(frames)[self._end_point]

    def push_parts(
        self, frames: np.ndarray, *, wait: bool = False
    ) -> dict[str, np.ndarray]:
        """Does what `push` does; returns skips too.

        Args:
          frames: as `push` takes them.
          wait: for a recorded video, in chunks of any size: frames that do
            not fill the fastest chunk wait for the next call, or `finish`.

        Returns:
          {end point: float32 [m, *its shape]}, see `part_shapes`.
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
        """Ends the video; returns the windows that waited for more of it.

        Call `reset` before the next video.

        Returns:
          float32 [m, *feature_shape].
        """
        return self.finish_parts()[self._end_point]

    def finish_parts(self) -> dict[str, np.ndarray]:
        """Does what `finish` does; returns skips too, as `push_parts`."""
        frames = self._seen + len(self._pending) - self._early
        windows = (frames - self._window) // self._stride + 1
        missing = windows - self._emitted
        if missing < 1:
            return self._nothing()
        # A whole chunk, part of it in vain, takes less time than making the
        # function of another size.
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
            # A function less to make; what it computes in vain is little.
            is_plain = start >= 0 or windows < self._chunks[0]
        last = np.int32(2**30 if end is None else end)
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
        if not new:
            return self._nothing()
        return {
            name: ops.convert_to_numpy(ops.cast(part, "float32"))[
                windows - new :
            ]
            for name, part in zip(self.part_shapes, features, strict=True)
        }

    def _function(self, windows: int, is_plain: bool) -> Callable:
        """Returns the step function of a chunk size, made at first use.

        At the ends of a video it is another: "window" needs no right borders
        before the first window is complete, and "continuous" must zero what
        lies outside of the video.
        """
        key = (windows, is_plain)
        if key not in self._functions:

            def step(weights, state, frames, start, end):
                run = _Run(windows, weights, state, emits=True)
                if self._is_continuous and not is_plain:
                    run.start, run.end = start, end
                elif not self._is_continuous:
                    run.emits = is_plain
                return self._step(run, frames)

            self._functions[key] = self._compile(step)
        return self._functions[key]

    def _step(self, run: _Run, frames: Any) -> tuple[list[Any], list[Any]]:
        x: Any = _Signal(frames, None, None)
        taken = {}
        for name, layer in self._layers:
            x = self.watch(name, functools.partial(layer, run, x))
            if x is None:
                break
            if name in self._taps:
                taken[name] = self._taps[name](run, x)
        left_behind = [run.left_behind[n] for n in range(len(self._histories))]
        if x is None:
            return [], left_behind
        if self._is_pooled and not self._is_continuous:
            x = _average(x)
        _, *skips = self.part_shapes
        return [x, *(taken[name] for name in skips)], left_behind


def in_time(layer: i3d.Layer) -> tuple[int, int]:
    """Returns a layer's temporal kernel and stride."""
    if isinstance(layer, i3d.Mixed):
        return i3d.THREE[0], 1
    return layer.kernel[0], layer.stride[0]
