"""The decoder against the authors' own program and a plain NumPy one."""

import functools
import math
import zlib

import keras
import numpy as np
import pytest

from lsts_tf import parts
from lsts_tf.networks import decoder, i3d, layers

STREAMS = {1024: ("rgb",), 2048: ("rgb", "flow")}
# PyTorch's names of the released decoder beside ours.
CHANNELS = (512, 512, 256, 128, 64, 16, 4, 2)
KERNELS = ((3, 3), (4, 3), (1, 3), (4, 3), (1, 3), (3, 3), (3, 3))
STRIDES = ((2, 2), (3, 2), (1, 2), (3, 2), (1, 2), (2, 2), (2, 2))

# The released program's maps for the formula's weights and input: the first
# map, then the second, at 32 pixels spread over rows and columns.
GOLDEN = {
    1024: """
        0.553654 0.572959 0.795306 0.511030 0.497720 0.516657 0.513269 0.516657
        0.516449 0.512127 0.596110 0.533417 0.497245 0.640234 0.514001 0.566126
        0.599870 0.518905 0.636826 0.582342 0.516657 0.601746 0.515101 0.581740
        0.646672 0.739844 0.534969 0.566955 0.681865 0.522775 0.516657 0.543327
        0.564220 0.538168 0.728962 0.516657 0.516033 0.728870 0.511873 0.516657
        0.515182 0.556149 0.520549 0.550213 0.486602 0.571158 0.516657 0.574772
        0.602360 0.516657 0.583508 0.721431 0.509028 0.625738 0.501091 0.528319
        0.614190 0.684768 0.548770 0.555599 0.544661 0.680773 0.537166 0.540337
    """,
    2048: """
        0.583947 0.584051 0.798976 0.516657 0.512496 0.531688 0.515061 0.516657
        0.498932 0.555942 0.533133 0.561995 0.529851 0.635444 0.516657 0.620985
        0.558405 0.595955 0.658336 0.685259 0.512708 0.516657 0.503898 0.584848
        0.664454 0.575884 0.527280 0.551010 0.516657 0.645081 0.516657 0.533988
        0.533985 0.536909 0.666794 0.516501 0.506530 0.585064 0.516657 0.517443
        0.495464 0.516657 0.608371 0.543701 0.492063 0.687429 0.516657 0.653656
        0.546925 0.609904 0.606415 0.705046 0.497828 0.516657 0.510968 0.555281
        0.669098 0.657467 0.516657 0.551203 0.516657 0.691272 0.525741 0.516479
    """,
}


def _noise(name, shape):
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return state.randint(-8, 8, size=shape) + 0.5


def _kernel(name, shape, fan):
    v = _noise(name, shape) * math.sqrt(2 / fan) / 4.609772228646444
    return v.astype("float32")


def _batch_norm(name, channels):
    """In Keras' order: gamma, beta, moving mean, moving variance."""
    return [
        1 + _noise(f"{name}.weight", channels) / 32,
        _noise(f"{name}.bias", channels) / 64,
        _noise(f"{name}.running_mean", channels) / 64,
        (np.abs(_noise(f"{name}.running_var", channels)) + 1) / 4,
    ]


def formula_weights(channels):
    """Weights of the `released` decoder: {our layer: Keras' weight list}."""
    name = "conv3d.conv3d.weight"
    kernel = _kernel(name, (512, channels, 5, 1, 1), channels * 5)
    weights = {
        "conv3d": [kernel.transpose(2, 3, 4, 1, 0)],
        "conv3d_bn": _batch_norm("conv3d.batch3d", 512),
    }
    for n, ((kh, kw), (sh, sw)) in enumerate(
        zip(KERNELS, STRIDES, strict=True), 1
    ):
        cin, cout = CHANNELS[n - 1], CHANNELS[n]
        name = f"deconv{n}.weight"
        kernel = _kernel(name, (cin, cout, kh, kw), cin * kh * kw / (sh * sw))
        bias = _noise(f"deconv{n}.bias", cout) / 64
        weights[f"d{n}"] = [kernel.transpose(2, 3, 1, 0), bias]
        weights[f"d{n}_bn"] = _batch_norm(f"bn{n}", cout)
    kernel = _kernel("classifier.weight", (1, 2, 1, 1), 2)
    bias = _noise("classifier.bias", 1) / 64
    weights["classifier"] = [kernel.transpose(2, 3, 1, 0), bias]
    return weights


def formula_input(channels):
    """Two windows: {stream: [2, 5, 5, 5, 1024]}."""
    state = np.random.RandomState(79 if channels == 1024 else 158)
    x = state.randint(-24, 40, size=(2, channels, 5, 5, 5))
    x = (np.maximum(x, 0) / 32).astype("float32").transpose(0, 2, 3, 4, 1)
    parts = np.split(x, channels // 1024, axis=-1)
    return dict(zip(STREAMS[channels], parts, strict=True))


def _formula_maps(channels):
    model = decoder.build(STREAMS[channels], head="released")
    for name, weights in formula_weights(channels).items():
        model.get_layer(name).set_weights(weights)
    return np.asarray(model(formula_input(channels), training=False))


def _transposed_convolution(x, kernel, bias, strides):
    """Each input pixel stamps its kernel on the output, in float64."""
    kh, kw, cout, _ = kernel.shape
    n, h, w, _ = x.shape
    sh, sw = strides
    full = np.zeros((n, (h - 1) * sh + kh, (w - 1) * sw + kw, cout))
    for i in range(h):
        for j in range(w):
            stamp = np.einsum("nc,abdc->nabd", x[:, i, j], kernel)
            full[:, i * sh : i * sh + kh, j * sw : j * sw + kw] += stamp
    return full[:, kh - sh :, kw - sw :] + bias


def _convolution(x, kernel):
    """Of the same size, by an odd kernel."""
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(
        padded, kernel.shape[:2], (1, 2)
    )
    return np.einsum("nijcab,abcd->nijd", patches, kernel)


def _weights(model, name):
    layer = model.get_layer(name)
    return [np.asarray(w, "float64") for w in layer.get_weights()]


def _normed(model, x, name):
    gamma, beta, mean, variance = _weights(model, name)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def _oracle(model, inputs, head):
    """The whole decoder in NumPy, float64, with a model's weights."""
    x = np.concatenate(inputs, axis=-1).astype("float64")
    (kernel,) = _weights(model, "conv3d")
    x = np.einsum("nthwc,tcd->nhwd", x, kernel[:, 0, 0])
    x = np.maximum(_normed(model, x, "conv3d_bn"), 0)
    last = 6 if head == "paper" else 7
    for n, strides in enumerate(STRIDES, 1):
        x = _transposed_convolution(x, *_weights(model, f"d{n}"), strides)
        if n <= last:
            x = _normed(model, np.maximum(x, 0), f"d{n}_bn")
    if head == "released":
        kernel, bias = _weights(model, "classifier")
        x = x @ kernel[0, 0] + bias
    return 1 / (1 + np.exp(-x))


def _scramble(model):
    """Weights, BatchNorm's statistics too, that no initializer would give."""
    rng = np.random.default_rng(5)
    for v in model.variables:
        if v.name in {"gamma", "moving_variance"}:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
        elif v.name in {"beta", "moving_mean", "bias"}:
            v.assign(rng.uniform(-0.5, 0.5, v.shape))


@pytest.mark.parametrize("channels", [1024, 2048])
def test_released_program_in_this_file(channels):
    maps = _formula_maps(channels)
    assert maps.shape == (2, 360, 640, 1)
    np.testing.assert_allclose(
        maps.reshape(2, -1)[:, np.arange(32) * 7211 + 3],
        np.reshape(GOLDEN[channels].split(), (2, 32)).astype(float),
        atol=2e-5,
    )


@pytest.mark.parametrize("channels", STREAMS)
def test_released_program_every_pixel(shared, channels):
    name = f"{'_'.join(STREAMS[channels])}.npz"
    with np.load(shared / "decoder_golden" / name) as golden:
        expected = golden["saliency"]
    np.testing.assert_allclose(
        _formula_maps(channels)[..., 0], expected, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("head", parts.HEADS)
@pytest.mark.parametrize("streams", [("flow",), ("rgb", "flow")])
def test_equals_numpy_in_float64(streams, head):
    shape = (3, 1, 2, 6)
    model = decoder.build(
        streams, head=head, feature_shape=shape, dtype="float64"
    )
    _scramble(model)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((2, *shape)) for _ in streams]
    got = model(dict(zip(streams, inputs, strict=True)), training=False)
    expected = _oracle(model, inputs, head)
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-12)


SKIP_SHAPES = {"Mixed_4f": (2, 3, 832), "Mixed_3c": (4, 6, 480)}
# What is left of a skip: the filters of its own layers; the readout also
# brings it to one size.
OWN = {
    "skip": {"rgb_Mixed_4f": (2, 3, 128), "rgb_Mixed_3c": (4, 6, 64)},
    "readout": {"rgb_Mixed_4f": (2, 3, 64), "rgb_Mixed_3c": (2, 3, 64)},
}


@pytest.mark.parametrize("design", OWN)
def test_what_is_made_of_a_skip_alone_can_be_split_off(design, tmp_path):
    model = decoder.build(
        ("rgb",),
        design=design,
        feature_shape=(5, 1, 2, 1024),
        skip_shapes=SKIP_SHAPES,
        map_size=(16, 24),
        seed=0,
    )
    _scramble(model)
    rng = np.random.default_rng(0)
    inputs = {
        x.name: rng.random((2, *x.shape[1:])).astype(np.float32)
        for x in model.inputs
    }
    want = model(inputs, training=False)
    for _ in range(2):
        own, rest = decoder.split(model, OWN[design])
        assert {k: v.output_shape[1:] for k, v in own.items()} == OWN[design]
        made = {
            name: np.asarray(part(inputs[name], training=False))
            for name, part in own.items()
        }
        found = rest(inputs | made, training=False)
        np.testing.assert_allclose(found, want, rtol=1e-5)
    assert np.ptp(want) > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(inputs, training=False), want, rtol=1e-6)


def test_skips_of_two_streams_are_read_together():
    model = decoder.build(
        STREAMS[2048],
        design="skip",
        feature_shape=(5, 1, 2, 1024),
        skip_shapes=SKIP_SHAPES,
        map_size=(16, 24),
    )
    own, rest = decoder.split(model, ["rgb_Mixed_4f", "flow_Mixed_4f"])
    assert own == {}
    assert {x.name for x in rest.inputs} == {x.name for x in model.inputs}


@pytest.mark.parametrize(
    ("head", "trainable"), [("released", 6_757_901), ("paper", 6_757_857)]
)
@pytest.mark.parametrize("streams", STREAMS.values())
def test_parameters(streams, head, trainable):
    model = decoder.build(streams, head=head)
    count = sum(math.prod(v.shape) for v in model.trainable_variables)
    assert count == trainable + (len(streams) - 1) * 5 * 1024 * 512
    statistics = sum(math.prod(v.shape) for v in model.non_trainable_variables)
    # A mean and a variance of each channel that BatchNorm sees.
    channels = 512 + sum(CHANNELS[1:7]) + (2 if head == "released" else 0)
    assert statistics == 2 * channels


def _small(shape=(1, 1, 1, 4), **arguments):
    """A decoder of one stream with few weights."""
    return decoder.build(("rgb",), feature_shape=shape, **arguments)


def test_initial_weights_and_batch_norms_are_pytorchs():
    model = decoder.build(("rgb",), head="released", seed=3, synchronized=True)
    norms = [x for x in model.layers if x.name.endswith("_bn")]
    assert len(norms) == 8
    for norm in norms:
        assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)
        assert norm.synchronized
    fans = {"conv3d": 1024 * 5, "classifier": 2}
    for n, (kh, kw) in enumerate(KERNELS, 1):
        fans[f"d{n}"] = CHANNELS[n] * kh * kw
    for name, fan in fans.items():
        bound = 1 / math.sqrt(fan)
        for w in model.get_layer(name).get_weights():
            assert np.abs(w).max() <= bound * (1 + 1e-6)
            if w.size > 500:
                assert np.abs(w).max() > 0.98 * bound
                np.testing.assert_allclose(
                    w.std(), bound / math.sqrt(3), rtol=0.1
                )


def test_seed_repeats_and_differs_by_layer():
    first, again, other = (
        [np.asarray(v) for v in _small(seed=seed).trainable_variables]
        for seed in (7, 7, 8)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    # A bias must not repeat the first numbers of its kernel.
    kernel, bias = first[3], first[4]
    assert kernel.ndim == 4
    assert bias.ndim == 1
    assert not np.allclose(kernel.ravel()[: bias.size], bias)


# === Recipes ===

TINY = (3, 2, 2, 6)
SKIPS = {
    "Mixed_4f": (4, 4, 7),
    "Mixed_3c": (8, 8, 5),
    "Conv3d_2c_3x3": (16, 16, 3),
}


def _tiny_input(streams=("rgb",), shape=TINY, skips=None, windows=2):
    rng = np.random.default_rng(8)
    found = {s: rng.random((windows, *shape), np.float32) for s in streams}
    for end_point, size in (skips or {}).items():
        for s in streams:
            found[f"{s}_{end_point}"] = rng.random((windows, *size), np.float32)
    return found


def test_other_feature_grids_are_brought_to_the_maps_size():
    """224 x 384 has 5 x 10 features: twice as wide as a map."""
    plain = _small((1, 1, 2, 4), seed=1)
    brought = _small((1, 1, 2, 4), seed=1, map_size=(72, 128))
    assert brought.output_shape == (None, 72, 128, 1)
    x = _tiny_input(shape=(1, 1, 2, 4))
    wide = np.asarray(plain(x))
    odds = np.log(wide / (1 - wide))
    want = (odds[:, :, 0::2] + odds[:, :, 1::2]) / 2
    got = np.asarray(brought(x))
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-want)), atol=1e-5)
    # The same size needs no layer, and is the paper's network.
    same = _small(map_size=(72, 128))
    assert "map_size" not in [layer.name for layer in same.layers]


def test_time_grows_with_a_kernel_for_each_frame():
    model = _small(targets=8, dtype="float64")
    _scramble(model)
    before = keras.Model(model.input, model.get_layer("d3_bn").output)
    behind = keras.Model(model.input, model.get_layer("d4_crop").output)
    x = _tiny_input(shape=(1, 1, 1, 4))
    kernel, bias = model.get_layer("d4").get_weights()
    want = [
        _transposed_convolution(np.asarray(before(x)), of_frame, bias, (3, 2))
        for of_frame in kernel
    ]
    assert len(want) == 2
    np.testing.assert_allclose(behind(x), np.stack(want, 1), atol=1e-10)


def test_sizes_of_the_skip_network():
    """As in the module's table."""
    skips = i3d.skip_shapes(tuple(SKIPS), 79, 224, 224)
    model = decoder.build(
        ("rgb",), design="skip", skip_shapes=skips, map_size=(360, 640)
    )
    expected = {
        "squeeze": (5, 5, 5, 256),
        "deep": (3, 5, 5, 256),
        "Mixed_4f": (1, 14, 14, 128),
        "Mixed_3c": (28, 28, 64),
        "Conv3d_2c_3x3": (56, 56, 32),
        "end1": (90, 160, 16),
        "end2": (180, 320, 8),
        "map": (360, 640, 1),
    }
    for name, size in expected.items():
        assert model.get_layer(name).output.shape[1:] == size
    assert model.output_shape == (None, 360, 640, 1)
    assert set(model.input) == {"rgb", *(f"rgb_{s}" for s in skips)}


@pytest.mark.parametrize("shape", [TINY, (1, 2, 2, 6), (10, 2, 2, 6)])
@pytest.mark.parametrize("chosen", [tuple(SKIPS), ("Mixed_3c",)])
@pytest.mark.parametrize("targets", [1, 16])
def test_skip_network_of_other_sizes(shape, chosen, targets):
    skips = {name: SKIPS[name] for name in chosen}
    streams = ("rgb", "flow")
    model = decoder.build(
        streams,
        design="skip",
        feature_shape=shape,
        skip_shapes=skips,
        targets=targets,
        map_size=(36, 64),
    )
    several = () if targets == 1 else (targets,)
    assert model.output_shape == (None, *several, 36, 64, 1)
    x = _tiny_input(streams, shape, skips)
    # In training, where BatchNorm stretches what initial weights shrink.
    base = np.asarray(model(x, training=True))
    for name in x:
        changed = {**x, name: x[name] ** 2}
        moved = np.asarray(model(changed, training=True))
        assert not np.allclose(moved, base), name


def test_one_level_in_numpy():
    """Skip and enlarged features, joined and convolved."""
    shape, skips = (1, 2, 2, 6), {"Mixed_4f": (4, 4, 7)}
    model = _small(
        shape,
        design="skip",
        skip_shapes=skips,
        map_size=(8, 8),
        dtype="float64",
    )
    _scramble(model)
    x = _tiny_input(shape=shape, skips=skips)

    def output(name):
        layer = model.get_layer(name)
        return np.asarray(keras.Model(model.input, layer.output)(x))

    def unit(y, name):
        (kernel,) = _weights(model, name)
        out = _convolution(y, kernel.reshape(kernel.shape[-4:]))
        return np.maximum(_normed(model, out, f"{name}_bn"), 0)

    deep = output("deep_relu")
    skip = unit(x["rgb_Mixed_4f"].astype(np.float64), "Mixed_4f_skip")
    large = _enlarged(deep, (4, 4))
    want = unit(np.concatenate([large, skip], -1), "Mixed_4f")
    # TensorFlow resizes in float32.
    np.testing.assert_allclose(output("Mixed_4f_relu"), want, atol=1e-6)


def test_dropout_acts_in_training_only_and_behind_wide_stages():
    model = _small(dropout=0.5, seed=1)
    names = [x.name for x in model.layers if x.name.endswith("_dropout")]
    assert names == [f"{n}_dropout" for n in ("conv3d", "d1", "d2", "d3", "d4")]
    plain = _small(seed=1)
    x = _tiny_input(shape=(1, 1, 1, 4))
    plain.set_weights([np.asarray(w) for w in model.weights])
    np.testing.assert_array_equal(model(x), plain(x))
    first, second = (np.asarray(model(x, training=True)) for _ in range(2))
    assert not np.allclose(first, second)


def test_blur_and_prior_stand_behind_the_network():
    arguments = {"seed": 1, "dtype": "float64"}
    plain = _small(**arguments)
    behind = {"blur": 4.0, "learn_blur": True, "centre_prior": "gaussian"}
    model = _small(**arguments, **behind)
    x = _tiny_input(shape=(1, 1, 1, 4))
    odds = keras.Model(plain.input, plain.get_layer("d7_crop").output)(x)
    want = layers.CentrePrior("gaussian", dtype="float64")(odds)
    want = layers.GaussianBlur(4.0, learned=True, dtype="float64")(
        keras.ops.sigmoid(want)
    )
    np.testing.assert_allclose(model(x), want, atol=1e-12)
    extra = len(model.trainable_weights) - len(plain.trainable_weights)
    assert extra == 2


def _norm(x, weights):
    gamma, beta = weights
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def _gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _shares(size, wanted):
    """[wanted, size]: how much of each pixel lies at another one's centre."""
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    each = [np.interp(centres, np.arange(size), one) for one in np.eye(size)]
    return np.stack(each, 1)


def _enlarged(x, size):
    """Bilinear by the pixels' centres."""
    rows, columns = map(_shares, x.shape[1:3], size)
    return np.einsum("ir,jc,nrcd->nijd", rows, columns, x)


@pytest.mark.parametrize("skips", [{}, {"Mixed_4f": (3, 4, 7)}])
def test_readout_in_numpy(skips):
    model = decoder.build(
        ("rgb", "flow"),
        design="readout",
        feature_shape=TINY,
        skip_shapes=skips,
        map_size=(16, 24),
        sharpen=1.5,
        dtype="float64",
    )
    _scramble(model)
    x = _tiny_input(("rgb", "flow"), skips=skips)

    weights = functools.partial(_weights, model)
    total = 0
    for name in ("Mixed_5c", *skips):
        both = [x[parts.name(stream, name)] for stream in ("rgb", "flow")]
        y = np.concatenate(both, -1).astype(np.float64)
        # Only the last step of time counts.
        y = y[:, -1] if name == "Mixed_5c" else y
        kernel, bias = weights(name)
        y = _norm(y, weights(f"{name}_norm"))
        total += _enlarged(y @ kernel[0, 0] + bias, (2, 3))
    y = _norm(_gelu(total), weights("sum_norm"))
    kernel, bias = weights("places")
    y = _convolution(y, kernel) + bias
    kernel, bias = weights("map")
    odds = _enlarged(_gelu(y) @ kernel[0, 0] + bias, (16, 24))
    want = 1 / (1 + np.exp(-odds))
    # TensorFlow resizes in float32.
    # With a floor of one step of 8 bits.
    served = want**1.5 + (1 - want**1.5) / 255
    np.testing.assert_allclose(model(x), served, atol=1e-6)
    np.testing.assert_allclose(model(x, training=True), want, atol=1e-6)
