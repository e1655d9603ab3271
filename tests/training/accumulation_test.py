"""Against the whole batch at once, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.networks import decoder
from lsts_tf.networks import i3d
from lsts_tf.networks import tuned_i3d
from lsts_tf.training import accumulation

TABLE = (
    decoder.Deconvolution("d1", 6, (3, 3), (2, 2)),
    decoder.Deconvolution("d2", 4, (1, 3), (1, 2)),
)


@pytest.fixture
def small(monkeypatch):
    """The decoder in small, in float64, and a batch of 12 windows."""
    monkeypatch.setattr(decoder, "TEMPORAL_FILTERS", 5)
    monkeypatch.setattr(decoder, "DECONVOLUTIONS", TABLE)

    def build(head="paper"):
        return decoder.build(
            ("rgb", "flow"),
            head=head,
            feature_shape=(2, 2, 2, 3),
            dtype="float64",
            seed=3,
        )

    return build


def batch(model, count=12):
    rng = np.random.default_rng(5)
    features = {
        t.name: rng.standard_normal((count, *t.shape[1:])) for t in model.inputs
    }
    return features, rng.random((count, *model.output_shape[1:]))


def squares(truth, maps):
    return tf.reduce_mean(tf.square(maps - truth), axis=[1, 2, 3])


def whole(model, features, truth):
    """Loss and gradient of the whole batch, by Keras' own BatchNorm."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(squares(truth, model(features, training=True)))
    return loss, tape.gradient(loss, model.trainable_variables)


def parts(model, features, truth, count, loss=squares):
    found = accumulation.Accumulation(model, loss, count=count)

    @tf.function(autograph=False)
    def step(features, truth):
        return found(features, truth, float(truth.shape[0]), 1.0)

    return step(features, truth)


def assert_same(model, other, features, truth, count):
    want_loss, want = whole(model, features, truth)
    loss, gradients = parts(other, features, truth, count)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert len(gradients) == len(want)
    for a, b in zip(gradients, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    # What serves after training moved alike.
    for a, b in zip(other.weights, model.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("count", "head"), [(2, "paper"), (6, "released")])
def test_micro_batches_give_what_the_whole_batch_gives(small, count, head):
    model, other = small(head), small(head)
    assert_same(model, other, *batch(model), count)


def test_micro_batches_alone_would_not(small):
    """BatchNorm over each micro-batch is another network."""
    model = small()
    features, truth = batch(model)
    _, want = whole(model, features, truth)
    halves = [
        whole(model, {s: f[rows] for s, f in features.items()}, truth[rows])[1]
        for rows in (slice(0, 6), slice(6, 12))
    ]
    mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    difference = max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(mean, want, strict=True)
    )
    assert difference > 0.01


def with_skips():
    """BatchNorms in a row, side by side, and skipped."""
    keras.utils.set_random_seed(1)
    dtype = "float64"

    def norm(x):
        return keras.layers.BatchNormalization(dtype=dtype)(x)

    inputs = keras.Input((4, 4, 3), dtype=dtype, name="rgb")
    a = keras.layers.Conv2D(4, 3, padding="same", dtype=dtype)(inputs)
    b = keras.layers.Conv2D(4, 1, dtype=dtype)(inputs)
    left, right = norm(a), norm(b)
    x = keras.layers.ReLU(dtype=dtype)(keras.ops.add(left, right))
    x = norm(keras.layers.Conv2D(4, 3, padding="same", dtype=dtype)(x))
    x = keras.ops.concatenate([x, a, left, inputs], axis=-1)
    x = norm(norm(x))
    x = keras.layers.Conv2D(1, 1, dtype=dtype)(x)
    x = keras.layers.Activation("sigmoid", dtype=dtype)(x)
    return keras.Model({"rgb": inputs}, x)


def test_tensors_that_pass_several_batch_norms():
    model, other = with_skips(), with_skips()
    assert_same(model, other, *batch(model), 3)


def with_late_input():
    """An input joins behind a BatchNorm, by a layer of another model too."""
    keras.utils.set_random_seed(2)
    dtype = "float64"
    inputs = keras.Input((4, 4, 3), dtype=dtype, name="rgb")
    late = keras.Input((4, 4, 2), dtype=dtype, name="late")
    shared = keras.layers.Conv2D(2, 3, padding="same", dtype=dtype)
    shared(keras.Input((8, 8, 2), dtype=dtype))
    x = keras.layers.Conv2D(4, 3, padding="same", dtype=dtype)(inputs)
    x = keras.layers.BatchNormalization(dtype=dtype)(x)
    x = keras.layers.Concatenate(dtype=dtype)([x, shared(late)])
    x = keras.layers.Conv2D(4, 3, padding="same", dtype=dtype)(x)
    x = keras.layers.BatchNormalization(dtype=dtype)(x)
    x = keras.layers.Conv2D(1, 1, dtype=dtype)(x)
    return keras.Model({"rgb": inputs, "late": late}, x)


def test_an_input_that_joins_late():
    model, other = with_late_input(), with_late_input()
    assert_same(model, other, *batch(model), 3)


def test_the_model_can_be_saved_all_the_same(tmp_path):
    model = with_late_input()
    features, _ = batch(model)
    want = model(features)
    accumulation.Accumulation(model, squares, count=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(features), want)


def test_random_layers_repeat_themselves_on_the_way_back():
    """The slope is that of the loss that was computed: by differences."""
    inputs = keras.Input((6,), name="rgb")
    x = keras.layers.Dense(16)(inputs)
    x = keras.layers.Dropout(0.5, seed=2)(x)
    x = keras.layers.Dense(8)(x)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model({"rgb": inputs}, keras.layers.Dense(1)(x))
    rng = np.random.default_rng(0)
    features = {"rgb": rng.standard_normal((8, 6)).astype(np.float32)}
    truth = rng.standard_normal((8, 1)).astype(np.float32)
    (seed,) = [
        v for v in model.variables if not any(v is w for w in model.weights)
    ]
    first = np.asarray(seed)
    found = accumulation.Accumulation(
        model, lambda t, y: tf.square(y - t)[:, 0], count=4
    )
    step = tf.function(
        lambda: found(features, truth, 8.0, 1.0), autograph=False
    )

    def loss_and_gradients():
        seed.assign(first)
        return step()

    _, gradients = loss_and_gradients()
    assert not np.array_equal(np.asarray(seed), first)
    kernel, slope = model.trainable_variables[0], gradients[0].numpy()
    direction = slope / np.linalg.norm(slope)
    start, losses = kernel.numpy(), []
    for sign in (1, -1):
        kernel.assign(start + sign * 1e-2 * direction)
        losses.append(float(loss_and_gradients()[0]))
    rise = (losses[0] - losses[1]) / 2e-2
    np.testing.assert_allclose(rise, np.linalg.norm(slope), rtol=0.02)


def test_half_precision(monkeypatch):
    monkeypatch.setattr(decoder, "TEMPORAL_FILTERS", 5)
    monkeypatch.setattr(decoder, "DECONVOLUTIONS", TABLE)
    one, other = (
        decoder.build(
            ("rgb",),
            feature_shape=(2, 2, 2, 3),
            dtype="mixed_bfloat16",
            seed=3,
        )
        for _ in range(2)
    )
    features, truth = batch(one)
    features = {s: f.astype(np.float16) for s, f in features.items()}
    truth = truth.astype(np.float32)
    want, _ = whole(one, features, truth)
    loss, gradients = parts(other, features, truth, 3)
    np.testing.assert_allclose(loss, want, rtol=1e-2)
    assert all(np.isfinite(g).all() for g in gradients)


def test_what_a_batch_takes():
    """By hand, of the paper's decoder, on the way back through D5.

    What entered the BatchNorms as far as D5's, its own slope, and twice that
    of what it makes its maps from: by micro-batch, and put together.
    """
    model = decoder.build(("rgb",), seed=0)
    d4, d5 = 90 * 80 * 64, 90 * 160 * 16
    before = 5 * 5 * 512 + 10 * 10 * 512 + 30 * 20 * 256 + 30 * 40 * 128
    counted = 4 * (before + d4 + d5 + 2 * d4)
    peak = accumulation.peak_bytes(model, windows=128, micro=8)
    assert peak == 128 * counted
    # In large micro-batches it is the inside of a piece that counts.
    d5_uncut = 90 * 161 * 16
    inside = 2 * 4 * (2 * d4 + d5_uncut + 2 * d5)
    peak = accumulation.peak_bytes(model, windows=128, micro=64)
    assert peak == 128 * (counted - 4 * d4) + 64 * inside


def test_what_trained_layers_of_i3d_take():
    """Blocks' outputs, and once the inside of the larger block, twice."""
    network = i3d.build(3, height=64, width=64)
    tuned = tuned_i3d.build(network, "Mixed_5b", frames=16, rate=0.1)
    outputs = 832 + 832 + 1024
    inside = 384 + (192 + 384) + (48 + 128) + (832 + 128)
    counted = 4 * 8 * (outputs + 2 * inside) + 4 * 1024
    assert accumulation.activation_bytes(tuned) == counted
    # In a decoder they come on top of it; what they read is its input then.
    shape = tuned.output_shape[1:]
    alone = decoder.build(("rgb",), feature_shape=shape)
    both = decoder.build(("rgb",), feature_shape=shape, tuned={"rgb": tuned})
    found = accumulation.activation_bytes(both)
    more = 4 * 8 * (outputs + 2 * inside)
    assert found == accumulation.activation_bytes(alone) + more
