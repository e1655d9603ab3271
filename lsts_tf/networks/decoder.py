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

import collections
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import itertools
import math
from typing import Any, NamedTuple

import keras

from lsts_tf import parts

# With `tuned_i3d` models load whose front end's last layers were trained.
from lsts_tf.networks import layers, tuned_i3d  # noqa: F401

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
# By head: the paper's D7 makes the one map (its Figure 2). That of the authors'
# program makes two, and a classifier one map of them.
LAST = {
    "paper": Deconvolution("d7", 1, (3, 3), (2, 2)),
    "released": Deconvolution("d7", 2, (3, 3), (2, 2)),
}

# Dropout leaves out whole channels, and only behind stages that have so many:
# the first convolution and D1 to D4, units, or the readout's norms.
DROPOUT_FILTERS = 64

# The skip network: filters of each skip's convolution, and of its level; then
# filters, and the part of the map's size, of the levels behind them.
SQUEEZED_FILTERS = 256
LEVELS = {
    "Mixed_4f": (128, 128),
    "Mixed_3c": (64, 64),
    "Conv3d_2c_3x3": (32, 32),
}
ENDS = ((16, 4), (8, 2))

# The readout: filters of each end point, of all together, and the part of the
# map's size at which they meet.
READOUT_FILTERS = 64
PLACE_FILTERS = 32
READOUT_PART = 8


class _Stages:
    """Stages of one model, and what all of them share.

    They take [batch, ..., height, width, channels], with time or without.
    Arguments are as of `build`.
    """

    def __init__(
        self, seed: int | None, dropout: float, synchronized: bool
    ) -> None:
        self._seeds: Iterator[int | None] = (
            itertools.repeat(None) if seed is None else itertools.count(seed)
        )
        self._dropout = dropout
        self._synchronized = synchronized

    def _kernel(self) -> keras.Initializer:
        """PyTorch's default: uniform in +-1 / sqrt(fan-in).

        Keras and PyTorch agree on the fan-in of a transposed convolution:
        filters times kernel area (not input channels).
        """
        return keras.initializers.VarianceScaling(
            1.0 / 3.0, "fan_in", "uniform", seed=next(self._seeds)
        )

    def _kernel_and_bias(self, fan_in: int) -> dict[str, keras.Initializer]:
        """The same bound for both."""
        bound = 1.0 / math.sqrt(fan_in)
        return {
            "kernel_initializer": self._kernel(),
            "bias_initializer": keras.initializers.RandomUniform(
                -bound, bound, seed=next(self._seeds)
            ),
        }

    def convolve(
        self, x: Tensor, filters: int, kernel: tuple[int, int, int], name: str
    ) -> Tensor:
        """Convolution of the same size, with a bias."""
        convolution, kernel_ = _of_rank(x, kernel)
        return convolution(
            filters,
            kernel_,
            padding="same",
            **self._kernel_and_bias(math.prod(kernel) * x.shape[-1]),
            name=name,
        )(x)

    def unit(
        self, x: Tensor, name: str, filters: int, kernel: tuple[int, int, int]
    ) -> Tensor:
        """Convolution, BatchNorm, ReLU; SAME in space, no padding in time.

        Where one step of time is left, time goes.
        """
        spans = len(x.shape) == 5 and kernel[0] > 1
        if spans and max(kernel[1:]) > 1:
            rows, columns = (n // 2 for n in kernel[1:])
            x = keras.layers.ZeroPadding3D(
                (0, rows, columns), name=f"{name}_pad"
            )(x)
        convolution, kernel_ = _of_rank(x, kernel)
        x = convolution(
            filters,
            kernel_,
            padding="valid" if spans else "same",
            use_bias=False,
            kernel_initializer=self._kernel(),
            name=name,
        )(x)
        x = self._batch_norm(x, name)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        if len(x.shape) == 5 and x.shape[1] == 1:
            x = keras.layers.Reshape(x.shape[2:], name=f"{name}_last")(x)
        return self.drop(x, name)

    def reduce(
        self, x: Tensor, name: str, filters: int, steps: int = 3
    ) -> Tensor:
        """A unit over so many steps of time, or over what is left of it."""
        steps = min(steps, x.shape[1]) if len(x.shape) == 5 else 1
        return self.unit(x, name, filters, (steps, 3, 3))

    def deconvolve(
        self, x: Tensor, layer: Deconvolution, times: int = 1
    ) -> Tensor:
        """Transposed convolution that multiplies the size by the strides.

        The whole transposed convolution is kernel - stride longer than that,
        and the surplus is cut at the start of each axis (PyTorch's padding 1
        with output_padding 1). TensorFlow's SAME cuts it at the end: another
        network. With `times`, it also makes so many steps of each step of time.
        """
        kernel: tuple[int, ...] = layer.kernel
        strides: tuple[int, ...] = layer.strides
        transpose = keras.layers.Conv2DTranspose
        if times > 1 or len(x.shape) == 5:
            x = _with_time(x, layer.name)
            kernel, strides = (times, *kernel), (times, *strides)
            transpose = keras.layers.Conv3DTranspose
        x = transpose(
            layer.filters,
            kernel,
            strides=strides,
            **self._kernel_and_bias(layer.filters * math.prod(kernel)),
            name=layer.name,
        )(x)
        crop = [k - s for k, s in zip(kernel, strides, strict=True)]
        return layers.CropStart(crop, name=f"{layer.name}_crop")(x)

    def grow(self, x: Tensor, name: str, times: int) -> Tensor:
        """Makes `times` steps of each by a transposed convolution, and ReLU."""
        layer = Deconvolution(f"{name}_grow", x.shape[-1], (1, 1), (1, 1))
        x = self.deconvolve(x, layer, times)
        return keras.layers.ReLU(name=f"{name}_grow_relu")(x)

    def relu_batch_norm(self, x: Tensor, name: str) -> Tensor:
        """In this order after a transposed convolution."""
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        return self._batch_norm(x, name)

    def _batch_norm(self, x: Tensor, name: str) -> Tensor:
        return keras.layers.BatchNormalization(
            epsilon=BATCH_NORM_EPSILON,
            momentum=BATCH_NORM_MOMENTUM,
            synchronized=self._synchronized,
            name=f"{name}_bn",
        )(x)

    def drop(self, x: Tensor, name: str) -> Tensor:
        """Dropout behind a stage, if there is any."""
        if not self._dropout or x.shape[-1] < DROPOUT_FILTERS:
            return x
        dropout = {
            4: keras.layers.SpatialDropout2D,
            5: keras.layers.SpatialDropout3D,
        }[len(x.shape)]
        return dropout(
            self._dropout, seed=next(self._seeds), name=f"{name}_dropout"
        )(x)

    def join(self, x: Tensor, skip: Tensor, filters: int, name: str) -> Tensor:
        """A skip's channels, fewer of them, beside those of every step."""
        lateral = self.unit(skip, f"{name}_skip", filters, (1, 1, 1))
        if len(x.shape) == 5:
            lateral = keras.layers.UpSampling3D(
                (x.shape[1], 1, 1), name=f"{name}_skip_repeat"
            )(_with_time(lateral, f"{name}_skip"))
        return keras.layers.Concatenate(name=f"{name}_join")([x, lateral])

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Brings the channels of each place to mean 0 and deviation 1."""
        return keras.layers.LayerNormalization(
            epsilon=1e-3, name=f"{name}_norm"
        )(x)

    def look(
        self, x: Tensor, filters: int, name: str, *, kernel: int = 1
    ) -> Tensor:
        """Convolution of the readout."""
        return keras.layers.Conv2D(
            filters,
            kernel,
            padding="same",
            kernel_initializer=keras.initializers.GlorotUniform(
                next(self._seeds)
            ),
            name=name,
        )(x)


def _of_rank(x: Tensor, kernel: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """Convolution and kernel of what has time, or has none."""
    if len(x.shape) == 5:
        return keras.layers.Conv3D, kernel
    return keras.layers.Conv2D, kernel[1:]


def _with_time(x: Tensor, name: str) -> Tensor:
    """[batch, ...] as one step of time, [batch, 1, ...]."""
    if len(x.shape) == 5:
        return x
    return keras.layers.Reshape((1, *x.shape[1:]), name=f"{name}_time")(x)


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


# === The networks: fused features, by end point, to log-odds ===


def _paper(
    fused: Mapping[str, Tensor],
    stages: _Stages,
    *,
    head: str,
    targets: int,
    map_size: tuple[int, int] | None,
) -> Tensor:
    x = fused[parts.MAIN]
    x = stages.unit(x, "conv3d", TEMPORAL_FILTERS, (x.shape[1], 1, 1))
    factors = growth(len(DECONVOLUTIONS), targets)
    for layer, times in zip(DECONVOLUTIONS, factors, strict=True):
        x = stages.deconvolve(x, layer, times)
        x = stages.relu_batch_norm(x, layer.name)
        x = stages.drop(x, layer.name)
    x = stages.deconvolve(x, LAST[head])
    if head == "released":
        x = stages.relu_batch_norm(x, LAST[head].name)
        x = stages.convolve(x, 1, (1, 1, 1), "classifier")
    if map_size and tuple(x.shape[-3:-1]) != tuple(map_size):
        x = layers.Resize(map_size, name="map_size")(x)
    return x


def _skip(
    fused: Mapping[str, Tensor],
    stages: _Stages,
    *,
    head: str,
    targets: int,
    map_size: tuple[int, int],
) -> Tensor:
    rows, columns = map_size
    # Name, filters, size, and filters of the skip that is joined.
    table = [
        (name, filters, fused[name].shape[1:3], lateral)
        for name, (lateral, filters) in LEVELS.items()
        if name in fused
    ]
    for number, (filters, part) in enumerate(ENDS, 1):
        size = (-(-rows // part), -(-columns // part))
        table.append((f"end{number}", filters, size, 0))
    x = stages.unit(fused[parts.MAIN], "squeeze", SQUEEZED_FILTERS, (1, 1, 1))
    x = stages.reduce(x, "deep", SQUEEZED_FILTERS)
    grown = False
    factors = growth(len(table), targets)
    for (name, filters, size, lateral), times in zip(
        table, factors, strict=True
    ):
        if (times > 1 or not lateral) and not grown and len(x.shape) == 5:
            x = stages.unit(x, f"{name}_rest", x.shape[-1], (x.shape[1], 1, 1))
        if times > 1:
            x = stages.grow(x, name, times)
            grown = True
        x = layers.Resize(size, name=f"{name}_size")(x)
        if lateral:
            x = stages.join(x, fused[name], lateral, name)
        x = stages.reduce(x, name, filters, 1 if grown else 3)
    x = layers.Resize(map_size, name="map_size")(x)
    return stages.convolve(x, 1, (1, 3, 3), "map")


def _readout(
    fused: Mapping[str, Tensor],
    stages: _Stages,
    *,
    head: str,
    targets: int,
    map_size: tuple[int, int],
) -> Tensor:
    rows, columns = (-(-n // READOUT_PART) for n in map_size)
    votes = []
    for end_point, x in fused.items():
        if end_point == parts.MAIN:
            x = layers.LastStep(name="last")(x)
        x = stages.drop(stages.norm(x, end_point), end_point)
        x = stages.look(x, READOUT_FILTERS, end_point)
        x = layers.Resize((rows, columns), name=f"{end_point}_size")(x)
        votes.append(x)
    x = votes[0]
    if len(votes) > 1:
        x = keras.layers.Add(name="sum")(votes)
    x = keras.layers.Activation("gelu", name="sum_gelu")(x)
    x = stages.drop(stages.norm(x, "sum"), "sum")
    x = stages.look(x, PLACE_FILTERS, "places", kernel=3)
    x = keras.layers.Activation("gelu", name="gelu")(x)
    x = stages.look(x, 1, "map")
    return layers.Resize(map_size, name="map_size")(x)


# As `parts.DECODERS` names them.
DESIGNS: dict[str, Callable[..., Tensor]] = {
    "paper": _paper,
    "skip": _skip,
    "readout": _readout,
}


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
    """Builds an untrained decoder; `Experiment` says what goes together.

    Args:
        streams: In the order of fusion: some of "rgb" and "flow".
        design: One of `DESIGNS`; "skip" needs skips, "readout" may take them.
        head: One of `LAST`, of the paper's network.
        feature_shape: [time, height, width, channels] of each stream.
        skip_shapes: {end point: [rows, columns, channels]} of a stream's skips.
        tuned: {stream: model from other features to these}, trained together
            with the decoder and saved with it, as `tuned_i3d` builds it.
        targets: Maps of each window, one of `parts.TARGETS`: its last frames.
        map_size: Rows and columns of a map; None for what the paper's network
            makes, 72 x height and 128 x width. The other designs need it.
        dropout: Share of channels that training leaves out behind the stages
            that have `DROPOUT_FILTERS` or more.
        blur: Standard deviation in pixels of a Gaussian over the map, or 0.
        learn_blur: Whether its width is learnt, if there is one.
        centre_prior: "none", or what `layers.CentrePrior` starts from.
        sharpen: Power of served maps of what moves, see `layers.Sharpen`.
        centre: Weight by which they are drawn to the middle, likewise.
        synchronized: Whether BatchNorm takes its statistics over all replicas.
        dtype: Dtype policy; None is Keras' global one.
        seed: Of the initial weights; None draws from Keras' global seed.

    Returns:
        A model from {part: [batch, *its shape]} (see `parts.name`) to saliency
        [batch, *map_size, 1] in [0, 1], float32 (float64 under that policy);
        of several targets [batch, targets, *map_size, 1] in order of time.
    """
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    exact = "float64" if policy.variable_dtype == "float64" else "float32"
    shapes = {parts.MAIN: feature_shape, **(skip_shapes or {})}
    inputs, fused = _fuse(streams, shapes, tuned or {}, exact)
    with _default_policy(policy):
        x = DESIGNS[design](
            fused,
            _Stages(seed, dropout, synchronized),
            head=head,
            targets=targets,
            map_size=map_size,
        )
    # Half precision would leave some 1,000 grey levels and flush small
    # probabilities to zero.
    with _default_policy(exact):
        if centre_prior != "none":
            x = layers.CentrePrior(centre_prior, name="prior")(x)
        x = keras.layers.Activation("sigmoid", name="saliency")(x)
        if blur:
            x = layers.GaussianBlur(blur, learned=learn_blur, name="blur")(x)
        if sharpen != 1 or centre:
            sharpened = layers.Sharpen(sharpen, centre, name="sharpen")
            x = sharpened([x, fused[parts.MAIN]])
    return keras.Model(inputs, x, name=f"lsts_{'_'.join(streams)}")


def split(
    model: keras.Model, skips: Collection[str]
) -> tuple[dict[str, keras.Model], keras.Model]:
    """Splits off what a decoder makes of each skip alone.

    A skip's own layers end where another part joins it. They are split off up
    to where they leave the fewest numbers.

    Args:
        model: A decoder. It is copied: Keras cannot save a model whose layers
            other models call.
        skips: Names of inputs, see `parts.name`.

    Returns:
        {skip: model of [batch, *its shape]}, without those that no layer makes
        smaller; and the decoder of all parts with these models' outputs in
        place of the skips.
    """
    weights = model.get_weights()
    model = keras.models.clone_model(model)
    model.set_weights(weights)
    readers = collections.defaultdict(list)
    for operation in model.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            for x in keras.tree.flatten(operation.input):
                readers[id(x)].append(operation)
    inputs = {x.name: x for x in model.inputs}
    own = {}
    for name in skips:
        x, chain = inputs[name], []
        while x is not None:
            chain.append(x)
            here = readers[id(x)]
            alone = len(here) == 1 and here[0].input is x
            x = here[0].output if alone else None
        smallest = min(chain, key=lambda x: math.prod(x.shape[1:]))
        if smallest is not inputs[name]:
            own[name] = keras.Model(inputs[name], smallest)
            inputs[name] = smallest
    rest = keras.Model(list(inputs.values()), model.output)
    # Under the parts' own names.
    named = {
        name: keras.Input(x.shape[1:], dtype=x.dtype, name=name)
        for name, x in inputs.items()
    }
    return own, keras.Model(named, rest(list(named.values())), name=model.name)


def _fuse(
    streams: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    tuned: Mapping[str, keras.Model],
    dtype: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs by part, and by end point their channels, stream after stream."""
    inputs, fused = {}, {}
    for end_point, shape in shapes.items():
        each = []
        for name in (parts.name(stream, end_point) for stream in streams):
            model = tuned.get(name)
            inputs[name] = keras.Input(
                model.input_shape[1:] if model else tuple(shape),
                dtype=dtype,
                name=name,
            )
            each.append(model(inputs[name]) if model else inputs[name])
        fused[end_point] = (
            keras.ops.concatenate(each, axis=-1) if len(each) > 1 else each[0]
        )
    return inputs, fused


@contextlib.contextmanager
def _default_policy(policy: str | keras.DTypePolicy) -> Iterator[None]:
    """Inside, layers have this policy where they name none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
