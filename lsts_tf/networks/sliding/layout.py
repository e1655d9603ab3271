"""What layers are laid out with, and what a chunk of frames calls them with.

A layer is laid out once, where it tells its `Plan` what it has to remember from
chunk to chunk, and then called once a chunk. `geometry` has the words.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops
import numpy as np

from lsts_tf.networks import i3d
from lsts_tf.networks.sliding import arithmetic, geometry


class Signal(NamedTuple):
    """Activations of one chunk behind a layer.

    Attributes:
      dense: [new labels, height, width, channels].
      left: [left steps, windows, height, width, channels], or None.
      right: [right steps, windows, height, width, channels], or None.
    """

    dense: Any
    left: Any
    right: Any

    def each(self, function: Callable[[Any], Any]) -> "Signal":
        """Applies a function of [batch, height, width, channels] to all."""
        return Signal(
            function(self.dense),
            arithmetic.over_steps(function, self.left),
            arithmetic.over_steps(function, self.right),
        )


def joined(signals: Sequence[Signal]) -> Signal:
    """Puts signals of successive windows together."""
    dense, *borders = zip(*signals, strict=True)
    return Signal(
        arithmetic.concatenate(dense, 0),
        *(
            None if each[0] is None else arithmetic.concatenate(each, 1)
            for each in borders
        ),
    )


@dataclasses.dataclass
class Run:
    """One call of a layer: its arguments, and the state it leaves.

    Attributes:
      windows: number of windows that the chunk completes.
      weights: those of `Plan`.
      state: the pieces of each history, the oldest first.
      emits: whether right borders and features are wanted: not before the
        first window is complete.
      start: start of the chunk's last window where labels outside of the video
        must be zero, else None.
      end: last frame of the video, likewise.
      is_still: whether the video stood still until here: all that is
        remembered equals what is new, and `state` is not read.
      left_behind: the newest piece, by place in `Plan.histories`.
    """

    windows: int
    weights: Sequence[Any]
    state: Sequence[Sequence[Any]]
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


class History(NamedTuple):
    """The last entries of an array that grows along an axis.

    They are kept in pieces, of as many entries as a chunk adds, so that it
    copies none but adds a piece, and the oldest one is dropped. Or they are one
    piece, made anew by each chunk.

    Attributes:
      length: number of entries wanted.
      shape: of the array without that axis.
      axis: which one.
      new: entries that a window adds; 0 for one piece.
    """

    length: int
    shape: tuple[int, ...]
    axis: int
    new: int

    def pieces(self, windows: int) -> tuple[int, int]:
        """Number of pieces where chunks have so many windows, and entries."""
        entries = min(self.length, windows * self.new or self.length)
        return -(-self.length // entries), entries

    def array(self, entries: int) -> tuple[int, ...]:
        """Shape of an array of so many entries."""
        return (*self.shape[: self.axis], entries, *self.shape[self.axis :])


class Plan:
    """Collects weights, state and cost while a layer is laid out.

    Attributes:
      layer: its name.
      stride: of the windows, in frames.
      borders: whether windows have borders ("continuous" has none).
      dtype: of the arithmetic.
      longest: border steps that are convolved together, see `toom_cook`.
      weights: arrays that the layer takes from `Run.weights`.
      histories: what is remembered from chunk to chunk.
      cost: multiply-adds for one window.
    """

    def __init__(self, layer: str, stride: int, *, borders: bool, dtype: str):
        self.layer = layer
        self.stride = stride
        self.borders = borders
        self.dtype = dtype
        self.longest = 4 if dtype == "float32" else 2
        self.weights: list[np.ndarray] = []
        self.histories: list[History] = []
        self.cost = 0.0

    def weight(self, array: np.ndarray) -> int:
        """Returns the place of an array among the weights."""
        self.weights.append(np.ascontiguousarray(array, np.float32))
        return len(self.weights) - 1

    def count(self, cost: float) -> None:
        """Adds multiply-adds."""
        self.cost += cost


class Place(NamedTuple):
    """Where a layer is laid out: what lies in front of it.

    Attributes:
      plan: of the layer.
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


class Units:
    """The units of an I3D by name, with BatchNorm inside the kernels.

    Each is made when it is asked for: all of them at once would need as much
    memory as the network.
    """

    def __init__(self, network: keras.Model):
        self._network = network
        self._strides = {unit.name: unit.stride for unit in i3d.units()}

    def __getitem__(self, name: str) -> Unit:
        conv = self._network.get_layer(i3d.layer_name(name, "conv_3d"))
        norm = self._network.get_layer(i3d.layer_name(name, "batch_norm"))
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
        return Unit(
            (kernel * scale).astype(np.float32),
            (beta - mean * scale).astype(np.float32),
            self._strides[name],
        )
