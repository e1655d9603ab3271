"""The last layers of I3D, to be trained in small steps together with a decoder.

A kernel is `published + rate * change`. `change` starts at zero and is what an
optimiser moves. Under a rule that divides by the gradient's size (RMSProp,
Adam) that is a learning rate `rate` times as high for these layers, without a
second optimiser; and weight decay draws them back to the published kernel and
not to zero. BatchNorm keeps its published statistics and offset.

What lies in front of these layers stays frozen: its activations are the
features, [steps, rows, columns, channels] of each window, without pooling.
"""

import functools
from typing import Any

import keras
from keras import ops
import numpy as np

from lsts_tf import parts
from lsts_tf.networks import i3d


@keras.saving.register_keras_serializable(package="lsts_tf")
class Block(keras.layers.Layer):
    """One layer of I3D's table, with kernels that change in small steps.

    Args:
        layer: Its name in `i3d.LAYERS`.
        rate: What a change is multiplied by.
    """

    def __init__(self, layer: str, *, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.rate = float(rate)
        row = i3d.LAYERS[i3d.END_POINTS.index(layer)]
        self._chains: Any = i3d.chains(row)

    def build(self, input_shape: Any) -> None:
        """Makes each unit's kernel, its change, scale and offset."""
        units = {}
        for chain in self._chains:
            depth = input_shape[-1]
            for part in chain:
                if isinstance(part, i3d.Conv):
                    units[part.name] = self._add_unit(part, depth)
                    depth = part.filters
        self._units = units

    def _add_unit(self, unit: i3d.Conv, depth: int) -> dict[str, Any]:
        kernel = (*unit.kernel, depth, unit.filters)
        shapes: dict[str, Any] = {"published": kernel, "change": kernel}
        shapes |= {"scale": kernel[-1:], "offset": kernel[-1:]}
        return {
            what: self.add_weight(
                shape=shape,
                initializer="zeros",
                trainable=what == "change",
                # The backward pass computes a block anew where no precision
                # is set.
                autocast=False,
                name=i3d.layer_name(unit.name, what),
            )
            for what, shape in shapes.items()
        }

    def take(self, network: keras.Model) -> None:
        """Takes the published weights of an I3D, with BatchNorm folded."""
        for name, unit in self._units.items():
            conv = network.get_layer(i3d.layer_name(name, "conv_3d"))
            norm = network.get_layer(i3d.layer_name(name, "batch_norm"))
            variance = ops.convert_to_numpy(norm.moving_variance)
            scale = 1 / np.sqrt(variance + i3d.EPSILON)
            mean = ops.convert_to_numpy(norm.moving_mean)
            unit["published"].assign(conv.kernel)
            unit["scale"].assign(scale)
            unit["offset"].assign(
                ops.convert_to_numpy(norm.beta) - mean * scale
            )

    def call(self, x: Any) -> Any:
        """[batch, steps, rows, columns, channels] to the layer's output."""
        ends = [functools.reduce(self._apply, c, x) for c in self._chains]
        return ops.concatenate(ends, -1) if len(ends) > 1 else ends[0]

    def _apply(self, x: Any, part: i3d.Conv | i3d.Pool) -> Any:
        if isinstance(part, i3d.Pool):
            return ops.max_pool(
                x, part.kernel, part.stride, "same", "channels_last"
            )
        unit = self._units[part.name]
        kernel = unit["published"] + self.rate * unit["change"]
        y = ops.conv(
            x,
            ops.cast(kernel, x.dtype),
            part.stride,
            "same",
            data_format="channels_last",
        )
        scale, offset = (
            ops.cast(unit[what], x.dtype) for what in ("scale", "offset")
        )
        return ops.relu(y * scale + offset)


def build(
    network: keras.Model,
    first: str,
    *,
    frames: int,
    rate: float,
    dtype: str | keras.DTypePolicy | None = None,
) -> keras.Model:
    """Builds the layers of an I3D from one on, with its weights.

    The network is from `i3d.build`, with known rows and columns, the first
    layer one of `parts.BLOCKS`, `frames` those of a window; None is Keras'
    global dtype policy.

    Returns:
        A model from [batch, steps, rows, columns, channels] in front of it to
        pooled Mixed_5c, [batch, 5, 5, 5, 1024] for 79 frames of 224 x 224.
    """
    _, _, height, width, _ = network.input_shape
    before = parts.stem(first)
    shape = i3d.shapes(frames, height, width)[before]
    inputs = keras.Input(shape, name=before)
    x = inputs
    for name in i3d.END_POINTS[i3d.END_POINTS.index(first) :]:
        # Training keeps only the activations between blocks, and computes
        # those inside again. A block remembers in which scope it was made.
        with keras.RematScope("full"):
            block = Block(name, rate=rate, dtype=dtype, name=name)
        x = block(x)
        block.take(network)
        if name == parts.MAIN:
            break
    return keras.Model(inputs, i3d.pool(x), name=f"{network.name}_tuned")
