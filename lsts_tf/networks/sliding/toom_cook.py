"""Convolutions of few steps over time with few products.

What n steps and k taps contribute to n + k - 1 outputs are the coefficients of
a product of two polynomials, of degrees n - 1 and k - 1. Its values at
n + k - 1 points are products of values, one convolution over space each where
steps are images and taps are kernels, and determine it (Toom and Cook; Winograd
1980, "Arithmetic Complexity of Computations"). Directly, it takes n * k.
"""

from collections.abc import Iterable, Sequence
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from lsts_tf.networks.sliding import arithmetic, layout

# Small ones lose least to rounding. Infinity gives the highest coefficients.
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)


class Algorithm(NamedTuple):
    """Three matrices: outputs @ ((steps @ x) * (taps @ kernel)).

    Output i is the sum of kernel[t] * x[i - (k - 1) + t] over the taps t, where
    x is 0 outside of its n steps.

    Attributes:
      steps: [products, n].
      taps: [products, k], sorted, so that rows with one kernel are neighbours.
      outputs: [n + k - 1, products].
    """

    steps: np.ndarray
    taps: np.ndarray
    outputs: np.ndarray


def algorithm(steps: int, taps: int, longest: int) -> Algorithm:
    """Returns the algorithm for n steps and k taps.

    Args:
      steps: n, at least 1.
      taps: k, at least 1, at most 3.
      longest: steps that are taken together. 4 is the most that the points
        allow; fewer need more products, and lose less to rounding.
    """
    pieces = np.array_split(np.arange(steps), math.ceil(steps / longest))
    count = sum(len(piece) + taps - 1 for piece in pieces)
    found = Algorithm(
        np.zeros((count, steps)),
        np.zeros((count, taps)),
        np.zeros((steps + taps - 1, count)),
    )
    first = 0
    for piece in pieces:
        rows = slice(first, first + len(piece) + taps - 1)
        behind = slice(piece[0], piece[-1] + taps)
        found.steps[rows, piece] = _values(len(piece), taps, len(piece))
        # A convolution slides over its input, a product runs against it.
        found.taps[rows] = _values(len(piece), taps, taps)[:, ::-1]
        values = _values(len(piece), taps, len(piece) + taps - 1)
        found.outputs[behind, rows] = np.linalg.inv(values)
        first = rows.stop
    order = sorted(range(count), key=lambda row: tuple(found.taps[row]))
    return Algorithm(
        found.steps[order], found.taps[order], found.outputs[:, order]
    )


def _values(steps: int, taps: int, coefficients: int) -> np.ndarray:
    """Returns what maps coefficients to values at all points."""
    points = np.array(_POINTS[: steps + taps - 2])
    finite = np.vander(points, coefficients, increasing=True)
    return np.vstack([finite, np.eye(coefficients)[-1:]])


class Correlation:
    """Convolves a few steps over time and space, with zeros around them.

    Args:
      plan: of the layer.
      kernel: [time, height, width, channels, filters], without strides.
      counts: steps of each array that it is called with.
      size: height and width.
    """

    def __init__(
        self,
        plan: layout.Plan,
        kernel: np.ndarray,
        counts: Iterable[int],
        size: Sequence[int],
    ):
        self._algorithms = {}
        self._kernels: dict[tuple[float, ...], int] = {}
        for count in counts:
            found = algorithm(count, len(kernel), plan.longest)
            self._algorithms[count] = found
            plan.count(len(found.taps) * kernel[0].size * math.prod(size))
        every = np.concatenate([f.taps for f in self._algorithms.values()])
        for row in sorted({tuple(row) for row in every}):
            self._kernels[row] = plan.weight(np.tensordot(row, kernel, 1))

    def __call__(self, run: layout.Run, arrays: Sequence[Any]) -> list[Any]:
        """Takes arrays [steps, windows, height, width, channels].

        Returns:
          [steps + time - 1, windows, height, width, filters] for each: all
          outputs that see any of its steps.
        """
        algorithms = [self._algorithms[x.shape[0]] for x in arrays]
        mixed = [
            arithmetic.mix(each.steps, x)
            for each, x in zip(algorithms, arrays, strict=True)
        ]
        products: list[list[Any]] = [[] for _ in arrays]
        for row, place in self._kernels.items():
            parts = {}
            for k, (each, x) in enumerate(zip(algorithms, mixed, strict=True)):
                rows = np.flatnonzero((each.taps == row).all(1))
                if rows.size:
                    parts[k] = x[rows[0] : rows[-1] + 1]
            if not parts:
                continue
            # One convolution for all that share a kernel.
            found = arithmetic.over_steps(
                functools.partial(
                    arithmetic.convolve, kernel=run.weights[place]
                ),
                arithmetic.concatenate([*parts.values()], 0),
            )
            for k, part in parts.items():
                products[k].append(found[: part.shape[0]])
                found = found[part.shape[0] :]
        return [
            arithmetic.mix(each.outputs, arithmetic.concatenate(some, 0))
            for each, some in zip(algorithms, products, strict=True)
        ]
