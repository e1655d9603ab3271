"""I3D's layers over what windows share, and over each window's borders.

A convolution over time is a sum over its temporal taps. The border of a
window needs partial sums of dense values: these are the very products that
the dense values themselves are sums of, so each is computed once and kept.
Where borders would leave hardly a shared step (the last two blocks at 79
frames), windows are assembled and run as a batch.

A layer is laid out once, where it tells a `Plan` what it has to remember from
chunk to chunk, and then called once a chunk. `geometry` has the words.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
import operator
from typing import Any, NamedTuple

import keras
from keras import ops
import numpy as np

from lsts_tf.networks import i3d
from lsts_tf.networks.sliding import geometry


class Signal(NamedTuple):
    """Activations of one chunk behind a layer.

    Attributes:
      dense: [new labels, height, width, channels].
      left: [windows, left steps, height, width, channels], or None.
      right: [windows, right steps, height, width, channels], or None.
    """

    dense: Any
    left: Any
    right: Any

    def each(self, function: Callable[[Any], Any]) -> "Signal":
        """Applies a function of [batch, height, width, channels] to all."""
        return Signal(
            function(self.dense),
            _over_steps(function, self.left),
            _over_steps(function, self.right),
        )


@dataclasses.dataclass
class Run:
    """One call of a step function: its arguments, and the state it leaves.

    Attributes:
      windows: number of windows that the chunk completes.
      weights: those of `Plan`.
      state: what the last chunk left.
      emits: whether right borders and features are wanted: not before the
        first window is complete.
      start: start of the chunk's last window where labels outside of the video
        must be zero, else None.
      end: last frame of the video, likewise.
      is_still: whether the video stood still until here: all that is
        remembered equals what is new, and `state` is not read.
      left_behind: the state for the next chunk, by place in `Plan.histories`.
    """

    windows: int
    weights: Sequence[Any]
    state: Sequence[Any]
    emits: bool
    start: Any = None
    end: Any = None
    is_still: bool = False
    left_behind: dict[int, Any] = dataclasses.field(default_factory=dict)

    def inside(self, x: Any, head: int, grid: int) -> Any:
        """Zeroes dense values whose labels lie outside of the video."""
        if self.start is None:
            return x
        ages = grid * np.arange(x.shape[0] - 1, -1, -1, dtype="int32")
        labels = self.start + head - ages
        keep = ops.logical_and(labels >= 0, labels <= self.end)
        return x * ops.reshape(ops.cast(keep, x.dtype), (-1, 1, 1, 1))


class Plan:
    """Collects weights, state and costs while the layers are laid out.

    Attributes:
      stride: of the windows, in frames.
      borders: whether windows have borders ("continuous" has none).
      weights: arrays that the layers take from `Run.weights`.
      histories: shapes of the state.
      costs: multiply-adds for one window, by layer of the table.
      layer: name of the layer being laid out.
    """

    def __init__(self, stride: int, *, borders: bool):
        self.stride = stride
        self.borders = borders
        self.weights: list[np.ndarray] = []
        self.histories: list[tuple[int, ...]] = []
        self.costs: dict[str, float] = {}
        self.layer = ""

    def weight(self, array: np.ndarray) -> int:
        """Returns the place of an array among the weights."""
        self.weights.append(np.ascontiguousarray(array, np.float32))
        return len(self.weights) - 1

    def count(self, cost: float) -> None:
        """Adds to the costs of the layer."""
        self.costs[self.layer] = self.costs.get(self.layer, 0.0) + cost


class Place(NamedTuple):
    """Where a layer is laid out: what lies in front of it.

    Attributes:
      plan: of all layers.
      track: the steps of windows.
      size: height, width and channels.
    """

    plan: Plan
    track: geometry.Track
    size: Sequence[int]

    @property
    def grid(self) -> int:
        """Frames between dense labels."""
        return self.track.grid(self.plan.stride)

    @property
    def new_labels(self) -> int:
        """Dense labels that a window adds."""
        return self.plan.stride // self.grid

    def behind(
        self, kernel: int, step: int, size: Sequence[int] | None = None
    ) -> "Place":
        """Returns the place behind a layer; its size unless it changes."""
        plan = self.plan
        track = geometry.follow(
            self.track, kernel, step, plan.stride, borders=plan.borders
        )
        return Place(plan, track, size or self.size)


# === Memory ===


class _History:
    """Keeps the last entries of an array that grows along its first axis."""

    def __init__(self, plan: Plan, length: int, shape: Sequence[int]):
        self._length = max(length, 0)
        self._index = len(plan.histories)
        if self._length:
            plan.histories.append((self._length, *shape))

    def extend(self, run: Run, new: Any) -> Any:
        """Returns old and new entries, in order."""
        if not self._length:
            return new
        if run.is_still:
            old = ops.repeat(new[-1:], self._length, axis=0)
        else:
            old = run.state[self._index]
        whole = ops.concatenate([old, new])
        run.left_behind[self._index] = whole[-self._length :]
        return whole


class _Dense(_History):
    """Dense values of a grid of labels, with as many old ones as are read.

    A chunk reads labels newest, newest - period, ... for each pair of
    `reads`.
    """

    def __init__(
        self,
        at: Place,
        reads: Iterable[tuple[int, int]],
        head: int | None = None,
    ):
        self.head = at.track.head if head is None else head
        self._grid = at.grid
        lags = [
            (self.head - newest - period) // at.grid for newest, period in reads
        ]
        super().__init__(at.plan, max(lags, default=-1) + 1, at.size)

    def pick(self, whole: Any, newest: int, period: int, count: int) -> Any:
        """Returns `count` labels, the last one `newest`, in order of time."""
        last = whole.shape[0] - 1 - (self.head - newest) // self._grid
        step = period // self._grid
        first = last - step * (count - 1)
        return whole[first : last + 1 : step]


class _Delay(_History):
    """Holds left borders back until the next layer can use them."""

    def __init__(self, at: Place, ready: int | None):
        left, length = at.track.left, 0
        if left and at.track.ready is not None and ready is not None:
            length = (at.track.ready - ready) // at.plan.stride
        super().__init__(at.plan, length, (left, *at.size))

    def __call__(self, run: Run, left: Any) -> Any:
        if left is None:
            return None
        return self.extend(run, left)[: run.windows]


# === Layers over dense values and borders ===


class Unit(NamedTuple):
    """A convolution with BatchNorm folded into kernel and bias.

    Attributes:
      kernel: [time, height, width, channels, filters].
      bias: [filters].
      stride: over time, height and width.
    """

    kernel: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int, int]


class _Term(NamedTuple):
    """Dense values that some taps of a layer take part in.

    Attributes:
      taps: of the layer's temporal kernel, that always come together.
      ahead: their label less that of the output, in frames.
      dense: where they are kept.
    """

    taps: tuple[int, ...]
    ahead: int
    dense: _Dense


class _Spanning:
    """What spans time: dense values and borders out of temporal taps.

    A subclass sets `_terms`, which `_values` gives the values of, and says how
    values are combined.
    """

    _terms: list[_Term]

    def __init__(
        self,
        at: Place,
        size: Sequence[int],
        kernel: int,
        step: int,
        taps: Sequence[int],
    ):
        self._at = at
        self._out = at.behind(kernel, step, size)
        self._step = step
        self._before, _ = i3d.same_padding(at.track.steps, kernel, step)
        self._delay = _Delay(at, self._out.track.ready)
        self._left, self._right = geometry.groups(
            at.track, self._out.track, kernel, step, taps
        )

    def _ahead(self, tap: int) -> int:
        """Returns the label that a tap sees, less that of the output."""
        return self._at.track.spacing * (tap - self._before)

    def _label(self, step: int, *, is_left: bool) -> int:
        """Returns the label of a border step of the chunk's last window."""
        track = self._out.track
        return (track.ready or 0 if is_left else 0) + track.spacing * step

    def _reads(self, tap: int) -> Iterator[tuple[int, int]]:
        """Yields newest label and period of the outputs that a tap serves."""
        yield self._out.track.head, self._out.grid
        for groups, is_left in ((self._left, True), (self._right, False)):
            for group in groups:
                if tap in group.dense:
                    for j in group.steps:
                        yield (
                            self._label(j, is_left=is_left),
                            self._at.plan.stride,
                        )

    def __call__(self, run: Run, x: Signal) -> Signal:
        values = self._values(run, x.dense)
        track, grid = self._out.track, self._out.grid
        count = run.windows * self._out.new_labels
        dense = self._combine(
            term.dense.pick(value, track.head + term.ahead, grid, count)
            for term, value in zip(self._terms, values, strict=True)
        )
        dense = run.inside(self._end(run, dense), track.head, grid)
        left = right = None
        if track.left:
            held = self._delay(run, x.left)
            left = self._border(run, held, values, is_left=True)
        if track.right and run.emits:
            right = self._border(run, x.right, values, is_left=False)
        return Signal(dense, left, right)

    def _border(
        self, run: Run, border: Any, values: Sequence[Any], *, is_left: bool
    ) -> Any:
        found = []
        for group in self._left if is_left else self._right:
            terms = []
            if group.border:
                span = self._step * (len(group.steps) - 1) + 1
                parts = [
                    border[:, first : first + span : self._step]
                    for first in group.border.values()
                ]
                terms.append(self._of_border(run, tuple(group.border), parts))
            for term, value in zip(self._terms, values, strict=True):
                if term.taps[0] in group.dense:
                    labels = (
                        self._label(j, is_left=is_left) + term.ahead
                        for j in group.steps
                    )
                    terms.append(
                        _stack(run, self._at.plan, term.dense, value, labels)
                    )
            found.append(self._combine(terms))
        y = _concatenate(found, 1)
        return _over_steps(lambda part: self._end(run, part), y)

    def _values(self, run: Run, new: Any) -> list[Any]:
        """Returns old and new values of each term."""
        raise NotImplementedError

    def _of_border(
        self, run: Run, taps: tuple[int, ...], parts: Sequence[Any]
    ) -> Any:
        """Combines what taps see of a border, [windows, steps, ...] each."""
        raise NotImplementedError

    def _combine(self, terms: Iterable[Any]) -> Any:
        raise NotImplementedError

    def _end(self, run: Run, x: Any) -> Any:
        """Applies what comes behind the combination."""
        del run
        return x


def _stack(
    run: Run, plan: Plan, dense: _Dense, value: Any, labels: Iterable[int]
) -> Any:
    """Returns labels of all windows, [windows, labels, ...]."""
    picked = [
        dense.pick(value, label, plan.stride, run.windows) for label in labels
    ]
    return ops.stack(picked, 1)


class _Tapped(_Spanning):
    """A unit that spans time.

    The dense taps that a sum needs are all of them or, at borders, some. Taps
    that always come together are one term, whose product is convolved with
    its taps laid side by side as channels.
    """

    def __init__(self, at: Place, unit: Unit):
        step, *spatial = unit.stride
        every = range(unit.kernel.shape[0])
        size = _scaled(at.size, spatial, unit.kernel.shape[-1])
        super().__init__(at, size, len(every), step, every)
        self._stride = unit.stride[1:]
        self._bias = at.plan.weight(unit.bias)
        self._kernels: dict[tuple[int, ...], int] = {}
        borders = (*self._left, *self._right)

        def sums(tap: int) -> list[bool]:
            return [tap in group.dense for group in borders]

        out = self._out
        self._terms = []
        reads = []
        for _, some in itertools.groupby(every, sums):
            taps = tuple(some)
            ahead = self._ahead(taps[-1])
            head = geometry.floor(at.track.head - ahead, out.grid)
            reads += [(head + self._ahead(tap), out.grid) for tap in taps]
            products = _Dense(out, self._reads(taps[0]), head)
            self._terms.append(_Term(taps, 0, products))
            self._fold(unit.kernel, taps, out.new_labels)
        self._source = _Dense(at, reads)
        for group in borders:
            self._fold(unit.kernel, tuple(group.border), len(group.steps))

    def _fold(
        self, kernel: np.ndarray, taps: tuple[int, ...], steps: int
    ) -> None:
        """Keeps a kernel with some taps as channels; counts its cost."""
        if not taps:
            return
        kernel = np.concatenate([kernel[t] for t in taps], 2)
        if taps not in self._kernels:
            self._kernels[taps] = self._at.plan.weight(kernel)
        height, width, _ = self._out.size
        self._at.plan.count(steps * kernel.size * height * width)

    def _convolve(
        self, run: Run, taps: tuple[int, ...], parts: Sequence[Any]
    ) -> Any:
        kernel = run.weights[self._kernels[taps]]
        return _convolve(_concatenate(parts, -1), kernel, self._stride)

    def _values(self, run: Run, new: Any) -> list[Any]:
        source = self._source.extend(run, new)
        count = run.windows * self._out.new_labels
        found = []
        for term in self._terms:
            parts = [
                self._source.pick(
                    source,
                    term.dense.head + self._ahead(tap),
                    self._out.grid,
                    count,
                )
                for tap in term.taps
            ]
            product = self._convolve(run, term.taps, parts)
            found.append(term.dense.extend(run, product))
        return found

    def _of_border(
        self, run: Run, taps: tuple[int, ...], parts: Sequence[Any]
    ) -> Any:
        x = _concatenate(parts, -1)
        return _over_steps(lambda y: self._convolve(run, taps, [y]), x)

    def _combine(self, terms: Iterable[Any]) -> Any:
        return functools.reduce(operator.add, terms)

    def _end(self, run: Run, x: Any) -> Any:
        return ops.relu(x + run.weights[self._bias])


class _Max(_Spanning):
    """A max pooling, first over space, then over some temporal taps.

    With one tap it only aligns a branch without temporal kernel with those
    that have one. Everything comes from a ReLU, so that the zeros of the
    padding can be left out.
    """

    def __init__(
        self,
        at: Place,
        pool: i3d.Conv | i3d.Pool,
        taps: Sequence[int] | None = None,
    ):
        kernel, step = pool.kernel[0], pool.stride[0]
        taps = range(kernel) if taps is None else taps
        # Pooled over space before all else.
        at = at._replace(size=_scaled(at.size, pool.stride[1:], at.size[-1]))
        super().__init__(at, at.size, kernel, step, taps)
        self._pool = pool
        reads = [
            (newest + self._ahead(tap), period)
            for tap in taps
            for newest, period in self._reads(tap)
        ]
        self._source = _Dense(at, reads)
        self._terms = [
            _Term((tap,), self._ahead(tap), self._source) for tap in taps
        ]

    def __call__(self, run: Run, x: Signal) -> Signal:
        return super().__call__(
            run, x.each(lambda y: _pool_space(y, self._pool))
        )

    def _values(self, run: Run, new: Any) -> list[Any]:
        return [self._source.extend(run, new)] * len(self._terms)

    def _of_border(
        self, run: Run, taps: tuple[int, ...], parts: Sequence[Any]
    ) -> Any:
        del run, taps
        return self._combine(parts)

    def _combine(self, terms: Iterable[Any]) -> Any:
        return functools.reduce(ops.maximum, terms)


class _Inception:
    """A Mixed block."""

    def __init__(self, at: Place, block: i3d.Mixed, units: Mapping[str, Unit]):
        *wide, (pool, last) = i3d.branches(block)
        kernel, step = pool.kernel[0], pool.stride[0]
        out = at.behind(kernel, step)
        # Held back once here, and in no branch.
        self._delay = _Delay(at, out.track.ready)
        at = at._replace(track=at.track._replace(ready=out.track.ready))
        # Side by side: what they read, they read once.
        heads = [units[branch[0].name] for branch in wide]
        together = Unit(
            np.concatenate([unit.kernel for unit in heads], -1),
            np.concatenate([unit.bias for unit in heads]),
            i3d.ONE,
        )
        self._heads = _Tapped(at, together)
        widths = [unit.bias.size for unit in heads]
        self._edges = np.cumsum([0, *widths])
        inside = [at._replace(size=(*at.size[:2], n)) for n in widths]
        middle, _ = i3d.same_padding(at.track.steps, kernel, step)
        aligned = i3d.Pool("", (kernel, 1, 1), i3d.ONE)
        self._ends: list[_Spanning] = [_Max(inside[0], aligned, (middle,))]
        for place, branch in zip(inside[1:], wide[1:], strict=True):
            self._ends.append(_Tapped(place, units[branch[1].name]))
        self._pooled = _Max(at, pool)
        self._last = _Tapped(out, units[last.name])

    def __call__(self, run: Run, x: Signal) -> Signal:
        x = x._replace(left=self._delay(run, x.left))
        heads = self._heads(run, x)
        ends = []
        edges = itertools.pairwise(self._edges)
        for end, (a, b) in zip(self._ends, edges, strict=True):
            part = Signal(*(None if y is None else y[..., a:b] for y in heads))
            ends.append(end(run, part))
        ends.append(self._last(run, self._pooled(run, x)))
        return Signal(
            *(
                None if part[0] is None else ops.concatenate(part, -1)
                for part in zip(*ends, strict=True)
            )
        )


def shared(
    at: Place, layer: i3d.Layer, units: Mapping[str, Unit]
) -> Callable[[Run, Signal], Signal]:
    """Returns a layer of the table over what windows share.

    Args:
      at: where it stands.
      layer: which one.
      units: all units, by name.
    """
    if isinstance(layer, i3d.Mixed):
        return _Inception(at, layer, units)
    if isinstance(layer, i3d.Pool):
        return _Max(at, layer)
    return _Tapped(at, units[layer.name])


# === Whole windows ===


class Assembly:
    """The last steps of each window, out of dense values and borders.

    Args:
      at: behind the layer whose steps they are.
      count: number of steps; all by default.
      delay: age of the windows in frames ("continuous").
    """

    def __init__(self, at: Place, *, count: int | None = None, delay: int = 0):
        self._plan, track, _ = at
        first = track.steps - (count or track.steps)
        # Border steps, counted within their border.
        self._lefts = slice(first, track.left) if first < track.left else None
        self._rights = slice(max(0, first - track.shared.stop), None)
        # Behind the newest dense step of a window are those of its border.
        shift = 0 if at.plan.borders else geometry.shift_of(track, delay)
        self._labels = [
            track.spacing * (j - shift) - delay
            for j in track.shared
            if j >= first
        ]
        self._delay = _Delay(at, 0 if self._lefts else None)
        reads = [(label, at.plan.stride) for label in self._labels]
        self._source = _Dense(at, reads)

    def __call__(self, run: Run, x: Signal) -> Any:
        """Returns [windows, steps, height, width, channels], or None."""
        source = self._source.extend(run, x.dense)
        left = self._delay(run, x.left)
        if not run.emits:
            return None
        found = []
        if self._lefts:
            found.append(left[:, self._lefts])
        if self._labels:
            found.append(
                _stack(run, self._plan, self._source, source, self._labels)
            )
        if x.right is not None:
            found.append(x.right[:, self._rights])
        return _concatenate(found, 1)


def whole(
    plan: Plan,
    layer: i3d.Layer,
    units: Mapping[str, Unit],
    size: Sequence[int],
) -> Callable[[Run, Any], Any]:
    """Returns a layer of the table over [windows, steps, height, width, depth].

    Args:
      plan: where the layer is laid out.
      layer: which one.
      units: all units, by name.
      size: steps, height, width and channels behind it.
    """
    weights = {}
    for part in itertools.chain(*i3d.chains(layer)):
        if isinstance(part, i3d.Conv):
            kernel, bias, _ = units[part.name]
            weights[part.name] = plan.weight(kernel), plan.weight(bias)
            plan.count(kernel.size * math.prod(size[:3]))

    def apply(run: Run, part: i3d.Conv | i3d.Pool, x: Any) -> Any:
        if isinstance(part, i3d.Pool):
            x = _over_steps(lambda y: _pool_space(y, part), x)
            return _pool_time(x, part.kernel[0], part.stride[0])
        kernel, bias = (run.weights[n] for n in weights[part.name])
        if part.kernel == i3d.ONE:
            return _over_steps(
                lambda y: ops.relu(_convolve(y, kernel[0]) + bias), x
            )
        return ops.relu(_convolve(x, kernel, part.stride) + bias)

    def call(run: Run, x: Any) -> Any:
        ends = [
            functools.reduce(lambda y, part: apply(run, part, y), chain, x)
            for chain in i3d.chains(layer)
        ]
        return _concatenate(ends, -1)

    return call


def average(x: Any) -> Any:
    """Does what `i3d.pool` does, in two dimensions and then in one."""
    time, *space = i3d.pooling_kernel(*x.shape[1:4])
    x = _over_steps(lambda y: ops.average_pool(y, tuple(space), 1, "valid"), x)
    out = x.shape[1] - time + 1
    terms = [x[:, t : t + out] for t in range(time)]
    return functools.reduce(operator.add, terms) / time


# === Arithmetic ===


def _over_steps(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function of [batch, ...] to [windows, steps, ...], or None."""
    if x is None:
        return None
    windows, steps, *size = x.shape
    y = function(ops.reshape(x, (windows * steps, *size)))
    return ops.reshape(y, (windows, steps, *y.shape[1:]))


def _concatenate(parts: Sequence[Any], axis: int) -> Any:
    return ops.concatenate(parts, axis) if len(parts) > 1 else parts[0]


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
    padding = [(0, 0)] * len(x.shape)
    padding[1] = i3d.same_padding(steps, kernel, step)
    x = ops.pad(x, padding)
    span = step * (-(-steps // step) - 1) + 1
    return functools.reduce(
        ops.maximum, [x[:, t : t + span : step] for t in range(kernel)]
    )


# === Weights ===


def folded_units(network: keras.Model) -> dict[str, Unit]:
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
        found[unit.name] = Unit(
            (kernel * scale).astype(np.float32),
            (beta - mean * scale).astype(np.float32),
            unit.stride,
        )
    return found
