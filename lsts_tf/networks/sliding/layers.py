"""I3D's layers over what windows share, and over each window's borders.

A convolution over time is a sum over its temporal taps. The border of a
window needs partial sums of dense values: these are the very products that
the dense values themselves are sums of, so each is computed once and kept. What
a border's own steps contribute to it takes few products (`toom_cook`). Where
borders would leave hardly a shared step (the last two blocks at 79
frames), windows are assembled and run as a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import itertools
import math
import operator
from typing import Any, NamedTuple

from keras import ops
import numpy as np

from lsts_tf.networks import i3d
from lsts_tf.networks.sliding import arithmetic, geometry, layout, toom_cook

# === Memory ===


class _Entries(NamedTuple):
    """Entries of an array that grows along an axis, in order of time.

    Attributes:
      parts: of the array, put together only where several are wanted.
      axis: which one.
    """

    parts: Sequence[Any]
    axis: int

    def __len__(self) -> int:
        return sum(part.shape[self.axis] for part in self.parts)

    def at(self, places: range) -> Any:
        """Returns the entries at these places, counted from the first one."""
        found, first = [], 0
        for part in self.parts:
            count = part.shape[self.axis]
            some = [n - first for n in places if first <= n < first + count]
            if len(some) == count:
                found.append(part)
            elif some:
                found.append(
                    arithmetic.every(
                        part, places.step, len(some), some[0], axis=self.axis
                    )
                )
            first += count
        return arithmetic.concatenate(found, self.axis)


class _History:
    """Keeps the last entries of an array that grows along an axis.

    Args:
      plan: of the layer.
      length: number of entries kept.
      shape: of the array without that axis.
      axis: which one.
      new: entries that a window adds.
    """

    def __init__(
        self,
        plan: layout.Plan,
        length: int,
        shape: Sequence[int],
        *,
        axis: int = 0,
        new: int = 1,
    ):
        # With borders pieces save a twentieth of the time. Without, they would
        # leave holes in TensorFlow's memory, of 100 MB at 288 x 512.
        self._kept = layout.History(
            max(length, 0), tuple(shape), axis, new if plan.borders else 0
        )
        self._index = len(plan.histories)
        if self._kept.length:
            plan.histories.append(self._kept)

    def extend(self, run: layout.Run, new: Any) -> _Entries:
        """Returns old and new entries."""
        kept = self._kept
        if not kept.length:
            return _Entries([new], kept.axis)
        count, entries = kept.pieces(run.windows)
        if run.is_still:
            last = (*[slice(None)] * kept.axis, slice(-1, None))
            old = [ops.repeat(new[last], entries, kept.axis)] * count
        else:
            old = [*run.state[self._index]]
        found = _Entries([*old, new], kept.axis)
        run.left_behind[self._index] = found.at(
            range(len(found) - entries, len(found))
        )
        return found


class _Dense(_History):
    """Dense values of a grid of labels, with as many old ones as are read.

    A chunk reads labels newest, newest - period, ... for each pair of
    `reads`.
    """

    def __init__(
        self,
        at: layout.Place,
        reads: Iterable[tuple[int, int]],
        head: int | None = None,
    ):
        self.head = at.track.head if head is None else head
        self._grid = at.grid
        lags = [
            (self.head - newest - period) // at.grid for newest, period in reads
        ]
        length = max(lags, default=-1) + 1
        super().__init__(at.plan, length, at.size, new=at.new_labels)

    def pick(
        self, entries: _Entries, newest: int, period: int, count: int
    ) -> Any:
        """Returns `count` labels, the last one `newest`, in order of time."""
        last = len(entries) - 1 - (self.head - newest) // self._grid
        step = period // self._grid
        return entries.at(range(last - step * (count - 1), last + 1, step))


class _Delay(_History):
    """Holds left borders back until the next layer can use them."""

    def __init__(self, at: layout.Place, ready: int | None):
        left, length = at.track.left, 0
        if left and at.track.ready is not None and ready is not None:
            length = (at.track.ready - ready) // at.plan.stride
        super().__init__(at.plan, length, (left, *at.size), axis=1)

    def __call__(self, run: layout.Run, left: Any) -> Any:
        if left is None or not self._kept.length:
            return left
        found = self.extend(run, left)
        first = len(found) - self._kept.length - run.windows
        return found.at(range(first, first + run.windows))


# === Layers over dense values and borders ===


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
        at: layout.Place,
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

    def __call__(self, run: layout.Run, x: layout.Signal) -> layout.Signal:
        values = self._values(run, x.dense)
        track, grid = self._out.track, self._out.grid
        count = run.windows * self._out.new_labels
        dense = self._combine(
            term.dense.pick(value, track.head + term.ahead, grid, count)
            for term, value in zip(self._terms, values, strict=True)
        )
        dense = run.inside(self._end(run, dense), track.head, grid)
        left, right = self._seen(
            run, [self._delay(run, x.left), x.right if run.emits else None]
        )
        return layout.Signal(
            dense,
            self._border(run, left, values, is_left=True),
            self._border(run, right, values, is_left=False),
        )

    def _border(
        self,
        run: layout.Run,
        seen: Any,
        values: Sequence[_Entries],
        *,
        is_left: bool,
    ) -> Any:
        groups = self._left if is_left else self._right
        if not groups or not (is_left or run.emits):
            return None
        found = []
        for group in groups:
            terms = []
            if group.border:
                terms.append(self._of_border(seen, group))
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
        y = arithmetic.concatenate(found, 0)
        return arithmetic.over_steps(lambda part: self._end(run, part), y)

    def _values(self, run: layout.Run, new: Any) -> list[_Entries]:
        """Returns old and new values of each term."""
        raise NotImplementedError

    def _seen(self, run: layout.Run, borders: Sequence[Any]) -> Sequence[Any]:
        """Returns what `_of_border` takes of the left and right border."""
        del run
        return borders

    def _of_border(self, seen: Any, group: geometry.Group) -> Any:
        """Combines what a group sees of a border."""
        raise NotImplementedError

    def _combine(self, terms: Iterable[Any]) -> Any:
        raise NotImplementedError

    def _end(self, run: layout.Run, x: Any) -> Any:
        """Applies what comes behind the combination."""
        del run
        return x


def _stack(
    run: layout.Run,
    plan: layout.Plan,
    dense: _Dense,
    value: _Entries,
    labels: Iterable[int],
) -> Any:
    """Returns labels of all windows, [labels, windows, ...]."""
    picked = [
        dense.pick(value, label, plan.stride, run.windows) for label in labels
    ]
    return ops.stack(picked)


class _Tapped(_Spanning):
    """A unit that spans time.

    The dense taps that a sum needs are all of them or, at borders, some. Taps
    that always come together are one term, whose product is convolved with
    its taps laid side by side as channels.
    """

    def __init__(self, at: layout.Place, unit: layout.Unit):
        step, *spatial = unit.stride
        self._taps = len(unit.kernel)
        every = range(self._taps)
        size = arithmetic.scaled(at.size, spatial, unit.kernel.shape[-1])
        super().__init__(at, size, len(every), step, every)
        self._stride = unit.stride[1:]
        self._bias = at.plan.weight(unit.bias)
        self._kernels: dict[tuple[int, ...], int] = {}
        edges = [n for n in (at.track.left, at.track.right) if n]
        self._correlation = None
        if self._taps == 1:
            self._fold(unit.kernel, (0,), sum(edges))
        elif edges:
            self._correlation = toom_cook.Correlation(
                at.plan, unit.kernel, edges, size[:2]
            )
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

    def _fold(
        self, kernel: np.ndarray, taps: tuple[int, ...], steps: int
    ) -> None:
        """Keeps a kernel with some taps as channels; counts its cost."""
        kernel = np.concatenate([kernel[t] for t in taps], 2)
        if taps not in self._kernels:
            self._kernels[taps] = self._at.plan.weight(kernel)
        height, width, _ = self._out.size
        self._at.plan.count(steps * kernel.size * height * width)

    def _convolve(
        self, run: layout.Run, taps: tuple[int, ...], parts: Sequence[Any]
    ) -> Any:
        kernel = run.weights[self._kernels[taps]]
        return arithmetic.convolve(
            arithmetic.concatenate(parts, -1), kernel, self._stride
        )

    def _values(self, run: layout.Run, new: Any) -> list[_Entries]:
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

    def _seen(self, run: layout.Run, borders: Sequence[Any]) -> Sequence[Any]:
        """Convolves the borders with all taps."""
        if not self._correlation:
            return [
                arithmetic.over_steps(
                    lambda y: self._convolve(run, (0,), [y]), x
                )
                for x in borders
            ]
        there = [x for x in borders if x is not None]
        found = iter(self._correlation(run, there))
        return [None if x is None else next(found) for x in borders]

    def _of_border(self, seen: Any, group: geometry.Group) -> Any:
        tap, first = next(iter(group.border.items()))
        # The first output is the one that sees step 0 with the last tap.
        first += self._taps - 1 - tap
        if len(group.steps) == seen.shape[0]:
            return seen  # TensorFlow fuses bias and ReLU with what it gives.
        return seen[first : first + len(group.steps)]

    def _combine(self, terms: Iterable[Any]) -> Any:
        return functools.reduce(operator.add, terms)

    def _end(self, run: layout.Run, x: Any) -> Any:
        return ops.relu(x + run.weights[self._bias])


class _Max(_Spanning):
    """A max pooling, first over space, then over some temporal taps.

    With one tap it only aligns a branch without temporal kernel with those
    that have one. Everything comes from a ReLU, so that the zeros of the
    padding can be left out.
    """

    def __init__(
        self,
        at: layout.Place,
        pool: i3d.Conv | i3d.Pool,
        taps: Sequence[int] | None = None,
    ):
        kernel, step = pool.kernel[0], pool.stride[0]
        taps = range(kernel) if taps is None else taps
        # Pooled over space before all else.
        at = at._replace(
            size=arithmetic.scaled(at.size, pool.stride[1:], at.size[-1])
        )
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

    def __call__(self, run: layout.Run, x: layout.Signal) -> layout.Signal:
        return super().__call__(
            run, x.each(lambda y: arithmetic.pool_space(y, self._pool))
        )

    def _values(self, run: layout.Run, new: Any) -> list[_Entries]:
        return [self._source.extend(run, new)] * len(self._terms)

    def _of_border(self, seen: Any, group: geometry.Group) -> Any:
        return self._combine(
            arithmetic.every(seen, self._step, len(group.steps), first)
            for first in group.border.values()
        )

    def _combine(self, terms: Iterable[Any]) -> Any:
        return functools.reduce(ops.maximum, terms)


class _Inception:
    """A Mixed block."""

    def __init__(
        self,
        at: layout.Place,
        block: i3d.Mixed,
        units: layout.Units,
    ):
        *wide, (pool, last) = i3d.branches(block)
        kernel, step = pool.kernel[0], pool.stride[0]
        out = at.behind(kernel, step)
        # Held back once here, and in no branch.
        self._delay = _Delay(at, out.track.ready)
        at = at._replace(track=at.track._replace(ready=out.track.ready))
        # Side by side: what they read, they read once.
        heads = [units[branch[0].name] for branch in wide]
        together = layout.Unit(
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

    def __call__(self, run: layout.Run, x: layout.Signal) -> layout.Signal:
        x = x._replace(left=self._delay(run, x.left))
        heads = self._heads(run, x)
        ends = []
        edges = itertools.pairwise(self._edges)
        for end, (a, b) in zip(self._ends, edges, strict=True):
            part = layout.Signal(
                *(None if y is None else y[..., a:b] for y in heads)
            )
            ends.append(end(run, part))
        ends.append(self._last(run, self._pooled(run, x)))
        return layout.Signal(
            *(
                None if part[0] is None else ops.concatenate(part, -1)
                for part in zip(*ends, strict=True)
            )
        )


def shared(
    at: layout.Place, layer: i3d.Layer, units: layout.Units
) -> Callable[[layout.Run, layout.Signal], layout.Signal]:
    """Returns a layer of the table over what windows share.

    Args:
      at: where it stands.
      layer: which one.
      units: of the network.
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

    def __init__(
        self, at: layout.Place, *, count: int | None = None, delay: int = 0
    ):
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

    def __call__(self, run: layout.Run, x: layout.Signal) -> Any:
        """Returns [steps, windows, height, width, channels], or None."""
        steps = self._steps(run, x)
        return ops.stack(steps) if steps else None

    def mean(self, run: layout.Run, x: layout.Signal) -> Any:
        """Returns the steps' mean, [windows, height, width, channels]; or None.

        Without stacking them, which would take as much memory again.
        """
        steps = self._steps(run, x)
        return (
            functools.reduce(operator.add, steps) / len(steps)
            if steps
            else None
        )

    def _steps(self, run: layout.Run, x: layout.Signal) -> list[Any]:
        """Returns [windows, height, width, channels] each; none, or all."""
        source = self._source.extend(run, x.dense)
        left = self._delay(run, x.left)
        if not run.emits:
            return []
        steps = [
            self._source.pick(source, label, self._plan.stride, run.windows)
            for label in self._labels
        ]
        if self._lefts:
            steps = ops.unstack(left[self._lefts]) + steps
        if x.right is not None:
            steps += ops.unstack(x.right[self._rights])
        return steps


def whole(
    plan: layout.Plan,
    layer: i3d.Layer,
    units: layout.Units,
    size: Sequence[int],
) -> Callable[[layout.Run, Any], Any]:
    """Returns a layer of the table over [steps, windows, height, width, depth].

    Args:
      plan: where the layer is laid out.
      layer: which one.
      units: of the network.
      size: steps, height, width and channels behind it.
    """
    convolutions: dict[str, Callable[[layout.Run, Any], Any]] = {}
    biases = {}
    steps, *space, _ = size
    for part in itertools.chain(*i3d.chains(layer)):
        if isinstance(part, i3d.Conv):
            kernel, bias, _ = units[part.name]
            biases[part.name] = plan.weight(bias)
            convolutions[part.name] = _whole_convolution(
                plan, part, kernel, steps, space
            )

    def apply(run: layout.Run, part: i3d.Conv | i3d.Pool, x: Any) -> Any:
        if isinstance(part, i3d.Pool):
            x = arithmetic.over_steps(
                lambda y: arithmetic.pool_space(y, part), x
            )
            return arithmetic.pool_time(x, part.kernel[0], part.stride[0])
        x = convolutions[part.name](run, x)
        bias = run.weights[biases[part.name]]
        return arithmetic.over_steps(lambda y: ops.relu(y + bias), x)

    def call(run: layout.Run, x: Any) -> Any:
        ends = [
            functools.reduce(lambda y, part: apply(run, part, y), chain, x)
            for chain in i3d.chains(layer)
        ]
        return arithmetic.concatenate(ends, -1)

    return call


def _whole_convolution(
    plan: layout.Plan,
    part: i3d.Conv,
    kernel: np.ndarray,
    steps: int,
    space: Sequence[int],
) -> Callable[[layout.Run, Any], Any]:
    """Returns a convolution of [steps, windows, height, width, channels]."""
    if part.kernel[0] == 3 and part.stride == i3d.ONE:
        correlation = toom_cook.Correlation(plan, kernel, [steps], space)
        return lambda run, x: correlation(run, [x])[0][1:-1]
    place = plan.weight(kernel)
    plan.count(kernel.size * steps * math.prod(space))
    if part.kernel == i3d.ONE:
        return lambda run, x: arithmetic.over_steps(
            lambda y: arithmetic.convolve(y, run.weights[place][0]), x
        )

    def first(run: layout.Run, x: Any) -> Any:
        x = ops.swapaxes(x, 0, 1)
        x = arithmetic.convolve(x, run.weights[place], part.stride)
        return ops.swapaxes(x, 0, 1)

    return first
