"""Kinetics I3D, an Inception-v1 inflated to three dimensions, as a table.

A clip is [batch, frames, height, width, channels], float32 in [-1, 1]. A step
is one position on a layer's time axis; every convolution and max pooling uses
TensorFlow's SAME padding, so a stride of 2 leaves ceil(n / 2) of n steps.

A unit is a convolution without bias, BatchNorm with an offset but no scale,
and ReLU. It keeps the name of the published network's variable scope, for
instance "Mixed_5b/Branch_2/Conv3d_0a_3x3"; Keras forbids "/" in the names of
layers, so its layers are called `layer_name(unit, "conv_3d")` and
`layer_name(unit, "batch_norm")`.

Sources: "Quo Vadis, Action Recognition?" (arXiv 1705.07750) and the network
that its authors published as google-deepmind/kinetics-i3d.
"""

from collections.abc import Iterable, Iterator
import functools
import itertools
import math
from typing import Any, NamedTuple

import keras
import numpy as np

from lsts_tf import parts

Triple = tuple[int, int, int]

EPSILON = 1e-3
POOLING: Triple = (6, 3, 3)


class Conv(NamedTuple):
    """A unit: convolution, BatchNorm, ReLU. Sizes are (time, height, width)."""

    name: str
    kernel: Triple
    stride: Triple
    filters: int


class Pool(NamedTuple):
    """A max pooling. Sizes are (time, height, width)."""

    name: str
    kernel: Triple
    stride: Triple


class Mixed(NamedTuple):
    """An Inception block of four branches, concatenated.

    Filters: branch 0; branch 1 reduced, branch 1; branch 2 reduced, branch 2;
    branch 3.
    """

    name: str
    filters: tuple[int, int, int, int, int, int]
    stride: Triple = (1, 1, 1)


Layer = Conv | Pool | Mixed

ONE: Triple = (1, 1, 1)
THREE: Triple = (3, 3, 3)

LAYERS: tuple[Layer, ...] = (
    Conv("Conv3d_1a_7x7", (7, 7, 7), (2, 2, 2), 64),
    Pool("MaxPool3d_2a_3x3", (1, 3, 3), (1, 2, 2)),
    Conv("Conv3d_2b_1x1", ONE, ONE, 64),
    Conv("Conv3d_2c_3x3", THREE, ONE, 192),
    Pool("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    Mixed("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    Mixed("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    Pool("MaxPool3d_4a_3x3", THREE, (2, 2, 2)),
    Mixed("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    Mixed("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    Mixed("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    Mixed("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    Mixed("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    Pool("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
    Mixed("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    Mixed("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)
END_POINTS: tuple[str, ...] = tuple(layer.name for layer in LAYERS)


def branches(block: Mixed) -> tuple[tuple[Conv | Pool, ...], ...]:
    """Returns the layers of a block's four branches, in order."""
    straight, reduce_1, wide_1, reduce_2, wide_2, pooled = block.filters
    # The published network names this one unit differently; all its
    # checkpoints carry the name.
    odd = block.name == "Mixed_5b"
    last_2 = "Conv3d_0a_3x3" if odd else "Conv3d_0b_3x3"
    scope = f"{block.name}/Branch_"
    return (
        (Conv(f"{scope}0/Conv3d_0a_1x1", ONE, ONE, straight),),
        (
            Conv(f"{scope}1/Conv3d_0a_1x1", ONE, ONE, reduce_1),
            Conv(f"{scope}1/Conv3d_0b_3x3", THREE, ONE, wide_1),
        ),
        (
            Conv(f"{scope}2/Conv3d_0a_1x1", ONE, ONE, reduce_2),
            Conv(f"{scope}2/{last_2}", THREE, ONE, wide_2),
        ),
        (
            Pool(f"{scope}3/MaxPool3d_0a_3x3", THREE, ONE),
            Conv(f"{scope}3/Conv3d_0b_1x1", ONE, ONE, pooled),
        ),
    )


def chains(layer: Layer) -> tuple[tuple[Conv | Pool, ...], ...]:
    """Returns the branches of a block; of another layer itself alone."""
    return branches(layer) if isinstance(layer, Mixed) else ((layer,),)


def layers(end_point: str = "Mixed_5c") -> tuple[Layer, ...]:
    """Returns the table up to and with an end point."""
    return LAYERS[: END_POINTS.index(end_point) + 1]


def units() -> Iterator[Conv]:
    """Yields every convolution with BatchNorm."""
    for layer in LAYERS:
        for part in itertools.chain(*chains(layer)):
            if isinstance(part, Conv):
                yield part


def layer_name(*names: str) -> str:
    """Returns the Keras name of a layer: a unit's part, or what it puts out."""
    return "/".join(names).replace("/", "__")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns the zeros that SAME puts before and after an axis.

    An odd total puts the extra one after. The total depends on the size: 79
    frames under a kernel of 7 and a stride of 2 get (3, 3), 80 get (2, 3).
    """
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def shapes(
    frames: int, height: int = 224, width: int = 224
) -> dict[str, tuple[int, int, int, int]]:
    """Returns [steps, height, width, channels] behind every layer."""
    channels = 0
    found = {}
    for layer in LAYERS:
        time, rows, columns = layer.stride
        frames, height, width = (
            -(-frames // time),
            -(-height // rows),
            -(-width // columns),
        )
        ends = [chain[-1] for chain in chains(layer)]
        # A pooling has no filters and leaves the channels.
        channels = sum(getattr(e, "filters", 0) for e in ends) or channels
        found[layer.name] = (frames, height, width, channels)
    return found


def feature_shape(
    frames: int, height: int = 224, width: int = 224
) -> tuple[int, int, int, int]:
    """Returns the shape of one window's pooled features.

    For instance 79 frames of 224 x 224 give (5, 5, 5, 1024).
    """
    *size, channels = shapes(frames, height, width)["Mixed_5c"]
    kernel = pooling_kernel(*size)
    time, rows, columns = (n - k + 1 for n, k in zip(size, kernel, strict=True))
    return time, rows, columns, channels


def pooling_kernel(steps: int, rows: int, columns: int) -> Triple:
    """Returns the kernel of the average pooling behind Mixed_5c.

    It is (6, 3, 3) for the published 79 frames of 224 x 224, and the whole
    axis where an axis is shorter (16 frames have 2 steps).
    """
    time, height, width = POOLING
    return min(time, steps), min(height, rows), min(width, columns)


def spacing(end_point: str) -> int:
    """Returns the frames between two steps of an end point.

    For instance 2 behind the first convolution, 8 at Mixed_5c.
    """
    return math.prod(layer.stride[0] for layer in layers(end_point))


def skip_shapes(
    skips: Iterable[str], frames: int, height: int = 224, width: int = 224
) -> dict[str, Triple]:
    """Returns [rows, columns, channels] of each skip, by end point.

    For instance Mixed_4f of 224 x 224 is (14, 14, 832).
    """
    found = shapes(frames, height, width)
    return {skip: found[skip][1:] for skip in skips}


def check_order(skips: Iterable[str], end_point: str) -> None:
    """Raises ValueError unless all skips lie in front of an end point."""
    behind = END_POINTS[END_POINTS.index(end_point) :]
    if late := [skip for skip in skips if skip in behind]:
        raise ValueError(
            f"Skips must come before {end_point}, the last frozen end point of "
            f"I3D. Received: {', '.join(late)}"
        )


def recent(features: Any, end_point: str) -> Any:
    """Averages the last steps of an end point, as `parts` says of a skip.

    From [batch, steps, rows, columns, channels] to [batch, rows, columns,
    channels].
    """
    count = parts.recent_steps(features.shape[1], spacing(end_point))
    return keras.ops.mean(features[:, -count:], axis=1)


def at(network: keras.Model, end_points: Iterable[str]) -> keras.Model:
    """Returns a model of the same layers that gives end points.

    It takes clips as what `build` made does, and gives {end point: [batch,
    steps, rows, columns, channels]}.
    """
    ends = {
        name: network.get_layer(layer_name(name)).output for name in end_points
    }
    model = keras.Model(network.input, ends, name=network.name)
    model.trainable = False
    return model


def of_still(network: keras.Model) -> keras.Model:
    """Returns a network of one frame for a clip that does not move.

    In the middle of a long clip of equal frames, all steps of a layer are
    equal, so a convolution over time is one by the sum of its kernel's taps,
    and a pooling over time changes nothing. The model's names are those of
    `network`; its features of a clip of one frame, one step each, are those in
    the middle of that long clip.
    """
    model = keras.models.clone_model(network)
    for layer in model.layers:
        weights = network.get_layer(layer.name).get_weights()
        if isinstance(layer, keras.layers.Conv3D) and weights[0].shape[0] > 1:
            kernel, *rest = weights
            # Around one frame, SAME padding leaves it to the central tap.
            summed = np.zeros_like(kernel)
            summed[len(kernel) // 2] = kernel.sum(axis=0)
            weights = [summed, *rest]
        layer.set_weights(weights)
    model.trainable = False
    return model


def pool(features: Any) -> Any:
    """Averages Mixed_5c to what the decoder reads.

    From [batch, 10, 7, 7, 1024] to [batch, 5, 5, 5, 1024], for instance.
    Stride 1, no padding; see `pooling_kernel`. Sizes must be known.
    """
    return keras.ops.average_pool(
        features,
        pooling_kernel(*features.shape[1:4]),
        strides=1,
        padding="valid",
        data_format="channels_last",
    )


def build(
    channels: int,
    *,
    frames: int | None = None,
    height: int | None = 224,
    width: int | None = 224,
    dtype: str = "float32",
    name: str = "i3d",
) -> keras.Model:
    """Returns I3D to Mixed_5c, frozen, in inference mode, any weights.

    It does not follow Keras' global dtype policy, because a frozen front end in
    another precision is another front end.

    Returns:
      A model from float [batch, frames, height, width, channels] in [-1, 1] to
      [batch, steps, rows, columns, 1024]; see `at` for other end points. RGB
      has 3 channels, flow 2; frames, height and width may be None, for any.
    """
    x = inputs = keras.Input((frames, height, width, channels), name="clip")
    apply = functools.partial(_apply, dtype=dtype)
    for layer in LAYERS:
        ends = [functools.reduce(apply, chain, x) for chain in chains(layer)]
        x = ends[0]
        if len(ends) > 1:
            x = keras.layers.Concatenate(name=layer.name, dtype=dtype)(ends)
    model = keras.Model(inputs, x, name=name)
    model.trainable = False
    return model


def _apply(x: Any, part: Conv | Pool, dtype: str) -> Any:
    if isinstance(part, Pool):
        return keras.layers.MaxPooling3D(
            part.kernel,
            part.stride,
            padding="same",
            name=layer_name(part.name),
            dtype=dtype,
        )(x)
    x = keras.layers.Conv3D(
        part.filters,
        part.kernel,
        part.stride,
        padding="same",
        use_bias=False,
        name=layer_name(part.name, "conv_3d"),
        dtype=dtype,
    )(x)
    x = keras.layers.BatchNormalization(
        scale=False,
        epsilon=EPSILON,
        name=layer_name(part.name, "batch_norm"),
        dtype=dtype,
    )(x)
    return keras.layers.ReLU(name=layer_name(part.name), dtype=dtype)(x)


def multiply_adds(
    frames: int, channels: int, height: int = 224, width: int = 224
) -> dict[str, float]:
    """Returns the multiply-adds of one window for each layer of the table.

    Poolings cost none here.
    """
    found = {}
    depth = channels
    for layer in LAYERS:
        *size, out = shapes(frames, height, width)[layer.name]
        total = 0
        for chain in chains(layer):
            inner = depth
            for part in chain:
                if isinstance(part, Conv):
                    total += math.prod(part.kernel) * inner * part.filters
                    inner = part.filters
        found[layer.name] = float(total * math.prod(size))
        depth = out
    return found
