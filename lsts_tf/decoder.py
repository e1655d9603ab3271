"""Features of a window of video -> where people look in its last frame.

A feature tensor is [time, height, width, channels], as I3D's Mixed_5c leaves
average pooling: [5, 5, 5, 1024] for 79 frames of 224 x 224. A stream is one
front end ("rgb", "flow"); a model is a tuple of streams. Saliency is
[height, width, 1] in [0, 1].

The network (arXiv report on LSTS, section 3; `docs/decisions.md` for the points
that it leaves open): fusion of the streams, one convolution over all of time,
then seven transposed convolutions, D1 to D7. Each of them multiplies the size
by its strides, 72 x 128 in all, which makes 360 x 640 of 5 x 5.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import NamedTuple

import keras

Tensor = Any  # a KerasTensor, or a tensor of the backend

MODELS = {
    "rgb": ("rgb",),
    "flow": ("flow",),
    "rgb_flow": ("rgb", "flow"),
}
TEMPORAL_FILTERS = 512
# PyTorch's defaults, which the authors' program trains with. PyTorch counts
# momentum the other way round: its 0.1 is Keras' 0.9.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9


class Deconvolution(NamedTuple):
    """One transposed convolution of the table."""

    name: str
    filters: int
    kernel: tuple[int, int]
    strides: tuple[int, int]


DECONVOLUTIONS = (
    Deconvolution("d1", 512, (3, 3), (2, 2)),
    Deconvolution("d2", 256, (4, 3), (3, 2)),
    Deconvolution("d3", 128, (1, 3), (1, 2)),
    Deconvolution("d4", 64, (4, 3), (3, 2)),
    Deconvolution("d5", 16, (1, 3), (1, 2)),
    Deconvolution("d6", 4, (3, 3), (2, 2)),
)
# D7's filters belong to the head.
LAST_KERNEL = (3, 3)
LAST_STRIDES = (2, 2)


class _Style(NamedTuple):
    """What all layers of one model share."""

    dtype: keras.DTypePolicy
    synchronized: bool
    seeds: Iterator[int | None]


def concat(streams: Sequence[Tensor]) -> Tensor:
    """Joins streams on their channels, in the order given.

    Args:
        streams: one or more [batch, time, height, width, channels].

    Returns:
        [batch, time, height, width, sum of channels].
    """
    if len(streams) == 1:
        return streams[0]
    return keras.ops.concatenate(list(streams), axis=-1)


def _fan_in_uniform(fan_in: int, seed: int | None) -> keras.Initializer:
    """PyTorch's default for a bias: uniform in +-1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound, seed=seed)


def _kernel_init(seed: int | None) -> keras.Initializer:
    """PyTorch's default for a kernel: the same bound, from Keras' fan-in.

    Keras and PyTorch agree on the fan-in of a transposed convolution: filters
    times kernel area (not input channels).
    """
    return keras.initializers.VarianceScaling(
        1.0 / 3.0, "fan_in", "uniform", seed=seed
    )


def _batch_norm(name: str, style: _Style) -> keras.Layer:
    return keras.layers.BatchNormalization(
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        synchronized=style.synchronized,
        dtype=style.dtype,
        name=name,
    )


def _deconvolve(x: Tensor, layer: Deconvolution, style: _Style) -> Tensor:
    """Transposed convolution that multiplies the size by the strides.

    The whole transposed convolution is kernel - stride longer than that, and
    the surplus is cut at the start of each axis (PyTorch's padding 1 with
    output_padding 1). TensorFlow's SAME cuts it at the end: another network.
    """
    (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel, layer.strides
    x = keras.layers.Conv2DTranspose(
        layer.filters,
        layer.kernel,
        strides=layer.strides,
        padding="valid",
        kernel_initializer=_kernel_init(next(style.seeds)),
        bias_initializer=_fan_in_uniform(
            layer.filters * kernel_h * kernel_w, next(style.seeds)
        ),
        dtype=style.dtype,
        name=layer.name,
    )(x)
    return keras.layers.Cropping2D(
        ((kernel_h - stride_h, 0), (kernel_w - stride_w, 0)),
        dtype=style.dtype,
        name=f"{layer.name}_crop",
    )(x)


def _relu_batch_norm(x: Tensor, name: str, style: _Style) -> Tensor:
    """ReLU, then BatchNorm: in this order after a transposed convolution."""
    x = keras.layers.ReLU(dtype=style.dtype, name=f"{name}_relu")(x)
    return _batch_norm(f"{name}_bn", style)(x)


def _paper_head(x: Tensor, style: _Style) -> Tensor:
    """D7 makes the one map (the paper's Figure 2)."""
    last = Deconvolution("d7", 1, LAST_KERNEL, LAST_STRIDES)
    return _deconvolve(x, last, style)


def _released_head(x: Tensor, style: _Style) -> Tensor:
    """D7 makes two, and a classifier one of them (the authors' program)."""
    last = Deconvolution("d7", 2, LAST_KERNEL, LAST_STRIDES)
    x = _relu_batch_norm(_deconvolve(x, last, style), last.name, style)
    return keras.layers.Conv2D(
        1,
        1,
        kernel_initializer=_kernel_init(next(style.seeds)),
        bias_initializer=_fan_in_uniform(last.filters, next(style.seeds)),
        dtype=style.dtype,
        name="classifier",
    )(x)


FUSIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"concat": concat}
HEADS: dict[str, Callable[[Tensor, _Style], Tensor]] = {
    "paper": _paper_head,
    "released": _released_head,
}


def magnification() -> tuple[int, int]:
    """Rows and columns of a map for each row and column of features."""
    strides = [layer.strides for layer in DECONVOLUTIONS] + [LAST_STRIDES]
    return math.prod(s[0] for s in strides), math.prod(s[1] for s in strides)


def build(
    streams: Sequence[str],
    *,
    head: str = "paper",
    feature_shape: Sequence[int] = (5, 5, 5, 1024),
    fusion: str = "concat",
    synchronized: bool = False,
    dtype: str | keras.DTypePolicy | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Builds an untrained decoder.

    Args:
        streams: front ends in the order of fusion: ("rgb",), ("flow",) or
            ("rgb", "flow").
        head: "paper" (D7 has one filter) or "released" (two filters, ReLU,
            BatchNorm and a 1 x 1 convolution, as in the authors' program).
        feature_shape: [time, height, width, channels] of each stream. The
            first convolution spans all of time.
        fusion: how streams become one tensor, a key of `FUSIONS`.
        synchronized: whether BatchNorm takes its statistics over all replicas
            of a strategy; without, each replica keeps its own and only the
            first one's are saved.
        dtype: dtype policy; None is Keras' global one.
        seed: makes the initial weights reproducible; None draws from Keras'
            global seed.

    Returns:
        A model from {stream: [batch, *feature_shape]} to saliency
        [batch, 72 * height, 128 * width, 1] in [0, 1], float32 (float64 under
        that policy).

    Raises:
        ValueError: if an argument is none of the above.
    """
    streams = _check_streams(streams)
    time, height, width, _ = shape = _check_shape(feature_shape)
    _check_key("head", head, HEADS)
    _check_key("fusion", fusion, FUSIONS)
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    style = _Style(policy, synchronized, _seeds(seed))

    exact = "float64" if policy.variable_dtype == "float64" else "float32"

    # === Functional model ===
    inputs = {s: keras.Input(shape, dtype=exact, name=s) for s in streams}
    x = FUSIONS[fusion]([inputs[s] for s in streams])
    x = keras.layers.Conv3D(
        TEMPORAL_FILTERS,
        (time, 1, 1),
        use_bias=False,
        kernel_initializer=_kernel_init(next(style.seeds)),
        dtype=policy,
        name="conv3d",
    )(x)
    x = _batch_norm("conv3d_bn", style)(x)
    x = keras.layers.ReLU(dtype=policy, name="conv3d_relu")(x)
    x = keras.layers.Reshape(
        (height, width, TEMPORAL_FILTERS), dtype=policy, name="last_frame"
    )(x)
    for layer in DECONVOLUTIONS:
        x = _deconvolve(x, layer, style)
        x = _relu_batch_norm(x, layer.name, style)
    x = HEADS[head](x, style)
    # Half precision would leave some 1,000 grey levels and flush small
    # probabilities to zero.
    x = keras.layers.Activation("sigmoid", dtype=exact, name="saliency")(x)
    return keras.Model(inputs, x, name=f"lsts_{'_'.join(streams)}")


def _seeds(seed: int | None) -> Iterator[int | None]:
    return itertools.repeat(None) if seed is None else itertools.count(seed)


def _check_key(what: str, key: str, table: dict[str, Any]) -> None:
    if key not in table:
        raise ValueError(
            f"`{what}` must be one of {sorted(table)}. Received: {key!r}"
        )


def _check_streams(streams: Sequence[str]) -> tuple[str, ...]:
    if isinstance(streams, str) or tuple(streams) not in MODELS.values():
        raise ValueError(
            "`streams` must be one of "
            f"{', '.join(map(str, MODELS.values()))}. Received: {streams!r}"
        )
    return tuple(streams)


def _check_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) != 4 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            "`feature_shape` must be four positive integers, "
            f"(time, height, width, channels). Received: {shape!r}"
        )
    time, height, width, channels = shape
    return time, height, width, channels
