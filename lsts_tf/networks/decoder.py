"""Features of a window of video -> where people look in its last frame.

A feature tensor is [time, height, width, channels], as I3D's Mixed_5c leaves
average pooling: [5, 5, 5, 1024] for 79 frames of 224 x 224. A stream is one
front end ("rgb", "flow"); a model is a tuple of streams. Saliency is
[height, width, 1] in [0, 1].

The paper's network (arXiv report on LSTS, section 3; `docs/decisions.md` for
the points that it leaves open): fusion of the streams, one convolution over all
of time, then seven transposed convolutions, D1 to D7. Each of them multiplies
the size by its strides, 72 x 128 in all, which makes 360 x 640 of 5 x 5. Of
other features it makes another size, 360 x 1280 of 5 x 10 (frames of 224 x
384), which is then resized to the map's.

The skip network ("skip") takes earlier end points of I3D too, as a U-Net does.
Each level enlarges, joins a skip and convolves; as long as there is time left,
the convolution also spans three steps of it without padding. For 79 frames of
224 x 224 and one stream:

| level           | joins            | kernel  | filters | output        |
|-----------------|------------------|---------|---------|---------------|
| `squeeze`       | Mixed_5c, pooled | 1, 1, 1 | 256     | 5 x 5 x 5     |
| `deep`          |                  | 3, 3, 3 | 256     | 3 x 5 x 5     |
| `Mixed_4f`      | 128 of 832       | 3, 3, 3 | 128     | 1 x 14 x 14   |
| `Mixed_3c`      | 64 of 480        | 1, 3, 3 | 64      | 1 x 28 x 28   |
| `Conv3d_2c_3x3` | 32 of 192        | 1, 3, 3 | 32      | 1 x 56 x 56   |
| `end1`          |                  | 1, 3, 3 | 16      | 1 x 90 x 160  |
| `end2`          |                  | 1, 3, 3 | 8       | 1 x 180 x 320 |
| `map`           |                  | 1, 3, 3 | 1       | 1 x 360 x 640 |

A level whose skip is not given is left out. Enlarging is bilinear.

The readout ("readout") learns from few frames, because it learns little: it
weighs I3D's channels, as DeepGaze does with those of a network of pictures
(arXiv 1610.01563), and adds what each end point says of each place. For 79
frames of 224 x 224 and one stream:

| layer         | from                                   | output       |
|---------------|----------------------------------------|--------------|
| `Mixed_5c`    | the last pooled step: norm, 1 x 1      | 5 x 5 x 64   |
| each skip     | norm, 1 x 1                            | its size, 64 |
| `sum`         | all of them at one size, added; GELU   | 45 x 80 x 64 |
| `places`      | norm, 3 x 3, GELU                      | 45 x 80 x 32 |
| `map`         | 1 x 1, enlarged                        | 360 x 640    |

It has no weights over time: what it learns from still photographs, whose steps
are all alike, holds for films. The last pooled step is the mean of the
window's last 48 frames.

Several maps of one window (`targets`): the last stages double time by a
transposed convolution, so that the costly early ones are computed once for
all maps. For 8 maps these are D4, D5 and D6.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import NamedTuple

import keras

from lsts_tf import parts
from lsts_tf import windows
from lsts_tf.networks import layers

Tensor = Any  # a KerasTensor, or a tensor of the backend

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

# Dropout leaves out whole channels, and only behind stages that have so many.
DROPOUT_FILTERS = 64


class Level(NamedTuple):
    """One level of the skip network that joins a skip."""

    end_point: str
    lateral: int
    filters: int


SQUEEZED_FILTERS = 256
LEVELS = (
    Level("Mixed_4f", 128, 128),
    Level("Mixed_3c", 64, 64),
    Level("Conv3d_2c_3x3", 32, 32),
)
# Filters, and the part of the map's size, of the levels behind them.
ENDS = ((16, 4), (8, 2))


# The readout: filters of each end point, of all together, and the part of the
# map's size at which they meet.
READOUT_FILTERS = 64
PLACE_FILTERS = 32
READOUT_PART = 8
_NORM_EPSILON = 1e-3


class _Style(NamedTuple):
    """What all layers of one model share."""

    dtype: keras.DTypePolicy
    synchronized: bool
    seeds: Iterator[int | None]
    dropout: float


class _Shapes(NamedTuple):
    """Sizes that a network has to meet.

    Attributes:
        targets: Maps of one window.
        map_size: Rows and columns of a map.
        skips: [rows, columns, channels] of each skip, by end point.
    """

    targets: int
    map_size: tuple[int, int]
    skips: Mapping[str, tuple[int, int, int]]


def _concatenate(streams: Sequence[Tensor]) -> Tensor:
    """Joins streams on their channels, in the order given."""
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


def _convolve(
    x: Tensor,
    filters: int,
    kernel: tuple[int, int, int],
    name: str,
    style: _Style,
    *,
    padding: str = "valid",
    bias: bool = True,
) -> Tensor:
    """Convolution of [batch, ..., height, width, channels], time or none."""
    is_flat = len(x.shape) == 4
    fan_in = math.prod(kernel) * x.shape[-1]
    return (keras.layers.Conv2D if is_flat else keras.layers.Conv3D)(
        filters,
        kernel[1:] if is_flat else kernel,
        padding=padding,
        use_bias=bias,
        kernel_initializer=_kernel_init(next(style.seeds)),
        bias_initializer=(
            _fan_in_uniform(fan_in, next(style.seeds)) if bias else None
        ),
        dtype=style.dtype,
        name=name,
    )(x)


def _batch_norm(name: str, style: _Style) -> keras.Layer:
    return keras.layers.BatchNormalization(
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        synchronized=style.synchronized,
        dtype=style.dtype,
        name=name,
    )


def _drop(x: Tensor, name: str, style: _Style) -> Tensor:
    """Dropout behind a stage, if there is any."""
    if not style.dropout or x.shape[-1] < DROPOUT_FILTERS:
        return x
    spatial = {
        4: keras.layers.SpatialDropout2D,
        5: keras.layers.SpatialDropout3D,
    }[len(x.shape)]
    return spatial(
        style.dropout,
        seed=next(style.seeds),
        dtype=style.dtype,
        name=f"{name}_dropout",
    )(x)


def _with_time(x: Tensor, name: str, style: _Style) -> Tensor:
    """[batch, ...] as one step of time, [batch, 1, ...]."""
    if len(x.shape) == 5:
        return x
    shape = (1, *x.shape[1:])
    return keras.layers.Reshape(shape, dtype=style.dtype, name=name)(x)


def _deconvolve(
    x: Tensor, layer: Deconvolution, style: _Style, *, times: int = 1
) -> Tensor:
    """Transposed convolution that multiplies the size by the strides.

    The whole transposed convolution is kernel - stride longer than that, and
    the surplus is cut at the start of each axis (PyTorch's padding 1 with
    output_padding 1). TensorFlow's SAME cuts it at the end: another network.
    With `times`, it also makes so many steps of each step of time.
    """
    (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel, layer.strides
    crop: tuple[tuple[int, int], ...]
    crop = ((kernel_h - stride_h, 0), (kernel_w - stride_w, 0))
    kernel: tuple[int, ...] = layer.kernel
    strides: tuple[int, ...] = layer.strides
    transpose, cropping = keras.layers.Conv2DTranspose, keras.layers.Cropping2D
    if times > 1 or len(x.shape) == 5:
        x = _with_time(x, f"{layer.name}_time", style)
        kernel, strides = (times, *kernel), (times, *strides)
        crop = ((0, 0), *crop)
        transpose = keras.layers.Conv3DTranspose
        cropping = keras.layers.Cropping3D
    x = transpose(
        layer.filters,
        kernel,
        strides=strides,
        padding="valid",
        kernel_initializer=_kernel_init(next(style.seeds)),
        bias_initializer=_fan_in_uniform(
            layer.filters * math.prod(kernel), next(style.seeds)
        ),
        dtype=style.dtype,
        name=layer.name,
    )(x)
    return cropping(crop, dtype=style.dtype, name=f"{layer.name}_crop")(x)


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
    return _convolve(x, 1, (1, 1, 1), "classifier", style)


def growth(stages: int, targets: int) -> tuple[int, ...]:
    """By how much each stage multiplies time, so that all make `targets`.

    >>> growth(6, 8), growth(3, 16)
    ((1, 1, 1, 2, 2, 2), (4, 2, 2))
    """
    factors = [1] * stages
    for stage in range(stages - 1, 0, -1):
        if targets > 1:
            factors[stage], targets = 2, targets // 2
    factors[0] = targets
    return tuple(factors)


def _paper_body(
    x: Tensor,
    skips: Mapping[str, Tensor],
    head: str,
    shapes: _Shapes,
    style: _Style,
) -> Tensor:
    """Fused features to log-odds, D1 to D7."""
    del skips
    _, time, height, width, _ = x.shape
    x = _convolve(
        x, TEMPORAL_FILTERS, (time, 1, 1), "conv3d", style, bias=False
    )
    x = _batch_norm("conv3d_bn", style)(x)
    x = keras.layers.ReLU(dtype=style.dtype, name="conv3d_relu")(x)
    x = keras.layers.Reshape(
        (height, width, TEMPORAL_FILTERS), dtype=style.dtype, name="last_frame"
    )(x)
    x = _drop(x, "conv3d", style)
    factors = growth(len(DECONVOLUTIONS), shapes.targets)
    for layer, times in zip(DECONVOLUTIONS, factors, strict=True):
        x = _deconvolve(x, layer, style, times=times)
        x = _relu_batch_norm(x, layer.name, style)
        x = _drop(x, layer.name, style)
    x = HEADS[head](x, style)
    if tuple(x.shape[-3:-1]) != shapes.map_size:
        x = layers.Resize(shapes.map_size, dtype=style.dtype, name="map_size")(
            x
        )
    return x


def _unit(
    x: Tensor,
    name: str,
    filters: int,
    kernel: tuple[int, int, int],
    style: _Style,
) -> Tensor:
    """Convolution, BatchNorm, ReLU; SAME in space, without padding in time."""
    padding = "same"
    if len(x.shape) == 5 and kernel[0] > 1:
        rows, columns = (n // 2 for n in kernel[1:])
        x = keras.layers.ZeroPadding3D(
            (0, rows, columns), dtype=style.dtype, name=f"{name}_pad"
        )(x)
        padding = "valid"
    x = _convolve(x, filters, kernel, name, style, padding=padding, bias=False)
    x = _batch_norm(f"{name}_bn", style)(x)
    x = keras.layers.ReLU(dtype=style.dtype, name=f"{name}_relu")(x)
    # One step of time is none.
    if len(x.shape) == 5 and kernel[0] > 1 and x.shape[1] == 1:
        x = keras.layers.Reshape(
            x.shape[2:], dtype=style.dtype, name=f"{name}_last"
        )(x)
    return _drop(x, name, style)


def _join(
    x: Tensor, skip: Tensor, level: Level, name: str, style: _Style
) -> Tensor:
    """A skip's channels, fewer of them, beside those of every step."""
    lateral = _unit(skip, f"{name}_skip", level.lateral, (1, 1, 1), style)
    if len(x.shape) == 5:
        lateral = _with_time(lateral, f"{name}_skip_time", style)
        lateral = keras.layers.UpSampling3D(
            (x.shape[1], 1, 1), dtype=style.dtype, name=f"{name}_skip_repeat"
        )(lateral)
    return keras.layers.Concatenate(dtype=style.dtype, name=f"{name}_join")(
        [x, lateral]
    )


def _skip_body(
    x: Tensor,
    skips: Mapping[str, Tensor],
    head: str,
    shapes: _Shapes,
    style: _Style,
) -> Tensor:
    """Fused features to log-odds, level by level."""
    del head
    used = [level for level in LEVELS if level.end_point in skips]
    stages: list[tuple[str, int, tuple[int, int], Level | None]] = [
        (
            level.end_point,
            level.filters,
            shapes.skips[level.end_point][:2],
            level,
        )
        for level in used
    ]
    rows, columns = shapes.map_size
    for number, (filters, part) in enumerate(ENDS, 1):
        size = (-(-rows // part), -(-columns // part))
        stages.append((f"end{number}", filters, size, None))
    x = _unit(x, "squeeze", SQUEEZED_FILTERS, (1, 1, 1), style)
    x = _reduce(x, "deep", SQUEEZED_FILTERS, style)
    grown = False
    factors = growth(len(stages), shapes.targets)
    for (name, filters, size, level), times in zip(
        stages, factors, strict=True
    ):
        if (times > 1 or level is None) and not grown and len(x.shape) == 5:
            x = _unit(x, f"{name}_rest", x.shape[-1], (x.shape[1], 1, 1), style)
        if times > 1:
            x = _grow(x, name, times, style)
            grown = True
        x = layers.Resize(size, dtype=style.dtype, name=f"{name}_size")(x)
        if level is not None:
            x = _join(x, skips[name], level, name, style)
        if grown:
            x = _unit(x, name, filters, (1, 3, 3), style)
        else:
            x = _reduce(x, name, filters, style)
    x = layers.Resize(shapes.map_size, dtype=style.dtype, name="map_size")(x)
    return _convolve(x, 1, (1, 3, 3), "map", style, padding="same")


def _reduce(x: Tensor, name: str, filters: int, style: _Style) -> Tensor:
    """A unit over three steps of time, or over what is left of it."""
    steps = min(3, x.shape[1]) if len(x.shape) == 5 else 1
    x = _unit(x, name, filters, (steps, 3, 3), style)
    if len(x.shape) == 5 and x.shape[1] == 1:
        x = keras.layers.Reshape(
            x.shape[2:], dtype=style.dtype, name=f"{name}_only"
        )(x)
    return x


def _grow(x: Tensor, name: str, times: int, style: _Style) -> Tensor:
    """Makes `times` steps of each by a transposed convolution, and ReLU."""
    filters = x.shape[-1]
    x = _with_time(x, f"{name}_time", style)
    x = keras.layers.Conv3DTranspose(
        filters,
        (times, 1, 1),
        strides=(times, 1, 1),
        kernel_initializer=_kernel_init(next(style.seeds)),
        bias_initializer=_fan_in_uniform(filters * times, next(style.seeds)),
        dtype=style.dtype,
        name=f"{name}_grow",
    )(x)
    return keras.layers.ReLU(dtype=style.dtype, name=f"{name}_grow_relu")(x)


def _readout_body(
    x: Tensor,
    skips: Mapping[str, Tensor],
    head: str,
    shapes: _Shapes,
    style: _Style,
) -> Tensor:
    """Fused features to log-odds: what each end point says of each place."""
    del head
    rows, columns = (-(-n // READOUT_PART) for n in shapes.map_size)
    ends = {parts.MAIN: layers.LastStep(dtype=style.dtype, name="last")(x)}
    ends |= skips
    votes = []
    for end_point, features in ends.items():
        y = _norm(features, end_point, style)
        y = _drop(y, end_point, style)
        y = _pointwise(y, READOUT_FILTERS, end_point, style)
        size = f"{end_point}_size"
        votes.append(
            layers.Resize((rows, columns), dtype=style.dtype, name=size)(y)
        )
    x = votes[0]
    if len(votes) > 1:
        x = keras.layers.Add(dtype=style.dtype, name="sum")(votes)
    x = keras.layers.Activation("gelu", dtype=style.dtype, name="sum_gelu")(x)
    x = _drop(_norm(x, "sum", style), "sum", style)
    x = _pointwise(x, PLACE_FILTERS, "places", style, kernel=3)
    x = keras.layers.Activation("gelu", dtype=style.dtype, name="gelu")(x)
    x = _pointwise(x, 1, "map", style)
    return layers.Resize(shapes.map_size, dtype=style.dtype, name="map_size")(x)


def _norm(x: Tensor, name: str, style: _Style) -> Tensor:
    """Brings the channels of each place to mean 0 and deviation 1."""
    return keras.layers.LayerNormalization(
        epsilon=_NORM_EPSILON, dtype=style.dtype, name=f"{name}_norm"
    )(x)


def _pointwise(
    x: Tensor, filters: int, name: str, style: _Style, *, kernel: int = 1
) -> Tensor:
    return keras.layers.Conv2D(
        filters,
        kernel,
        padding="same",
        kernel_initializer=keras.initializers.GlorotUniform(next(style.seeds)),
        dtype=style.dtype,
        name=name,
    )(x)


# As `parts.HEADS` and `parts.DECODERS` name them.
HEADS: dict[str, Callable[[Tensor, _Style], Tensor]] = {
    "paper": _paper_head,
    "released": _released_head,
}
DESIGNS: dict[str, Callable[..., Tensor]] = {
    "paper": _paper_body,
    "skip": _skip_body,
    "readout": _readout_body,
}


def magnification() -> tuple[int, int]:
    """Rows and columns of a map for each row and column of features."""
    strides = [layer.strides for layer in DECONVOLUTIONS] + [LAST_STRIDES]
    return math.prod(s[0] for s in strides), math.prod(s[1] for s in strides)


def build(
    streams: Sequence[str],
    *,
    design: str = "paper",
    head: str = "paper",
    feature_shape: Sequence[int] = (5, 5, 5, 1024),
    skip_shapes: Mapping[str, Sequence[int]] | None = None,
    tuned: Mapping[str, keras.Model] | None = None,
    targets: int = 1,
    map_size: tuple[int, int] | None = None,
    dropout: float = 0.0,
    blur: float = 0.0,
    learn_blur: bool = False,
    centre_prior: str = "none",
    sharpen: float = 1.0,
    centre: float = 0.0,
    synchronized: bool = False,
    dtype: str | keras.DTypePolicy | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Builds an untrained decoder.

    Args:
        streams: front ends in the order of fusion: ("rgb",), ("flow",) or
            ("rgb", "flow").
        design: "paper"; "skip" for the network that takes skips; "readout"
            for the small one, which may take them.
        head: "paper" (D7 has one filter) or "released" (two filters, ReLU,
            BatchNorm and a 1 x 1 convolution, as in the authors' program);
            of the paper's network.
        feature_shape: [time, height, width, channels] of each stream. The
            paper's first convolution spans all of time.
        skip_shapes: {end point: [rows, columns, channels]} of each stream's
            skips, some of `parts.SKIPS`; at least one for "skip", none for
            "paper".
        tuned: {stream: model from other features to these}, trained together
            with the decoder and saved with it, as `tuned_i3d` builds it.
        targets: maps of each window, one of `parts.TARGETS`: its last frames.
        map_size: rows and columns of a map; None for 72 x height by 128 x
            width.
        dropout: share of channels that training leaves out, in front of D1
            and behind D1 to D4 ("skip": behind the units; "readout": behind
            the norms), those stages that have `DROPOUT_FILTERS` or more.
        blur: standard deviation in pixels of a Gaussian over the map; 0 for
            none.
        learn_blur: whether its width is learnt.
        centre_prior: "none", or what a learnt prior of each place starts
            from, "neutral" or "gaussian"; see `layers.CentrePrior`.
        sharpen: power to which served maps of what moves are raised; see
            `layers.Sharpen`.
        centre: weight by which they are drawn to the middle; likewise.
        synchronized: whether BatchNorm takes its statistics over all replicas
            of a strategy; without, each replica keeps its own and only the
            first one's are saved.
        dtype: dtype policy; None is Keras' global one.
        seed: makes the initial weights reproducible; None draws from Keras'
            global seed.

    Returns:
        A model from {part: [batch, *its shape]} (see `parts.name`) to saliency
        [batch, *map_size, 1] in [0, 1], float32 (float64 under that policy);
        of several targets [batch, targets, *map_size, 1] in order of time.

    Raises:
        ValueError: if an argument is none of the above, or some of them do not
            go together.
    """
    windows.check_streams(streams)
    parts.check_decoder(design, head, tuple(skip_shapes or ()), targets)
    _, height, width, _ = shape = tuple(feature_shape)
    skip_sizes = {
        end_point: (int(rows), int(columns), int(channels))
        for end_point, (rows, columns, channels) in (skip_shapes or {}).items()
    }
    scale_h, scale_w = magnification()
    map_size = map_size or (scale_h * height, scale_w * width)
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    style = _Style(policy, synchronized, _seeds(seed), dropout)
    shapes = _Shapes(targets, (map_size[0], map_size[1]), skip_sizes)

    exact = "float64" if policy.variable_dtype == "float64" else "float32"

    # === Functional model ===
    tuned = tuned or {}
    inputs = {
        s: keras.Input(
            tuned[s].input_shape[1:] if s in tuned else shape,
            dtype=exact,
            name=s,
        )
        for s in streams
    }
    x = features = _concatenate(
        [tuned[s](inputs[s]) if s in tuned else inputs[s] for s in streams]
    )
    skips = {}
    for end_point, skip_shape in skip_sizes.items():
        names = [parts.name(s, end_point) for s in streams]
        inputs |= {
            n: keras.Input(skip_shape, dtype=exact, name=n) for n in names
        }
        skips[end_point] = _concatenate([inputs[n] for n in names])
    x = DESIGNS[design](x, skips, head, shapes, style)
    if centre_prior != "none":
        x = layers.CentrePrior(centre_prior, dtype=exact, name="prior")(x)
    # Half precision would leave some 1,000 grey levels and flush small
    # probabilities to zero.
    x = keras.layers.Activation("sigmoid", dtype=exact, name="saliency")(x)
    if blur or learn_blur:
        x = layers.GaussianBlur(
            blur, learned=learn_blur, dtype=exact, name="blur"
        )(x)
    if sharpen != 1 or centre:
        x = layers.Sharpen(sharpen, centre, dtype=exact, name="sharpen")(
            [x, features]
        )
    return keras.Model(inputs, x, name=f"lsts_{'_'.join(streams)}")


def _seeds(seed: int | None) -> Iterator[int | None]:
    return itertools.repeat(None) if seed is None else itertools.count(seed)
