"""Layers that Keras lacks, for pictures alone or several of one window.

A picture is [..., height, width, channels]; what stands before the height (the
batch, or the batch and frames) stays as it is. Arguments are plain values, of
which Keras makes the layers' configs.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import keras
from keras import ops
import numpy as np

# Rows and columns of the grid on which a centre prior is learnt.
PRIOR_GRID = (9, 16)


def _pictures(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function of [batch, height, width, channels]."""
    if len(x.shape) == 4:
        return function(x)
    frames = x.shape[1]
    y = function(ops.reshape(x, (-1, *x.shape[2:])))
    return ops.reshape(y, (-1, frames, *y.shape[1:]))


def _bilinear(x: Any, size: tuple[int, int]) -> Any:
    return ops.image.resize(
        x, size, interpolation="bilinear", data_format="channels_last"
    )


def _log_prior(height: int, width: int) -> np.ndarray:
    """Logarithm of the benchmark's centre prior, [height, width, 1]."""
    rows, columns = (
        -0.5 * np.square(((np.arange(n) + 0.5) / n - 0.5) / 0.25)
        for n in (height, width)
    )
    return (rows[:, None] + columns)[..., None]


@keras.saving.register_keras_serializable(package="lsts_tf")
class Resize(keras.layers.Layer):
    """Bilinear resizing, by the pixels' centres, without antialiasing.

    Args:
        size: Rows and columns of the result.
    """

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = (int(size[0]), int(size[1]))

    def call(self, x: Any) -> Any:
        """[..., h, w, c] to [..., *size, c]."""
        return _pictures(lambda y: _bilinear(y, self.size), x)


@keras.saving.register_keras_serializable(package="lsts_tf")
class GaussianBlur(keras.layers.Layer):
    """A Gaussian over maps of one channel, of a fixed or a learnt width.

    At the edges it averages what is inside, so a constant map stays constant
    and what is in [0, 1] stays there. What is learnt is the logarithm of the
    ratio to the initial width, so RMSProp's L2 term draws it to that. Taps
    reach as far as three standard deviations; of a learnt width, of twice the
    initial one.

    Args:
        sigma: Standard deviation in pixels, above 0.
        learned: Whether the width is a weight.
    """

    def __init__(
        self, sigma: float, *, learned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sigma = float(sigma)
        self.learned = learned
        self._radius = math.ceil(3 * sigma * (2 if learned else 1))

    def build(self, input_shape: Any) -> None:
        """Makes the weight, if there is one."""
        del input_shape
        self.log_ratio = None
        if self.learned:
            self.log_ratio = self.add_weight(
                shape=(), initializer="zeros", name="log_ratio"
            )

    def _averages(self, length: int) -> Any:
        """[length, length]: the weights of all pixels in the average of each.

        As a matrix, because TensorFlow multiplies matrices several times
        faster than it convolves pictures of one channel, in training too.
        """
        places = np.arange(length)
        offsets = np.abs(places[:, None] - places)
        power = ops.convert_to_tensor(
            -0.5 * np.square(offsets / self.sigma), self.compute_dtype
        )
        if self.log_ratio is not None:
            power = power * ops.exp(-2.0 * self.log_ratio)
        near = ops.convert_to_tensor(offsets <= self._radius, power.dtype)
        taps = near * ops.exp(power)
        return taps / ops.sum(taps, axis=1, keepdims=True)

    def call(self, x: Any) -> Any:
        """[..., h, w, 1] to the same shape."""
        *_, height, width, _ = x.shape
        across = ops.squeeze(x, -1)
        across = ops.matmul(across, ops.transpose(self._averages(width)))
        return ops.matmul(self._averages(height), across)[..., None]


@keras.saving.register_keras_serializable(package="lsts_tf")
class CentrePrior(keras.layers.Layer):
    """Adds learnt log-odds of each place, whatever the picture shows.

    It stands in front of the sigmoid, so it multiplies the odds of a place.
    The weights are a coarse grid, enlarged bilinearly, because people's bias
    is smooth and differs by dataset only.

    Args:
        start: "neutral" (zeros), or "gaussian": the log of the benchmark's
            centre prior, whose standard deviation is a quarter of each side.
    """

    def __init__(self, start: str = "neutral", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape: Any) -> None:
        """Makes the grid of log-odds."""
        del input_shape
        grids = {
            "neutral": np.zeros((*PRIOR_GRID, 1)),
            "gaussian": _log_prior(*PRIOR_GRID),
        }
        self.log_odds = self.add_weight(
            shape=(1, *PRIOR_GRID, 1),
            initializer=keras.initializers.Constant(grids[self.start][None]),
            name="log_odds",
        )

    def call(self, x: Any) -> Any:
        """Log-odds [..., h, w, 1] to the same shape."""
        size = (x.shape[-3], x.shape[-2])
        return x + ops.cast(_bilinear(self.log_odds, size), x.dtype)


@keras.saving.register_keras_serializable(package="lsts_tf")
class CropStart(keras.layers.Layer):
    """Cuts the start of the axes between the batch and the channels.

    Keras' Cropping2D and Cropping3D do too, but by a strided slice, whose
    gradient TensorFlow computes slowly on a CPU.

    Args:
        crop: Entries to cut off each of these axes.
    """

    def __init__(self, crop: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crop = list(crop)

    def call(self, x: Any) -> Any:
        """[batch, ..., channels] to the same with shorter axes between."""
        start = (0, *self.crop, 0)
        sizes = zip(ops.shape(x), start, strict=True)
        return ops.slice(x, start, [size - first for size, first in sizes])

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        """The shape of what `call` returns."""
        batch, *between, channels = shape
        sizes = zip(between, self.crop, strict=True)
        return (batch, *(size - first for size, first in sizes), channels)


@keras.saving.register_keras_serializable(package="lsts_tf")
class LastStep(keras.layers.Layer):
    """The last step of time."""

    def call(self, x: Any) -> Any:
        """[batch, time, h, w, c] to [batch, h, w, c]."""
        return x[:, -1]


@keras.saving.register_keras_serializable(package="lsts_tf")
class Sharpen(keras.layers.Layer):
    """Draws maps of what moves together, except in training.

    People who watch a film look at fewer places at once than people who look
    at a photograph, and more at the middle. A model of photographs therefore
    spreads its maps too widely for films; what it learns stays as it was, and
    only what it serves of them is changed: map ** power * prior ** centre,
    and a floor of a step of 8 bits, for a map that is stored as a zero says
    that nobody can look there. A window whose features are the same at each
    step shows a photograph, and its map stays as it is; where they change a
    little, so does the map.

    Args:
        power: Above 0; 1 changes nothing, more draws maps together.
        centre: Weight of the benchmark's centre prior, whose standard
            deviation is a quarter of each side, at least 0; 0 is none.
    """

    # Largest change of a feature from step to step, of the largest feature:
    # from more than half precision rounds by to what the stillest real clips
    # have, a camera on a tripod before people who talk (0.06).
    _STILL, _MOVING = 0.01, 0.05
    _FLOOR = 1 / 255

    def __init__(
        self, power: float = 1.0, centre: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.power = float(power)
        self.centre = float(centre)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Maps [..., h, w, 1] and features [batch, time, ...] to maps."""
        x, features = inputs
        if training:
            return x
        prior = ops.convert_to_tensor(
            _log_prior(x.shape[-3], x.shape[-2]), x.dtype
        )
        shape = (-1, *([1] * (len(x.shape) - 1)))
        motion = ops.reshape(self._motion(ops.cast(features, x.dtype)), shape)
        # Of a zero the logarithm is minus infinity, and this a zero again.
        drawn = ops.exp(
            (1 + (self.power - 1) * motion) * ops.log(x)
            + self.centre * motion * prior
        )
        return drawn + self._FLOOR * motion * (1 - drawn)

    def _motion(self, features: Any) -> Any:
        """How far a window is from a photograph: 0 … 1, [batch]."""
        axes = tuple(range(1, len(features.shape)))
        if features.shape[1] == 1:
            return ops.ones_like(ops.max(features, axis=axes))
        steps = ops.abs(features[:, 1:] - features[:, :-1])
        largest = ops.max(ops.abs(features), axis=axes)
        change = ops.max(steps, axis=axes) / ops.maximum(largest, 1e-6)
        share = (change - self._STILL) / (self._MOVING - self._STILL)
        return ops.clip(share, 0.0, 1.0)
