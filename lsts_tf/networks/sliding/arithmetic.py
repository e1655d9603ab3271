"""Arithmetic on [steps, windows, height, width, channels]."""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import Any

from keras import ops
import numpy as np

from lsts_tf.networks import i3d


def over_steps(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function of [batch, ...] to [steps, windows, ...], or None."""
    if x is None:
        return None
    steps, windows, *size = x.shape
    y = function(ops.reshape(x, (steps * windows, *size)))
    return ops.reshape(y, (steps, windows, *y.shape[1:]))


def concatenate(parts: Sequence[Any], axis: int) -> Any:
    """Does what `keras.ops` does, without an operation for a single part."""
    return ops.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def every(
    x: Any, step: int, count: int, first: int = 0, *, axis: int = 0
) -> Any:
    """Returns `count` entries of an axis, each `step`-th.

    They are taken, because TensorFlow steps through a slice number by number.
    """
    if step == 1:
        before = (slice(None),) * axis
        return x[(*before, slice(first, first + count))]
    return ops.take(x, range(first, first + step * count, step), axis)


def convolve(x: Any, kernel: Any, strides: Any = 1) -> Any:
    """Convolves with SAME padding."""
    return ops.conv(
        x, kernel, strides, padding="same", data_format="channels_last"
    )


def scaled(
    size: Sequence[int], spatial: Sequence[int], channels: int
) -> tuple[int, int, int]:
    """Returns height, width and channels behind strides over space."""
    height, width = (
        -(-n // step) for n, step in zip(size[:2], spatial, strict=True)
    )
    return height, width, channels


def pool_space(x: Any, pool: i3d.Conv | i3d.Pool) -> Any:
    """Pools [batch, height, width, channels]; the rest is over time.

    A maximum over a box is one over space and then one over time, and three
    two-dimensional operations take a small part of the three-dimensional one.
    """
    if pool.kernel[1:] == pool.stride[1:] == (1, 1):
        return x
    return ops.max_pool(
        x, pool.kernel[1:], pool.stride[1:], "same", "channels_last"
    )


def pool_time(x: Any, kernel: int, step: int) -> Any:
    """Pools [steps, windows, ...], which are not negative."""
    steps = x.shape[0]
    padding = [(0, 0)] * len(x.shape)
    padding[0] = i3d.same_padding(steps, kernel, step)
    x = ops.pad(x, padding)
    return functools.reduce(
        ops.maximum,
        [every(x, step, -(-steps // step), t) for t in range(kernel)],
    )


def average_space(x: Any, kernel: Sequence[int]) -> Any:
    """Averages [batch, height, width, channels] as `i3d.pool` does in space."""
    return ops.average_pool(x, tuple(kernel), 1, "valid")


def average_time(x: Any, kernel: int) -> Any:
    """Averages [steps, windows, ...] as `i3d.pool` does in time."""
    out = x.shape[0] - kernel + 1
    terms = [x[t : t + out] for t in range(kernel)]
    return functools.reduce(operator.add, terms) / kernel


def mix(matrix: np.ndarray, x: Any) -> Any:
    """Multiplies a matrix with the first axis."""
    flat = ops.reshape(x, (x.shape[0], -1))
    flat = ops.matmul(ops.convert_to_tensor(matrix, x.dtype), flat)
    return ops.reshape(flat, (len(matrix), *x.shape[1:]))
