"""TensorFlow's fused BatchNorm in Keras' layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.training import batch_norm

CHANNELS = 3


def make(shape, precision, **arguments):
    """One BatchNorm with weights that do something, as a model."""
    layer = keras.layers.BatchNormalization(
        momentum=0.75, epsilon=1e-3, dtype=precision, name="norm", **arguments
    )
    x = keras.Input((*shape, CHANNELS), dtype="float32")
    model = keras.Model(x, layer(x))
    for k, weight in enumerate(model.weights):
        weight.assign([1.5 + k, 0.5, 2.0])
    return model


def step(model, x, compiled):
    """Output, gradients of weights and input, and variables afterwards."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            # Its gradient differs from place to place.
            loss = tf.reduce_mean(tf.cast(y, tf.float32) ** 3)
        return y, tape.gradient(loss, [x, *model.trainable_weights])

    y, gradients = (tf.function(run) if compiled else run)(tf.constant(x))
    return [np.asarray(v, np.float32) for v in (y, *gradients, *model.weights)]


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
@pytest.mark.parametrize(
    ("precision", "rtol"),
    [("float32", 1e-5), ("mixed_bfloat16", 2e-2), ("mixed_float16", 3e-3)],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains_as_keras_does(shape, precision, rtol, compiled):
    x = np.random.default_rng(0).normal(2, 3, (6, *shape, CHANNELS))
    x = x.astype(np.float32)
    plain, fused = make(shape, precision), make(shape, precision)
    before = fused.predict(x, verbose=0)
    batch_norm.fuse(fused)
    np.testing.assert_array_equal(fused.predict(x, verbose=0), before)
    found, want = step(fused, x, compiled), step(plain, x, compiled)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max())


def test_one_kernel_computes_it():
    """Or there would be nothing to compare above."""
    model = make((4, 5), "float32")
    batch_norm.fuse(model)
    graph = (
        tf.function(lambda x: model(x, training=True))
        .get_concrete_function(tf.TensorSpec((6, 4, 5, CHANNELS)))
        .graph
    )
    assert "FusedBatchNormV3" in {x.type for x in graph.get_operations()}


@pytest.mark.parametrize("change", ["synchronized", "frozen"])
def test_some_remain_keras(change):
    """What sees all replicas, and what keeps its statistics."""
    model = make((4, 5), "float32", synchronized=change == "synchronized")
    model.trainable = change != "frozen"
    batch_norm.fuse(model)
    x = np.ones((6, 4, 5, CHANNELS), np.float32)
    graph = (
        tf.function(lambda x: model(x, training=True))
        .get_concrete_function(x)
        .graph
    )
    assert "FusedBatchNormV3" not in {x.type for x in graph.get_operations()}


def test_what_is_saved_is_keras(tmp_path):
    model = make((4, 5), "float32")
    batch_norm.fuse(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("norm")) is keras.layers.BatchNormalization
    for a, b in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
